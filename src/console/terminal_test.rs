//! The terminal is tested on pseudo-terminals; what only a process can show (its end, job control) is tested
//! by running this test program again, with the pseudo-terminal as its own.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::super::pty::Pty;
use super::super::{Console, Input, Spec};
use super::*;

/// There is one raw terminal in a process, so tests that have one take turns.
pub(in super::super) static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A pseudo-terminal as a shell leaves it: the slave cooked.
pub(in super::super) fn cooked() -> Pty {
    let pty = Pty::open().unwrap();
    let mut cooked = modes(&pty.slave).unwrap();
    cooked.c_iflag |= libc::ICRNL | libc::IXON;
    cooked.c_oflag |= libc::OPOST | libc::ONLCR;
    cooked.c_lflag |= libc::ICANON | libc::ECHO | libc::ISIG | libc::IEXTEN;
    // SAFETY: reads the structure during the call.
    assert_eq!(unsafe { libc::tcsetattr(pty.slave.as_raw_fd(), libc::TCSANOW, &cooked) }, 0);
    pty
}

pub(in super::super) fn is_raw(pty: &Pty) -> bool {
    let modes = modes(&pty.slave).unwrap();
    let cooked_flags =
        (modes.c_lflag & (libc::ICANON | libc::ECHO | libc::ISIG)) | (modes.c_oflag & libc::OPOST);
    cooked_flags == 0
}

fn all_modes(pty: &Pty) -> [u32; 4] {
    let modes = modes(&pty.slave).unwrap();
    [modes.c_iflag, modes.c_oflag, modes.c_cflag, modes.c_lflag]
}

#[test]
fn a_terminal_is_raw_while_it_is_used_and_then_as_before() {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let pty = cooked();
    let before = all_modes(&pty);
    let mut terminal = Terminal::behind(pty.slave.as_raw_fd()).unwrap();
    assert!(!terminal_is_raw());
    terminal.make_raw().unwrap();
    assert!(is_raw(&pty) && terminal_is_raw());
    restore_terminal();
    restore_terminal();
    assert_eq!(all_modes(&pty), before);
    terminal.make_raw().unwrap();
    terminal.make_raw().unwrap();
    assert!(is_raw(&pty));
    drop(terminal);
    assert_eq!(all_modes(&pty), before);
    assert!(!terminal_is_raw());
}

#[test]
fn a_second_terminal_of_the_same_process_is_refused_and_leaves_the_first_alone() {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let pty = cooked();
    let mut first = Terminal::behind(pty.slave.as_raw_fd()).unwrap();
    first.make_raw().unwrap();
    let mut second = Terminal::behind(pty.slave.as_raw_fd()).unwrap();
    assert_eq!(second.make_raw().unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    drop(second);
    assert!(is_raw(&pty));
    drop(first);
    assert!(!is_raw(&pty));
}

#[test]
fn pipes_and_files_are_no_terminals() {
    let (reader, _writer) = io::pipe().unwrap();
    assert!(Terminal::behind(reader.as_raw_fd()).is_none());
    assert!(Terminal::behind(File::open("/dev/null").unwrap().as_raw_fd()).is_none());
}

/// Which part the child process has.
const PART: &str = "LODGER_TEST_TERMINAL_CHILD";

/// Not a test of its own: what the child processes of the tests below do.
#[test]
fn child_process() {
    let Ok(part) = std::env::var(PART) else { return };
    if part == "shell" {
        // A shell that starts a job in the background of its terminal.
        let mut job = child("background");
        let status = job.process_group(0).status().unwrap();
        std::process::exit(status.code().unwrap_or(99));
    }
    install_panic_hook();
    let mut console = Console::open(&Spec::Stdio).unwrap();
    match part.as_str() {
        "background" => {
            let listens = console.input().is_some() || terminal_is_raw();
            console.resume_terminal().unwrap();
            let answer = console.read_input(&mut [0; 16]).unwrap();
            console.output().push(b"job done\n");
            drop(console);
            std::process::exit(if listens || answer != Input::Nothing { 1 } else { 42 });
        }
        "exit" => std::process::exit(7),
        "panic" => panic!("a panic of the test's own"),
        "overflow" => std::process::exit(i32::from(overflow(1))),
        "abort" => std::process::abort(),
        // SAFETY: that it is not sound is the point; it ends this process.
        "fault" => unsafe { ptr::without_provenance_mut::<u8>(8).write_volatile(1) },
        signal => {
            // SAFETY: sends a signal to this process.
            unsafe { libc::kill(libc::getpid(), signal.parse().unwrap()) };
            thread::sleep(Duration::from_secs(10));
        }
    }
}

/// Recurses until the stack ends.
#[expect(unconditional_recursion, reason = "the end of the stack is the point")]
fn overflow(depth: u8) -> u8 {
    let frame = std::hint::black_box([depth; 4096]);
    overflow(frame[1]).wrapping_add(std::hint::black_box(frame)[2])
}

fn child(part: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "console::terminal::tests::child_process", "--nocapture", "--test-threads=1"]);
    command.env(PART, part).env("RUST_BACKTRACE", "0");
    command
}

