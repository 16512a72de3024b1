//! What is printed about the program, and about a run.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::{Running, guest, lodger, program};

/// The long options that a text speaks of.
fn options(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
    words.filter(|word| word.len() > 2 && word.starts_with("--")).collect()
}

#[test]
fn help_names_every_option_and_its_examples_use_only_those() {
    let help = lodger(["--help"], "").with(0).silent().stdout;
    let (above, examples) = help.split_once("Examples:").expect("examples");
    let known = options(above);
    for option in [
        "--memory",
        "--cpus",
        "--cpu",
        "--cmdline",
        "--append",
        "--initrd",
        "--entry",
        "--flat",
        "--console",
        "--completion",
    ] {
        assert!(known.contains(option), "{option}");
    }
    let disk = lodger(["disk", "create", "--help"], "").with(0).silent().stdout;
    let known = &known | &options(&disk);
    let used = options(examples);
    assert!(used.is_subset(&known), "{used:?} in examples, {known:?} are there");
}

#[test]
fn the_help_of_run_documents_the_statuses() {
    let help = lodger(["run", "--help"], "").with(0).silent().stdout;
    for status in ["0  ", "1  ", "2  ", "101", "102", "103", "104", "105", "128+N"] {
        assert!(help.lines().any(|line| line.trim_start().starts_with(status)), "{status} is not in {help}");
    }
    assert_eq!(lodger(["help", "run"], "").with(0).stdout, help);
}

#[test]
fn short_help_fits_a_screen() {
    assert!(lodger(["-h"], "").with(0).stdout.lines().count() <= 48);
    assert!(lodger(["run", "-h"], "").with(0).stdout.lines().count() <= 48);
}

#[test]
fn the_version_is_the_packages() {
    let expected = concat!("lodger ", env!("CARGO_PKG_VERSION"), "\n");
    for flag in ["--version", "-V"] {
        assert_eq!(lodger([flag], "").with(0).silent().stdout, expected);
    }
}

#[test]
fn completions_know_the_options_of_run() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = lodger(["completions", shell], "").with(0).silent().stdout;
        assert!(script.contains("memory") && script.contains("console"), "{shell}");
    }
    lodger(["completions", "ksh"], "").with(2);
}

#[test]
fn bash_can_read_its_completions() {
    let script = lodger(["completions", "bash"], "").with(0).stdout;
    if !Path::new("/bin/bash").exists() {
        return;
    }
    let mut bash = Command::new("/bin/bash");
    let mut running = Running::start(bash.arg("-n").stdin(Stdio::piped()).stderr(Stdio::piped()));
    running.stdin().write_all(script.as_bytes()).unwrap();
    running.finish().with(0).silent();
}

#[test]
fn completions_that_cannot_be_written_are_an_error() {
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let running = Running::start(program().args(["completions", "zsh"]).stdout(full));
    running.finish().refused(&["completions", "space"]);
}

/// The numbers of a line, without the words between them.
fn numbers(line: &str) -> Vec<f64> {
    line.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

#[test]
fn timing_lists_phases_that_add_up() {
    let finished =
        lodger(["run", "--timing"].map(str::to_owned).into_iter().chain(guest("exit 3")), "").with(3);
    let mut lines = finished.stderr.lines();
    assert!(lines.next().unwrap().contains("milliseconds"));
    let loading = lines.next().unwrap();
    assert_eq!(numbers(loading).len(), 1, "{loading}");
    let (mut sum, mut last) = (0.0, "");
    for line in lines {
        let [own, since] = numbers(line)[..] else { panic!("{line:?} is no phase") };
        sum += own;
        assert!((sum - since).abs() < 0.1 && own >= 0.0, "{}", finished.stderr);
        last = line;
    }
    assert!(last.contains("first byte of output"), "{}", finished.stderr);
}

#[test]
fn stats_count_what_the_guest_did() {
    let arguments = ["--stats".to_owned(), "--cpus=2".to_owned()];
    let finished = lodger(arguments.into_iter().chain(guest("burst 640;in 0x123;post 7;exit 0")), "").with(0);
    let line = |start: &str| {
        let found = finished.stderr.lines().find(|line| line.trim_start().starts_with(start));
        found.unwrap_or_else(|| panic!("no {start:?} in {}", finished.stderr))
    };
    let counts = line("vcpu0 exits:").split_once(':').unwrap().1;
    let writes = counts.split(',').find_map(|count| count.trim().strip_prefix("pio-write ")).unwrap();
    assert!(writes.parse::<u64>().unwrap() > 20, "{counts}");
    line("vcpu1 exits:");
    assert!(line("ports that no device owns:").ends_with("the last at 0x123"));
    line("last POST code: 0x07");
    let memory = line("peak resident memory");
    assert!(memory.ends_with(" KiB") && numbers(memory)[0] > 1000.0, "{memory}");
}

#[test]
fn nothing_is_printed_about_a_run_that_was_not_asked_for() {
    lodger(guest("halt"), "").with(0).silent();
}
