//! Commands through a pipe, a file, or nothing at all on standard input.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use crate::support::{Running, Scratch, guest, lodger, program};

#[test]
fn piped_commands_are_answered() {
    let finished = lodger(["run"], "help\n").with(0).silent();
    for command in ["mem", "exits", "peek", "poke", "ring0", "crash", "halt", "reboot"] {
        let name = format!("  {command} ");
        assert!(finished.lines().any(|line| line.starts_with(&name)), "{command}: {finished:#?}");
    }
}

#[test]
fn exits_prints_figures() {
    let finished = lodger(["run"], "exits\nhalt\n").with(0).silent();
    for row in ["port write", "port read", "memory-mapped read", "memory-mapped write", "deadline to handler"]
    {
        let line =
            finished.lines().find(|line| line.contains(row)).unwrap_or_else(|| panic!("{finished:#?}"));
        let words: Vec<_> = line.split_whitespace().rev().take(4).collect();
        let [unit, median, least_unit, least] = words[..] else { panic!("{line}") };
        assert!(["ns", "us", "ms"].contains(&unit) && ["ns", "us", "ms"].contains(&least_unit), "{line}");
        assert!(median.parse::<f64>().unwrap() > 0.0 && least.parse::<f64>().unwrap() > 0.0, "{line}");
    }
}

/// The answers among a guest's output to lines of `echo answer …`.
fn answers(stdout: &str) -> Vec<&str> {
    stdout.split("\r\n").filter_map(|line| line.strip_prefix("answer ")).collect()
}

#[test]
fn thousands_of_lines_written_at_once_are_all_answered_in_order() {
    let numbers: Vec<_> = (0..2000).map(|number| number.to_string()).collect();
    let input: String = numbers.iter().map(|number| format!("echo answer {number}\n")).collect();
    let finished = lodger(guest(""), &(input + "exit 6\n")).with(6).silent();
    assert_eq!(answers(&finished.stdout), numbers);
}

/// 64 KiB fill the serial port's queue to its last byte, with nothing held back that would have to be tried again.
#[test]
fn input_beyond_what_the_serial_port_keeps_follows_when_there_is_room() {
    let line = format!("{}\n\n", "#".repeat(62));
    lodger(guest(""), &format!("{}exit 7\n", line.repeat(2048))).with(7).silent();
}

#[test]
fn a_file_of_commands_is_carried_out_to_its_end() {
    let scratch = Scratch::new();
    let commands = scratch.file("commands", b"echo answer one\r\necho answer two\r\necho answer three");
    let mut command = program();
    command.args(guest("")).stdin(File::open(commands).unwrap());
    let finished = Running::start(&mut command).finish().with(0).silent();
    // The last line has no end, so it is not carried out.
    assert_eq!(answers(&finished.stdout), ["one", "two"]);
    assert!(finished.stdout.ends_with("echo answer three\r\ninput ended, halting\r\n"), "{finished:#?}");
}

#[test]
fn input_from_before_the_guest_listens_is_kept() {
    // It measures for a while before it looks at its serial port.
    let finished = lodger(guest("timer;timer"), "echo answer early\nexit 4\n").with(4).silent();
    assert_eq!(answers(&finished.stdout), ["early"]);
}

#[test]
fn commands_that_come_late_and_in_pieces_are_answered() {
    let mut running = Running::start(program().args(guest("")).stdin(Stdio::piped()));
    let mut stdin = running.stdin();
    let feeder = thread::spawn(move || {
        for piece in ["ec", "ho answer", " late", "\n", "exit", " 9\n"] {
            thread::sleep(Duration::from_millis(20));
            stdin.write_all(piece.as_bytes()).unwrap();
        }
        stdin
    });
    let finished = running.finish().with(9).silent();
    assert_eq!(answers(&finished.stdout), ["late"]);
    drop(feeder.join().unwrap());
}

#[test]
fn without_input_the_guest_halts_by_itself() {
    let finished = Running::start(&mut program()).finish().with(0).silent();
    assert!(finished.stdout.ends_with("lodger> \r\ninput ended, halting\r\n"), "{finished:#?}");
}

#[test]
fn closed_standard_input_is_no_input() {
    let mut command = program();
    command.args(guest(""));
    // SAFETY: between fork and exec only a system call is made.
    unsafe {
        command.pre_exec(|| if libc::close(0) == 0 { Ok(()) } else { Err(io::Error::last_os_error()) });
    }
    let finished = Running::start(&mut command).finish().with(0).silent();
    assert!(finished.stdout.ends_with("input ended, halting\r\n"), "{finished:#?}");
}

#[test]
fn standard_input_that_cannot_be_read_is_named() {
    let directory = File::open("/").unwrap();
    let finished = Running::start(program().args(guest("")).stdin(directory)).finish().with(1);
    assert!(finished.stderr.starts_with("lodger: cannot read the console's input: "), "{finished:#?}");
}

#[test]
fn endless_input_does_not_keep_the_process_from_ending() {
    let zero = File::open("/dev/zero").unwrap();
    Running::start(program().args(guest("timer;exit 3")).stdin(zero)).finish().with(3).silent();
    let zero = File::open("/dev/zero").unwrap();
    let running = Running::start(program().args(guest("")).stdin(zero).stdout(Stdio::null()));
    running.wait_until_attentive();
    running.signal(libc::SIGTERM);
    running.finish().with(143);
}