/// Runs the child with the slave as its controlling terminal and whole world.
fn run_on(pty: &Pty, part: &str) -> Child {
    let end = || Stdio::from(pty.slave.try_clone().unwrap());
    let mut command = child(part);
    command.stdin(end()).stdout(end()).stderr(Stdio::null());
    // SAFETY: calls only what is safe between fork and exec.
    unsafe {
        command.pre_exec(|| {
            let no_core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            libc::setrlimit(libc::RLIMIT_CORE, &no_core);
            let done = libc::setsid() > 0 && libc::ioctl(0, libc::TIOCSCTTY, 0) == 0;
            if done { Ok(()) } else { Err(io::Error::last_os_error()) }
        });
    }
    command.spawn().unwrap()
}

fn signal_that_ended(part: &str) -> Option<i32> {
    let pty = cooked();
    let before = all_modes(&pty);
    let status = run_on(&pty, part).wait().unwrap();
    assert_eq!(all_modes(&pty), before, "{part}");
    status.signal()
}

#[test]
fn exit_and_panic_restore_the_terminal() {
    let pty = cooked();
    let before = all_modes(&pty);
    assert_eq!(run_on(&pty, "exit").wait().unwrap().code(), Some(7));
    assert_eq!(all_modes(&pty), before);
    assert!(!run_on(&pty, "panic").wait().unwrap().success());
    assert_eq!(all_modes(&pty), before);
}

#[test]
fn fatal_signals_restore_the_terminal_and_stay_what_the_process_died_of() {
    assert_eq!(signal_that_ended("fault"), Some(libc::SIGSEGV));
    assert_eq!(signal_that_ended("abort"), Some(libc::SIGABRT));
    // The standard library notices, says so and aborts.
    assert_eq!(signal_that_ended("overflow"), Some(libc::SIGABRT));
    for signal in FAULTS {
        assert_eq!(signal_that_ended(&signal.to_string()), Some(signal));
    }
}

#[test]
fn a_background_job_prints_but_leaves_the_terminal_alone() {
    let pty = cooked();
    let before = all_modes(&pty);
    let mut shell = run_on(&pty, "shell");
    let mut master = File::from(pty.master.try_clone().unwrap());
    // Input for whoever is in the foreground, so that a read would find some.
    master.write_all(b"for the shell\n").unwrap();
    assert_eq!(shell.wait().unwrap().code(), Some(42));
    assert_eq!(all_modes(&pty), before);
    let (start, mut shown) = (Instant::now(), String::new());
    while !shown.contains("job done") {
        assert!(start.elapsed() < Duration::from_secs(10), "{shown:?}");
        let mut piece = [0; 256];
        match master.read(&mut piece) {
            Ok(count) => shown.push_str(&String::from_utf8_lossy(&piece[..count])),
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
}
