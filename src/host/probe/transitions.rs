//! What changes the processor's mode or leaves the guest, and how fast code runs in either mode.

use std::time::{Duration, Instant};

use super::bench::{Bench, Exception, Mode, ORDINARY, Outcome, Program, Run};
use super::code::{self, LANDING, SYSTEM_CALL_GATE};
use super::{Area, Features, LINUX_NEEDS_IT, Row, Verdict, describe, examine_program};

const SYSCALL: &str = "syscall";
const INT80: &str = "int-0x80";
const HYPERCALL: &str = "hypercall";
const CPUID: &str = "cpuid-masking";
const SPEED: &str = "kernel-speed";

/// POPCNT in ECX of CPUID leaf 1: every processor with hardware virtualization has it.
const POPCNT: u32 = 23;
/// Ring 0 that much slower than ring 3 is interpreted. Measured on such a host: a thousand times.
const INTERPRETED: f64 = 20.0;
/// Iterations that even an interpreter ends in some dozen milliseconds…
const FEW: u32 = 20_000;
/// …and that take a processor long enough to be measured.
const MANY: u32 = 5_000_000;
/// Fewer than this for [`FEW`] iterations is mostly the exits around them.
const TOO_SHORT: Duration = Duration::from_millis(2);
/// Room for an interpreter on a busy host.
const SPEED_LIMIT: Duration = Duration::from_millis(500);
const INSTRUCTIONS_PER_ITERATION: f64 = 2.0;

/// Tries everything.
pub(super) fn examine(bench: &mut Bench, features: &Features) -> Vec<Row> {
    vec![
        examine_program(bench, &system_call(&[0x0f, 0x05]), syscall_row),
        examine_program(bench, &system_call(&[0xcd, SYSTEM_CALL_GATE]), int80_row),
        hypercall(bench, features),
        cpuid_masking(bench, features),
        speed_row(rate(bench, Mode::Ring0), rate(bench, Mode::Ring3)),
    ]
}

/// The same rows, without trying.
pub(super) fn not_examined(reason: &str) -> Vec<Row> {
    [SYSCALL, INT80, HYPERCALL, CPUID, SPEED]
        .map(|name| Row::new(Area::Instruction, name, Verdict::NotExamined, reason))
        .into()
}

fn row(name: &str, verdict: Verdict, detail: impl Into<String>) -> Row {
    Row::new(Area::Instruction, name, verdict, detail)
}

fn system_call(instruction: &[u8]) -> Program {
    Program { mode: Mode::Ring3, setup: code::accept_system_calls(), code: instruction.to_vec() }
}

fn syscall_row(run: &Run) -> Row {
    let gap = |detail: String| row(SYSCALL, Verdict::Missing, detail).advise(LINUX_NEEDS_IT);
    let code_segment = run.reports.first().map(|&(value, _)| value);
    match &run.outcome {
        Outcome::Done(_) if code_segment.is_some_and(|selector| selector & 3 == 0) => {
            row(SYSCALL, Verdict::Ok, "system calls arrive in ring 0")
        }
        Outcome::Done(_) => gap("system calls arrive at their entry, but not in ring 0".to_owned()),
        Outcome::Exception(Exception { vector, rip: LANDING, ring: 3 }) => {
            gap(format!("system calls arrive at their entry, but still in ring 3 (exception {vector})"))
        }
        Outcome::NotRun(reason) => row(SYSCALL, Verdict::NotExamined, reason.clone()),
        other => gap(format!("system calls do not arrive: {}", describe(other))),
    }
}

fn int80_row(run: &Run) -> Row {
    match &run.outcome {
        Outcome::Exception(Exception { vector: SYSTEM_CALL_GATE, ring: 3, .. }) => {
            row(INT80, Verdict::Ok, "32-bit system calls arrive")
        }
        Outcome::NotRun(reason) => row(INT80, Verdict::NotExamined, reason.clone()),
        other => {
            row(INT80, Verdict::Missing, format!("32-bit system calls do not arrive: {}", describe(other)))
                .advise("32-bit programs do not run in a guest on this host; use 64-bit ones")
        }
    }
}

