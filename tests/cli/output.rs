//! The guest's output when its reader is a pipe or a file: all of it, in order, whatever happens at the end.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsRawFd;
use std::process::{ChildStdout, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Running, Scratch, check, guest, program, wait_until};

const FOREVER: &str = "burst 1000000000";

/// What `burst` prints: numbered lines of 64 bytes.
#[track_caller]
fn check_burst(output: &str, bytes: usize) {
    let lines = output.split_inclusive('\n').filter(|line| line.ends_with("lazy dog 012345678\r\n"));
    let numbers: Vec<_> = lines.map(|line| line[..8].parse::<usize>().unwrap()).collect();
    assert_eq!(numbers.len(), bytes / 64);
    assert!(numbers.iter().copied().eq(0..bytes / 64), "lines are out of order");
}

#[test]
fn a_burst_right_before_the_end_arrives_whole_in_a_pipe() {
    let mut command = program();
    let finished = Running::start(command.args(guest("burst 102400;exit 7"))).finish().with(7).silent();
    check_burst(&finished.stdout, 102_400);
}

#[test]
fn a_burst_right_before_the_end_arrives_whole_in_a_file() {
    let scratch = Scratch::new();
    let path = scratch.at("output");
    let file = File::create(&path).unwrap();
    Running::start(program().args(guest("burst 25600;exit 7")).stdout(file)).finish().with(7).silent();
    check_burst(&fs::read_to_string(path).unwrap(), 25_600);
}

#[test]
fn output_right_before_a_crash_arrives_whole() {
    let finished = Running::start(program().args(guest("burst 12800;crash triple"))).finish().with(101);
    check_burst(&finished.stdout, 12_800);
}

#[test]
fn a_slow_reader_gets_everything() {
    let mut running = Running::start(program().args(guest("burst 76800;exit 7")));
    let mut stdout = running.stdout();
    make_small(&stdout);
    let reader = thread::spawn(move || {
        wait_until_full(&stdout);
        let (mut text, mut piece) = (String::new(), [0; 2048]);
        loop {
            match stdout.read(&mut piece).unwrap() {
                0 => return text,
                count => text.push_str(std::str::from_utf8(&piece[..count]).unwrap()),
            }
            thread::sleep(Duration::from_millis(5));
        }
    });
    running.finish().with(7).silent();
    check_burst(&reader.join().unwrap(), 76_800);
}

#[test]
fn several_outputs_may_be_one_pipe() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut command = program();
    command.args(guest("burst 640;crash triple")).stdout(writer.try_clone().unwrap()).stderr(writer);
    let mut running = Running::start(&mut command);
    drop(command);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(running.wait().code(), Some(101));
    // First everything from the guest, then the report.
    let (guest, report) = text.split_once("lodger: ").unwrap();
    check_burst(guest, 640);
    assert!(report.contains("triple fault"));
}

/// Reads one line and goes, like `head -1`.
fn read_one_line(stdout: ChildStdout) {
    let mut line = String::new();
    BufReader::with_capacity(64, stdout).read_line(&mut line).unwrap();
    assert!(line.starts_with("lodger guest "), "{line:?}");
}

#[test]
fn when_its_reader_goes_away_the_process_ends_soon_and_says_why() {
    let mut running = Running::start(program().args(guest(FOREVER)));
    read_one_line(running.stdout());
    let finished = running.finish().with(1);
    assert!(finished.stderr.starts_with("lodger: console output"), "{finished:#?}");
    assert_eq!(finished.stderr.lines().count(), 1, "{finished:#?}");
}

#[test]
fn a_silent_guest_ends_too_when_its_reader_goes_away() {
    let mut running = Running::start(program().args(guest("")).stdin(Stdio::piped()));
    let stdin = running.stdin();
    read_one_line(running.stdout());
    let finished = running.finish().with(1);
    assert!(finished.stderr.starts_with("lodger: console output"), "{finished:#?}");
    drop(stdin);
}

/// Makes a pipe so small that it is soon full.
fn make_small(pipe: &ChildStdout) {
    // SAFETY: changes the pipe.
    check(unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETPIPE_SZ, 4096) });
}

/// Waits until nothing fits into the pipe any more.
fn wait_until_full(pipe: &ChildStdout) {
    let (mut last, mut since) = (0, Instant::now());
    wait_until("the pipe is full", || {
        let mut waiting = 0;
        // SAFETY: the kernel writes one integer.
        check(unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &raw mut waiting) });
        if waiting != last {
            (last, since) = (waiting, Instant::now());
        }
        waiting > 0 && since.elapsed() > Duration::from_millis(200)
    });
}

#[test]
fn a_reader_that_never_reads_does_not_keep_the_process_from_ending() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let mut running = Running::start(program().args(guest(FOREVER)));
        let stdout = running.stdout();
        make_small(&stdout);
        wait_until_full(&stdout);
        running.signal(signal);
        running.finish().with(128 + signal);
        drop(stdout);
    }
}

/// Longer than the process waits for a reader while the guest runs: `lodger run | less` is such a reader.
#[test]
fn a_reader_that_pauses_after_the_guest_has_ended_gets_everything() {
    let mut running = Running::start(program().args(guest("burst 12800;exit 0")));
    let mut stdout = running.stdout();
    make_small(&stdout);
    wait_until_full(&stdout);
    thread::sleep(Duration::from_millis(1500));
    let mut text = String::new();
    stdout.read_to_string(&mut text).unwrap();
    assert_eq!(text.matches("lazy dog").count(), 200);
    running.finish().with(0).silent();
}

#[test]
fn what_a_stuck_reader_did_not_get_is_told_at_the_end() {
    let mut running = Running::start(program().args(guest("burst 6400;exit 0")));
    let stdout = running.stdout();
    make_small(&stdout);
    wait_until_full(&stdout);
    // The guest has gone on printing.
    thread::sleep(Duration::from_millis(100));
    running.signal(libc::SIGTERM);
    let finished = running.finish().with(1);
    assert!(finished.stderr.starts_with("lodger: console output"), "{finished:#?}");
    assert!(finished.stderr.contains("bytes"), "{finished:#?}");
    drop(stdout);
}

#[test]
fn a_full_disk_is_an_error() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let finished = Running::start(program().args(guest("halt")).stdout(full)).finish().with(1);
    assert!(finished.stderr.contains("No space left"), "{finished:#?}");
    assert_eq!(finished.stderr.lines().count(), 1, "{finished:#?}");
}

#[test]
fn a_crash_is_explained_even_if_its_output_was_lost() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let finished = Running::start(program().args(guest("crash triple")).stdout(full)).finish().with(101);
    assert!(finished.stderr.contains("triple fault"), "{finished:#?}");
    assert!(finished.stderr.contains("No space left"), "{finished:#?}");
}

#[test]
fn a_signal_keeps_its_status_even_if_output_was_lost() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut command = program();
    command.args(guest("")).stdout(full).stdin(Stdio::piped());
    let mut running = Running::start(&mut command);
    let stdin = running.stdin();
    running.wait_until_attentive();
    // Meanwhile the guest prints something.
    thread::sleep(Duration::from_millis(100));
    running.signal(libc::SIGTERM);
    running.finish().with(143);
    drop(stdin);
}
