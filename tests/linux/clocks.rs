//! What Linux makes of a time in which it did not run: it knows what time it is, complains of nothing, and has new
//! random numbers.

use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use lodger::hv::SavedClock;
use lodger::snapshot::{Draft, MEMORY, Section, Snapshot};
use lodger::vm::{Clock, Config};

use crate::support::{Fixture, Scratch, Shell, smp};

/// How wrong the guest's clock may be.
const TOLERANCE: f64 = 0.1;
const HOUR: Duration = Duration::from_secs(3600);

/// Without deadline timers: this kernel has periodic ticks, and would make up for the time that it was stored tick by
/// tick, a hundred for each second. Those with high-resolution timers do it in one step.
fn config() -> Config {
    let cmdline = format!("{} lapic=notscdeadline", smp().get("cmdline"));
    Config {
        cpus: 2.into(),
        cmdline: Some(cmdline),
        clock: Clock::Host,
        ..Fixture::bare(smp()).config().clone()
    }
}

/// Saved once for all tests of this file, while a loop counts seconds; and how far its clock was ahead then. Where ring
/// 0 is slow, ticks are lost while Linux starts, with nothing yet to count them by: its clock is late from the
/// beginning.
fn stored() -> &'static (PathBuf, RangeInclusive<f64>) {
    static STORED: OnceLock<(PathBuf, RangeInclusive<f64>)> = OnceLock::new();
    STORED.get_or_init(|| {
        let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("linux-with-clocks");
        let mut shell = Shell::boot(&config());
        shell.answer("(while sleep 1; do echo >>/seconds; done) & true");
        let ahead = ahead(&mut shell);
        println!("before it was stored the guest's clock was ahead by {ahead:?} s");
        shell.save(&config(), &place);
        (place, ahead)
    })
}

/// The same snapshot as if it had been written by so much earlier.
fn store_aged(age: Duration, place: &Path) {
    let old = Snapshot::open(&stored().0).unwrap();
    let mut sections = old.sections().unwrap();
    let names = old.info().sections.iter().map(|entry| entry.name.as_str());
    let names = names.filter(|name| !["clock", "memory-hashes"].contains(name));
    let mut aged: Vec<_> = names.map(|name| sections.take_section(name).unwrap()).collect();
    let clock: SavedClock = sections.take("clock").unwrap();
    let host = clock.host - u64::try_from(age.as_nanos()).unwrap();
    aged.push(Section::of("clock", &SavedClock { host, ..clock }));
    let memory = fs::read(stored().0.join(MEMORY)).unwrap();
    let mut draft = Draft::begin(place, old.info().memory_size).unwrap();
    for (number, page) in memory[..old.info().memory_size as usize].chunks(4096).enumerate() {
        if page.iter().any(|byte| *byte != 0) {
            draft.put(number as u64 * 4096, page).unwrap();
        }
    }
    draft.finish(aged).unwrap();
}

fn host_time() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64()
}

/// How far the guest's clock is ahead of the host's: it lies between these.
fn ahead(shell: &mut Shell) -> RangeInclusive<f64> {
    let ask = |shell: &mut Shell| {
        let before = host_time();
        let answer = shell.answer("adjtimex");
        let after = host_time();
        let value = |name: &str| -> f64 {
            let line = answer.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("{answer}"));
            line.split_whitespace().find_map(|word| word.parse().ok()).unwrap_or_else(|| panic!("{line}"))
        };
        let time = value("time.tv_sec:") + value("time.tv_usec:") / 1e6;
        time - after..=time - before
    };
    let answers = (0..3).map(|_| ask(shell));
    // The quickest answer is the most exact.
    answers.min_by(|one, other| (one.end() - one.start()).total_cmp(&(other.end() - other.start()))).unwrap()
}

/// Checks that the guest's clock is as right as it was before, but for so much.
#[track_caller]
fn assert_late_by(expected: f64, found: &RangeInclusive<f64>) {
    let before = &stored().1;
    let late = before.start() - found.end()..=before.end() - found.start();
    let right = expected - TOLERANCE..=expected + TOLERANCE;
    assert!(
        late.start() <= right.end() && late.end() >= right.start(),
        "{expected} s expected, {late:?} s found"
    );
}

