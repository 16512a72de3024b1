//! How fast guest kernels run: the same code in ring 0 with everything that lodger does for it, and with only what
//! the host's KVM lacks (`--completion missing`). On hosts whose KVM interprets kernels the first is the software
//! processor and the second KVM's interpreter; on others both are the processor itself, and the ratio is 1.
//!
//! `cargo bench --bench kernel`

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use lodger::devices::Collected;
use lodger::hv::kvm::{Kvm, KvmVm};
use lodger::vm::{Completion, Config, Kernel, Machine, MemorySpec};
use support::{guests, median, rounds};

const ROUNDS: usize = 9;
const MEMORY: u64 = 16 << 20;
/// How many instructions are measured of a kernel that runs as fast as it can, and of one that is interpreted.
const FAST: u64 = 20_000_000;
const INTERPRETED: u64 = 200_000;

/// A loop, and how many instructions it has.
struct Case {
    name: &'static str,
    code: fn() -> &'static [u8],
    per_round: u64,
    /// How many of them take as long as a round in an interpreter.
    interpreted: u64,
    /// How many bytes a round moves, where that says more than instructions.
    bytes: u64,
}

const CASES: [Case; 3] = [
    Case { name: "compute", code: guests::compute, per_round: 19, interpreted: 19, bytes: 0 },
    Case { name: "copy in a loop", code: guests::copy, per_round: 6, interpreted: 6, bytes: 8 },
    Case {
        name: "copy by rep movsq",
        code: guests::string_copy,
        per_round: 6,
        interpreted: 512,
        bytes: 4096,
    },
];

fn machine(case: &Case, rounds: u64, completion: Completion) -> Machine<KvmVm> {
    let config = Config {
        kernel: Kernel::Bytes(guests::kernel((case.code)(), rounds as u32)),
        memory: MemorySpec::of_size(MEMORY),
        completion,
        ..Config::default()
    };
    Machine::new(&Kvm::open().unwrap(), &config, Arc::new(Collected::default())).unwrap()
}

/// From the first instruction to the last.
fn measure(case: &Case, rounds: u64, completion: Completion) -> Duration {
    let machine = machine(case, rounds, completion);
    let start = Instant::now();
    assert_eq!(machine.run().status(), 0);
    start.elapsed()
}

/// Measures both in turn, and prints what a second holds.
fn compare(case: &Case, interprets: bool) {
    let fast = FAST / case.per_round.max(case.interpreted / 4);
    let missing = if interprets { INTERPRETED / case.interpreted } else { fast };
    let rate = |rounds: u64, completion| rounds as f64 / measure(case, rounds, completion).as_secs_f64();
    let pairs: Vec<_> = (0..rounds(ROUNDS))
        .map(|_| (rate(missing, Completion::Missing), rate(fast, Completion::Auto)))
        .collect();
    let [missing, auto] = [median(pairs.iter().map(|pair| pair.0)), median(pairs.iter().map(|pair| pair.1))];
    let millions = |rounds: f64| rounds * case.per_round as f64 / 1e6;
    let ratio = median(pairs.iter().map(|pair| pair.1 / pair.0));
    println!(
        "{:<20} KVM {:9.3}   lodger {:9.3} million instructions/s   ratio {ratio:.1}",
        case.name,
        millions(missing),
        millions(auto)
    );
    if case.bytes > 0 {
        let megabytes = |rounds: f64| rounds * case.bytes as f64 / 1e6;
        println!("{:<20} KVM {:9.0}   lodger {:9.0} MB/s", "", megabytes(missing), megabytes(auto));
    }
}

fn kernels(criterion: &mut Criterion) {
    let interprets = machine(&CASES[0], 1, Completion::Auto).gaps().any();
    println!("this host's KVM {}", if interprets { "interprets kernels" } else { "runs kernels natively" });
    for case in &CASES {
        compare(case, interprets);
    }
    for case in &CASES {
        for (name, completion) in [("auto", Completion::Auto), ("missing", Completion::Missing)] {
            let mut group = criterion.benchmark_group(format!("{}, {name}", case.name));
            group
                .sample_size(10)
                .throughput(Throughput::Elements(case.per_round))
                .measurement_time(Duration::from_secs(1))
                .warm_up_time(Duration::from_millis(200));
            group.bench_function("round", |bencher| {
                bencher.iter_custom(|count| measure(case, count.min(u32::MAX.into()), completion));
            });
            group.finish();
        }
    }
}

criterion_group!(benches, kernels);
criterion_main!(benches);
