//! `--console pty`: programs attach to the guest's console and leave it again.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::process::Stdio;
use std::sync::mpsc;
use std::thread;

use crate::support::{LIMIT, Running, Screen, guest, program};

/// Starts a guest; returns where its console is.
fn start(commands: &str) -> (Running, String) {
    let mut running = Running::start(program().args(guest(commands)).args(["--console", "pty"]));
    let mut line = String::new();
    BufReader::new(running.stderr()).read_line(&mut line).unwrap();
    let path = line.trim_end().strip_prefix("lodger: the console is on ").expect("a path");
    (running, path.to_owned())
}

/// Reads from a terminal until `text` has come.
fn read_until(terminal: &File, text: &str) -> String {
    let (sender, receiver) = mpsc::channel();
    let mut reader = terminal.try_clone().unwrap();
    let wanted = text.to_owned();
    thread::spawn(move || {
        let (mut seen, mut byte) = (String::new(), [0; 1]);
        while !seen.ends_with(&wanted) && reader.read(&mut byte).is_ok_and(|count| count > 0) {
            seen.push(byte[0] as char);
        }
        let _ = sender.send(seen);
    });
    receiver.recv_timeout(LIMIT).unwrap_or_else(|_| panic!("{text:?} never came"))
}

#[test]
fn programs_attach_talk_and_attach_again() {
    let (running, path) = start("");
    for round in 0..3 {
        let mut terminal = Screen::attach(&path);
        if round == 0 {
            // What was printed before is still there.
            assert!(read_until(&terminal, "lodger> ").starts_with("lodger guest "));
        }
        write!(terminal, "echo round {round}\r").unwrap();
        let text = read_until(&terminal, "lodger> ");
        assert_eq!(text, format!("echo round {round}\r\nround {round}\r\nlodger> "));
    }
    let mut terminal = Screen::attach(&path);
    terminal.write_all(b"exit 21\r").unwrap();
    drop(terminal);
    running.finish().with(21);
}

#[test]
fn a_console_that_nobody_attaches_to_does_not_hold_the_guest_up() {
    let (running, _path) = start("burst 12800;exit 22");
    let finished = running.finish().with(22);
    assert_eq!(finished.stdout, "");
}

#[test]
fn standard_input_is_left_alone() {
    let mut command = program();
    command.args(guest("timer;exit 23")).args(["--console", "pty"]);
    let mut screen = Screen::new();
    let mut running = Running::start(screen.show(&mut command));
    screen.expect("lodger: the console is on /dev/pts/");
    assert!(!screen.modes().are_raw());
    assert_eq!(running.wait().code(), Some(23));
}

#[test]
fn the_terminals_of_two_guests_are_two() {
    let ((first, one), (second, two)) = (start(""), start(""));
    assert_ne!(one, two);
    for (running, path, status) in [(first, one, 24), (second, two, 25)] {
        let mut terminal = Screen::attach(&path);
        // SAFETY: asks about a descriptor.
        assert_eq!(unsafe { libc::isatty(terminal.as_raw_fd()) }, 1);
        write!(terminal, "exit {status}\r").unwrap();
        running.finish().with(status);
    }
}

#[test]
fn a_signal_ends_it_as_usual() {
    let mut command = program();
    let running = Running::start(command.args(["--console", "pty"]).stderr(Stdio::null()));
    thread::sleep(std::time::Duration::from_millis(50));
    running.signal(libc::SIGINT);
    let status = running.finish().status;
    assert_eq!(crate::support::ended(status), 130);
}
