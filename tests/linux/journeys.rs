//! A guest at work whose process is killed again and again, and which goes on from the last snapshot each time.
//!
//! Everything is done by the program itself, as its user would. The guest counts in its shell, has timers, and writes
//! two files to its disk: one that grows by numbered lines, and one that is written anew, flushed, read back from the
//! disk and compared. Snapshots are taken of it as it works, with its disk in each way that suits a VM that goes on, and
//! some of them as diffs. It goes on for a moment after each, so that what is killed is another guest than the one that
//! was kept.
//!
//! `LODGER_JOURNEYS` says how many are made; the default is a number that takes seconds.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Attached, Running, Session, complaints, e2fs, lodger, rounds, tiny};

const JOURNEYS: &str = "LODGER_JOURNEYS";
const FEW_JOURNEYS: usize = 8;
const SIZE: u64 = 16 << 20;

/// How the snapshots are taken, in turn. The first is one that needs nothing of what was before.
const WAYS: [&[&str]; 4] =
    [&["--disks=copy"], &["--disks=copy", "--diff"], &["--disks=overlay"], &["--disks=overlay", "--diff"]];
/// So often the guest itself is asked whether all that it wrote is there.
const JOURNEYS_TO_CHECK: usize = 10;

/// What the guest does. Its loops keep their numbers in memory, and wait by reading what nobody writes: where kernels
/// run in software, a process costs them twenty times as much.
const WORK: &str = "\
    mkdir -p /mnt; mount /dev/vda /mnt; mkfifo /never; exec 5<>/never; echo 0 >/count; echo 0 >/ticks; \
    echo 0 >/lines; echo 0 >/compared; \
    (i=0; while true; do i=$((i+1)); echo $i >/count; read -t 0.02 x <&5; done) & \
    (i=0; while true; do read -t 0.2 x <&5; i=$((i+1)); echo $i >/ticks; done) & \
    (i=0; while [ ! -e /enough ]; do i=$((i+1)); echo line $i >>/mnt/log; echo $i >/lines; \
     [ $((i%50)) = 0 ] && sync; read -t 0.02 x <&5; done; echo >/log-done) & \
    (i=0; while [ ! -e /enough ]; do i=$((i+1)); \
     head -c 30000 /dev/urandom >/mnt/file; sum=$(md5sum </mnt/file); sync; echo 3 >/proc/sys/vm/drop_caches; \
     [ \"$(md5sum </mnt/file)\" = \"$sum\" ] || echo $sum >>/wrong; \
     echo $i >/compared; read -t 0.1 x <&5; done; echo >/file-done) & true";

/// Whether each line of the log is the one after the line before it, as the disk has it.
const CHECK_LOG: &str = "sync; echo 3 >/proc/sys/vm/drop_caches; \
    awk '$1 != \"line\" || $2 != NR { print \"line\", NR, \"is\", $0; exit }' /mnt/log; cat /wrong 2>/dev/null; true";

/// What the guest has got to.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    count: u64,
    ticks: u64,
    lines: u64,
    compared: u64,
    /// In hundredths of a second.
    uptime: u64,
}

impl Progress {
    #[track_caller]
    fn of(guest: &mut Attached) -> Self {
        // A shell reads one character after the other, and the number may become another in between.
        let text = guest.answer(
            "for name in count ticks lines compared; do \
             until read x </$name && read y </$name && [ $x = $y ]; do :; done; echo $x; done; \
             read x rest </proc/uptime; echo $x",
        );
        let numbers: Vec<_> = text.lines().map(|line| line.replace('.', "").parse().unwrap()).collect();
        let [count, ticks, lines, compared, uptime] = numbers[..] else { panic!("{text}") };
        Self { count, ticks, lines, compared, uptime }
    }

    /// Whether nothing of this is behind what was before.
    fn goes_on_from(self, before: Self) -> bool {
        self.count >= before.count
            && self.ticks >= before.ticks
            && self.lines >= before.lines
            && self.compared >= before.compared
            && self.uptime >= before.uptime
    }
}

/// A VM, and what its present process was restored from.
struct Traveller {
    session: Session,
    /// How many snapshots were taken.
    taken: usize,
    stood_still: Vec<u64>,
    until_an_answer: Vec<Duration>,
}

impl Traveller {
    #[track_caller]
    fn start() -> (Self, Attached) {
        let session = Session::new();
        let image = session.at("disk.raw");
        e2fs::make(&image, SIZE, None);
        let mut command = session.command(&["run", "--detach", "--name=one", "--memory=64M"]);
        command.arg(tiny().path("vmlinux")).args(["--initrd", tiny().path("initramfs")]);
        command.args(["--cmdline", tiny().get("cmdline"), "--disk", &image]);
        Running::start(&mut command).finish().with(0).silent();
        let mut guest = Attached::to(&session, "one");
        guest.prepare_shell();
        (Self { session, taken: 0, stood_still: Vec::new(), until_an_answer: Vec::new() }, guest)
    }

    fn snapshot_at(&self, number: usize) -> String {
        self.session.at(&format!("snapshot-{number}"))
    }

