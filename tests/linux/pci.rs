//! The PCI bus with nothing in it but its host bridge.

use crate::support::{Finished, Linux, section, smp};

fn boot(parameters: &str) -> Finished {
    Linux::new(smp()).parameters(parameters).run("log show:/proc/ioports exit:42").with(42)
}

/// Checks that Linux reaches configuration space and complains of nothing.
#[track_caller]
fn is_content(finished: &Finished) {
    let log = section(finished, "log");
    assert!(log.contains("PCI: Using configuration type 1 for base access"), "{log}");
    for complaint in ["Fatal", "does not support PCI", "can't"] {
        assert!(!log.contains(complaint), "{complaint}: {log}");
    }
    assert!(section(finished, "/proc/ioports").contains("0cf8-0cff : PCI conf1"), "{finished:?}");
}

#[test]
fn linux_finds_the_configuration_space_and_with_acpi_no_bus_to_look_through() {
    let finished = boot("");
    is_content(&finished);
    assert!(!section(&finished, "log").contains("PCI host bridge to bus"), "{finished:?}");
}

#[test]
fn linux_without_acpi_looks_through_the_bus_and_finds_its_host_bridge() {
    let finished = boot("acpi=off");
    is_content(&finished);
    let log = section(&finished, "log");
    let found: Vec<_> = log.lines().filter(|line| line.contains("pci 0000:")).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("00:00.0: [1b36:0008] type 00 class 0x060000"), "{found:?}");
}
