//! However Linux ends, the process ends with the documented status.

use crate::support::{Files, Finished, Linux, USER_SPACE, has_line, smp, tiny};

const HALTED: &str = "lodger: the guest halted for good\n";

#[track_caller]
fn ends(files: &'static Files, word: &str, status: i32) -> Finished {
    let finished = Linux::new(files).run(word).with(status);
    has_line(&finished, USER_SPACE);
    finished
}

#[test]
fn a_reboot_ends_the_process_well() {
    ends(tiny(), "reboot", 0).silent();
    ends(smp(), "reboot", 0).silent();
}

#[test]
fn every_way_to_reset_a_pc_ends_the_process() {
    // Keyboard controller, firmware in real mode, firmware of the kind that there is none of (then as before), the
    // chipset's register, and triple fault.
    for (way, status) in [("k", 0), ("b", 0), ("e", 0), ("p", 0), ("t", 101)] {
        let finished = Linux::new(tiny()).parameters(&format!("reboot={way}")).run("reboot").with(status);
        has_line(&finished, USER_SPACE);
    }
}

#[test]
fn with_acpi_linux_switches_the_power_off() {
    ends(smp(), "poweroff", 0).silent();
}

#[test]
fn without_acpi_linux_halts_where_it_would_power_off() {
    assert_eq!(ends(tiny(), "poweroff", 0).stderr, HALTED);
}

#[test]
fn a_halt_is_noticed() {
    assert_eq!(ends(tiny(), "halt", 0).stderr, HALTED);
    assert_eq!(ends(smp(), "halt", 0).stderr, HALTED);
}

#[test]
fn a_panic_that_the_guest_tells_of_has_a_status_of_its_own() {
    let finished = ends(smp(), "panic", 105);
    assert_eq!(finished.stderr, "lodger: the guest's kernel panicked\n");
    assert!(finished.stdout.contains("Kernel panic - not syncing: Attempted to kill init!"), "{finished:?}");
}

#[test]
fn a_panic_without_that_device_is_a_reset() {
    let finished = ends(tiny(), "panic", 0).silent();
    assert!(finished.stdout.contains("Kernel panic - not syncing: Attempted to kill init!"), "{finished:?}");
}

#[test]
fn the_guest_chooses_a_status() {
    ends(tiny(), "exit:0", 0).silent();
    ends(smp(), "exit:77", 77).silent();
}
