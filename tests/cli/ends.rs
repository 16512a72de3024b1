//! Machines that are ended at any moment, in every way there is: nothing of them stays, but how those without a terminal
//! have ended.
//!
//! `LODGER_END_ROUNDS` says how many are ended; the default is a number that takes seconds.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use std::{fs, thread};

use crate::support::{Running, Session, guest, is_gone, rounds, wait_until};

const ROUNDS: &str = "LODGER_END_ROUNDS";
const FEW_ROUNDS: u32 = 40;
/// A start takes some milliseconds, and so long the guest has to live at most.
const LONGEST_LIFE: u64 = 25_000;

/// What stays of one without a terminal.
const RECORD: [&str; 4] = ["console.log", "ended", "messages", "pid"];

#[derive(Debug, Clone, Copy)]
enum Way {
    Signal(i32),
    Command(&'static [&'static str]),
}

const WAYS: [Way; 7] = [
    Way::Signal(libc::SIGKILL),
    Way::Signal(libc::SIGTERM),
    Way::Signal(libc::SIGHUP),
    Way::Signal(libc::SIGKILL),
    Way::Command(&["kill", "one"]),
    Way::Command(&["stop", "one"]),
    Way::Command(&["stop", "--timeout=0", "one"]),
];

/// Numbers without a pattern, the same each time (Marsaglia's xorshift).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        for shift in [13, -7, 17] {
            self.0 ^= if shift > 0 { self.0 << shift } else { self.0 >> -shift };
        }
        self.0 % bound
    }
}

#[test]
fn machines_that_are_ended_at_any_moment_leave_nothing_but_how_they_ended() {
    let session = Session::new();
    let template = session.at("template.raw");
    fs::write(&template, [7; 1 << 20]).unwrap();
    let room = session.at("room");
    fs::create_dir(&room).unwrap();
    let before = names(session.path());
    let devices = [
        format!("--disk={template},overlay"),
        "--disk=ephemeral,size=1M".to_owned(),
        format!("--port=agent,socket={}", session.at("agent.sock")),
        "--balloon".to_owned(),
    ];
    let start = |detached: bool, commands: &str| {
        let mut command = session.command(&["run", "--name=one", "--memory=32M"]);
        command.env("TMPDIR", &room).args(&devices).args(guest(commands));
        Running::start(if detached { command.arg("--detach") } else { command.stdin(Stdio::piped()) })
    };
    let left = || [names(&session.path().join("lodger")), names(room.as_ref())].concat();
    let mut random = Numbers(0x9e37_79b9_7f4a_7c15);
    for round in 0..rounds(ROUNDS, FEW_ROUNDS) {
        let way = WAYS[random.below(WAYS.len() as u64) as usize];
        let mut running = start(round % 2 == 0, "disk write 4096 4 300");
        // Before the guest runs, signals end the process as they end any other.
        let mut cleared = !matches!(way, Way::Signal(libc::SIGKILL));
        if round % 2 == 0 {
            running.finish().with(0);
            thread::sleep(Duration::from_micros(random.below(LONGEST_LIFE)));
            let process = session.pid("one");
            end(&session, way, |signal| kill(process, signal), || is_gone(process));
        } else {
            let process = running.id();
            thread::sleep(Duration::from_micros(random.below(LONGEST_LIFE)));
            end(&session, way, |signal| kill(process, signal), || running.poll().is_some());
            cleared = running.poll().is_some_and(|status| status.code().is_some());
        }
        if cleared {
            if round % 2 == 0 {
                assert_eq!(names(&session.directory("one")), RECORD, "round {round}: {way:?}");
                session.run(&["rm", "one"]).with(0).silent();
            }
            let left: Vec<_> = left().into_iter().filter(|name| !name.starts_with("lodger-")).collect();
            assert_eq!(left, [""; 0], "round {round}: {way:?}");
        }
    }
    // What a killed one could not clear away is cleared away by the next start.
    start(false, "exit 3").finish().with(3).silent();
    assert_eq!(left(), [""; 0]);
    assert_eq!(names(session.path()), [&["lodger".to_owned()], &before[..]].concat());
}

/// Ends a machine, and waits until its process is gone. One that is only beginning hears no command yet.
fn end(session: &Session, way: Way, signal: impl Fn(i32), mut is_gone: impl FnMut() -> bool) {
    match way {
        Way::Signal(number) => signal(number),
        Way::Command(line) => wait_until("it hears", || is_gone() || session.run(line).status.success()),
    }
    wait_until("the process is gone", is_gone);
}

fn kill(process: i32, signal: i32) {
    // SAFETY: a process of this test, which nobody has waited for, or which was there a moment ago.
    unsafe { libc::kill(process, signal) };
}

fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
