//! The user's terminal: raw while the guest has it, and as it was however the process ends.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;
use std::{fs, io};

use crate::support::{Modes, Running, Screen, check, ended, guest, program, wait_until};

/// A guest at its prompt on a terminal.
fn at_prompt() -> (Screen, Modes, Running) {
    let mut screen = Screen::new();
    let before = screen.modes();
    let running = Running::start(screen.show(program().args(guest(""))));
    screen.expect("lodger> ");
    assert!(screen.modes().are_raw());
    (screen, before, running)
}

/// Checks that the process ends with `status` and that the terminal is as before.
#[track_caller]
fn given_back(screen: &Screen, before: Modes, mut running: Running, status: i32) {
    let found = running.wait();
    assert_eq!((ended(found), screen.modes()), (status, before));
}

#[test]
fn ctrl_a_x_leaves() {
    let (mut screen, before, running) = at_prompt();
    screen.type_in("\x01x");
    given_back(&screen, before, running, 0);
}

#[test]
fn ctrl_a_h_helps_and_ctrl_a_twice_is_one_for_the_guest() {
    let (mut screen, before, running) = at_prompt();
    screen.type_in("\x01h");
    let help = screen.expect("to the guest\r\n");
    assert!(help.contains("Ctrl-A x") && help.contains("Ctrl-A h"), "{help}");
    // The guest's line editor ignores Ctrl-A, so both lines are the same to it.
    screen.type_in("exit\x01\x01 13\r");
    given_back(&screen, before, running, 13);
    assert!(screen.rest().contains("exit 13"));
}

#[test]
fn the_guests_end_gives_the_terminal_back() {
    for (command, status) in [("halt", 0), ("exit 33", 33), ("reboot", 0), ("crash triple", 101)] {
        let (mut screen, before, running) = at_prompt();
        screen.type_in(&format!("{command}\r"));
        given_back(&screen, before, running, status);
    }
}

#[test]
fn a_report_on_the_terminal_is_printed_when_it_is_no_longer_raw() {
    let (mut screen, before, running) = at_prompt();
    screen.type_in("crash triple\r");
    given_back(&screen, before, running, 101);
    let text = screen.rest();
    let report = &text[text.find("lodger: the guest stopped").unwrap()..];
    // Every line begins in the first column.
    assert!(report.lines().count() > 20 && report.matches("\r\n").count() == report.matches('\n').count());
}

#[test]
fn signals_give_the_terminal_back() {
    for signal in [
        libc::SIGTERM,
        libc::SIGINT,
        libc::SIGHUP,
        libc::SIGQUIT,
        libc::SIGUSR1,
        libc::SIGALRM,
        libc::SIGXCPU,
    ] {
        let (screen, before, running) = at_prompt();
        running.signal(signal);
        given_back(&screen, before, running, 128 + signal);
    }
}

#[test]
fn even_fatal_signals_give_the_terminal_back() {
    for signal in
        [libc::SIGSEGV, libc::SIGBUS, libc::SIGABRT, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP, libc::SIGSYS]
    {
        let (screen, before, mut running) = at_prompt();
        running.signal(signal);
        let status = running.wait();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(signal));
        assert_eq!(screen.modes(), before);
    }
}

#[test]
fn an_error_at_the_start_leaves_the_terminal_alone() {
    let mut screen = Screen::new();
    let before = screen.modes();
    let running = Running::start(screen.show(program().arg("/nonexistent")));
    given_back(&screen, before, running, 1);
    assert!(screen.rest().starts_with("lodger: cannot open kernel /nonexistent"));
}

#[test]
fn a_hang_up_ends_the_process() {
    let (screen, _, mut running) = at_prompt();
    drop(screen);
    assert_eq!(ended(running.wait()), 129);
}

#[test]
fn a_hung_guest_can_be_left() {
    let (mut screen, before, running) = at_prompt();
    screen.type_in("crash loop\r");
    screen.expect("\r\n");
    // More than its serial port and the buffer behind it hold.
    for _ in 0..100 {
        screen.type_in(&"x".repeat(100));
        thread::sleep(Duration::from_micros(200));
    }
    screen.type_in("\x01x");
    given_back(&screen, before, running, 0);
}

#[test]
fn a_guest_whose_output_nobody_reads_can_be_left() {
    let mut screen = Screen::new();
    let before = screen.modes();
    let mut command = program();
    let mut running = Running::start(screen.control(command.args(guest("burst 1000000000"))));
    let stdout = running.stdout();
    screen.wait_until_raw();
    thread::sleep(Duration::from_secs(2));
    screen.type_in("\x01x");
    given_back(&screen, before, running, 0);
    drop(stdout);
}

