//! `--console file=PATH` and `--console none`.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::support::{Scratch, guest, lodger};

#[test]
fn a_file_has_everything_when_the_guest_dies_right_after_printing() {
    let scratch = Scratch::new();
    let path = scratch.at("console");
    for (command, status) in [("exit 7", 7), ("crash triple", 101), ("reboot", 0)] {
        let console = format!("--console=file={path}");
        let arguments = guest(&format!("burst 12800;{command}")).into_iter().chain([console]);
        let finished = lodger(arguments, "").with(status);
        assert_eq!(finished.stdout, "");
        let text = fs::read_to_string(&path).unwrap();
        // Each run empties it first.
        assert_eq!(text.matches("lodger guest ").count(), 1);
        assert_eq!(text.matches("lazy dog").count(), 200);
        assert!(text.ends_with("00000199 the quick brown fox jumps over the lazy dog 012345678\r\n"));
    }
    assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o644);
}

/// Nobody will ever type, so the embedded guest finds its carrier gone and halts, whatever is on standard input.
#[test]
fn a_console_without_input_ends_the_embedded_guest_at_its_prompt() {
    let scratch = Scratch::new();
    let path = scratch.at("console");
    let arguments = guest("").into_iter().chain([format!("--console=file={path}")]);
    lodger(arguments, "exit 9\n").with(0).silent();
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.ends_with("> \r\ninput ended, halting\r\n"), "{text}");
    let arguments = guest("").into_iter().chain(["--console=none".to_owned()]);
    lodger(arguments, "exit 9\n").with(0).silent();
}

#[test]
fn a_full_disk_is_an_error() {
    let arguments = guest("halt").into_iter().chain(["--console=file=/dev/full".to_owned()]);
    lodger(arguments, "").refused(&["console output", "No space left"]);
}

#[test]
fn a_file_that_cannot_be_written_is_named() {
    let scratch = Scratch::new();
    lodger(["--console", "file=/tmp"], "").refused(&["/tmp", "directory"]);
    let path = scratch.at("missing/console");
    lodger([format!("--console=file={path}")], "").refused(&[&path, "does not exist"]);
}

#[test]
fn without_a_console_the_guest_runs_silently() {
    let arguments = guest("burst 640;exit 12").into_iter().chain(["--console=none".to_owned()]);
    let finished = lodger(arguments, "exit 1\n").with(12).silent();
    assert_eq!(finished.stdout, "");
}
