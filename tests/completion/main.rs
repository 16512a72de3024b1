//! Completion against the host's own processor: the same instruction with the same state, here and there.
//!
//! No KVM is needed. [`native`] executes an instruction's bytes in this process, [`guest`] has the product complete
//! it for a guest whose memory looks the same; [`generate`] makes cases from numbers, [`compare`] tells the
//! difference: in registers, flags, the whole vector state, memory, the exception and its address.
//! `LODGER_COMPLETION_CASES` says how many cases, `LODGER_COMPLETION_SEED` which others, and with
//! `LODGER_COMPLETION_LIST` the instructions are listed that are not completed.
//!
//! Not compared are: `int1` and alignment checks at privilege level 3 (nobody completes programs' instructions for
//! their sake), the segment FS, which is this process's own, error codes of page faults at addresses where this
//! process may have something mapped, and what a gather that was interrupted leaves beyond its vector length.

mod candidates;
mod case;
mod compare;
mod contents;
mod encode;
mod generate;
mod guest;
mod kernel;
mod native;
mod place;
mod privileged;
mod random;
mod signals;
mod vectors;

use std::collections::{BTreeMap, HashMap, HashSet};

use iced_x86::{Code, Mnemonic};

use crate::contents::Contents;
use crate::generate::Generator;
use crate::guest::Guest;
use crate::native::Native;
use crate::place::PAGE;
use crate::random::Random;
use crate::vectors::Layout;

const CASES: u64 = 120_000;
const SEED: u64 = 0x10d6e2;
/// After so many tries without one completion an instruction counts as not completed.
const PATIENCE: u32 = 6;
const MOST_FAILURES: usize = 30;

fn setting(name: &str, otherwise: u64) -> u64 {
    let Ok(text) = std::env::var(name) else { return otherwise };
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.unwrap_or_else(|_| panic!("{name} is {text:?}, which is not a number"))
}

/// Both sides.
struct Bench {
    native: Native,
    guest: Guest,
    generator: Generator,
}

impl Bench {
    fn new(seed: u64) -> Self {
        let layout = Layout::new(native::enabled_state());
        let alone = native::alone();
        let guest = Guest::new(layout.enabled());
        // The product catches signals from its first instruction on; this one's handler has to be asked first.
        guest.warm_up();
        let native = Native::new(alone);
        let mut random = Random::new(seed);
        let contents = Contents::new(&mut random);
        let mut page = vec![0; PAGE as usize];
        contents.fill(&mut page, &mut random);
        native.fill_read_only(&page);
        guest.fill_read_only(&page);
        Self { native, guest, generator: Generator { contents, layout } }
    }
}

#[derive(Default)]
struct Tally {
    cases: u64,
    faults: BTreeMap<u8, u64>,
    completed: HashMap<Code, u64>,
    beyond: HashMap<Code, (u32, String)>,
    failures: Vec<String>,
    failed: HashSet<Code>,
}

impl Tally {
    fn is_worth(&self, code: Code) -> bool {
        self.completed.contains_key(&code)
            || self.beyond.get(&code).is_none_or(|(tries, _)| *tries < PATIENCE)
    }
}

fn try_case(bench: &Bench, tally: &mut Tally, code: Code, seed: u64) {
    let Some(case) = bench.generator.case(code, seed) else { return };
    if generate::leads_anywhere(&case.instruction) {
        return;
    }
    let mut completed = match bench.guest.run(&case) {
        Ok(completed) => completed,
        Err(beyond) => {
            tally.beyond.entry(code).or_insert((0, beyond.text)).0 += 1;
            return;
        }
    };
    let mut native = bench.native.run(&case);
    tally.cases += 1;
    *tally.completed.entry(code).or_default() += 1;
    if let Some(raised) = native.raised {
        *tally.faults.entry(raised.vector).or_default() += 1;
    }
    let found = compare::differences(&bench.generator.layout, &case, &mut native, &mut completed);
    if !found.is_empty() && tally.failed.insert(code) {
        tally.failures.push(format!("{}\n    {}", compare::describe(&case), found.join("\n    ")));
    }
}

#[test]
fn every_completed_instruction_does_what_the_processor_does() {
    let seed = setting("LODGER_COMPLETION_SEED", SEED);
    let wanted = setting("LODGER_COMPLETION_CASES", CASES);
    let bench = Bench::new(seed);
    let all = candidates::all();
    let special = candidates::special(&all);
    let mut random = Random::new(seed);
    let mut tally = Tally::default();
    let mut turn = 0;
    while tally.cases < wanted && turn < 20 * wanted && tally.failures.len() < MOST_FAILURES {
        let from = if turn % 4 == 0 { &special } else { &all };
        let code = from[(turn as usize / 4 * 3 + turn as usize % 4) % from.len()];
        turn += 1;
        let seed = random.next();
        if tally.is_worth(code) {
            try_case(&bench, &mut tally, code, seed);
        }
    }
    report(&tally, seed);
    assert!(tally.failures.is_empty(), "seed {seed:#x}\n{}", tally.failures.join("\n"));
    assert!(tally.cases >= wanted);
    for mnemonic in MUST_BE_COMPLETED {
        let known = tally.completed.keys().any(|code| code.mnemonic() == mnemonic);
        assert!(known, "{mnemonic:?} is not completed");
    }
}

/// What an interpreting KVM was seen to lack, as far as a program may execute it.
const MUST_BE_COMPLETED: [Mnemonic; 17] = [
    Mnemonic::Int3,
    Mnemonic::Popcnt,
    Mnemonic::Cmpxchg16b,
    Mnemonic::Wait,
    Mnemonic::Ldmxcsr,
    Mnemonic::Stmxcsr,
    Mnemonic::Xsave,
    Mnemonic::Xsave64,
    Mnemonic::Xsaveopt64,
    Mnemonic::Xsavec64,
    Mnemonic::Xrstor,
    Mnemonic::Xrstor64,
    Mnemonic::Crc32,
    Mnemonic::Movaps,
    Mnemonic::Aesenc,
    Mnemonic::Fld,
    Mnemonic::Pshufb,
];

fn report(tally: &Tally, seed: u64) {
    let mut beyond: Vec<_> = tally
        .beyond
        .iter()
        .filter(|(code, _)| !tally.completed.contains_key(code))
        .map(|(code, (_, why))| format!("{code:?}: {why}"))
        .collect();
    beyond.sort();
    println!(
        "seed {seed:#x}: {} cases of {} distinct instructions compared, exceptions by vector {:?}; {} instructions are \
         not completed",
        tally.cases,
        tally.completed.len(),
        tally.faults,
        beyond.len()
    );
    if std::env::var_os("LODGER_COMPLETION_LIST").is_some() {
        println!("{}", beyond.join("\n"));
    }
}
