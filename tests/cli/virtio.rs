//! Virtio devices as a driver finds them: the embedded guest's `virtio test` in machines that offer different things.

use std::collections::BTreeSet;

use crate::support::{guest, lodger};

/// Has the guest test its devices; every check passes but those of what is `not_offered`. The names of those that pass.
#[track_caller]
fn passes(arguments: &[&str], test: &str, not_offered: &[&str]) -> BTreeSet<String> {
    let arguments = arguments.iter().map(|&argument| argument.to_owned());
    let finished = lodger(arguments.chain(guest(&format!("{test}; exit"))), "").with(0);
    let named = |word| {
        let names = finished.lines().filter_map(move |line| line.strip_prefix(word));
        names.map(str::to_owned).collect::<Vec<_>>()
    };
    let (passed, missing) = (named("ok "), named("-- "));
    let expected: Vec<_> = not_offered.iter().map(|name| format!("{name}: not offered")).collect();
    assert_eq!(sorted(&missing), sorted(&expected), "{finished:#?}");
    let sum = format!("{} ok, 0 failed, {} not offered", passed.len(), missing.len());
    // Around them the guest's name, the sum, and nothing.
    let lines: Vec<_> = finished.lines().collect();
    assert_eq!(lines[lines.len() - 2], sum, "{finished:#?}");
    assert_eq!(lines.len(), passed.len() + missing.len() + 3, "{finished:#?}");
    let names: BTreeSet<_> = passed.iter().cloned().collect();
    assert_eq!(names.len(), passed.len(), "two checks of the same name");
    names
}

fn sorted(names: &[String]) -> Vec<&str> {
    let mut names: Vec<_> = names.iter().map(String::as_str).collect();
    names.sort_unstable();
    names
}

/// So much that the rings' indices begin anew, too.
#[test]
fn random_numbers_pass_for_longer() {
    let names = passes(&["--rng"], "virtio test long", &[]);
    assert!(names.contains("rng ring indices wrap around"));
}

#[test]
fn a_machine_without_devices_fails_the_test() {
    let finished = lodger(guest("virtio test; exit"), "").with(1).silent();
    let said = ["there is no device; virtio lists what there is", "0 ok, 1 failed, 0 not offered"];
    assert!(said.iter().all(|said| finished.lines().any(|line| line == *said)), "{finished:#?}");
}
