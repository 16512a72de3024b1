//! Instructions that kernels execute in ring 0, each tried by itself.

use super::bench::{Bench, Mode, Outcome, Program, Run};
use super::code::{self, FEATURE_XSAVE};
use super::{Area, Features, LINUX_NEEDS_IT, Row, Verdict, describe, examine_program};

/// Instructions that are tried together.
struct Probe {
    /// The row's name.
    name: &'static str,
    /// What kernels use them for.
    purpose: &'static str,
    offered: fn(&Features) -> bool,
    state: State,
    /// Each instruction with its name. RDI points to zeroed memory, ECX is 0. None: to enable vector state is
    /// what is tried.
    steps: &'static [(&'static str, &'static [u8])],
    /// What EAX holds afterwards, where that tells something.
    result: Option<u32>,
}

/// Which vector state must be enabled first.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Reset,
    Enabled,
}

const XSETBV: Probe = Probe {
    name: "xsetbv",
    purpose: "enabling vector registers",
    offered: |features| features.basic & FEATURE_XSAVE != 0,
    state: State::Enabled,
    steps: &[],
    result: None,
};

const PROBES: [Probe; 14] = [
    XSETBV,
    Probe {
        name: "int3",
        purpose: "a breakpoint, which kernels set while they patch themselves",
        offered: |_| true,
        state: State::Reset,
        // The handler leaves its number.
        steps: &[("int3", &[0xcc])],
        result: Some(3),
    },
    Probe {
        name: "popcnt",
        purpose: "counting bits",
        offered: |features| features.has_basic(23),
        state: State::Reset,
        // EAX is 0xc8: three bits.
        steps: &[("mov", &[0xb8, 0xc8, 0, 0, 0]), ("popcnt", &[0xf3, 0x0f, 0xb8, 0xc0])],
        result: Some(3),
    },
    Probe {
        name: "stac-clac",
        purpose: "opening and closing user memory to the kernel (SMAP)",
        offered: |features| features.extended >> 20 & 1 != 0,
        state: State::Reset,
        steps: &[("stac", &[0x0f, 0x01, 0xcb]), ("clac", &[0x0f, 0x01, 0xca])],
        result: None,
    },
    Probe {
        name: "cmpxchg16b",
        purpose: "changing two words at once, as memory allocators do",
        offered: |features| features.has_basic(13),
        state: State::Reset,
        steps: &[("cmpxchg16b", &[0xf0, 0x48, 0x0f, 0xc7, 0x0f])],
        result: None,
    },
    Probe {
        name: "fwait",
        purpose: "waiting for the x87 unit",
        offered: |_| true,
        state: State::Reset,
        steps: &[("fwait", &[0x9b])],
        result: None,
    },
    Probe {
        name: "mxcsr",
        purpose: "reading and setting the SSE control register",
        offered: |_| true,
        state: State::Reset,
        steps: &[("stmxcsr", &[0x0f, 0xae, 0x1f]), ("ldmxcsr", &[0x0f, 0xae, 0x17])],
        result: None,
    },
    Probe {
        name: "fxsave-fxrstor",
        purpose: "saving and restoring x87 and SSE registers",
        offered: |_| true,
        state: State::Reset,
        steps: &[("fxsave", &[0x48, 0x0f, 0xae, 0x07]), ("fxrstor", &[0x48, 0x0f, 0xae, 0x0f])],
        result: None,
    },
    Probe {
        name: "xsave-xrstor",
        purpose: "saving and restoring vector registers",
        offered: XSETBV.offered,
        state: State::Enabled,
        steps: &[ALL_STATE, ("xsave", &[0x48, 0x0f, 0xae, 0x27]), ("xrstor", &[0x48, 0x0f, 0xae, 0x2f])],
        result: None,
    },
    Probe {
        name: "xsaveopt",
        purpose: "saving only what changed",
        offered: |features| has_xsave(features, 0),
        state: State::Enabled,
        steps: &[ALL_STATE, ("xsaveopt", &[0x48, 0x0f, 0xae, 0x37])],
        result: None,
    },
    Probe {
        name: "xsavec",
        purpose: "saving vector registers in the compacted form",
        offered: |features| has_xsave(features, 1),
        state: State::Enabled,
        steps: &[ALL_STATE, ("xsavec", &[0x48, 0x0f, 0xc7, 0x27])],
        result: None,
    },
    Probe {
        name: "xsaves-xrstors",
        purpose: "saving and restoring vector registers, the kernel's own state included",
        offered: |features| has_xsave(features, 3),
        state: State::Enabled,
        steps: &[ALL_STATE, ("xsaves", &[0x48, 0x0f, 0xc7, 0x2f]), ("xrstors", &[0x48, 0x0f, 0xc7, 0x1f])],
        result: None,
    },
    Probe {
        name: "sse2",
        purpose: "vector arithmetic in the kernel: checksums, RAID, encryption",
        offered: |_| true,
        state: State::Reset,
        steps: &[("paddd", &[0x66, 0x0f, 0xfe, 0xc1])],
        result: None,
    },
    Probe {
        name: "avx",
        purpose: "wide vector arithmetic in the kernel",
        offered: |features| features.has_basic(28) && (XSETBV.offered)(features),
        state: State::Enabled,
        steps: &[("vxorps", &[0xc5, 0xfc, 0x57, 0xc0])],
        result: None,
    },
];

/// `mov eax, -1`; EDX is 0 already: the lower half of all state.
const ALL_STATE: (&str, &[u8]) = ("mov", &[0xb8, 0xff, 0xff, 0xff, 0xff]);
/// x87, SSE and AVX, the bits of XCR0 that are tried.
const TRIED_STATE: u32 = 7;

