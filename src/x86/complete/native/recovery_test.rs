//! The process's own faults stay what they were, in children of this test.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::{env, ptr, thread};

use crate::console::catch_fatal_signals;
use crate::x86::complete::testing::{DATA, Guest};

const PART: &str = "LODGER_RECOVERY_TEST";

/// Completes an instruction at which the host's processor faults, on a thread of its own, too.
fn faults_are_the_guests() {
    let complete = || {
        let mut guest = Guest::new();
        guest.state.registers.rsi = DATA + 8;
        guest.raises(&[0xf0, 0x48, 0x0f, 0xc7, 0x0e], 13, Some(0)); // lock cmpxchg16b [rsi]
        guest.raises(&[0xf7, 0xf1], 0, None); // div ecx
    };
    complete();
    thread::spawn(complete).join().unwrap();
}

/// Does nothing unless it is run by one of the tests below.
#[test]
fn child_process() {
    let Ok(part) = env::var(PART) else { return };
    let (order, end) = part.split_once(' ').unwrap();
    if order == "first" {
        catch_fatal_signals();
    }
    faults_are_the_guests();
    catch_fatal_signals();
    faults_are_the_guests();
    // SAFETY: limits what this process leaves behind.
    unsafe { libc::setrlimit(libc::RLIMIT_CORE, &libc::rlimit { rlim_cur: 0, rlim_max: 0 }) };
    match end {
        // SAFETY: that it is not sound is the point; it ends this process.
        "fault" => unsafe { ptr::without_provenance_mut::<u8>(8).write_volatile(1) },
        "overflow" => std::process::exit(i32::from(overflow(1))),
        signal => {
            // SAFETY: sends a signal to this process.
            unsafe { libc::kill(libc::getpid(), signal.parse().unwrap()) };
        }
    }
}

/// Recurses until the stack ends.
#[expect(unconditional_recursion, reason = "the end of the stack is the point")]
fn overflow(depth: u8) -> u8 {
    let frame = std::hint::black_box([depth; 4096]);
    overflow(frame[1]).wrapping_add(std::hint::black_box(frame)[2])
}

#[test]
fn faults_of_this_program_end_it_whoever_was_first_to_catch_them() {
    let signals = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE];
    for order in ["first", "last"] {
        let end_of = |end: &str| {
            let mut command = Command::new(env::current_exe().unwrap());
            let name = "x86::complete::native::recovery::tests::child_process";
            command.args(["--exact", name, "--test-threads=1"]).env(PART, format!("{order} {end}"));
            command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().signal()
        };
        assert_eq!(end_of("fault"), Some(libc::SIGSEGV), "{order}");
        // The standard library notices, says so and aborts.
        assert_eq!(end_of("overflow"), Some(libc::SIGABRT), "{order}");
        for signal in signals {
            assert_eq!(end_of(&signal.to_string()), Some(signal), "{order}");
        }
    }
}
