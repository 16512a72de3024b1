//! Signals without a terminal, and what a killed process leaves behind.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

use crate::support::{Running, Scratch, guest, program, wait_until};

/// A guest that has printed its first line and waits for input.
fn waiting() -> (Running, impl Sized) {
    let mut running = Running::start(program().args(guest("")).stdin(Stdio::piped()));
    let stdin = running.stdin();
    let mut stdout = BufReader::new(running.stdout());
    stdout.read_line(&mut String::new()).unwrap();
    (running, (stdin, stdout))
}

#[test]
fn an_ending_signal_is_the_status_and_no_message() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
        let (running, _pipes) = waiting();
        running.signal(signal);
        running.finish().with(128 + signal).silent();
    }
}

#[test]
fn a_hung_guest_does_not_keep_the_process_from_ending() {
    let mut running = Running::start(program().args(guest("crash loop")).arg("--cpus=2"));
    let mut stdout = BufReader::new(running.stdout());
    stdout.read_line(&mut String::new()).unwrap();
    running.signal(libc::SIGTERM);
    running.finish().with(143).silent();
}

#[test]
fn signals_that_nobody_meant_for_it_do_no_harm() {
    let (running, _pipes) = waiting();
    for signal in [libc::SIGCONT, libc::SIGWINCH, libc::SIGCHLD, libc::SIGURG, libc::SIGPIPE] {
        running.signal(signal);
    }
    for _ in 0..100 {
        // What interrupts the processors' threads.
        running.signal(libc::SIGRTMIN());
    }
    running.signal(libc::SIGTERM);
    running.finish().with(143).silent();
}

#[test]
fn a_killed_process_leaves_nothing_behind_but_its_directory() {
    let scratch = Scratch::new();
    let mut command = program();
    command.args(guest("")).stdin(Stdio::piped()).current_dir(scratch.path());
    for variable in ["XDG_RUNTIME_DIR", "XDG_STATE_HOME", "XDG_CACHE_HOME", "TMPDIR", "HOME"] {
        command.env(variable, scratch.path());
    }
    fs::set_permissions(scratch.path(), PermissionsExt::from_mode(0o700)).unwrap();
    let mut running = Running::start(&mut command);
    let _stdin = running.stdin();
    // Read to its end: a guest whose console nobody reads any more is ended.
    let mut output = BufReader::new(running.stdout());
    output.read_line(&mut String::new()).unwrap();
    // The last that it makes, and opens other things for.
    let process = running.id();
    let socket = scratch.path().join(format!("lodger/vm-{process}/control.sock"));
    wait_until("it has a control socket", || socket.exists());
    // Nothing it has open has a name that could stay, and it maps nothing that is shared by a name.
    for entry in fs::read_dir(format!("/proc/{}/fd", running.id())).unwrap() {
        // One that is closed again meanwhile has no target any more.
        let Ok(target) = fs::read_link(entry.unwrap().path()) else { continue };
        let target = target.to_string_lossy();
        let own = scratch.path().to_str().unwrap();
        let harmless =
            ["anon_inode:", "pipe:", "socket:", "/dev/null", own].iter().any(|kind| target.starts_with(kind));
        assert!(harmless || target == "/dev/kvm", "{target}");
    }
    let maps = fs::read_to_string(format!("/proc/{}/maps", running.id())).unwrap();
    assert!(!maps.contains("/dev/shm") && !maps.contains("/tmp/lodger"), "{maps}");
    running.signal(libc::SIGKILL);
    assert_eq!(running.finish().status.signal(), Some(libc::SIGKILL));
    // Which the next start clears away.
    let left: Vec<_> =
        fs::read_dir(scratch.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.is_empty() || left == ["lodger"], "{left:?}");
    let mut next = program();
    // One without a name may be through before it has a directory.
    next.arg("--name=next").args(guest("exit 3")).env("XDG_RUNTIME_DIR", scratch.path());
    Running::start(&mut next).finish().with(3).silent();
    assert_eq!(fs::read_dir(scratch.path().join("lodger")).unwrap().count(), 0);
    let shared = fs::read_dir("/dev/shm").unwrap();
    let names = shared.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    let own = format!("{process}");
    assert_eq!(
        names.filter(|name| name.contains("lodger") && name.contains(&own)).collect::<Vec<_>>(),
        [""; 0]
    );
}
