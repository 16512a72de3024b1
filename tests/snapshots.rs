//! Snapshots of every version of the format, as programs wrote them that knew no newer one: `tests/snapshots`.
//!
//! They were taken on some host or other, so nothing is run here; `tests/kvm` does, where the processor allows it.

use std::path::Path;

use lodger::snapshot::{NEWEST_FORMAT, Snapshot};
use lodger::vm::SavedMachine;

fn stored(version: u32) -> Snapshot {
    let name = format!("tests/snapshots/v{version}");
    Snapshot::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

#[test]
fn a_snapshot_of_every_version_is_read() {
    for version in 1..=NEWEST_FORMAT {
        let snapshot = stored(version);
        assert_eq!(snapshot.info().format, version);
        assert_eq!(snapshot.info().memory_size, 2 << 20);
        assert!(snapshot.info().program.starts_with("lodger 0."), "{}", snapshot.info().program);
        snapshot.check().unwrap();
        SavedMachine::from_sections(snapshot.sections().unwrap()).unwrap();
    }
}

#[test]
fn what_is_in_it_has_not_changed_its_form() {
    let snapshot = stored(1);
    let names: Vec<_> = snapshot.info().sections.iter().map(|section| section.name.as_str()).collect();
    let expected = "machine memory-layout vcpu/0 interrupts clock serial cmos i8042 pci post virtio/0/transport \
                    virtio/0/device virtio/1/transport virtio/1/device virtio/2/transport virtio/2/device memory-hashes";
    assert_eq!(names.join(" "), expected);
    let mut sections = snapshot.sections().unwrap();
    let saved = SavedMachine::from_sections(sections.clone()).unwrap();
    for section in saved.sections() {
        assert_eq!(sections.take_section(&section.name).unwrap(), section, "written again, it is another");
    }
    sections.finish().unwrap();
}