#[test]
fn the_terminal_is_not_raw_while_a_large_memory_is_filled_in() {
    // Filling takes a while; a user who changes his mind types Ctrl-C as with any other program.
    let mut screen = Screen::new();
    let before = screen.modes();
    let mut command = program();
    let running = Running::start(screen.show(command.args(["--memory", "2G,prefault"])));
    thread::sleep(Duration::from_millis(30));
    screen.type_in("\x03");
    given_back(&screen, before, running, 130);
    assert!(!screen.rest().contains("lodger guest"));
}

/// What job control says about a process: `S` asleep, `R` running, `T` stopped, …
fn state(id: i32) -> char {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap();
    stat.rsplit_once(") ").unwrap().1.chars().next().unwrap()
}

#[test]
fn after_a_stop_the_terminal_is_raw_again() {
    let (mut screen, before, running) = at_prompt();
    running.signal(libc::SIGSTOP);
    wait_until("it is stopped", || state(running.id()) == 'T');
    screen.set_cooked(true);
    running.signal(libc::SIGCONT);
    screen.wait_until_raw();
    screen.type_in("exit 14\r");
    given_back(&screen, before, running, 14);
}

/// A shell with job control on a terminal; `$0` is the program.
fn shell(script: &str) -> (Screen, Running) {
    let screen = Screen::new();
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script, env!("CARGO_BIN_EXE_lodger")]);
    let running = Running::start(screen.show(&mut command));
    (screen, running)
}

#[test]
fn a_background_job_runs_to_its_end_without_touching_the_terminal() {
    let script = "set -m; $0 --cmdline 'quiet run=timer;burst 640;exit 15' & wait $!; echo status $?";
    let (mut screen, mut running) = shell(script);
    let before = screen.modes();
    let text = screen.expect("status 15");
    assert_eq!(text.matches("lazy dog").count(), 10, "{text}");
    running.wait();
    assert_eq!(screen.modes(), before);
}

#[test]
fn a_background_job_neither_stops_nor_takes_what_is_typed() {
    let script = "set -m; $0 --cmdline quiet & echo job $!; read line; echo got $line; kill $!; \
                  wait $!; echo status $?";
    let (mut screen, mut running) = shell(script);
    let before = screen.modes();
    screen.expect("job ");
    let job: i32 = screen.expect("\n").trim().parse().unwrap();
    screen.expect("lodger> ");
    assert_ne!(state(job), 'T');
    screen.type_in("for the shell\n");
    screen.expect("got for the shell");
    screen.expect("status 143");
    running.wait();
    assert_eq!(screen.modes(), before);
}

#[test]
fn a_job_brought_to_the_foreground_takes_the_terminal() {
    let script = "set -m; $0 --cmdline quiet & sleep 0.3; fg; echo status $?";
    let (mut screen, mut running) = shell(script);
    let before = screen.modes();
    screen.wait_until_raw();
    screen.type_in("exit 16\r");
    screen.expect("status 16");
    running.wait();
    assert_eq!(screen.modes(), before);
}

#[test]
fn input_may_be_a_terminal_while_output_is_a_pipe() {
    let mut screen = Screen::new();
    let before = screen.modes();
    let mut command = program();
    let mut running = Running::start(screen.control(command.args(guest("")).stderr(Stdio::null())));
    let mut stdout = running.stdout();
    screen.wait_until_raw();
    screen.type_in("echo piped\rexit 17\r");
    let mut text = String::new();
    stdout.read_to_string(&mut text).unwrap();
    assert!(text.contains("\r\npiped\r\n"), "{text}");
    given_back(&screen, before, running, 17);
    assert_eq!(screen.rest(), "");
}

#[test]
fn output_may_be_a_terminal_while_input_is_a_pipe() {
    let mut screen = Screen::new();
    let before = screen.modes();
    let mut command = program();
    command.args(guest("exit 18")).stdout(screen.end());
    let mut running = Running::start(&mut command);
    assert_eq!(running.wait().code(), Some(18));
    assert_eq!(screen.modes(), before);
    assert!(screen.rest().starts_with("lodger guest "));
}

#[test]
fn nohup_is_respected() {
    let mut screen = Screen::new();
    let mut command = program();
    screen.show(command.args(guest("")));
    // SAFETY: between fork and exec only a system call is made.
    unsafe {
        command.pre_exec(|| {
            if libc::signal(libc::SIGHUP, libc::SIG_IGN) == libc::SIG_ERR {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
    let mut running = Running::start(&mut command);
    screen.expect("lodger> ");
    running.signal(libc::SIGHUP);
    screen.type_in("echo still here\r");
    screen.expect("\r\nstill here\r\n");
    // SAFETY: the child was not waited for.
    check(unsafe { libc::kill(running.id(), libc::SIGTERM) });
    assert_eq!(ended(running.wait()), 143);
}
