//! The software processor for guest kernels against the host's own processor, one instruction at a time.
//!
//! [`cases`] makes an instruction and state from a number, [`guest`] has the software processor execute it in a
//! guest's memory, [`native`] the host's processor in this process; [`defined`] knows which flags the manuals
//! define afterwards. What the software processor leaves to the hypervisor must not have changed anything.
//! `LODGER_KERNEL_CASES` says how many, `LODGER_COMPLETION_SEED` which others.

mod cases;
mod defined;
mod guest;
mod native;

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

use iced_x86::{Code, Formatter, IntelFormatter, Mnemonic as M};

use cases::{Case, Generator, State};
use guest::{Guest, Progress};
use native::Native;

use crate::random::Random;
use crate::{MOST_FAILURES, SEED, setting};

const CASES: u64 = 120_000;
/// After so many tries without an execution an instruction counts as the hypervisor's.
const PATIENCE: u32 = 24;
const RESUME: u64 = 1 << 16;
const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];

/// What kernels consist of: all of it has to be executed.
const MUST_BE_EXECUTED: [M; 84] = [
    M::Mov,
    M::Movzx,
    M::Movsx,
    M::Movsxd,
    M::Movnti,
    M::Lea,
    M::Xchg,
    M::Add,
    M::Adc,
    M::Sub,
    M::Sbb,
    M::And,
    M::Or,
    M::Xor,
    M::Cmp,
    M::Test,
    M::Inc,
    M::Dec,
    M::Neg,
    M::Not,
    M::Shl,
    M::Shr,
    M::Sar,
    M::Rol,
    M::Ror,
    M::Shld,
    M::Shrd,
    M::Mul,
    M::Imul,
    M::Div,
    M::Idiv,
    M::Cbw,
    M::Cwde,
    M::Cdqe,
    M::Cwd,
    M::Cdq,
    M::Cqo,
    M::Bt,
    M::Bts,
    M::Btr,
    M::Btc,
    M::Bsf,
    M::Bsr,
    M::Tzcnt,
    M::Shlx,
    M::Shrx,
    M::Sarx,
    M::Rorx,
    M::Lzcnt,
    M::Popcnt,
    M::Bswap,
    M::Sete,
    M::Setl,
    M::Cmovb,
    M::Cmovg,
    M::Je,
    M::Jbe,
    M::Jmp,
    M::Call,
    M::Ret,
    M::Jrcxz,
    M::Push,
    M::Pop,
    M::Pushfq,
    M::Popfq,
    M::Leave,
    M::Xadd,
    M::Cmpxchg,
    M::Movsb,
    M::Movsq,
    M::Stosb,
    M::Stosd,
    M::Lodsw,
    M::Lodsq,
    M::Scasb,
    M::Scasd,
    M::Cmpsb,
    M::Cmpsq,
    M::Clc,
    M::Stc,
    M::Cld,
    M::Std,
    M::Lahf,
    M::Sahf,
];

#[derive(Default)]
struct Tally {
    cases: u64,
    faults: u64,
    executed: HashMap<Code, u64>,
    locked: HashSet<Code>,
    left: HashMap<Code, u32>,
    failures: Vec<String>,
    failed: HashSet<Code>,
}

impl Tally {
    fn is_worth(&self, code: Code) -> bool {
        self.executed.contains_key(&code) || self.left.get(&code).is_none_or(|tries| *tries < PATIENCE)
    }

    fn fail(&mut self, case: &Case, found: &[String]) {
        if self.failed.insert(case.instruction.code()) {
            self.failures.push(format!("{}\n    {}", describe(case), found.join("\n    ")));
        }
    }
}

fn try_case(native: &Native, guest: &mut Guest, tally: &mut Tally, code: Code, case: &Case) {
    let (progress, mut soft) = guest.run(case);
    if progress == Progress::None {
        *tally.left.entry(code).or_default() += 1;
        let before = State { general: case.general, flags: case.flags, rip: case.rip, data: &case.data };
        let found = differences(&before, &soft, u64::MAX);
        if !found.is_empty() {
            tally.fail(case, &[vec!["left to the hypervisor, but changed".to_owned()], found].concat());
        }
        return;
    }
    tally.cases += 1;
    *tally.executed.entry(code).or_default() += 1;
    if case.instruction.has_lock_prefix() {
        tally.locked.insert(code);
    }
    if case.must_be_left {
        return tally.fail(case, &["is not the same on all processors, but was executed".to_owned()]);
    }
    let (raised, native) = native.run(case);
    tally.faults += u64::from(raised.is_some());
    let mut found = Vec::new();
    match (progress, raised) {
        (Progress::Done, None) => {}
        // A repetition up to an element that faults.
        (Progress::Part, Some(_)) => soft.flags |= native.flags & RESUME,
        (_, raised) => found.push(format!("{progress:?} in software, exception {raised:?} natively")),
    }
    let defined = defined::flags(case) & !RESUME;
    found.extend(differences(&native, &soft, defined));
    if !found.is_empty() {
        tally.fail(case, &found);
    }
}

