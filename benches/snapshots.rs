//! How long a guest stands still for a snapshot, and how long it takes to go on from one. 1 GiB of memory of which half
//! is in use, and a guest that writes 64 pages over and over: with memory copied while it runs, copied at rest, and as
//! a diff. Then the guest that is part of the program, with 128 MiB: built, restored, and restored from a diff on five
//! others.

mod support;

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};

use criterion::{Criterion, criterion_group, criterion_main};
use lodger::boot::Flat;
use lodger::devices::Collected;
use lodger::hv::kvm::{Kvm, KvmVm};
use lodger::snapshot::Snapshot;
use lodger::vm::{Config, Drafted, Kernel, Machine, MemorySpec, Timeline};
use support::{guests, median, rounds};
use vm_memory::{Bytes, GuestAddress};

const ROUNDS: usize = 9;
const STARTS: usize = 41;
const MIB: u64 = 1 << 20;

/// The directory that all snapshots are in.
struct Place(PathBuf);

impl Place {
    fn make() -> Self {
        let path = env::temp_dir().join(format!("lodger-bench-snapshots-{}", process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn kvm() -> Kvm {
    Kvm::open().expect("this benchmark runs guests on the real KVM")
}

fn half_full() -> Machine<KvmVm> {
    let config = Config {
        kernel: Kernel::Bytes(guests::write_pages().to_vec()),
        flat: Some(Flat::default()),
        memory: MemorySpec::of_size(1 << 30),
        ..Config::default()
    };
    let machine = Machine::new(&kvm(), &config, Arc::new(Collected::default())).unwrap();
    for mib in 4..516 {
        let content = vec![mib as u8 | 1; MIB as usize];
        machine.memory().mapped().write_slice(&content, GuestAddress(mib * MIB)).unwrap();
    }
    machine
}

/// What one snapshot took.
struct Taken {
    whole: Duration,
    stopped: Duration,
    drafted: Drafted,
}

fn take(machine: &Machine<KvmVm>, draft: impl FnOnce(Instant) -> (Drafted, Instant)) -> Taken {
    machine.resume();
    thread::sleep(Duration::from_millis(20));
    let start = Instant::now();
    let (drafted, stop) = draft(start);
    machine.resume();
    Taken { whole: start.elapsed(), stopped: stop.elapsed(), drafted }
}

fn report(name: &str, taken: &[(Duration, Duration)]) {
    let of = |which: fn(&(Duration, Duration)) -> Duration| {
        median(taken.iter().map(|taken| which(taken).as_secs_f64() * 1e3))
    };
    println!("{name:<28} stopped {:8.2} ms   drafted in {:8.2} ms", of(|taken| taken.1), of(|taken| taken.0));
}

fn stop(criterion: &mut Criterion) {
    let place = Place::make();
    let machine = half_full();
    let kvm = kvm();
    let live = |base: Option<&str>, to: &str| {
        take(&machine, |_| {
            let base = base.map(|base| place.at(base));
            let mut capture = machine.begin_snapshot(&place.at(to), base.as_deref()).unwrap();
            capture.copy(&mut |_| {}).unwrap();
            let stop = Instant::now();
            machine.pause();
            (capture.complete(&machine, &kvm).unwrap(), stop)
        })
    };
    let at_rest = |to: &str| {
        take(&machine, |start| {
            machine.pause();
            (machine.draft_snapshot(&kvm, &place.at(to)).unwrap(), start)
        })
    };
    let (mut lives, mut rests, mut diffs) = (Vec::new(), Vec::new(), Vec::new());
    live(None, "full").drafted.finish().unwrap();
    for _ in 0..rounds(ROUNDS) {
        let of = |taken: &Taken| (taken.whole, taken.stopped);
        // What is not finished counts for nothing: the next diff is one against the first snapshot, too.
        lives.push(of(&live(None, "other")));
        rests.push(of(&at_rest("other")));
        diffs.push(of(&live(Some("full"), "diff")));
    }
    report("full, copied at rest", &rests);
    report("full, while it runs", &lives);
    report("diff, while it runs", &diffs);
    let taken = live(Some("full"), "diff");
    let start = Instant::now();
    taken.drafted.finish().unwrap();
    let size = |name: &str| {
        let size = |file: &str| fs::metadata(place.at(name).join(file)).unwrap().blocks() / 2;
        size("state") + size("memory")
    };
    let (full, diff) = (size("full"), size("diff"));
    println!("full {full} KiB, diff {diff} KiB, finished in {:?}", start.elapsed());

    let mut group = criterion.benchmark_group("snapshots");
    group.sample_size(10).measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(200));
    let diff = |count| (0..count).map(|_| live(Some("diff"), "other").stopped).sum();
    group.bench_function("stopped for a diff", |bencher| bencher.iter_custom(diff));
    group.finish();
}

fn restore(criterion: &mut Criterion) {
    let place = Place::make();
    let (kvm, output) = (kvm(), Arc::new(Collected::default()));
    let config = Config {
        memory: MemorySpec::of_size(128 << 20),
        cmdline: Some("quiet".to_owned()),
        ..Config::default()
    };
    let machine = Machine::new(&kvm, &config, output.clone()).unwrap();
    machine.resume();
    assert!(output.wait_for("lodger> ", Duration::from_secs(60)));
    for number in 0..=5 {
        machine.resume();
        thread::sleep(Duration::from_millis(5));
        let base = (number > 0).then(|| place.at(&(number - 1).to_string()));
        let mut capture = machine.begin_snapshot(&place.at(&number.to_string()), base.as_deref()).unwrap();
        capture.copy(&mut |_| {}).unwrap();
        machine.pause();
        capture.complete(&machine, &kvm).unwrap().finish().unwrap();
        // Something for the next one.
        (0..100).for_each(|page| {
            let address = GuestAddress((64 << 20) + (page * 7 + number * 3) * 4096);
            machine.memory().mapped().write_obj(1_u8, address).unwrap();
        });
    }
    let time = |build: &dyn Fn() -> Machine<KvmVm>| {
        let start = Instant::now();
        let machine = build();
        let took = start.elapsed();
        drop(machine);
        took.as_secs_f64() * 1e3
    };
    let build = || Machine::new(&kvm, &config, output.clone()).unwrap();
    let again = |name: &str| {
        let snapshot = Snapshot::open(&place.at(name)).unwrap();
        Machine::restore(&kvm, &config, &snapshot, output.clone(), &mut Timeline::start()).unwrap()
    };
    let mut times = [const { Vec::new() }; 3];
    for _ in 0..rounds(STARTS) {
        times[0].push(time(&build));
        times[1].push(time(&|| again("0")));
        times[2].push(time(&|| again("5")));
    }
    let bare = median(times[0].iter().copied());
    for (name, times) in ["built", "restored", "restored from 5 diffs"].into_iter().zip(&times) {
        let took = median(times.iter().copied());
        println!("{name:<28} {took:8.2} ms   {:5.2} times as long as built", took / bare);
    }

    let mut group = criterion.benchmark_group("snapshots");
    group.sample_size(10).measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(200));
    let restored = |count| (0..count).map(|_| Duration::from_secs_f64(time(&|| again("0")) / 1e3)).sum();
    group.bench_function("restore", |bencher| bencher.iter_custom(restored));
    group.finish();
}

criterion_group!(benches, stop, restore);
criterion_main!(benches);
