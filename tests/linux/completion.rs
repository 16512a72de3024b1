//! Linux where KVM cannot run guest kernels by itself; elsewhere the same, and nothing is completed.

use crate::support::{Linux, USER_SPACE, gaps, has_line, slow_tests_wanted, tiny};

/// Runs checks of the test guest, all in one boot.
#[track_caller]
fn pass(checks: &[&str]) {
    let words: Vec<_> = checks.iter().map(|check| format!("run:/bin/check:{check}")).collect();
    let finished = Linux::new(tiny()).with_programs().memory("128M").run(&(words.join(" ") + " exit:42"));
    let finished = finished.with(42).silent();
    for check in checks {
        has_line(&finished, &format!("{check}: ok"));
    }
}

#[test]
fn registers_system_calls_signals_and_clocks_are_right_in_user_space() {
    pass(&["vectors", "syscalls", "int80", "signals", "clock"]);
}

#[test]
fn processes_memory_and_timers_are_right_in_user_space() {
    if slow_tests_wanted("the checks of processes, memory and timers") {
        pass(&["processes", "memory", "timers"]);
    }
}

#[test]
fn linux_boots_if_kvm_interprets_its_kernel() {
    let linux = Linux::new(tiny()).options(&["--completion", "missing", "--stats"]);
    let finished = linux.run("exit:42").with(42);
    has_line(&finished, USER_SPACE);
    let completed = finished.stderr.contains("completed in KVM's place: 0");
    assert_eq!(completed, gaps().is_empty(), "{finished:?}");
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