fn differences(expected: &State<'_>, soft: &State<'_>, flags: u64) -> Vec<String> {
    let mut found = Vec::new();
    let mut compare = |name: &str, one: u64, other: u64| {
        if one != other {
            found.push(format!("{name}: {one:#x} expected, {other:#x} in software"));
        }
    };
    for (name, (one, other)) in NAMES.iter().zip(expected.general.iter().zip(&soft.general)) {
        compare(name, *one, *other);
    }
    compare("rip", expected.rip, soft.rip);
    compare("rflags", expected.flags & flags, soft.flags & flags);
    if expected.data != soft.data {
        let pairs = expected.data.iter().zip(soft.data).zip(cases::DATA..);
        let mut text = "memory:".to_owned();
        for ((one, other), at) in pairs.filter(|((one, other), _)| one != other).take(16) {
            let _ = write!(text, " {at:#x}: {one:02x} expected, {other:02x} in software;");
        }
        found.push(text);
    }
    found
}

fn describe(case: &Case) -> String {
    let mut name = String::new();
    IntelFormatter::new().format(&case.instruction, &mut name);
    let mut text = format!(
        "{name} ({:?}, bytes {:02x?}, seed {:#x}, at {:#x}, rflags {:#x}",
        case.instruction.code(),
        case.bytes,
        case.seed,
        case.rip,
        case.flags
    );
    for (name, value) in NAMES.iter().zip(&case.general) {
        let _ = write!(text, ", {name} {value:#x}");
    }
    text + ")"
}

#[test]
fn every_instruction_of_kernels_does_what_the_processor_does() {
    let seed = setting("LODGER_COMPLETION_SEED", SEED);
    let wanted = setting("LODGER_KERNEL_CASES", CASES);
    let random = &mut Random::new(seed);
    let generator = Generator::new(random);
    let (native, mut guest) = (Native::new(), Guest::new());
    let all = cases::codes();
    let executable: Vec<_> =
        all.iter().copied().filter(|code| MUST_BE_EXECUTED.contains(&code.mnemonic())).collect();
    let mut tally = Tally::default();
    let mut turn = 0_usize;
    while tally.cases < wanted && turn as u64 <= 4 * wanted && tally.failures.len() < MOST_FAILURES {
        turn += 1;
        let from = if turn.is_multiple_of(8) { &all } else { &executable };
        let code = random.pick(from);
        let seed = random.next();
        if !tally.is_worth(code) {
            continue;
        }
        if let Some(case) = generator.case(code, seed) {
            try_case(&native, &mut guest, &mut tally, code, &case);
        }
    }
    report(&tally, &all);
    assert!(tally.failures.is_empty(), "seed {seed:#x}\n{}", tally.failures.join("\n"));
    assert!(tally.cases >= wanted);
    for mnemonic in MUST_BE_EXECUTED {
        let known = tally.executed.keys().any(|code| code.mnemonic() == mnemonic);
        assert!(known, "{mnemonic:?} is not executed");
    }
}

fn report(tally: &Tally, all: &[Code]) {
    let never: Vec<_> = all
        .iter()
        .filter(|code| MUST_BE_EXECUTED.contains(&code.mnemonic()) && !tally.executed.contains_key(code))
        .collect();
    println!(
        "{} cases of {} distinct instructions compared ({} also with LOCK, {} cases up to an exception); {} of {} others \
         left alone; of the same names, but the hypervisor's: {never:?}",
        tally.cases,
        tally.executed.len(),
        tally.locked.len(),
        tally.faults,
        tally.left.keys().filter(|code| !tally.executed.contains_key(code)).count(),
        all.len() - tally.executed.len(),
    );
}
