//! Memory that Linux gives back to the host: by a balloon that is inflated, and by reports of what is free.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use lodger::devices::Collected;
use lodger::hv::kvm::Kvm;
use lodger::memory::Options;
use lodger::vm::{BalloonSpec, Config, Kernel, Machine, MemorySpec};

use crate::support::{LIMIT, Linux, has_line, tiny, wait_until};

const MIB: u64 = 1 << 20;

/// What a process (`self`, or its id) has in memory.
fn resident(process: &str) -> u64 {
    let path = format!("/proc/{process}/smaps_rollup");
    // Unreadable while the process is being replaced by the program.
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:"));
    line.map_or(0, |line| line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10)
}

#[test]
fn inflating_lowers_what_the_guest_costs_and_deflating_gives_it_back() {
    let files = tiny();
    let config = Config {
        // Everything is there from the start, so that whatever the guest chooses was paid for.
        memory: MemorySpec { size: 64 * MIB, options: Options { prefault: true, ..Options::default() } },
        kernel: Kernel::File(files.path("vmlinux").into()),
        initrds: vec![files.path("initramfs").into()],
        cmdline: Some(format!("{} lodger.run=\"sleep 10000\"", files.get("cmdline"))),
        balloon: Some(BalloonSpec { target: 0, reporting: false }),
        ..Config::default()
    };
    let output = Arc::new(Collected::default());
    let machine = Machine::new(&Kvm::open().unwrap(), &config, output.clone()).unwrap();
    let balloon = machine.balloon().unwrap();
    assert!(balloon.set_target(64 * MIB).is_err());
    machine.resume();
    assert!(output.wait_for("user space reached", LIMIT), "{}", output.text());
    let free = || balloon.statistics(Duration::from_secs(60)).unwrap().free.unwrap();
    let (before, free_before) = (resident("self"), free());
    assert!(before > 64 * MIB, "{before}");

    balloon.set_target(32 * MIB).unwrap();
    wait_until("the balloon is inflated", || balloon.actual() == 32 * MIB);
    let (after, free_after) = (resident("self"), free());
    println!("resident before {} KiB, after {} KiB", before >> 10, after >> 10);
    assert!(after + 30 * MIB <= before, "{before} before, {after} after");
    assert!(free_after + 30 * MIB <= free_before, "{free_before} free before, {free_after} after");
    assert_eq!(balloon.given_back().inflated, 32 * MIB);

    balloon.set_target(0).unwrap();
    wait_until("the balloon is empty", || balloon.actual() == 0);
    assert!(free() + 2 * MIB >= free_before);
    assert!(machine.outcome().is_none());
    machine.stop();
}

#[test]
fn memory_that_a_guest_frees_is_the_hosts_again_without_anybody_asking() {
    let running = Linux::new(tiny())
        .memory("96M")
        .options(&["--balloon"])
        // By itself this small kernel reports pieces of 4 MiB, and only while 128 MiB are free.
        .start_script(
            "echo 4 >/sys/module/page_reporting/parameters/page_reporting_order; \
             dd if=/dev/zero of=/file bs=1M count=36; sleep 1; rm /file; sleep 10000",
        );
    let process = running.id().to_string();
    let mut most = 0;
    wait_until("what the file took is given back", || {
        let now = resident(&process);
        most = most.max(now);
        most > 40 * MIB && now > 0 && now + 30 * MIB <= most
    });
}

#[test]
fn a_guest_that_runs_out_of_memory_takes_it_from_its_balloon() {
    let finished = Linux::new(tiny())
        .memory("64M")
        .options(&["--balloon=40M,no-reporting"])
        .run_script("sleep 1; dd if=/dev/zero of=/file bs=1M count=16 && echo written; rm /file")
        .with(0);
    has_line(&finished, "written");
}
