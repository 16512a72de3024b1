//! `--profile` and `--symbols`.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use crate::support::{Running, Scratch, Screen, guest, lodger, program};

/// Names for the embedded guest, which has none.
const LIST: &[u8] = b"0000000000100000 T embedded_guest\n0000000000200000 D behind_it\n";

fn profiled(commands: &str, path: &str, more: &[&str]) -> Vec<String> {
    let mut arguments = guest(commands).to_vec();
    arguments.extend(["--profile", path].into_iter().chain(more.iter().copied()).map(str::to_owned));
    arguments
}

/// Checks that the file at `path` is a profile in which `name` occurs.
#[track_caller]
fn check(path: &str, name: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.starts_with("# lodger profile: "), "{text}");
    let table: Vec<_> = text.lines().filter(|line| line.contains(" % ")).collect();
    assert!(table.iter().any(|line| line.ends_with(name)), "{name:?} is not in {table:?}");
    let samples = text.lines().filter(|line| !line.starts_with('#') && !line.contains(" % "));
    assert!(samples.clone().all(|line| line.split(' ').count() == 5), "{text}");
    assert!(samples.count() > 0, "{text}");
}

#[test]
fn a_profile_is_written_when_the_guest_ends() {
    let scratch = Scratch::new();
    let (path, list) = (scratch.at("profile"), scratch.file("System.map", LIST));
    let finished = lodger(profiled("burst 64000;exit 7", &path, &[]), "").with(7);
    assert_eq!(finished.stderr.lines().count(), 1, "{finished:#?}");
    assert!(finished.stderr.starts_with("lodger: profile: "), "{finished:#?}");
    for words in [" samples in ", ", top: ", &format!("; written to {path}\n")] {
        assert!(finished.stderr.contains(words), "{finished:#?}");
    }
    // The embedded guest has no symbols of its own.
    check(&path, "");
    assert!(fs::read_to_string(&path).unwrap().contains("symbols:  none; --symbols names"));
    let finished = lodger(profiled("burst 64000;exit 7", &path, &["--symbols", &list]), "").with(7);
    assert!(finished.stderr.contains("top: embedded_guest "), "{finished:#?}");
    check(&path, "embedded_guest");
    assert!(fs::read_to_string(&path).unwrap().contains("1 functions in"));
}

#[test]
fn a_profile_is_written_when_a_signal_ends_the_run() {
    let scratch = Scratch::new();
    let path = scratch.at("profile");
    let mut command = program();
    command.args(profiled("", &path, &["--profile-interval", "100us"])).stdin(Stdio::piped());
    let mut running = Running::start(&mut command);
    let _stdin = running.stdin();
    let mut stdout = BufReader::new(running.stdout());
    stdout.read_line(&mut String::new()).unwrap();
    running.wait_until_attentive();
    std::thread::sleep(std::time::Duration::from_millis(100));
    running.signal(libc::SIGTERM);
    let finished = running.finish().with(143);
    assert!(finished.stderr.contains("profile: "), "{finished:#?}");
    assert!(fs::read_to_string(&path).unwrap().contains("interval: 100us"));
}

#[test]
fn a_profile_is_written_when_the_user_leaves() {
    let scratch = Scratch::new();
    let path = scratch.at("profile");
    let mut screen = Screen::new();
    let mut command = program();
    let mut running = Running::start(screen.show(command.args(profiled("", &path, &[]))));
    screen.expect("lodger> ");
    screen.type_in("\x01x");
    assert_eq!(running.wait().code(), Some(0));
    screen.expect(&format!("; written to {path}\r\n"));
    assert!(fs::read_to_string(&path).unwrap().starts_with("# lodger profile: "));
}

#[test]
fn a_crash_is_explained_with_names_and_profiled() {
    let scratch = Scratch::new();
    let (path, list) = (scratch.at("profile"), scratch.file("System.map", LIST));
    let finished = lodger(profiled("burst 64000;crash triple", &path, &["--symbols", &list]), "").with(101);
    let report = &finished.stderr;
    // Some hosts reset the processor.
    assert!(report.contains("  rip is in embedded_guest+0x") || report.contains("reset values"), "{report}");
    assert!(report.lines().last().unwrap().starts_with("lodger: profile: "), "{report}");
    // Without a file of symbols the report is as it always was.
    let finished = lodger(guest("crash triple"), "").with(101);
    assert!(!finished.stderr.contains("rip is in"), "{finished:#?}");
}

#[test]
fn a_profile_that_cannot_be_written_is_an_error() {
    let scratch = Scratch::new();
    let nowhere = scratch.at("none/profile");
    lodger(profiled("exit 7", &nowhere, &[]), "").refused(&["profile", &nowhere, "No such file"]);
    lodger(profiled("exit 7", "/tmp", &[]), "").refused(&["profile", "/tmp", "directory"]);
    let finished = lodger(profiled("exit 0", "/dev/full", &[]), "").with(1);
    assert!(finished.stderr.contains("/dev/full: No space left"), "{finished:#?}");
    // The guest's own status is the more important one.
    lodger(profiled("exit 7", "/dev/full", &[]), "").with(7);
}

#[test]
fn symbols_that_cannot_be_read_are_refused_before_the_guest_runs() {
    let scratch = Scratch::new();
    let refused = |path: &str, words: &[&str]| lodger(["--symbols", path], "").refused(words);
    refused(&scratch.at("none"), &["symbol file", "none", "No such file"]);
    refused("/tmp", &["symbol file", "/tmp", "directory"]);
    refused(&scratch.file("empty", b""), &["empty"]);
    refused(&scratch.file("text", b"hello\n"), &["text", "line 1", "System.map"]);
    let stripped = scratch.file("stripped", lodger::boot::embedded::EMBEDDED_GUEST);
    refused(&stripped, &["stripped", "no symbol table", "vmlinux"]);
}
