//! Whole consoles, on pipes, files and pseudo-terminals that the tests make.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::sync::{MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::terminal::tests::{ONE_AT_A_TIME, cooked, is_raw};
use super::*;
use crate::storage::testing::TempDir;

/// A console on a cooked terminal, output included.
fn on_terminal() -> (MutexGuard<'static, ()>, Console, Pty, File) {
    let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let pty = cooked();
    let slave = || Handle::Owned(pty.slave.try_clone().unwrap());
    let mut console = Console::on(slave(), slave());
    console.take_terminal().unwrap();
    let master = File::from(pty.master.try_clone().unwrap());
    (turn, console, pty, master)
}

/// A console whose input is `input`, without output.
fn on_input(input: impl Into<OwnedFd>) -> Console {
    let null = File::options().write(true).open("/dev/null").unwrap();
    Console::on(Handle::Owned(input.into()), Handle::Owned(null.into()))
}

/// Reads until something else than bytes comes, or until `enough` bytes are there.
fn read(console: &mut Console, enough: usize) -> (Vec<u8>, Input) {
    let (start, mut bytes, mut buffer) = (Instant::now(), Vec::new(), [0; 64]);
    loop {
        match console.read_input(&mut buffer).unwrap() {
            Input::Bytes(count) => bytes.extend_from_slice(&buffer[..count]),
            Input::Nothing if bytes.len() < enough => {
                assert!(start.elapsed() < Duration::from_secs(10), "only {bytes:?}");
                thread::sleep(Duration::from_millis(1));
            }
            other => return (bytes, other),
        }
    }
}

