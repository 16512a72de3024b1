//! What a trap costs: each kind of exit through lodger's run loop, beside a bare `KVM_RUN` loop in the same
//! run. The table of ratios comes first, then Criterion's own statistics for each side.
//!
//! `cargo bench --bench exits`

mod support;

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use support::bare::Bare;
use support::guests;
use support::lodger_loop::Ours;

/// A guest and how it is counted.
struct Case {
    name: &'static str,
    code: fn() -> &'static [u8],
    ring: u8,
    /// Exits to user space in one measurement.
    exits: u64,
    /// How often the thing happens per exit.
    per_exit: u64,
}

const fn case(name: &'static str, code: fn() -> &'static [u8], ring: u8, exits: u64, per_exit: u64) -> Case {
    Case { name, code, ring, exits, per_exit }
}

const CASES: [Case; 8] = [
    case("port write", guests::port_write, 0, 10_000, 1),
    case("port read", guests::port_read, 0, 10_000, 1),
    case("memory-mapped write", guests::memory_write, 0, 10_000, 1),
    case("memory-mapped read", guests::memory_read, 0, 10_000, 1),
    case("string output, per byte", guests::string_write, 0, 10_000, 1),
    case("string input, per byte", guests::string_read, 0, 5_000, guests::STRING),
    case("doorbell (no exit)", guests::doorbell, 3, 500, guests::RINGS),
    case("timer interrupt and exit", guests::timer, 0, 2_000, 1),
];

fn exits(criterion: &mut Criterion) {
    for case in &CASES {
        let mut bare = Bare::new((case.code)(), case.ring);
        let mut ours = Ours::new((case.code)(), case.ring);
        // String input is one exit on the bare side and as many accesses as bytes on ours.
        let string = case.per_exit == guests::STRING;
        let accesses = if string { case.exits * case.per_exit } else { case.exits };
        support::compare(
            case.name,
            case.exits * case.per_exit,
            || bare.measure(case.exits),
            || ours.measure(accesses),
        );
    }
    for case in CASES.iter().filter(|case| case.per_exit == 1) {
        let mut group = criterion.benchmark_group(case.name);
        group
            .sample_size(10)
            .measurement_time(Duration::from_secs(1))
            .warm_up_time(Duration::from_millis(200));
        let mut bare = Bare::new((case.code)(), case.ring);
        group.bench_function("bare", |bencher| bencher.iter_custom(|count| bare.measure(count)));
        let mut ours = Ours::new((case.code)(), case.ring);
        group.bench_function("lodger", |bencher| bencher.iter_custom(|count| ours.measure(count)));
        group.finish();
    }
}

criterion_group!(benches, exits);
criterion_main!(benches);
