//! Memory that Linux gives back to the host: by a balloon that is inflated, and by reports of what is free.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use lodger::devices::Collected;
use lodger::hv::Vm;
use lodger::hv::kvm::Kvm;
use lodger::memory::Options;
use lodger::vm::{BalloonSpec, Config, Kernel, Machine, MemorySpec};

use crate::support::{Fixture, LIMIT, has_line, tiny, wait_until};

const MIB: u64 = 1 << 20;

/// How much of a guest's memory is in this process's.
fn resident<V: Vm>(machine: &Machine<V>) -> u64 {
    const PAGE: u64 = 4096;
    const PRESENT: u64 = 1 << 63;
    let pagemap = File::open("/proc/self/pagemap").unwrap();
    let pages = machine.memory().host_regions().map(|(region, host)| {
        let mut entries = vec![0; (region.size / PAGE) as usize * size_of::<u64>()];
        pagemap.read_exact_at(&mut entries, host as u64 / PAGE * size_of::<u64>() as u64).unwrap();
        let entries = entries.as_chunks().0.iter().map(|entry| u64::from_ne_bytes(*entry));
        entries.filter(|entry| entry & PRESENT != 0).count() as u64
    });
    pages.sum::<u64>() * PAGE
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
    let (before, free_before) = (resident(&machine), free());
    assert_eq!(before, 64 * MIB);

    balloon.set_target(32 * MIB).unwrap();
    wait_until("the balloon is inflated", || balloon.actual() == 32 * MIB);
    let (after, free_after) = (resident(&machine), free());
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
    let mut shell = Fixture::equipped(tiny()).shell();
    // By itself this small kernel reports pieces of 4 MiB, and only while 128 MiB are free.
    shell.ask(
        "echo 4 >/sys/module/page_reporting/parameters/page_reporting_order; \
         dd if=/dev/zero of=/file bs=1M count=36; sleep 1; rm /file",
    );
    let mut most = 0;
    wait_until("what the file took is given back", || {
        let now = resident(shell.machine());
        most = most.max(now);
        most > 36 * MIB && now > 0 && now + 30 * MIB <= most
    });
}

#[test]
fn a_guest_that_runs_out_of_memory_takes_it_from_its_balloon() {
    let mut shell = Fixture::equipped(tiny()).shell();
    let balloon = Arc::clone(shell.machine().balloon().unwrap());
    balloon.set_target(96 * MIB).unwrap();
    wait_until("the balloon is inflated", || balloon.actual() == 96 * MIB);
    let answer = shell.run("dd if=/dev/zero of=/file bs=1M count=24 && echo written; rm /file").ok();
    has_line(&answer, "written");
}
