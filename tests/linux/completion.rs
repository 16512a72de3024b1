//! Linux where KVM cannot run guest kernels by itself; elsewhere the same, and nothing is completed.

use crate::support::{Files, Fixture, Linux, USER_SPACE, gaps, has_line, smp, tiny};

/// Runs checks of the test guest, all in one machine.
#[track_caller]
fn pass(files: &'static Files, checks: &[&str]) {
    let mut shell = Fixture::equipped(files).shell();
    let answer = shell.run(&format!("for check in {}; do check $check; done", checks.join(" "))).ok();
    for check in checks {
        has_line(&answer, &format!("{check}: ok"));
    }
    assert_eq!(shell.complaints(), "");
}

#[test]
fn registers_system_calls_signals_and_clocks_are_right_in_user_space() {
    pass(tiny(), &["vectors", "syscalls", "int80", "signals", "clock"]);
}

#[test]
fn processes_memory_and_timers_are_right_in_user_space() {
    pass(tiny(), &["processes", "memory", "timers"]);
}

#[test]
fn all_that_is_right_with_one_processor_is_so_with_two() {
    pass(smp(), &["vectors", "syscalls", "int80", "signals", "processes", "memory", "timers"]);
}

#[test]
fn linux_boots_if_kvm_interprets_its_kernel() {
    let linux = Linux::new(tiny()).options(&["--completion", "missing", "--stats"]);
    let finished = linux.run("exit:42").with(42);
    has_line(&finished, USER_SPACE);
    let completed = finished.stderr.contains("completed in KVM's place");
    assert_eq!(completed, !gaps().is_empty(), "{finished:?}");
}

#[test]
fn without_completion_the_report_names_the_instruction_that_kvm_lacks() {
    if gaps().is_empty() {
        println!("skipped: this host's KVM lacks nothing");
        return;
    }
    let finished = Linux::new(tiny()).options(&["--completion", "off"]).run("exit:42").with(102);
    for words in ["KVM_EXIT_INTERNAL_ERROR, suberror 1", "instruction", "rip is in ", "code at rip"] {
        assert!(finished.stderr.contains(words), "{words:?} is not in {finished:?}");
    }
    assert!(!finished.stdout.contains(USER_SPACE), "{finished:?}");
}