fn hypercall(bench: &mut Bench, features: &Features) -> Row {
    // "Genu", of GenuineIntel. KVM corrects the wrong one of the two where it can.
    let (name, instruction) = match features.vendor.to_le_bytes() {
        [b'G', b'e', b'n', b'u'] => ("vmcall", [0x0f, 0x01, 0xc1]),
        _ => ("vmmcall", [0x0f, 0x01, 0xd9]),
    };
    // KVM_HC_VAPIC_POLL_IRQ, which does nothing but return.
    let setup = code::load_eax(1).to_vec();
    let code = [instruction.as_slice(), &code::done(0)].concat();
    hypercall_row(name, &bench.run(&Program { mode: Mode::Ring0, setup, code }))
}

fn hypercall_row(name: &str, run: &Run) -> Row {
    let advice = "lodger hides the features by which Linux would make hypercalls (PV_UNHALT, PV_SEND_IPI, \
                  PV_SCHED_YIELD), so that nothing needs to be done; only do not load Linux's module `ptp_kvm`, \
                  which makes one without asking";
    match &run.outcome {
        Outcome::Done(_) => row(HYPERCALL, Verdict::Ok, format!("{name} returns")),
        Outcome::NotRun(reason) => row(HYPERCALL, Verdict::NotExamined, reason.clone()),
        Outcome::Hung => row(HYPERCALL, Verdict::Missing, format!("{name} never returns")).advise(advice),
        other => row(HYPERCALL, Verdict::Missing, format!("{name}: {}", describe(other))).advise(advice),
    }
}

/// Hides a feature and looks whether the guest sees it all the same.
fn cpuid_masking(bench: &mut Bench, features: &Features) -> Row {
    if !features.has_basic(POPCNT) {
        return row(CPUID, Verdict::NotExamined, "the processor lacks the feature that would be hidden");
    }
    let mut cpuid = bench.cpuid();
    for entry in cpuid.iter_mut().filter(|entry| entry.function == 1) {
        entry.ecx &= !(1 << POPCNT);
    }
    let code = [code::cpuid(1, 0).as_slice(), &code::done(0)].concat();
    let program = Program { mode: Mode::Ring0, setup: Vec::new(), code };
    cpuid_row(&bench.run_with(&program, &cpuid, ORDINARY))
}

fn cpuid_row(run: &Run) -> Row {
    match (&run.outcome, run.reports.get(2)) {
        (Outcome::Done(_), Some((ecx, _))) if ecx >> POPCNT & 1 == 0 => {
            row(CPUID, Verdict::Ok, "processor features can be hidden from a guest")
        }
        (Outcome::Done(_), _) => row(
            CPUID,
            Verdict::Limited,
            "some features of the host's processor cannot be hidden",
        )
        .advise(
            "guests see more of this host's own processor than `--cpu` says (`lodger run` warns and names the \
             flags), and can be moved only to hosts that have that, too",
        ),
        (Outcome::NotRun(reason), _) => row(CPUID, Verdict::NotExamined, reason.clone()),
        (other, _) => row(CPUID, Verdict::NotExamined, describe(other)),
    }
}

/// Instructions per second in a mode, where that can be told.
fn rate(bench: &mut Bench, mode: Mode) -> Result<f64, Outcome> {
    let mut time = |count: u32| {
        let program = Program { mode, setup: Vec::new(), code: code::count_down(count) };
        let run = bench.run_with(&program, &bench.cpuid(), SPEED_LIMIT);
        elapsed(&run).ok_or(run.outcome)
    };
    let (count, time) = match time(FEW)? {
        short if short < TOO_SHORT => (MANY, time(MANY)?),
        long => (FEW, long),
    };
    Ok(f64::from(count) * INSTRUCTIONS_PER_ITERATION / time.as_secs_f64().max(1e-9))
}

/// The time between the first report of a complete run and the last.
fn elapsed(run: &Run) -> Option<Duration> {
    let at = |report: Option<&(u32, Instant)>| report.map(|&(_, at)| at);
    let (first, last) = (at(run.reports.first())?, at(run.reports.last())?);
    (run.outcome == Outcome::Done(0)).then(|| last.saturating_duration_since(first))
}

fn speed_row(kernel: Result<f64, Outcome>, user: Result<f64, Outcome>) -> Row {
    let advice = "lodger runs kernels in a software processor here, dozens of times as fast, and programs at full \
                  speed. A processor with VT-x or AMD-V, or nested virtualization in the machine around this one, runs \
                  kernels at full speed, too";
    match (kernel, user) {
        (Ok(kernel), Ok(user)) => {
            let detail = format!(
                "{} million instructions/s in ring 0, {} in ring 3",
                millions(kernel),
                millions(user)
            );
            if user > kernel * INTERPRETED {
                let detail = format!("{detail}: KVM interprets kernel code");
                row(SPEED, Verdict::Limited, detail).advise(advice)
            } else {
                row(SPEED, Verdict::Ok, detail)
            }
        }
        (Err(Outcome::Hung), Ok(user)) => {
            let detail =
                format!("ring 0 is too slow to be measured, ring 3 runs {} million/s", millions(user));
            row(SPEED, Verdict::Limited, detail).advise(advice)
        }
        (Err(outcome), _) | (_, Err(outcome)) => row(SPEED, Verdict::NotExamined, describe(&outcome)),
    }
}