    /// Takes a snapshot of the guest, kills its process after a while, and goes on.
    #[track_caller]
    fn travel(&mut self, way: &[&str], afterwards: Duration) -> Attached {
        let place = self.snapshot_at(self.taken);
        let taken = self.session.json(&[&["snapshot", "one", &place], way].concat());
        self.stood_still.push(taken["stopped-for-us"].as_u64().unwrap());
        thread::sleep(afterwards);
        self.session.kill_process("one");
        let start = Instant::now();
        let overlay = self.session.at(&format!("overlay-{}.qcow2", self.taken));
        let line = ["restore", &place, "--detach", "--overlay", &format!("vda={overlay}")];
        self.session.run(&line).with(0).silent();
        let mut guest = Attached::to(&self.session, "one");
        guest.answer("true");
        self.until_an_answer.push(start.elapsed());
        self.taken += 1;
        if way == WAYS[0] {
            self.forget_what_was_before();
        }
        guest
    }

    /// Removes what the last snapshot needs nothing of.
    fn forget_what_was_before(&self) {
        let Some(last) = self.taken.checked_sub(1) else { return };
        let needed = [format!("snapshot-{last}"), format!("overlay-{last}.qcow2"), "lodger".to_owned()];
        for entry in fs::read_dir(self.session.path()).unwrap().flatten() {
            if needed.iter().all(|name| entry.file_name() != name.as_str()) {
                let removed = if entry.path().is_dir() {
                    fs::remove_dir_all(entry.path())
                } else {
                    fs::remove_file(entry.path())
                };
                removed.unwrap();
            }
        }
    }
}

#[track_caller]
fn assert_sound(guest: &mut Attached) {
    assert_eq!(guest.answer(CHECK_LOG), "");
    assert_eq!(complaints(&guest.answer("dmesg")), "");
}

#[test]
fn a_guest_at_work_goes_on_however_often_its_process_is_killed() {
    let (mut traveller, mut guest) = Traveller::start();
    guest.answer(WORK);
    let mut before = Progress::of(&mut guest);
    let first = before;
    for number in 0..rounds(JOURNEYS, FEW_JOURNEYS) {
        let afterwards = Duration::from_millis(number as u64 * 7919 % 60);
        guest = traveller.travel(WAYS[number % WAYS.len()], afterwards);
        let now = Progress::of(&mut guest);
        assert!(now.goes_on_from(before), "journey {number}: {now:?} after {before:?}");
        if number % JOURNEYS_TO_CHECK == JOURNEYS_TO_CHECK - 1 {
            assert_sound(&mut guest);
            println!("journey {number}: {now:?}");
        }
        before = now;
    }
    assert!(before.count > first.count && before.lines > first.lines, "{before:?} after {first:?}");
    let sums = guest.answer(
        "echo >/enough; until [ -e /log-done ] && [ -e /file-done ]; do read -t 0.02 x <&5; done; md5sum /mnt/log /mnt/file",
    );
    assert_sound(&mut guest);
    let last = Progress::of(&mut guest);
    assert!(last.ticks > first.ticks && last.compared > first.compared, "{last:?} after {first:?}");
    guest.answer("umount /mnt");
    // A last time, so that what is checked was kept, too.
    drop(traveller.travel(WAYS[0], Duration::ZERO));
    check_files(&traveller, &sums, last.lines);
    report(&mut traveller, last);
}

/// Checks what the last snapshot has of the disk: the file system, and the files against the guest's own sums.
#[track_caller]
fn check_files(traveller: &Traveller, sums: &str, lines: u64) {
    let session = &traveller.session;
    let disks = fs::read_dir(format!("{}/disks", traveller.snapshot_at(traveller.taken - 1))).unwrap();
    let copies: Vec<_> = disks.map(|entry| entry.unwrap().path()).collect();
    let [copy] = &copies[..] else { panic!("{copies:?}") };
    let (image, files) = (session.at("end.raw"), session.at("files"));
    lodger(["disk", "convert", copy.to_str().unwrap(), &image], "").with(0);
    e2fs::check(&image);
    fs::create_dir(&files).unwrap();
    e2fs::extract(&image, &files);
    for line in sums.lines() {
        let (sum, path) = line.split_once("  /mnt/").unwrap();
        assert_eq!(md5(&format!("{files}/{path}")), sum, "{path}");
    }
    let expected: String = (1..=lines).map(|number| format!("line {number}\n")).collect();
    assert!(fs::read_to_string(format!("{files}/log")).unwrap() == expected);
}

fn md5(path: &str) -> String {
    let output = std::process::Command::new("md5sum").arg(path).output().unwrap().stdout;
    String::from_utf8(output).unwrap().split_whitespace().next().unwrap().to_owned()
}

fn report(traveller: &mut Traveller, last: Progress) {
    let Traveller { taken, stood_still, until_an_answer, .. } = traveller;
    stood_still.sort_unstable();
    until_an_answer.sort_unstable();
    println!(
        "{taken} journeys: the guest stood still for {} us (median; at most {}), and answered {:?} after the restore \
         began (at most {:?}); {last:?}",
        stood_still[stood_still.len() / 2],
        stood_still.last().unwrap(),
        until_an_answer[until_an_answer.len() / 2],
        until_an_answer.last().unwrap()
    );
}
