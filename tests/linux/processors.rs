//! Several processors, found by ACPI.

use crate::support::{Finished, Linux, has_line, section, smp, tiny};

/// What `/proc/cpuinfo` says of `name`, for each processor.
fn values<'a>(finished: &'a Finished, name: &str) -> Vec<&'a str> {
    let lines = section(finished, "/proc/cpuinfo").lines();
    let pairs = lines.filter_map(|line| line.split_once(':'));
    pairs.filter(|(key, _)| key.trim() == name).map(|(_, value)| value.trim()).collect()
}

#[test]
fn two_processors_work() {
    let linux = Linux::new(smp()).with_programs().options(&["--cpus", "2"]);
    let finished = linux.run("show:/proc/cpuinfo log run:/bin/check:cpus run:/bin/busybox:nproc exit:42");
    let finished = finished.with(42);
    assert_eq!(values(&finished, "processor"), ["0", "1"]);
    assert_eq!(values(&finished, "core id"), ["0", "1"]);
    assert_eq!(values(&finished, "siblings"), ["2", "2"]);
    assert_eq!(values(&finished, "cpu cores"), ["2", "2"]);
    for line in ["cpus: 2", "/bin/check cpus: status 0", "2", "/bin/busybox nproc: status 0"] {
        has_line(&finished, line);
    }
    assert!(section(&finished, "log").contains("ACPI: RSDP"), "{finished:?}");
}

#[test]
fn processors_are_arranged_as_was_asked_for() {
    for (cpus, cores, packages) in
        [("2,threads=2", ["0", "0"], ["0", "0"]), ("2,sockets=2", ["0", "0"], ["0", "1"])]
    {
        let linux = Linux::new(smp()).options(&["--cpus", cpus]);
        let finished = linux.run("show:/proc/cpuinfo exit:42").with(42);
        assert_eq!(values(&finished, "processor"), ["0", "1"], "{finished:?}");
        assert_eq!(values(&finished, "core id"), cores, "{finished:?}");
        assert_eq!(values(&finished, "physical id"), packages, "{finished:?}");
    }
}

#[test]
fn a_processor_without_no_execute_boots() {
    let finished = Linux::new(tiny()).options(&["--cpu", "host,-nx"]).run("show:/proc/cpuinfo log exit:42");
    let finished = finished.with(42);
    assert_eq!(values(&finished, "processor"), ["0"]);
    assert!(section(&finished, "log").contains("NX (Execute Disable) protection missing"), "{finished:?}");
}

#[test]
fn a_kernel_for_many_processors_runs_on_one() {
    let finished = Linux::new(smp()).run("show:/proc/cpuinfo exit:42").with(42).silent();
    assert_eq!(values(&finished, "processor"), ["0"]);
}