fn uptime(shell: &mut Shell) -> f64 {
    shell.answer("cat /proc/uptime").split_whitespace().next().unwrap().parse().unwrap()
}

/// The first time that is not before `least`. Linux 6.1 multiplies what has passed since its last tick in 64 bits, which
/// is too little for hours: before the first tick of the processor that keeps the time, the other is told nonsense.
#[track_caller]
fn first_uptime(shell: &mut Shell, least: f64) -> f64 {
    let start = Instant::now();
    loop {
        match uptime(shell) {
            found if found >= least => break found,
            found => assert!(start.elapsed() < Duration::from_secs(5), "{found} s"),
        }
    }
}

#[track_caller]
fn assert_seconds_are_counted(shell: &mut Shell) {
    let count =
        |shell: &mut Shell| shell.answer("cat /seconds 2>/dev/null | wc -l").trim().parse::<u32>().unwrap();
    let (start, before) = (uptime(shell), count(shell));
    shell.answer("sleep 2.5");
    let (counted, passed) = (count(shell) - before, uptime(shell) - start);
    assert!(counted >= 1 && f64::from(counted) <= passed + 1.0, "{counted} were counted in {passed} s");
}

#[test]
fn linux_knows_what_time_it_is_however_long_it_was_stored() {
    let scratch = Scratch::new();
    stored();
    thread::sleep(Duration::from_secs(3));
    for age in [Duration::ZERO, 5 * HOUR, 72 * HOUR] {
        let place = scratch.path().join("aged");
        store_aged(age, &place);
        let mut shell = Shell::restore(&config(), &Snapshot::open(&place).unwrap());
        let first = first_uptime(&mut shell, age.as_secs_f64() + 3.0);
        let ahead = ahead(&mut shell);
        println!("stored for {age:?} and a moment: the guest's clock is ahead by {ahead:?} s");
        // Its clock was right when it was stored, not so much earlier.
        assert_late_by(-age.as_secs_f64(), &ahead);
        assert_seconds_are_counted(&mut shell);
        assert!(uptime(&mut shell) > first);
        assert_eq!(shell.complaints(), "");
    }
}

#[test]
fn time_stands_still_where_that_is_wanted() {
    let scratch = Scratch::new();
    let place = scratch.path().join("aged");
    store_aged(5 * HOUR, &place);
    thread::sleep(Duration::from_secs(3));
    let mut shell =
        Shell::restore(&Config { clock: Clock::Stopped, ..config() }, &Snapshot::open(&place).unwrap());
    let (now, before) = (ahead(&mut shell), &stored().1);
    assert!(before.end() - now.start() >= 3.0, "{before:?} became {now:?}");
    let uptime = uptime(&mut shell);
    assert!(uptime < HOUR.as_secs_f64(), "{uptime} s");
    assert_seconds_are_counted(&mut shell);
    assert_eq!(shell.complaints(), "");
}

#[test]
fn a_pause_is_no_reason_to_complain() {
    let mut shell = Shell::restore(&config(), &Snapshot::open(&stored().0).unwrap());
    let before = uptime(&mut shell);
    shell.machine().pause();
    // A watchdog of Linux' barks after 22 s.
    thread::sleep(Duration::from_secs(25));
    shell.machine().resume();
    let ahead = ahead(&mut shell);
    println!("after a pause the guest's clock is ahead by {ahead:?} s");
    assert_late_by(0.0, &ahead);
    let passed = uptime(&mut shell) - before;
    assert!(passed >= 25.0, "{passed} s");
    assert_seconds_are_counted(&mut shell);
    assert_eq!(shell.complaints(), "");
}

#[test]
fn two_guests_from_one_snapshot_have_different_random_numbers() {
    let mut seen = Vec::new();
    for _ in 0..2 {
        let mut shell = Shell::restore(&config(), &Snapshot::open(&stored().0).unwrap());
        let random = shell.answer("head -c 16 /dev/urandom | od -An -tx1");
        let log = shell.answer("dmesg | grep random:");
        assert!(log.contains("crng reseeded due to virtual machine fork"), "{log}");
        assert_eq!(random.split_whitespace().count(), 16, "{random}");
        assert!(!seen.contains(&random), "{random}");
        seen.push(random);
    }
}
