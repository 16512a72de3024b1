//! Machines of other sizes, and several at once.

use crate::support::{Running, guest, lodger, program};

#[test]
fn all_processors_start() {
    let arguments = ["--cpus", "2"].map(str::to_owned).into_iter().chain(guest("cpu;exit 1"));
    let finished = lodger(arguments, "").with(1).silent();
    assert!(finished.stdout.contains("started     2 by INIT and SIPI"), "{finished:#?}");
    let arguments = ["--cpus=5"].map(str::to_owned).into_iter().chain(guest("cpu;exit 2"));
    let finished = lodger(arguments, "").with(2).silent();
    assert!(finished.stdout.contains("started     5 by INIT and SIPI"), "{finished:#?}");
}

#[test]
fn memory_of_all_sizes_is_what_the_guest_finds() {
    for (size, found) in [("2M", "1.6 MiB"), ("5000K", "4.5 MiB"), ("64M", "63.6 MiB"), ("64G", "63.9 GiB")] {
        let finished = lodger(["--memory", size, "--cmdline", "run=exit 3"], "").with(3).silent();
        let line = finished.lines().find(|line| line.starts_with("  memory ")).unwrap();
        assert!(line.contains(found), "{size}: {line}");
    }
}

#[test]
fn the_ways_to_back_memory_work() {
    for options in ["prefault", "prefault,prefault"] {
        let memory = format!("--memory=32M,{options}");
        lodger([memory].into_iter().chain(guest("touch;exit 4")), "").with(4).silent();
    }
    let finished = lodger(["--memory=32M,hugepages".to_owned()].into_iter().chain(guest("exit 4")), "");
    // A host may have them switched off.
    if finished.status.code() != Some(4) {
        finished.refused(&["huge pages", "transparent_hugepage"]);
    }
}

#[test]
fn twenty_guests_run_at_once() {
    let start = |status: i32| {
        let mut command = program();
        Running::start(command.args(guest(&format!("burst 640;exit {status}"))).arg("--memory=64M"))
    };
    let running: Vec<_> = (0..20).map(|status| (status, start(status))).collect();
    for (status, running) in running {
        let finished = running.finish().with(status).silent();
        assert_eq!(finished.stdout.matches("lazy dog").count(), 10);
    }
}
