//! Linux that is saved at its shell and goes on in other machines.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use lodger::devices::Collected;
use lodger::hv::kvm::{Kvm, KvmVm};
use lodger::snapshot::Snapshot;
use lodger::vm::{CannotSave, Config, DiskSpec, Error, Kernel, Machine, MemorySpec, Timeline};

use crate::support::{Files, LIMIT, Scratch, e2fs, smp, tiny};

const MIB: u64 = 1 << 20;

fn config(files: &Files) -> Config {
    Config {
        memory: MemorySpec::of_size(64 * MIB),
        kernel: Kernel::File(files.path("vmlinux").into()),
        initrds: vec![files.path("initramfs").into()],
        cmdline: Some(files.get("cmdline").to_owned()),
        ..Config::default()
    }
}

/// A Linux with a shell on its console.
struct Shell {
    machine: Option<Machine<KvmVm>>,
    output: Arc<Collected>,
    seen: usize,
}

impl Shell {
    #[track_caller]
    fn boot(config: &Config) -> Self {
        let output = Arc::new(Collected::default());
        let machine = Machine::new(&Kvm::open().unwrap(), config, output.clone()).unwrap();
        machine.resume();
        assert!(output.wait_for("user space reached", LIMIT), "{}", output.text());
        let mut shell = Self { machine: Some(machine), output, seen: 0 };
        shell.answer("true");
        shell
    }

    #[track_caller]
    fn restore(config: &Config, place: &Path) -> Self {
        let output = Arc::new(Collected::default());
        let snapshot = Snapshot::open(place).unwrap();
        let kvm = Kvm::open().unwrap();
        let machine = Machine::restore(&kvm, config, &snapshot, output.clone(), &mut Timeline::start());
        let machine = machine.unwrap();
        machine.resume();
        Self { machine: Some(machine), output, seen: 0 }
    }

