use super::*;
use crate::boot::{Source, Symbols};
use crate::hv::fake::Step;
use crate::hv::{ExitKind, Registers, Segment, SpecialRegisters};
use crate::vcpu::Ending;
use crate::vcpu::tests::start;

const LIMIT: Duration = Duration::from_secs(20);

fn fast() -> Interval {
    Interval::new(Duration::from_micros(100)).unwrap()
}

fn put<V: Vcpu>(thread: &VcpuThread<V>, ring: u8, rip: u64) {
    let code = Segment { long: true, dpl: ring, ..Segment::default() };
    let stack = Segment { dpl: ring, ..Segment::default() };
    let special = SpecialRegisters { cs: code, ss: stack, cr0: CR0_PE, ..SpecialRegisters::default() };
    thread.while_at_rest(|vcpu| {
        vcpu.set_special_registers(&special).unwrap();
        vcpu.set_registers(&Registers { rip, ..Registers::default() }).unwrap();
    });
}

fn eventually(mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LIMIT, "waited in vain");
        std::thread::sleep(Duration::from_micros(100));
    }
}

fn interruptions<V: Vcpu>(thread: &VcpuThread<V>) -> u64 {
    thread.counters().get(ExitKind::Interrupted)
}

fn is_empty(profile: &Profile) -> bool {
    profile.samples.is_empty()
}

#[test]
fn a_spinning_processor_is_sampled_and_goes_on() {
    let (_, thread, endings) = start(&[Step::Spin]);
    put(&thread, 3, 0x1234);
    let profiler = Profiler::start(std::slice::from_ref(&thread), fast()).unwrap();
    thread.resume();
    eventually(|| interruptions(&thread) > 50);
    let profile = profiler.finish();
    // The last answer may have come too late.
    assert!(profile.samples.len() >= 50, "{}", profile.samples.len());
    assert_eq!((profile.vcpus, profile.interval, profile.dropped), (1, fast(), 0));
    assert!(
        profile.samples.iter().all(|sample| (sample.vcpu, sample.ring, sample.address) == (0, 3, 0x1234))
    );
    assert!(profile.samples.is_sorted_by_key(|sample| sample.nanoseconds));
    let last = Duration::from_nanos(profile.samples.last().unwrap().nanoseconds);
    assert!(last <= profile.duration, "{last:?} of {:?}", profile.duration);
    assert!(endings.try_recv().is_err());
}

#[test]
fn without_a_profile_nothing_interrupts_the_guest() {
    let (_, thread, _endings) = start(&[Step::Spin]);
    thread.resume();
    let profiler = Profiler::start(std::slice::from_ref(&thread), fast()).unwrap();
    eventually(|| interruptions(&thread) > 3);
    drop(profiler);
    // What it was asked for last may still be on its way.
    std::thread::sleep(Duration::from_millis(20));
    let before = interruptions(&thread);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(interruptions(&thread), before);
    // A question and an answer that nobody fetched belong to no later profile.
    assert!(is_empty(&Profiler::start(std::slice::from_ref(&thread), Interval::default()).unwrap().finish()));
}

#[test]
fn a_paused_processor_is_not_disturbed() {
    let (_, thread, _endings) = start(&[]);
    let profiler = Profiler::start(std::slice::from_ref(&thread), fast()).unwrap();
    std::thread::sleep(Duration::from_millis(10));
    assert_eq!(interruptions(&thread), 0);
    assert!(is_empty(&profiler.finish()));
}

#[test]
fn pauses_and_stops_work_while_samples_are_taken() {
    let shortest = Interval::new(Duration::from_micros(50)).unwrap();
    let (_, thread, endings) = start(&[]);
    let profiler = Profiler::start(std::slice::from_ref(&thread), shortest).unwrap();
    for round in 0..2000 {
        thread.resume();
        std::thread::sleep(Duration::from_micros(round % 80));
        thread.request_pause();
        thread.wait_at_rest();
        let paused = interruptions(&thread);
        std::thread::yield_now();
        assert_eq!(interruptions(&thread), paused);
    }
    thread.resume();
    thread.request_stop();
    assert!(matches!(endings.recv_timeout(LIMIT), Ok(Ending::Stopped)));
    // The thread is gone, and asking it does no harm.
    std::thread::sleep(Duration::from_millis(2));
    assert!(!is_empty(&profiler.finish()));
}

#[test]
fn a_profiler_may_outlive_its_processors() {
    let (_, thread, _endings) = start(&[]);
    thread.resume();
    let profiler = Profiler::start(std::slice::from_ref(&thread), fast()).unwrap();
    eventually(|| interruptions(&thread) > 3);
    drop(thread);
    std::thread::sleep(Duration::from_millis(2));
    assert!(!is_empty(&profiler.finish()));
}