fn has_xsave(features: &Features, bit: u32) -> bool {
    (XSETBV.offered)(features) && features.xsave >> bit & 1 != 0
}

/// Tries each.
pub(super) fn examine(bench: &mut Bench, features: &Features) -> Vec<Row> {
    let mut state_works = true;
    PROBES
        .iter()
        .map(|probe| {
            if !(probe.offered)(features) {
                return not_examined_row(probe, "the guest's processor does not have it, so nothing uses it");
            }
            if probe.state == State::Enabled && !state_works {
                return not_examined_row(probe, "xsetbv does not work, which has to come first");
            }
            let row = examine_program(bench, &probe.program(features), |run| probe.row(run));
            let works = matches!(row.verdict, Verdict::Ok | Verdict::Covered);
            state_works &= probe.name != XSETBV.name || works;
            row
        })
        .collect()
}

/// The same rows, without trying.
pub(super) fn not_examined(reason: &str) -> Vec<Row> {
    PROBES.iter().map(|probe| not_examined_row(probe, reason)).collect()
}

fn not_examined_row(probe: &Probe, reason: &str) -> Row {
    Row::new(Area::Instruction, probe.name, Verdict::NotExamined, reason)
}

impl Probe {
    fn program(&self, features: &Features) -> Program {
        let enable = match self.state {
            State::Reset => Vec::new(),
            State::Enabled => {
                [code::allow_xsave(), code::enable_state(features.state & TRIED_STATE)].concat()
            }
        };
        let steps: Vec<u8> = self.steps.iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect();
        let end = [code::REPORT_EAX.as_slice(), &code::done(0)].concat();
        match self.steps {
            [] => Program { mode: Mode::Ring0, setup: Vec::new(), code: [enable, end].concat() },
            _ => {
                let clear_ecx = code::load_ecx(0).to_vec();
                let setup = [enable, clear_ecx].concat();
                Program { mode: Mode::Ring0, setup, code: [steps, end].concat() }
            }
        }
    }

    /// The instruction that begins `offset` bytes after the first.
    fn step_at(&self, offset: usize) -> &'static str {
        let mut end = 0;
        let step = self.steps.iter().find(|(_, bytes)| {
            end += bytes.len();
            offset < end
        });
        step.map_or(self.name, |(name, _)| name)
    }

    fn row(&self, run: &Run) -> Row {
        let row = |verdict, detail: String| Row::new(Area::Instruction, self.name, verdict, detail);
        let purpose = self.purpose;
        let reported = run.reports.last().map(|&(value, _)| value);
        match &run.outcome {
            Outcome::Done(_) if self.result.is_none() || reported == self.result => {
                row(Verdict::Ok, purpose.to_owned())
            }
            Outcome::Done(_) => {
                row(Verdict::Limited, format!("its result is wrong ({purpose})")).advise(LINUX_NEEDS_IT)
            }
            Outcome::CannotRun(Some(offset)) => {
                let step = self.step_at(*offset);
                row(Verdict::Missing, format!("KVM cannot run {step} ({purpose})")).advise(LINUX_NEEDS_IT)
            }
            Outcome::NotRun(reason) => row(Verdict::NotExamined, reason.clone()),
            other => row(Verdict::Missing, format!("{} ({purpose})", describe(other))).advise(LINUX_NEEDS_IT),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn probe(name: &str) -> &'static Probe {
        static ALL: [Probe; PROBES.len()] = PROBES;
        ALL.iter().find(|probe| probe.name == name).unwrap()
    }

    fn run(outcome: Outcome, reports: &[u32]) -> Run {
        Run { outcome, reports: reports.iter().map(|&value| (value, Instant::now())).collect() }
    }

    #[test]
    fn an_instruction_that_kvm_gives_up_at_is_named() {
        let row = probe("stac-clac").row(&run(Outcome::CannotRun(Some(3)), &[]));
        assert_eq!(row.verdict, Verdict::Missing);
        assert!(row.detail.starts_with("KVM cannot run clac"), "{}", row.detail);
        assert!(row.advice.is_some());
        assert!(!row.prevents_guests());
        let first = probe("stac-clac").row(&run(Outcome::CannotRun(Some(0)), &[]));
        assert!(first.detail.starts_with("KVM cannot run stac"), "{}", first.detail);
    }

    #[test]
    fn a_wrong_result_is_a_gap_and_the_right_one_is_none() {
        let popcnt = probe("popcnt");
        assert_eq!(popcnt.row(&run(Outcome::Done(0), &[3])).verdict, Verdict::Ok);
        assert_eq!(popcnt.row(&run(Outcome::Done(0), &[0xc8])).verdict, Verdict::Limited);
        assert_eq!(popcnt.row(&run(Outcome::Done(0), &[])).verdict, Verdict::Limited);
    }

    #[test]
    fn an_exception_or_a_hang_is_a_gap_and_a_lack_of_time_is_not() {
        for outcome in [Outcome::Hung, Outcome::CannotRun(None), Outcome::Died("odd".into())] {
            assert_eq!(probe("fwait").row(&run(outcome, &[])).verdict, Verdict::Missing);
        }
        let row = probe("fwait").row(&run(Outcome::NotRun("no time".into()), &[]));
        assert_eq!((row.verdict, row.advice), (Verdict::NotExamined, None));
    }

    #[test]
    fn what_the_processor_does_not_have_is_not_tried() {
        let none = Features::default();
        let tried: Vec<_> =
            PROBES.iter().filter(|probe| (probe.offered)(&none)).map(|probe| probe.name).collect();
        assert_eq!(tried, ["int3", "fwait", "mxcsr", "fxsave-fxrstor", "sse2"]);
    }
}