/// Reads from our end of a terminal until `what` has appeared.
fn shown(master: &mut File, what: &str) -> String {
    let (start, mut text, mut piece) = (Instant::now(), String::new(), [0; 256]);
    while !text.contains(what) {
        assert!(start.elapsed() < Duration::from_secs(10), "{what:?} is not in {text:?}");
        match master.read(&mut piece) {
            Ok(count) => text.push_str(&String::from_utf8_lossy(&piece[..count])),
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
    text
}

#[test]
fn a_terminal_console_is_raw_both_ways_until_it_is_closed() {
    let (_turn, mut console, pty, mut master) = on_terminal();
    assert!(is_raw(&pty) && console.is_interactive());
    console.output().push(b"down\nonly\r\n");
    assert_eq!(shown(&mut master, "only\r\n"), "down\nonly\r\n");
    master.write_all(b"\x03\x1a\r").unwrap();
    assert_eq!(read(&mut console, 3), (b"\x03\x1a\r".to_vec(), Input::Nothing));
    console.close().unwrap();
    assert!(!is_raw(&pty));
}

#[test]
fn bytes_before_the_escape_come_first_and_leaving_stays() {
    let (_turn, mut console, _pty, mut master) = on_terminal();
    master.write_all(b"abc\x01xdef").unwrap();
    assert_eq!(read(&mut console, 4), (b"abc".to_vec(), Input::Leave));
    assert_eq!(console.read_input(&mut [0; 8]).unwrap(), Input::Leave);
}

#[test]
fn help_and_hint_are_shown_on_the_terminal_and_not_to_the_guest() {
    let (_turn, mut console, _pty, mut master) = on_terminal();
    master.write_all(b"a\x01hb\x01?c\x01\x01").unwrap();
    assert_eq!(read(&mut console, 4), (b"abc\x01".to_vec(), Input::Nothing));
    shown(&mut master, "Ctrl-A x       leave: end the guest\r\n");
    master.write_all(b"\x01z").unwrap();
    let mut buffer = [0; 8];
    while console.output().counters().bytes_of_ours == keys::HELP.len() as u64 {
        assert_eq!(console.read_input(&mut buffer).unwrap(), Input::Nothing);
    }
    shown(&mut master, "Ctrl-A h shows what it can do\r\n");
}

#[test]
fn a_terminal_that_something_else_changed_is_raw_again_after_a_stop() {
    let (_turn, mut console, pty, _master) = on_terminal();
    restore_terminal();
    assert!(!is_raw(&pty));
    console.resume_terminal().unwrap();
    assert!(is_raw(&pty));
    drop(console);
    assert!(!is_raw(&pty));
}

#[test]
fn a_terminal_that_hangs_up_is_the_end_of_input() {
    let (_turn, mut console, pty, master) = on_terminal();
    drop((pty, master));
    assert_eq!(read(&mut console, 1), (Vec::new(), Input::End));
    assert!(console.input().is_none());
}

#[test]
fn a_pipe_is_passed_unchanged_to_its_end() {
    let (reader, mut writer) = io::pipe().unwrap();
    let mut console = on_input(reader);
    assert!(!console.is_interactive());
    assert_eq!(console.read_input(&mut [0; 8]).unwrap(), Input::Nothing);
    writer.write_all(b"\x01x\x01h\0\xff").unwrap();
    drop(writer);
    assert_eq!(read(&mut console, 6), (b"\x01x\x01h\0\xff".to_vec(), Input::End));
    assert!(console.input().is_none());
    assert_eq!(console.read_input(&mut [0; 8]).unwrap(), Input::End);
}

#[test]
fn files_and_the_null_device_are_inputs_too() {
    let scratch = TempDir::new();
    let path = scratch.at("keys");
    fs::write(&path, b"help\n").unwrap();
    assert_eq!(read(&mut on_input(File::open(&path).unwrap()), 5), (b"help\n".to_vec(), Input::End));
    assert_eq!(read(&mut on_input(File::open("/dev/null").unwrap()), 0), (Vec::new(), Input::End));
}

#[test]
fn input_that_cannot_be_read_is_an_error_once() {
    let mut console = on_input(File::open("/").unwrap());
    assert_eq!(console.read_input(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::IsADirectory);
    assert!(console.input().is_none());
    assert_eq!(console.read_input(&mut [0; 8]).unwrap(), Input::End);
}

#[test]
fn a_file_gets_all_output_and_replaces_what_was_there() {
    let scratch = TempDir::new();
    let path = scratch.at("log");
    fs::write(&path, "a long line of an earlier guest").unwrap();
    let console = Console::open(&Spec::File(path.clone())).unwrap();
    assert!(console.input().is_none());
    for byte in b"printed\r\n" {
        console.output().push(&[*byte]);
    }
    console.close().unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"printed\r\n");
}

#[test]
fn a_new_file_is_for_its_owner_to_write() {
    let scratch = TempDir::new();
    let path = scratch.at("log");
    drop(Console::open(&Spec::File(path.clone())).unwrap());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7133, 0);
}

#[test]
fn a_file_that_cannot_be_written_is_explained() {
    let scratch = TempDir::new();
    let refuse = |path: PathBuf| Console::open(&Spec::File(path)).err().unwrap().to_string();
    assert!(refuse(scratch.path().to_owned()).ends_with("it is a directory, a file is needed"));
    let missing = refuse(scratch.at("no/log"));
    assert!(missing.ends_with(&format!("the directory {} does not exist", scratch.at("no").display())));
    let pipe = scratch.at("pipe");
    let name = std::ffi::CString::new(pipe.to_str().unwrap()).unwrap();
    // SAFETY: the name ends with a zero and is only read.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    assert!(refuse(pipe).ends_with("start the reader first"));
}

#[test]
fn a_full_disk_is_an_error_at_the_end() {
    let console = Console::open(&Spec::File("/dev/full".into())).unwrap();
    console.output().push(b"lost");
    let error = console.close().unwrap_err().to_string();
    assert!(error.starts_with("console output ended early, 4 bytes are lost: No space left"), "{error}");
}

#[test]
fn a_pty_passes_everything_both_ways_and_survives_its_users() {
    let mut console = Console::open(&Spec::Pty).unwrap();
    let path = console.pty_path().unwrap().to_owned();
    console.output().push(b"before anybody came\n");
    for _ in 0..2 {
        let mut user = File::options().read(true).write(true).open(&path).unwrap();
        assert!(console.input().is_some());
        user.write_all(b"\x01x\r").unwrap();
        assert_eq!(read(&mut console, 3), (b"\x01x\r".to_vec(), Input::Nothing));
        console.output().push(b"echo\n");
        let mut text = Vec::new();
        while !text.ends_with(b"echo\n") {
            let mut piece = [0; 64];
            let count = user.read(&mut piece).unwrap();
            text.extend_from_slice(&piece[..count]);
        }
    }
    assert_eq!(console.read_input(&mut [0; 8]).unwrap(), Input::Nothing);
    console.close().unwrap();
}

#[test]
fn a_pty_without_users_holds_nobody_up_and_keeps_the_beginning() {
    let timing = Timing { patience: Duration::from_millis(20), ..Timing::default() };
    let console = Console::open_pty(timing).unwrap();
    let output = console.output();
    let start = Instant::now();
    for _ in 0..1000 {
        output.push(&[b'.'; 1000]);
    }
    assert!(start.elapsed() < Duration::from_secs(5));
    let counters = output.counters();
    assert!(counters.bytes_dropped > 0 && counters.bytes_dropped < 950_000, "{counters:?}");
    console.close().unwrap();
}

#[test]
fn no_console_reads_and_writes_nothing() {
    let mut console = Console::open(&Spec::None).unwrap();
    console.output().push(b"nothing");
    assert!(console.input().is_none() && console.pty_path().is_none());
    assert_eq!(console.read_input(&mut [0; 8]).unwrap(), Input::End);
    console.close().unwrap();
}
