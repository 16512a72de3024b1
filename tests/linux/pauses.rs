//! A guest that works on its disk and looks at its clocks is paused again and again, or goes on in other machines
//! (`watch.c` is what it does).
//!
//! A completion that is lost leaves a process waiting for ever; one that comes twice, or what is written in the wrong
//! place, is found by comparing. Its clocks go on while it is paused, and by no more: what they show is compared with
//! the host's before and after all pauses, and between two looks at a clock no more than the longest pause may have
//! passed, and what a busy host takes. The same goes for the time from a snapshot until it is restored.
//!
//! `LODGER_PAUSES` says how often it is paused; the default is a number that takes seconds.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use lodger::devices::Collected;
use lodger::hv::kvm::{Kvm, KvmVm};
use lodger::snapshot::Snapshot;
use lodger::vm::driver::{Driver, DriverThread, Handle, Origin, Request, State};
use lodger::vm::{Clock, Config, DiskSpec, Machine, Timeline};

use crate::support::{Files, Fixture, LIMIT, Scratch, complaints, first_process, rounds, smp, tiny};

const PAUSES: &str = "LODGER_PAUSES";
const FEW_PAUSES: u32 = 200;
/// How far the guest's clocks may be from the host's when they are compared.
const TOLERANCE: f64 = 0.1;
/// How long a busy host may keep a process from its clock, or a pause from being noticed.
const BUSY: f64 = 1.0;

/// A guest that watches its clocks.
struct Watched {
    /// There is one but while it is replaced.
    driver: Option<DriverThread<KvmVm>>,
    config: Config,
    output: Arc<Collected>,
    asked: usize,
}

/// How far clocks of the guest's are ahead of the host's, in seconds; and how wrong this may be, either way.
#[derive(Debug, Clone, Copy)]
struct Ahead {
    monotonic: f64,
    real: f64,
    error: f64,
}

#[track_caller]
fn driven(machine: Machine<KvmVm>) -> DriverThread<KvmVm> {
    let thread = Driver::new(machine).unwrap().spawn().unwrap();
    assert_eq!(thread.handle().request(Request::Start, Origin::Owner), Ok(State::Running));
    thread
}

impl Watched {
    #[track_caller]
    fn start(files: &Files, disk: &str) -> Self {
        let config = Config {
            initrds: vec![first_process().into()],
            cmdline: Some(format!("{} rdinit=/tests -- watch log exit:42", files.get("cmdline"))),
            disks: vec![disk.parse::<DiskSpec>().unwrap()],
            clock: Clock::Host,
            cpus: if files.get("variant") == "smp" { 2.into() } else { 1.into() },
            ..Fixture::bare(files).config().clone()
        };
        let output = Arc::new(Collected::default());
        let machine = Machine::new(&Kvm::open().unwrap(), &config, output.clone()).unwrap();
        let this = Self { driver: Some(driven(machine)), config, output, asked: 0 };
        this.expect("watch: begins\r\n");
        this
    }

    /// Goes on in another machine, after a while.
    #[track_caller]
    fn travel(&mut self, place: &Path, stored: Duration) {
        let kvm = Kvm::open().unwrap();
        self.request(Request::Pause, State::Paused);
        let place_of_it = place.to_owned();
        let save = move |machine: &Machine<KvmVm>| {
            machine.draft_snapshot(&Kvm::open().unwrap(), &place_of_it).unwrap().finish().unwrap();
        };
        self.handle().at_rest(save).unwrap();
        self.driver = None;
        thread::sleep(stored);
        let (snapshot, output) = (Snapshot::open(place).unwrap(), self.output.clone());
        let machine = Machine::restore(&kvm, &self.config, &snapshot, output, &mut Timeline::start());
        self.driver = Some(driven(machine.unwrap()));
    }

    /// Has it end, and checks that nothing was lost; how often it wrote.
    #[track_caller]
    fn finish(&mut self) -> u32 {
        self.type_in("q\n");
        self.driver.as_mut().unwrap().join();
        assert_eq!(self.handle().ending().map(|ending| ending.status), Some(42));
        let text = self.output.text();
        assert!(!text.contains("wrong"), "{text}");
        assert_eq!(complaints(&text), "");
        self.said("watch: steps ").parse().unwrap()
    }

    fn handle(&self) -> &Handle<KvmVm> {
        self.driver.as_ref().unwrap().handle()
    }

    #[track_caller]
    fn request(&self, request: Request, state: State) {
        assert_eq!(self.handle().request(request, Origin::Owner), Ok(state), "{}", self.output.text());
    }

    #[track_caller]
    fn type_in(&self, text: &str) {
        assert_eq!(self.handle().machine().serial().offer_input(text.as_bytes()), text.len());
    }

    #[track_caller]
    fn expect(&self, text: &str) {
        assert!(self.output.wait_for(text, LIMIT), "{text:?} is not in {}", self.output.text());
    }

