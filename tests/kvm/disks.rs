//! Disks of machines that a library user builds: their limits, changed while the guest waits for them.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use lodger::devices::Collected;
use lodger::devices::virtio::{Limits, Rate};
use lodger::hv::kvm::KvmVm;
use lodger::vm::{Config, DiskSpec, Machine, Outcome};

use crate::support::{ENDS_WITHIN, kvm, within};

const MIB: u64 = 1 << 20;

/// One request goes on credit, and for the next the guest would wait for an hour.
fn as_good_as_none() -> Limits {
    Limits { bytes: Some(Rate::new(NonZeroU64::MIN)), operations: None }
}

/// The embedded guest, which reads from a disk with these limits and then ends.
fn reader(limits: Limits, queues: u16) -> (Machine<KvmVm>, Arc<Collected>) {
    let mut disk = format!("ephemeral,size={},queues={queues}", 4 * MIB).parse::<DiskSpec>().unwrap();
    disk.limits = limits;
    let config = Config {
        disks: vec![disk],
        cmdline: Some("quiet run=disk read 4096 8 100;exit 42".to_owned()),
        ..Config::default()
    };
    let output = Arc::new(Collected::default());
    let machine = Machine::new(&kvm(), &config, output.clone()).unwrap();
    assert_eq!(machine.disks().len(), 1);
    assert_eq!(machine.disks()[0].limits(), limits);
    (machine, output)
}

fn read_all(machine: Machine<KvmVm>, output: &Collected) {
    within(ENDS_WITHIN, move || {
        let outcome = machine.wait();
        assert!(matches!(outcome, Outcome::Exited(42)), "{outcome}");
    });
    assert!(output.text().contains(" 0 failed"), "{}", output.text());
}

#[test]
fn a_guest_that_waits_goes_on_when_its_disks_limits_are_lifted() {
    for queues in [1, 2] {
        let (machine, output) = reader(as_good_as_none(), queues);
        machine.resume();
        assert!(output.wait_for("100 times read", ENDS_WITHIN), "{}", output.text());
        thread::sleep(Duration::from_millis(30));
        assert!(!output.text().contains("done in"), "{}", output.text());
        machine.disks()[0].set_limits(Limits::default());
        read_all(machine, &output);
    }
}

#[test]
fn a_machine_whose_disk_waits_can_be_paused_and_stopped() {
    let (machine, output) = reader(as_good_as_none(), 1);
    machine.resume();
    assert!(output.wait_for("100 times read", ENDS_WITHIN), "{}", output.text());
    let machine = within(ENDS_WITHIN, move || {
        for _ in 0..20 {
            machine.pause();
            machine.resume();
        }
        machine.pause();
        machine
    });
    machine.disks()[0].set_limits(Limits::default());
    machine.resume();
    read_all(machine, &output);

    let (machine, output) = reader(as_good_as_none(), 1);
    machine.resume();
    assert!(output.wait_for("100 times read", ENDS_WITHIN), "{}", output.text());
    within(ENDS_WITHIN, move || {
        machine.stop();
        drop(machine);
    });
}