/// Two digits are as much as one measurement can tell.
fn millions(rate: f64) -> String {
    let millions = rate / 1e6;
    if millions < 10.0 {
        format!("{millions:.1}")
    } else {
        format!("{:.0}", (millions / 10.0).round() * 10.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(outcome: Outcome, reports: &[u32]) -> Run {
        Run { outcome, reports: reports.iter().map(|&value| (value, Instant::now())).collect() }
    }

    fn exception(vector: u8, rip: u64, ring: u8) -> Outcome {
        Outcome::Exception(Exception { vector, rip, ring })
    }

    #[test]
    fn a_system_call_must_arrive_in_ring_0() {
        assert_eq!(syscall_row(&run(Outcome::Done(0), &[0x10])).verdict, Verdict::Ok);
        for odd in [
            run(Outcome::Done(0), &[0x13]),
            run(Outcome::Done(0), &[]),
            run(exception(14, LANDING, 3), &[]),
            run(exception(6, 0xd000, 3), &[]),
            run(Outcome::Hung, &[]),
        ] {
            let row = syscall_row(&odd);
            assert_eq!(row.verdict, Verdict::Missing, "{odd:?}");
            assert!(row.advice.is_some());
        }
        let row = syscall_row(&run(exception(14, LANDING, 3), &[]));
        assert!(row.detail.contains("still in ring 3"), "{}", row.detail);
    }

    #[test]
    fn a_32_bit_system_call_must_come_through_its_gate() {
        assert_eq!(int80_row(&run(exception(0x80, 0xd002, 3), &[])).verdict, Verdict::Ok);
        assert_eq!(int80_row(&run(exception(6, 0xd002, 3), &[])).verdict, Verdict::Missing);
        assert_eq!(int80_row(&run(Outcome::Done(0), &[])).verdict, Verdict::Missing);
    }

    #[test]
    fn a_hypercall_must_return() {
        assert_eq!(hypercall_row("vmcall", &run(Outcome::Done(0), &[])).verdict, Verdict::Ok);
        let row = hypercall_row("vmcall", &run(Outcome::Hung, &[]));
        assert_eq!((row.verdict, row.detail.as_str()), (Verdict::Missing, "vmcall never returns"));
    }

    #[test]
    fn a_hidden_feature_must_not_show() {
        let seen = |ecx| cpuid_row(&run(Outcome::Done(0), &[0, 0, ecx, 0])).verdict;
        assert_eq!(seen(!(1 << POPCNT)), Verdict::Ok);
        assert_eq!(seen(u32::MAX), Verdict::Limited);
        assert_eq!(cpuid_row(&run(Outcome::Hung, &[])).verdict, Verdict::NotExamined);
    }

    #[test]
    fn a_kernel_twenty_times_slower_than_programs_is_interpreted() {
        assert_eq!(speed_row(Ok(3e9), Ok(3e9)).verdict, Verdict::Ok);
        assert_eq!(speed_row(Ok(2e8), Ok(3e9)).verdict, Verdict::Ok);
        let row = speed_row(Ok(1.75e6), Ok(3e9));
        assert_eq!(row.verdict, Verdict::Limited);
        assert!(
            row.detail.contains("1.8 million") && row.detail.contains("3000 in ring 3"),
            "{}",
            row.detail
        );
        assert_eq!(speed_row(Err(Outcome::Hung), Ok(3e9)).verdict, Verdict::Limited);
        assert_eq!(speed_row(Err(Outcome::Hung), Err(Outcome::Hung)).verdict, Verdict::NotExamined);
    }

    #[test]
    fn only_complete_runs_are_timed() {
        assert!(elapsed(&run(Outcome::Done(0), &[1, 2])).is_some());
        assert!(elapsed(&run(Outcome::Done(0), &[])).is_none());
        assert!(elapsed(&run(Outcome::Hung, &[1])).is_none());
    }
}
