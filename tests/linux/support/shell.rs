//! A Linux with a shell on its serial port, in this process.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lodger::console::Spec;
use lodger::devices::Collected;
use lodger::hv::kvm::{Kvm, KvmVm};
use lodger::snapshot::Snapshot;
use lodger::vm::description::Description;
use lodger::vm::{CannotSave, Config, Error, Machine, SavedDescription, Timeline};

use super::{LIMIT, Output};

/// How long is waited before it is looked whether the machine is still there.
const MOMENT: Duration = Duration::from_millis(100);

/// A machine whose guest has a shell on its serial port.
pub struct Shell {
    machine: Option<Machine<KvmVm>>,
    output: Arc<Collected>,
    asked: u32,
}

/// What a command printed, and its status.
#[derive(Debug)]
pub struct Answer {
    pub text: String,
    pub status: i32,
}

impl Answer {
    /// Checks that the command succeeded.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.status, 0, "{self:?}");
        self
    }
}

impl Output for Answer {
    fn output(&self) -> &str {
        &self.text
    }
}

impl Shell {
    /// Lets a machine run that will have a shell, at once or later.
    pub fn of(machine: Machine<KvmVm>, output: Arc<Collected>) -> Self {
        machine.resume();
        Self { machine: Some(machine), output, asked: 0 }
    }

    /// Boots what is described.
    #[track_caller]
    pub fn start(config: &Config) -> Self {
        let output = Arc::new(Collected::default());
        let machine = Machine::new(&Kvm::open().unwrap(), config, output.clone());
        Self::of(machine.unwrap(), output)
    }

    /// The same, and waits until there is a shell.
    #[track_caller]
    pub fn boot(config: &Config) -> Self {
        let mut shell = Self::start(config);
        assert!(shell.output.wait_for("user space reached", LIMIT), "{}", shell.output.text());
        // With an editor for its line, and an echo, a shell takes a millisecond for each character where kernels run
        // in software. Without a terminal for what it has to say of itself it does without both.
        shell.type_in("stty -echo; exec sh 2>/dev/null\n");
        shell.run("true").ok();
        shell
    }

    /// Goes on where a snapshot was taken.
    #[track_caller]
    pub fn restore(config: &Config, snapshot: &Snapshot) -> Self {
        let output = Arc::new(Collected::default());
        Self::of(restored(config, snapshot, &output), output)
    }

    /// Has the shell run a command, and waits until it has ended.
    #[track_caller]
    pub fn run(&mut self, command: &str) -> Answer {
        self.ask(command);
        self.await_answer()
    }

    /// The same, and returns what the command printed.
    #[track_caller]
    pub fn answer(&mut self, command: &str) -> String {
        self.run(command).text
    }

    /// Has the shell begin to run a command.
    #[track_caller]
    pub fn ask(&mut self, command: &str) {
        self.asked += 1;
        let number = self.asked;
        // A shell that repeats what it is given does not print these marks by that: there they are written otherwise.
        self.type_in(&format!(
            "echo BEGIN-$(({number})); ( {command}\n) 2>&1; echo STATUS-$?-END-$(({number}))-\n"
        ));
    }

    /// Types something in.
    #[track_caller]
    pub fn type_in(&self, text: &str) {
        let (start, mut rest) = (Instant::now(), text.as_bytes());
        while !rest.is_empty() {
            rest = &rest[self.machine().serial().offer_input(rest)..];
            assert!(start.elapsed() < LIMIT, "the guest takes no input: {}", self.output.text());
        }
    }

    /// Waits until what was asked for last has ended.
    #[track_caller]
    pub fn await_answer(&self) -> Answer {
        let (begin, end) = (format!("BEGIN-{}\r\n", self.asked), format!("-END-{}-\r\n", self.asked));
        self.expect(&end);
        let text = self.output.text();
        let answer = text.split_once(&begin).and_then(|(_, text)| text.split_once(&end)).unwrap().0;
        let (answer, status) = answer.rsplit_once("STATUS-").unwrap();
        Answer { text: answer.replace('\r', ""), status: status.parse().unwrap() }
    }

    /// Waits until this was printed.
    #[track_caller]
    pub fn expect(&self, text: &str) {
        let start = Instant::now();
        while !self.output.wait_for(text, MOMENT) {
            let outcome = self.machine().outcome();
            assert!(outcome.is_none() && start.elapsed() < LIMIT, "{outcome:?} {}", self.output.text());
        }
    }

    /// Throws the machine away and goes on in another one; false, and nothing is done, if it has ended.
    #[track_caller]
    pub fn travel(&mut self, config: &Config, place: &Path) -> bool {
        let old = self.machine.take().unwrap();
        old.pause();
        let drafted = match old.draft_snapshot(&Kvm::open().unwrap(), place) {
            Err(Error::Save(CannotSave::Ended(_))) => {
                self.machine = Some(old);
                return false;
            }
            drafted => drafted.unwrap(),
        };
        drafted.finish().unwrap();
        drop(old);
        let machine = restored(config, &Snapshot::open(place).unwrap(), &self.output);
        machine.resume();
        self.machine = Some(machine);
        true
    }

    /// Writes a snapshot, which `lodger restore` can use as well, and stays paused.
    #[track_caller]
    pub fn save(&self, config: &Config, place: &Path) {
        self.machine().pause();
        let mut drafted = self.machine().draft_snapshot(&Kvm::open().unwrap(), place).unwrap();
        let description = Description { config: config.clone(), console: Spec::Stdio };
        drafted.describe(&SavedDescription { text: description.to_toml().unwrap() });
        drafted.finish().unwrap();
    }

    pub fn machine(&self) -> &Machine<KvmVm> {
        self.machine.as_ref().expect("there is one but while it is replaced")
    }

    /// Everything that was printed.
    pub fn text(&self) -> String {
        self.output.text()
    }

    /// What the kernel has to complain about: nothing, but for what it said when it started.
    #[track_caller]
    pub fn complaints(&mut self) -> String {
        complaints(&self.answer("dmesg"))
    }
}

#[track_caller]
fn restored(config: &Config, snapshot: &Snapshot, output: &Arc<Collected>) -> Machine<KvmVm> {
    let kvm = Kvm::open().unwrap();
    Machine::restore(&kvm, config, snapshot, output.clone(), &mut Timeline::start()).unwrap()
}

/// Those lines of a kernel's log that tell of something wrong.
pub fn complaints(log: &str) -> String {
    const BAD: [&str; 9] =
        ["BUG", "WARNING", "Oops", "Call Trace", "stuck", "stall", "unstable", "nobody cared", "rror"];
    // At the start, with several processors of AMD's: where the counter that guests see is the host's, they are not
    // told that it is steady, and go by another clock.
    const EXPECTED: &str = "TSCs unsynchronized";
    let bad = |line: &&str| BAD.iter().any(|bad| line.contains(bad)) && !line.contains(EXPECTED);
    log.lines().filter(bad).collect()
}
