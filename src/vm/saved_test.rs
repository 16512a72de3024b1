use std::sync::Arc;

use super::*;
use crate::devices::Collected;
use crate::hv::fake::{FakeHypervisor, FakeVm};
use crate::vm::{Completion, Config, CpusSpec};

fn hypervisor() -> FakeHypervisor {
    FakeHypervisor::new([])
}

/// Of two processors and all devices, on a host that is not asked what it lacks.
fn machine() -> Machine<FakeVm> {
    let config = Config {
        cpus: CpusSpec::from(2),
        completion: Completion::Off,
        disks: vec!["ephemeral,size=1M".parse().unwrap()],
        rng: true,
        ..Config::default()
    };
    Machine::new(&hypervisor(), &config, Arc::new(Collected::default())).unwrap()
}

#[test]
fn a_machine_is_written_down_in_a_section_for_each_part() {
    let saved = machine().save(&hypervisor()).unwrap();
    let sections = saved.sections();
    let names: Vec<_> = sections.iter().map(|section| section.name.as_str()).collect();
    let expected = "machine memory-layout vcpu/0 vcpu/1 interrupts clock serial cmos i8042 pci post virtio/0/transport \
                    virtio/0/device virtio/1/transport virtio/1/device";
    assert_eq!(names.join(" "), expected);
    assert_eq!(SavedMachine::from_sections(Sections::new(sections)).unwrap(), saved);
}

#[test]
fn a_section_that_is_missing_or_not_known_is_named() {
    let sections = machine().save(&hypervisor()).unwrap().sections();
    for number in 0..sections.len() {
        let mut fewer = sections.clone();
        let missing = fewer.remove(number).name;
        let error = SavedMachine::from_sections(Sections::new(fewer)).unwrap_err();
        assert!(matches!(&error, snapshot::Error::Missing { name } if *name == missing), "{error}");
    }
    let unknown = Section { name: "vcpu/2".to_owned(), ..sections[2].clone() };
    let more = [sections, vec![unknown]].concat();
    let error = SavedMachine::from_sections(Sections::new(more)).unwrap_err().to_string();
    assert!(error.contains("\"vcpu/2\""), "{error}");
}

#[test]
fn every_section_that_is_cut_short_is_refused() {
    let sections = machine().save(&hypervisor()).unwrap().sections();
    // Devices read their own.
    for number in (0..sections.len()).filter(|&number| !sections[number].name.ends_with("/device")) {
        for length in 0..sections[number].bytes.len() {
            let mut cut = sections.clone();
            cut[number].bytes.truncate(length);
            let error = SavedMachine::from_sections(Sections::new(cut)).unwrap_err().to_string();
            assert!(error.contains(&format!("{:?}", sections[number].name)), "{error}");
        }
    }
}

#[test]
fn absurd_numbers_of_processors_end_with_the_first_that_is_missing() {
    let mut saved = machine().save(&hypervisor()).unwrap();
    (saved.parts.sockets, saved.parts.cores, saved.parts.threads) = (u32::MAX, u32::MAX, u32::MAX);
    let error = SavedMachine::from_sections(Sections::new(saved.sections())).unwrap_err();
    assert!(matches!(&error, snapshot::Error::Missing { name } if name == "vcpu/2"), "{error}");
}

#[test]
fn only_a_machine_at_rest_is_saved() {
    let machine = machine();
    machine.resume();
    let error = machine.save(&hypervisor()).unwrap_err();
    assert!(matches!(error, Error::Save(CannotSave::Running)), "{error}");
    machine.pause();
    machine.save(&hypervisor()).unwrap();
    machine.stop();
    machine.wait();
    let error = machine.save(&hypervisor()).unwrap_err();
    assert!(matches!(error, Error::Save(CannotSave::Ended(_))), "{error}");
}
