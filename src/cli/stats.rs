//! What `--timing` and `--stats` print.

use std::fs;
use std::time::Duration;

use lodger::bus::UnownedAccesses;
use lodger::devices::virtio::balloon::GivenBack;
use lodger::hv::Vm;
use lodger::vm::{Machine, Timeline};

use super::say::say;

/// Prints each phase of the start with its own duration and the time since `main` began.
pub fn print_timing(timeline: &Timeline) {
    say!("lodger: start of the guest in milliseconds: each phase, and since main began");
    let loading = milliseconds(timeline.used_before());
    say!("  {:<32} {loading:>8.3}   (processor time)", "program loaded");
    for (phase, own, since) in timeline.phases() {
        say!("  {phase:<32} {:>8.3} {:>8.3}", milliseconds(own), milliseconds(since));
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Prints what the guest did and what it cost.
pub fn print_stats<V: Vm>(machine: &Machine<V>) {
    say!("lodger: what the guest did");
    for vcpu in machine.vcpus() {
        let counts: Vec<_> =
            vcpu.counters().iter().map(|(kind, count)| format!("{} {count}", kind.name())).collect();
        say!("  vcpu{} exits: {}", vcpu.id(), counts.join(", "));
        let instructions = vcpu.counters().kernel_instructions();
        if instructions > 0 {
            say!("  vcpu{} instructions of the kernel in software: {instructions}", vcpu.id());
        }
        let completions = vcpu.counters().completions();
        if !completions.is_empty() {
            let total: u64 = completions.iter().map(|(_, count)| count).sum();
            let each: Vec<_> = completions.iter().map(|(name, count)| format!("{name} {count}")).collect();
            say!("  vcpu{} completed in KVM's place: {total}: {}", vcpu.id(), each.join(", "));
        }
    }
    let unowned = machine.bus().unowned();
    print_unowned("ports", &unowned.ports);
    print_unowned("addresses", &unowned.memory);
    if let Some(code) = machine.last_post_code() {
        say!("  last POST code: {code:#04x}");
    }
    if let Some(balloon) = machine.balloon() {
        let GivenBack { inflated, reported } = balloon.given_back();
        let [held, inflated, reported] = [balloon.actual(), inflated, reported].map(|bytes| bytes >> 20);
        say!(
            "  balloon: holds {held} MiB; given back {inflated} MiB into it, {reported} MiB reported as free"
        );
    }
    if let Some(kib) = peak_memory() {
        say!("  peak resident memory, the guest's touched pages included: {kib} KiB");
    }
}

fn print_unowned(places: &str, accesses: &UnownedAccesses) {
    let UnownedAccesses { reads, writes, last } = accesses;
    if let Some(last) = last {
        say!("  {places} that no device owns: {reads} reads, {writes} writes, the last at {last:#x}");
    }
}

/// What the kernel says about this process, in KiB.
fn peak_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}
