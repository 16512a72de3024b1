//! How the guest ends is how the process ends.

use crate::support::{guest, lodger};

#[test]
fn the_guest_chooses_the_status() {
    for status in [0, 1, 42, 101, 255] {
        let finished = lodger(guest(&format!("exit {status}")), "").with(status).silent();
        assert!(finished.stdout.starts_with("lodger guest "));
    }
    lodger(guest(""), "exit 42\n").with(42).silent();
}

#[test]
fn halt_and_reboot_are_good_ends() {
    for command in ["halt", "reboot"] {
        lodger(guest(command), "").with(0).silent();
        lodger(["run"], &format!("{command}\n")).with(0).silent();
    }
}

#[test]
fn a_guest_that_halts_for_good_ends_well_and_is_told_of() {
    let finished = lodger(guest("crash halt"), "").with(0);
    assert_eq!(finished.stderr, "lodger: the guest halted for good\n");
    // A processor that was never started does not matter.
    let arguments = ["--cpus", "2"].map(str::to_owned).into_iter().chain(guest("crash halt"));
    assert_eq!(lodger(arguments, "").with(0).stderr, "lodger: the guest halted for good\n");
}

#[test]
fn a_guest_switches_itself_off_by_its_sleep_register() {
    lodger(guest("out 0x600 0x34;exit 9"), "").with(0).silent();
}

#[test]
fn a_kernel_that_panics_has_a_status_of_its_own() {
    let finished = lodger(guest("out 0x505 2;out 0x505 1;exit 9"), "").with(105);
    assert_eq!(finished.stderr, "lodger: the guest's kernel panicked\n");
}

#[test]
fn a_guest_that_fails_says_so_itself() {
    let finished = lodger(guest("crash fault"), "").with(99).silent();
    assert!(finished.stdout.contains("the guest cannot go on"), "{finished:#?}");
}

#[test]
fn a_triple_fault_is_explained_on_standard_error_alone() {
    let finished = lodger(guest("echo last words;crash triple"), "").with(101);
    assert_eq!(finished.lines().skip(1).collect::<Vec<_>>(), ["last words", ""]);
    let report = &finished.stderr;
    let first = report.lines().next().unwrap();
    assert!(first.starts_with("lodger: the guest stopped on vcpu0: ") && first.contains("triple fault"));
    for word in ["KVM_EXIT_SHUTDOWN", " rax ", " r15 ", " rip ", " cr3 ", " idt base ", "code at rip"] {
        assert!(report.contains(word), "{word:?} is not in {report}");
    }
    let code = report.lines().find_map(|line| line.trim().strip_prefix("code at rip (>): ")).unwrap();
    let bytes = code.split(' ').filter(|word| *word != ">");
    assert!(bytes.clone().all(|byte| u8::from_str_radix(byte, 16).is_ok()), "{code}");
    assert!(bytes.count() > 32 && code.contains(" > "), "{code}");
    let exits = report.split_once("exits, the latest at the end:\n").unwrap().1;
    assert!(exits.lines().count() >= 20 && exits.contains("port 0x3f8 <- 0x6c"), "{exits}");
    assert_eq!(exits.lines().last().unwrap().trim(), "shutdown");
    assert!(!report.contains('\r'));
}

#[test]
fn the_last_post_code_is_part_of_the_report() {
    let finished = lodger(guest("post 0xd7;crash triple"), "").with(101);
    assert!(finished.stderr.ends_with("  last POST code: 0xd7\n"), "{}", finished.stderr);
}

#[test]
fn an_instruction_that_kvm_lacks_is_explained_and_one_that_it_has_is_carried_out() {
    let finished = lodger(guest("crash ud;exit 5"), "");
    if finished.status.code() == Some(102) {
        let report = &finished.stderr;
        for word in ["KVM_EXIT_INTERNAL_ERROR, suberror 1", "instruction", "code at rip"] {
            assert!(report.contains(word), "{word:?} is not in {report}");
        }
        return;
    }
    // The guest reports the breakpoint that it runs into next.
    assert!(finished.stdout.contains("says 8 for 0xff"), "{finished:#?}");
    assert!(finished.stdout.contains("vector 3"), "{finished:#?}");
}

#[test]
fn the_reports_reader_may_be_gone() {
    let mut command = crate::support::program();
    command.args(guest("crash triple"));
    let mut running = crate::support::Running::start(&mut command);
    drop(running.stderr());
    running.finish().with(101);
}