#[test]
fn the_rhythm_is_uneven_and_keeps_its_interval() {
    let start = Instant::now();
    let interval = Duration::from_millis(8);
    let mut rhythm = Rhythm::new(interval, start);
    let beats: Vec<_> = (1..=1000).map(|count| (count, rhythm.next(start))).collect();
    for &(count, beat) in &beats {
        let (even, beat) = (interval * count, beat - start);
        assert!(beat.abs_diff(even) <= interval / 8, "{count}: {beat:?}");
    }
    let gaps: Vec<_> = beats.windows(2).map(|pair| pair[1].1 - pair[0].1).collect();
    assert!(gaps.iter().min().unwrap() < &Duration::from_micros(6500));
    assert!(gaps.iter().max().unwrap() > &Duration::from_micros(9500));
    // A sampler that had to wait for long does not ask again and again then.
    let late = start + interval * 5000;
    assert!(rhythm.next(late) >= late - interval / 8);
    assert!(rhythm.next(late) >= late + interval * 7 / 8);
}

fn symbols() -> Symbols {
    let list = b"ffffffff81000000 T startup_64\nffffffff81000100 t delay_tsc\nffffffff81000200 D data\n";
    Symbols::read(Source::Bytes { name: "a list", bytes: list }).unwrap()
}

fn profile() -> Profile {
    const TEXT: u64 = 0xffff_ffff_8100_0000;
    let places = [(0, TEXT + 0x110), (0, TEXT + 0x4), (3, 0x40_1000), (0, TEXT + 0x110), (0, 0x8000)];
    let samples = (1..).zip(places).map(|(count, (ring, address))| Sample {
        nanoseconds: count * 1_000_200_000,
        address,
        vcpu: 1,
        ring,
    });
    Profile {
        samples: samples.collect(),
        interval: Interval::default(),
        duration: Duration::from_millis(5250),
        vcpus: 2,
        dropped: 7,
        late: 3,
    }
}

fn text(profile: &Profile, symbols: Option<&Symbols>) -> String {
    let mut text = Vec::new();
    profile.write(symbols, &mut text).unwrap();
    String::from_utf8(text).unwrap()
}

#[test]
fn the_text_has_a_header_a_table_and_every_sample() {
    let text = text(&profile(), Some(&symbols()));
    let (comments, data): (Vec<_>, Vec<_>) = text.lines().partition(|line| line.starts_with('#'));
    assert_eq!(
        data,
        [
            " 40.00 %        2  delay_tsc",
            " 20.00 %        1  startup_64",
            " 20.00 %        1  [user]",
            " 20.00 %        1  0x8000",
            "1.000200 1 0 0xffffffff81000110 delay_tsc+0x10",
            "2.000400 1 0 0xffffffff81000004 startup_64+0x4",
            "3.000600 1 3 0x0000000000401000 [user]",
            "4.000800 1 0 0xffffffff81000110 delay_tsc+0x10",
            "5.001000 1 0 0x0000000000008000 0x8000",
        ]
    );
    let header = comments.join("\n");
    for words in [
        "5 of 2 vCPUs in 5.250 s",
        "interval: 1ms",
        "late:     3 times",
        "dropped:  7 samples",
        "2 functions in a list",
        "seconds vcpu ring address",
    ] {
        assert!(header.contains(words), "{words:?} is not in\n{header}");
    }
}

#[test]
fn without_symbols_places_are_addresses() {
    let text = text(&profile(), None);
    assert!(text.contains(" 40.00 %        2  0xffffffff81000110\n"), "{text}");
    assert!(text.contains("--symbols names"), "{text}");
}

#[test]
fn the_summary_names_the_top() {
    assert_eq!(profile().summary(Some(&symbols())), "5 samples in 5.2 s, top: delay_tsc 40 %");
    let nothing = Profile { samples: Vec::new(), ..profile() };
    assert_eq!(nothing.summary(None), "0 samples in 5.2 s");
    assert_eq!(text(&nothing, None).lines().filter(|line| !line.starts_with('#')).count(), 0);
}

#[test]
fn what_has_no_room_is_counted() {
    let (_, thread, _endings) = start(&[]);
    let sampled = &thread.shared.sampled;
    let sample = profile().samples[0];
    let mut full = Profile { samples: vec![sample; MOST_SAMPLES - 1], dropped: 0, ..profile() };
    for _ in 0..3 {
        *lock(&sampled.answer) = Some(Answer { moment: Instant::now(), address: 0, ring: 0 });
        full.keep(sampled, Instant::now());
    }
    full.keep(sampled, Instant::now());
    assert_eq!((full.samples.len(), full.dropped), (MOST_SAMPLES, 2));
}
