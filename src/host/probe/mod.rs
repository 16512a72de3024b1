//! What guest code can do on this KVM, found by running a few bytes of it.
//!
//! On an ordinary host everything here works. On a KVM without hardware virtualization guest kernel code is
//! interpreted, and the interpreter lacks instructions and transitions that kernels use: each is tried by
//! itself, because nothing else tells. What is missing is tried once more with completion, so that a row says
//! what a guest will find. [`mod@bench`] runs the bytes, [`code`] is what surrounds them,
//! [`instructions`] are tried one by one, [`transitions`] change the mode or the speed.

mod bench;
mod code;
mod instructions;
mod transitions;

use bench::{Bench, Exception, Mode, Outcome, PATIENT, Program, Run};

use super::kvm::NO_KVM;
use super::{Area, Row, Verdict};
use crate::hv::kvm::Kvm;

/// What every row with a gap that Linux runs into says. The embedded guest was written not to.
const LINUX_NEEDS_IT: &str = "Linux kernels do this, most of them while they boot, and this version of lodger \
                              cannot do it in KVM's place: expect them to stop there on this host; the \
                              embedded guest does not need it";

/// The row for `program`: as `judge` sees it on this KVM, or, where it is missing, with completion.
fn examine_program(bench: &mut Bench, program: &Program, judge: impl Fn(&Run) -> Row) -> Row {
    let row = judge(&bench.run(program));
    if !matches!(row.verdict, Verdict::Missing | Verdict::Limited) {
        return row;
    }
    match judge(&bench.run_completed(program)).verdict {
        Verdict::Ok => Row {
            verdict: Verdict::Covered,
            detail: format!("{}; lodger does it in KVM's place", row.detail),
            advice: None,
            ..row
        },
        _ => row,
    }
}

/// Tries everything, or tells that there is no KVM to try it on.
pub(super) fn examine(kvm: Option<&Kvm>) -> Vec<Row> {
    let mut bench = match kvm.map(Bench::new) {
        Some(Ok(bench)) => bench,
        Some(Err(error)) => return not_examined(&error, Verdict::Missing),
        None => return not_examined(NO_KVM, Verdict::NotExamined),
    };
    let mut rows: Vec<Row> = GREETINGS.iter().map(|greeting| greeting.examine(&mut bench)).collect();
    if rows.iter().any(Row::prevents_guests) {
        let reason = "guest code does not run at all";
        rows.extend(instructions::not_examined(reason));
        rows.extend(transitions::not_examined(reason));
        return rows;
    }
    let features = Features::ask(&mut bench);
    rows.extend(instructions::examine(&mut bench, &features));
    rows.extend(transitions::examine(&mut bench, &features));
    rows
}

fn not_examined(reason: &str, greetings: Verdict) -> Vec<Row> {
    let mut rows: Vec<Row> = GREETINGS
        .iter()
        .map(|greeting| Row::new(Area::Guest, greeting.name, greetings, reason))
        .map(Row::required)
        .collect();
    rows.extend(instructions::not_examined(reason));
    rows.extend(transitions::not_examined(reason));
    rows
}

/// A guest of four bytes, in a mode without which nothing boots.
struct Greeting {
    name: &'static str,
    mode: Mode,
}

const GREETINGS: [Greeting; 3] = [
    Greeting { name: "real-mode", mode: Mode::Real },
    Greeting { name: "64-bit-mode", mode: Mode::Ring0 },
    Greeting { name: "user-mode", mode: Mode::Ring3 },
];
const ANSWER: u8 = 42;

impl Greeting {
    fn program(&self) -> Program {
        Program { mode: self.mode, setup: Vec::new(), code: code::done(ANSWER).to_vec() }
    }

    fn examine(&self, bench: &mut Bench) -> Row {
        self.row(&bench.run_with(&self.program(), &bench.cpuid(), PATIENT))
    }

    fn row(&self, run: &Run) -> Row {
        let row = match &run.outcome {
            Outcome::Done(ANSWER) => Row::new(Area::Guest, self.name, Verdict::Ok, "a few bytes of code ran"),
            other => Row::new(Area::Guest, self.name, Verdict::Missing, describe(other))
                .advise("look into the kernel log (`sudo dmesg`) for what KVM says about it"),
        };
        row.required()
    }
}

/// How a run ended that should have ended otherwise.
fn describe(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Done(status) => format!("it ended with the unexpected status {status}"),
        Outcome::Exception(Exception { vector, rip, ring }) => {
            format!("it ended in exception {vector} at {rip:#x}, from ring {ring}")
        }
        Outcome::CannotRun(_) => "KVM has to interpret the code and cannot".to_owned(),
        Outcome::Died(reason) | Outcome::NotRun(reason) => reason.clone(),
        Outcome::Hung => "it does not come to its end".to_owned(),
    }
}

/// What the guest's own `cpuid` says: some hosts do not let it be changed, so that what was asked for is no
/// help.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Features {
    /// EBX of leaf 0: the start of the vendor's name.
    vendor: u32,
    /// ECX of leaf 1.
    basic: u32,
    /// EBX of leaf 7.
    extended: u32,
    /// EAX of leaf 13, index 0: the kinds of state that can be enabled.
    state: u32,
    /// EAX of leaf 13, index 1.
    xsave: u32,
}

const LEAVES: [(u32, u32); 5] = [(0, 0), (1, 0), (7, 0), (0xd, 0), (0xd, 1)];

impl Features {
    fn ask(bench: &mut Bench) -> Self {
        let mut code: Vec<u8> = LEAVES.iter().flat_map(|&(leaf, index)| code::cpuid(leaf, index)).collect();
        code.extend(code::done(0));
        let run = bench.run(&Program { mode: Mode::Ring0, setup: Vec::new(), code });
        let values: Vec<u32> = run.reports.iter().map(|&(value, _)| value).collect();
        Self::from_reports(&values)
    }

    /// From four values for each leaf; what is missing is taken for zero.
    fn from_reports(values: &[u32]) -> Self {
        let last_leaf = values.first().copied().unwrap_or(0);
        let value = |number: usize, register: usize| {
            // A leaf beyond the last answers with that of another.
            let exists = LEAVES[number].0 <= last_leaf;
            values.get(number * 4 + register).copied().filter(|_| exists).unwrap_or(0)
        };
        Self {
            vendor: value(0, 1),
            basic: value(1, 2),
            extended: value(2, 1),
            state: value(3, 0),
            xsave: value(4, 0),
        }
    }

    fn has_basic(&self, bit: u32) -> bool {
        self.basic >> bit & 1 != 0
    }
}

#[cfg(test)]
#[path = "probe_test.rs"]
mod tests;