    /// Has the shell run a command, and returns what that printed.
    #[track_caller]
    fn answer(&mut self, command: &str) -> String {
        // The shell repeats what it is given, in which the marks are written in another way.
        let line = format!("echo BEGIN-$((0)); {command}; echo END-$((0))\n");
        let mut rest = line.as_bytes();
        while !rest.is_empty() {
            rest = &rest[self.machine().serial().offer_input(rest)..];
        }
        let start = Instant::now();
        loop {
            let text = self.output.text();
            if let Some((answer, _)) = text[self.seen..].split_once("END-0\r\n") {
                let answer = answer.split_once("BEGIN-0\r\n").map_or("", |(_, answer)| answer);
                self.seen = text.len();
                return answer.replace('\r', "");
            }
            let outcome = self.machine().outcome();
            assert!(outcome.is_none() && start.elapsed() < LIMIT, "{outcome:?} {text}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Throws the machine away and goes on in another one; false, and nothing is done, if it has ended.
    #[track_caller]
    fn travel(&mut self, config: &Config, place: &Path) -> bool {
        let kvm = Kvm::open().unwrap();
        let mut old = self.machine.take().unwrap();
        old.pause();
        let drafted = match old.draft_snapshot(&kvm, place) {
            Err(Error::Save(CannotSave::Ended(_))) => {
                self.machine = Some(old);
                return false;
            }
            drafted => drafted.unwrap(),
        };
        drafted.finish().unwrap();
        drop(old);
        let snapshot = Snapshot::open(place).unwrap();
        let machine = Machine::restore(&kvm, config, &snapshot, self.output.clone(), &mut Timeline::start());
        old = machine.unwrap();
        old.resume();
        self.machine = Some(old);
        true
    }

    fn machine(&self) -> &Machine<KvmVm> {
        self.machine.as_ref().expect("there is one but while it is replaced")
    }

    #[track_caller]
    fn save(&self, place: &Path) {
        self.machine().pause();
        let drafted = self.machine().draft_snapshot(&Kvm::open().unwrap(), place).unwrap();
        self.machine().resume();
        drafted.finish().unwrap();
    }

    /// What the kernel has to complain about: nothing, but for what it said when it started.
    #[track_caller]
    fn complaints(&mut self) -> String {
        complaints(&self.answer("dmesg"))
    }
}

fn complaints(log: &str) -> String {
    const BAD: [&str; 9] =
        ["BUG", "WARNING", "Oops", "Call Trace", "stuck", "stall", "unstable", "nobody cared", "rror"];
    log.lines().filter(|line| BAD.iter().any(|bad| line.contains(bad))).collect()
}

/// Booted and saved once for all tests of this file that want a shell.
fn at_the_shell() -> (&'static Path, Config) {
    static PLACE: OnceLock<PathBuf> = OnceLock::new();
    let place = PLACE.get_or_init(|| {
        let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("linux-at-the-shell");
        Shell::boot(&config(tiny())).save(&place);
        place
    });
    (place, config(tiny()))
}

#[test]
fn a_shell_that_was_saved_answers_in_every_machine_that_goes_on_with_it() {
    let (place, config) = at_the_shell();
    for number in 0..3 {
        let start = Instant::now();
        let mut shell = Shell::restore(&config, place);
        assert_eq!(shell.answer(&format!("echo sum $(({number} + 40))")), format!("sum {}\n", number + 40));
        println!("a shell answered {:?} after its restore began", start.elapsed());
        assert_eq!(shell.answer("sleep 0.2; cat /proc/uptime | wc -l").trim(), "1");
        assert_eq!(shell.complaints(), "");
    }
}

#[test]
fn a_counter_goes_on_through_many_machines() {
    let (place, config) = at_the_shell();
    let scratch = Scratch::new();
    let next = scratch.path().join("next");
    let mut shell = Shell::restore(&config, place);
    shell.answer("(i=0; while true; do i=$((i+1)); echo $i >/count; done) & true");
    let mut last = 0;
    for _ in 0..4 {
        let count: u64 = shell.answer("cat /count").trim().parse().unwrap_or(last);
        assert!(count >= last, "{count} after {last}");
        last = count;
        assert!(shell.travel(&config, &next));
    }
    assert!(last > 0);
    assert_eq!(shell.complaints(), "");
}

/// From its first instruction to its last, with everything that a kernel does only while it starts.
fn journey_of(config: Config, end: &str) {
    let scratch = Scratch::new();
    let place = scratch.path().join("next");
    let output = Arc::new(Collected::default());
    let machine = Machine::new(&Kvm::open().unwrap(), &config, output.clone()).unwrap();
    machine.resume();
    let mut guest = Shell { machine: Some(machine), output, seen: 0 };
    let start = Instant::now();
    let mut moves = 0;
    loop {
        // Longer and longer, so that a slow machine comes to an end, too.
        thread::sleep(Duration::from_millis(10 + 4 * moves));
        if !guest.travel(&config, &place) {
            break;
        }
        moves += 1;
        assert!(start.elapsed() < LIMIT, "{}", guest.output.text());
    }
    println!("{moves} moves in {:?}", start.elapsed());
    let text = guest.output.text();
    assert!(text.contains(end), "{text}");
    assert_eq!(guest.machine().wait().status(), 37, "{text}");
    assert_eq!(complaints(&text), "", "{text}");
}

#[test]
fn linux_starts_works_and_ends_while_it_changes_machines() {
    let line = format!("{} lodger.run=\"md5sum -c /sum 2>/dev/null; dmesg; exit 37\"", tiny().get("cmdline"));
    journey_of(Config { cmdline: Some(line), ..config(tiny()) }, "the script ended with status 37");
}

#[test]
fn linux_with_two_processors_starts_works_and_ends_while_it_changes_machines() {
    let line = format!("{} lodger.run=\"nproc; dmesg; exit 37\"", smp().get("cmdline"));
    let config = Config { cpus: 2.into(), cmdline: Some(line), ..config(smp()) };
    journey_of(config, "\n2\r\n");
}

#[test]
fn a_file_that_is_being_written_is_whole_in_the_end() {
    let scratch = Scratch::new();
    let image = scratch.at("disk");
    e2fs::make(&image, 32 * MIB, None);
    let line = format!(
        "{} lodger.run=\"mkdir -p /mnt; mount /dev/vda /mnt; \
         for i in 1 2; do dd if=/dev/urandom of=/mnt/file bs=64k count=8; md5sum /mnt/file >/mnt/sum; sync; \
         echo 3 >/proc/sys/vm/drop_caches; md5sum -c /mnt/sum || exit 1; done; umount /mnt; dmesg; exit 37\"",
        tiny().get("cmdline")
    );
    let config = Config { disks: vec![DiskSpec::new(&image)], cmdline: Some(line), ..config(tiny()) };
    journey_of(config, "/mnt/file: OK");
    e2fs::check(&image);
}