    /// Compares its clocks with the host's, by the quickest of some answers.
    #[track_caller]
    fn ahead(&mut self, since: Instant) -> Ahead {
        let answers = (0..5).map(|_| self.ahead_once(since));
        answers.min_by(|one, other| one.error.total_cmp(&other.error)).unwrap()
    }

    #[track_caller]
    fn ahead_once(&mut self, since: Instant) -> Ahead {
        let (before, real_before) = (since.elapsed(), SystemTime::now());
        self.type_in("\n");
        self.asked += 1;
        let end = format!(" by {}", self.asked);
        self.expect(&format!("{end}\r\n"));
        let error = (since.elapsed() - before).as_secs_f64() / 2.0;
        let [monotonic, real] = numbers(self.said("watch: at ").trim_end_matches(&end));
        let host = real_before.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
        Ahead { monotonic: monotonic - before.as_secs_f64() - error, real: real - host - error, error }
    }

    /// What is behind the last of these words in a line.
    #[track_caller]
    fn said(&self, words: &str) -> String {
        let text = self.output.text();
        let line = text.rsplit_once(words).and_then(|(_, rest)| rest.split_once("\r\n"));
        line.unwrap_or_else(|| panic!("{words:?} is not in {text}")).0.to_owned()
    }
}

/// Two times in nanoseconds, as seconds.
#[track_caller]
fn numbers(text: &str) -> [f64; 2] {
    let numbers: Vec<_> = text.split_whitespace().map(|word| word.parse::<f64>().unwrap() / 1e9).collect();
    numbers.try_into().unwrap_or_else(|_| panic!("{text:?}"))
}

/// Pauses it so often, some of them for longer; how long the longest took from the wish to its end.
#[track_caller]
fn pause_often(watched: &Watched, times: u32) -> Duration {
    let mut longest = Duration::ZERO;
    for number in 0..times {
        // Short enough to come between a request and its completion, and others long enough for several.
        thread::sleep(Duration::from_micros(u64::from(number) * 7919 % 4000));
        let start = Instant::now();
        watched.request(Request::Pause, State::Paused);
        let held = if number % 100 == 50 { 100_000 } else { u64::from(number) * 6151 % 3000 };
        thread::sleep(Duration::from_micros(held));
        watched.request(Request::Resume, State::Running);
        longest = longest.max(start.elapsed());
    }
    longest
}

/// Checks that the guest's clocks have gone on as the host's did.
#[track_caller]
fn assert_clocks_went_on(before: Ahead, after: Ahead) {
    let allowed = TOLERANCE + before.error + after.error;
    for drift in [after.monotonic - before.monotonic, after.real - before.real] {
        assert!(drift.abs() <= allowed, "the clocks were {before:?} ahead, then {after:?}");
    }
}

#[track_caller]
fn nothing_is_lost(files: &'static Files, disk_options: &str) {
    let scratch = Scratch::new();
    let disk = scratch.file("disk", &vec![0; 2 << 20]);
    let mut watched = Watched::start(files, &format!("{disk}{disk_options}"));
    let since = Instant::now();
    let before = watched.ahead(since);
    let pauses = rounds(PAUSES, FEW_PAUSES);
    let longest = pause_often(&watched, pauses);
    let paused = since.elapsed();
    let after = watched.ahead(since);
    let steps = watched.finish();
    let [monotonic, real] = numbers(&watched.said("watch: longest "));
    println!(
        "{pauses} pauses in {paused:?}, the longest of {longest:?}; the guest wrote {steps} times, and between two looks at its \
         clocks passed {monotonic} s and {real} s; they were ahead by {before:?}, and then by {after:?}",
    );
    assert!(steps > pauses / 10, "{steps}");
    for jump in [monotonic, real] {
        assert!(jump <= longest.as_secs_f64() + BUSY, "{jump} s, and no pause took longer than {longest:?}");
    }
    assert_clocks_went_on(before, after);
}

#[test]
fn a_guest_at_work_that_is_paused_often_loses_nothing() {
    nothing_is_lost(tiny(), "");
}

#[test]
fn a_guest_with_two_processors_that_is_paused_often_loses_nothing() {
    nothing_is_lost(smp(), ",queues=2");
}

#[test]
fn the_clocks_are_right_in_every_machine_that_goes_on_with_a_guest() {
    for (files, disk_options) in [(tiny(), ""), (smp(), ",queues=2")] {
        let scratch = Scratch::new();
        let (disk, place) = (scratch.file("disk", &vec![0; 2 << 20]), scratch.path().join("snapshot"));
        let mut watched = Watched::start(files, &format!("{disk}{disk_options}"));
        let since = Instant::now();
        let before = watched.ahead(since);
        for stored in [0, 300, 0, 700] {
            watched.travel(&place, Duration::from_millis(stored));
            let after = watched.ahead(since);
            println!("stored for {stored} ms and a moment: ahead by {before:?}, and then by {after:?}");
            assert_clocks_went_on(before, after);
        }
        watched.finish();
    }
}
