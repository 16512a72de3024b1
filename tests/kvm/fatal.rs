//! Guests that cannot go on: each ends with a report that explains itself.

use lodger::hv::{ExitKind, InternalError};
use lodger::vcpu::{Cause, Code, FatalReport};
use lodger::vm::Outcome;

use crate::support::{machine, machine_code};

/// Runs `image` to its fatal end; checks the status and hands the report to `check`.
fn dies(image: &[u8], status: u8, check: impl FnOnce(&FatalReport)) {
    let (machine, _) = machine(image);
    let outcome = machine.run();
    assert_eq!(outcome.status(), status, "{outcome}");
    match outcome {
        Outcome::Fatal(report) => check(report),
        other => panic!("expected a fatal exit, found: {other}"),
    }
}

fn assert_says(report: &FatalReport, words: &[&str]) {
    let text = report.to_string();
    for word in words {
        assert!(text.contains(word), "{word:?} is not in\n{text}");
    }
}

/// Checks the report of a guest that KVM could not run at `rip`.
fn assert_gave_up_at(report: &FatalReport, rip: u64) {
    // Where KVM needs help it was asked for, in vain.
    let (Cause::InternalError(InternalError { suberror: 1, .. })
    | Cause::Beyond { error: InternalError { suberror: 1, .. }, .. }) = report.cause
    else {
        panic!("expected suberror 1, found {:?}", report.cause)
    };
    let (general, special) = report.registers.as_ref().expect("registers can be read");
    assert_eq!(general.rip, rip);
    assert!(special.cs.long);
    assert_says(report, &["KVM_EXIT_INTERNAL_ERROR, suberror 1", "in software and could not", "rip", "cr3"]);
}

#[test]
fn an_exception_that_cannot_be_delivered_is_reported_as_a_triple_fault() {
    let code = machine_code!("mov dx, 0x700", "mov al, 7", "out dx, al", "mov rbx, 0x1234567890", "ud2");
    dies(code, 101, |report| {
        assert_eq!((report.vcpu, &report.cause), (0, &Cause::TripleFault));
        assert_says(report, &["stopped on vcpu0", "triple fault", "KVM_EXIT_SHUTDOWN", "port 0x700 <- 0x07"]);
        let kinds: Vec<_> = report.history.iter().map(|record| record.kind).collect();
        assert_eq!(kinds, [ExitKind::PioWrite, ExitKind::Shutdown]);
        let (general, _) = report.registers.as_ref().expect("registers can be read");
        // Processors of one maker keep their state at a triple fault, those of another are reset.
        if general.rip == 0xfff0 {
            assert_says(report, &["these are reset values"]);
        } else {
            assert_eq!(general.rbx, 0x12_3456_7890);
            let Code::Bytes { before, from } = &report.code else { panic!("{:?}", report.code) };
            assert!(from.starts_with(&[0x0f, 0x0b]), "{from:x?}");
            assert!(before.ends_with(&0x12_3456_7890_u64.to_le_bytes()), "{before:x?}");
        }
    });
}

#[test]
fn code_where_there_is_no_memory_is_an_internal_error_at_its_address() {
    let code = machine_code!("mov ecx, 0x11223344", "mov eax, 0xd0000000", "jmp rax");
    dies(code, 102, |report| {
        assert_gave_up_at(report, 0xd000_0000);
        assert_eq!(report.registers.as_ref().unwrap().0.rcx, 0x1122_3344);
        assert!(matches!(report.code, Code::Unreadable(_)), "{:?}", report.code);
        assert_says(report, &["0000000011223344", "is mapped to 0xd0000000, where there is no memory"]);
    });
}

#[test]
fn an_instruction_that_runs_off_the_end_of_memory_is_shown_as_far_as_it_can_be_read() {
    // The opcode of `mov rax, <eight bytes>` takes the last two bytes of memory.
    let code = machine_code!("mov word ptr [0x1ffffe], 0xb848", "mov eax, 0x1ffffe", "jmp rax");
    dies(code, 102, |report| {
        assert_gave_up_at(report, 0x1f_fffe);
        assert_eq!(report.code, Code::Bytes { before: vec![0; 16], from: vec![0x48, 0xb8] });
        assert_says(report, &["code at rip (>): 00", "> 48 b8\n"]);
    });
}

#[test]
fn the_report_tells_the_last_exits_in_order_and_equal_ones_once() {
    let code = machine_code!(
        "mov dx, 0x700",
        "mov ecx, 40",
        "2: out dx, al",
        "dec ecx",
        "jnz 2b",
        "in al, dx",
        "mov ebx, 0xd0000000",
        "mov dword ptr [rbx + 4], 0xabcd",
        "mov rax, [rbx]",
        "jmp rbx",
    );
    dies(code, 102, |report| {
        assert_eq!(report.history.len(), lodger::vcpu::HISTORY_DEPTH);
        assert_says(
            report,
            &[
                "port 0x700 <- 0x00 (28 times)\n    port 0x700 -> 0xff\n    memory 0xd0000004 <- 0x0000abcd\n    \
                 memory 0xd0000000 -> 0xffffffffffffffff\n    internal-error",
            ],
        );
    });
}
