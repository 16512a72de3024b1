use std::path::Path;
use std::time::Duration;

use super::*;
use crate::hv::kvm::DEVICE;

#[test]
fn without_kvm_every_row_is_there_and_says_so() {
    let rows = examine(None);
    assert!(rows.iter().all(|row| row.verdict == Verdict::NotExamined && row.detail == NO_KVM));
    assert_eq!(rows.iter().filter(|row| row.prevents_guests()).count(), GREETINGS.len());
}

#[test]
fn a_machine_that_cannot_be_built_prevents_guests() {
    let rows = not_examined("cannot create a virtual machine", Verdict::Missing);
    assert!(rows[0].prevents_guests());
    assert_eq!(rows[0].verdict, Verdict::Missing);
    assert_eq!(rows.last().map(|row| row.verdict), Some(Verdict::NotExamined));
}

#[test]
fn features_come_from_the_leaves_that_exist() {
    let mut values = [0_u32; 20];
    (values[0], values[1], values[6], values[9], values[12], values[16]) = (7, 8, 1 << 23, 9, 7, 15);
    let few = Features { vendor: 8, basic: 1 << 23, extended: 9, state: 0, xsave: 0 };
    assert_eq!(Features::from_reports(&values), few);
    values[0] = 0xd;
    assert_eq!(Features::from_reports(&values), Features { state: 7, xsave: 15, ..few });
    assert!(few.has_basic(23) && !few.has_basic(22));
    for length in 0..values.len() {
        let _: Features = Features::from_reports(&values[..length]);
    }
}

/// The bench on this host, or nothing where there is no KVM.
fn bench() -> Option<Bench> {
    let kvm = Kvm::open_at(Path::new(DEVICE)).ok()?;
    Some(Bench::new(&kvm).unwrap())
}

fn ring0(code: &[u8]) -> Program {
    Program { mode: Mode::Ring0, setup: Vec::new(), code: code.to_vec() }
}

#[test]
fn a_few_bytes_run_in_every_mode() {
    let Some(mut bench) = bench() else { return };
    for greeting in &GREETINGS {
        let row = greeting.examine(&mut bench);
        assert_eq!((row.verdict, row.required), (Verdict::Ok, true), "{row:?}");
    }
}

#[test]
fn an_exception_is_told_with_its_number_its_place_and_its_ring() {
    let Some(mut bench) = bench() else { return };
    // ud2; in ring 3, so that no host has to interpret it.
    let program = Program { mode: Mode::Ring3, setup: Vec::new(), code: vec![0x90, 0x0f, 0x0b] };
    let rip = code::start(&program) + 1;
    let expected = Exception { vector: 6, rip, ring: 3 };
    assert_eq!(bench.run(&program).outcome, Outcome::Exception(expected));
}

#[test]
fn an_exception_with_an_error_code_is_told_like_any_other() {
    let Some(mut bench) = bench() else { return };
    // mov eax, [0x1000], which belongs to ring 0
    let load = [0x8b, 0x04, 0x25, 0x00, 0x10, 0, 0];
    let program = Program { mode: Mode::Ring3, setup: Vec::new(), code: load.to_vec() };
    let expected = Exception { vector: 14, rip: code::start(&program), ring: 3 };
    assert_eq!(bench.run(&program).outcome, Outcome::Exception(expected));
}

#[test]
fn code_without_an_end_is_stopped() {
    let Some(mut bench) = bench() else { return };
    assert_eq!(bench.run(&ring0(&[0xeb, 0xfe])).outcome, Outcome::Hung);
    assert_eq!(bench.run(&ring0(&code::done(1))).outcome, Outcome::Done(1));
}

#[test]
fn a_bench_without_time_runs_nothing_and_says_so() {
    let Ok(kvm) = Kvm::open_at(Path::new(DEVICE)) else { return };
    let mut bench = Bench::with_time(&kvm, Duration::ZERO).unwrap();
    assert!(matches!(bench.run(&ring0(&code::done(1))).outcome, Outcome::NotRun(_)));
    let features = Features { basic: u32::MAX, ..Features::default() };
    let mut rows = instructions::examine(&mut bench, &features);
    rows.extend(transitions::examine(&mut bench, &features));
    assert!(rows.iter().all(|row| row.verdict == Verdict::NotExamined), "{rows:?}");
}

#[test]
fn a_guest_that_reports_for_ever_is_heard_for_a_while() {
    let Some(mut bench) = bench() else { return };
    // again: out REPORT, eax; jmp again
    let run = bench.run(&ring0(&[0xe7, code::REPORT as u8, 0xeb, 0xfc]));
    assert_eq!(run.outcome, Outcome::Hung);
    assert_eq!(run.reports.len(), 32);
}

#[test]
fn the_guest_sees_a_processor_with_a_name() {
    let Some(mut bench) = bench() else { return };
    let features = Features::ask(&mut bench);
    assert!(features.vendor != 0 && features.basic != 0, "{features:x?}");
}

/// Nothing that this program claims to do in KVM's place is left missing, on whatever host this runs.
#[test]
fn instructions_and_system_calls_work_or_are_covered() {
    let Some(mut bench) = bench() else { return };
    let features = Features::ask(&mut bench);
    let calls = ["syscall", "int-0x80"];
    let mut rows = instructions::examine(&mut bench, &features);
    rows.extend(
        transitions::examine(&mut bench, &features)
            .into_iter()
            .filter(|row| calls.contains(&row.name.as_str())),
    );
    for row in rows {
        assert!(
            matches!(row.verdict, Verdict::Ok | Verdict::Covered | Verdict::NotExamined),
            "{}: {}",
            row.name,
            row.detail
        );
        assert!(row.advice.is_none(), "{}", row.name);
    }
}
