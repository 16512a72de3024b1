//! How often a vCPU left the guest, by kind of exit.

use std::sync::atomic::{AtomicU64, Ordering};

use iced_x86::Mnemonic;

use crate::hv::ExitKind;
use crate::x86::complete::transition::Stopped;

/// Written by the vCPU's own thread only, read by anyone at any time.
#[derive(Debug, Default)]
pub struct Counters {
    counts: [AtomicU64; ExitKind::ALL.len()],
    kernel_instructions: AtomicU64,
    /// Only on hosts where there is something to complete.
    completions: Option<Box<Completions>>,
}

/// What was done in KVM's place.
#[derive(Debug)]
struct Completions {
    /// By instruction, in the order of [`Mnemonic`].
    instructions: Vec<AtomicU64>,
    calls: AtomicU64,
    interrupts: AtomicU64,
    exceptions: AtomicU64,
}

fn add_one(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

impl Counters {
    /// With room for completions.
    pub(super) fn with_completions() -> Self {
        let instructions = Mnemonic::values().map(|_| AtomicU64::new(0)).collect();
        let none = AtomicU64::default;
        let completions = Completions { instructions, calls: none(), interrupts: none(), exceptions: none() };
        Self { completions: Some(Box::new(completions)), ..Self::default() }
    }

    /// Counts an instruction that was completed.
    pub(super) fn count_instruction(&self, mnemonic: Mnemonic) {
        let counter = self.completions.as_ref().and_then(|all| all.instructions.get(mnemonic as usize));
        counter.into_iter().for_each(add_one);
    }

    /// Counts what a stop at a breakpoint was.
    pub(super) fn count_stop(&self, stopped: Stopped) {
        let Some(completions) = &self.completions else { return };
        match stopped {
            Stopped::Call => add_one(&completions.calls),
            Stopped::Interrupt => add_one(&completions.interrupts),
            Stopped::Exception => add_one(&completions.exceptions),
            Stopped::Nothing => {}
        }
    }

    /// What was completed and how often, the most frequent first: instructions by their names, and what came of
    /// transitions to ring 0.
    pub fn completions(&self) -> Vec<(String, u64)> {
        let Some(completions) = &self.completions else { return Vec::new() };
        let Completions { instructions, calls, interrupts, exceptions } = completions.as_ref();
        let name = |mnemonic: Mnemonic| match mnemonic {
            Mnemonic::INVALID => "nothing to execute".to_owned(),
            named => format!("{named:?}").to_ascii_lowercase(),
        };
        let instructions =
            Mnemonic::values().zip(instructions).map(|(mnemonic, count)| (name(mnemonic), count));
        let transitions =
            [("system call", calls), ("software interrupt", interrupts), ("exception passed on", exceptions)];
        let all = instructions.chain(transitions.map(|(name, count)| (name.to_owned(), count)));
        let counted = all.map(|(name, count)| (name, count.load(Ordering::Relaxed)));
        let mut counted: Vec<_> = counted.filter(|&(_, count)| count > 0).collect();
        counted.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
        counted
    }

    /// Counts one exit. A plain load and store: there is one writer, and a locked instruction would cost
    /// more than the rest of the bookkeeping.
    pub(super) fn count(&self, kind: ExitKind) {
        add_one(&self.counts[kind as usize]);
    }

    /// How often `kind` happened.
    pub fn get(&self, kind: ExitKind) -> u64 {
        self.counts[kind as usize].load(Ordering::Relaxed)
    }

    /// Counts instructions that the software processor executed.
    pub(super) fn add_kernel_instructions(&self, count: u64) {
        let before = self.kernel_instructions.load(Ordering::Relaxed);
        self.kernel_instructions.store(before + count, Ordering::Relaxed);
    }

    /// How many instructions of the guest's kernel the software processor executed.
    pub fn kernel_instructions(&self) -> u64 {
        self.kernel_instructions.load(Ordering::Relaxed)
    }

    /// How often any exit happened.
    pub fn total(&self) -> u64 {
        ExitKind::ALL.iter().map(|&kind| self.get(kind)).sum()
    }

    /// Every kind that happened at all.
    pub fn iter(&self) -> impl Iterator<Item = (ExitKind, u64)> {
        ExitKind::ALL.into_iter().map(|kind| (kind, self.get(kind))).filter(|&(_, count)| count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_own_counter() {
        let counters = Counters::default();
        for (position, kind) in ExitKind::ALL.into_iter().enumerate() {
            (0..=position).for_each(|_| counters.count(kind));
        }
        for (position, kind) in ExitKind::ALL.into_iter().enumerate() {
            assert_eq!(counters.get(kind), position as u64 + 1, "{kind:?}");
        }
        let kinds = ExitKind::ALL.len() as u64;
        assert_eq!(counters.total(), kinds * (kinds + 1) / 2);
        assert!(counters.completions().is_empty());
    }

    #[test]
    fn completions_are_counted_by_name_and_the_most_frequent_is_told_first() {
        let counters = Counters::with_completions();
        counters.count_instruction(Mnemonic::Clac);
        (0..3).for_each(|_| counters.count_stop(Stopped::Call));
        (0..2).for_each(|_| counters.count_instruction(Mnemonic::Vzeroupper));
        counters.count_stop(Stopped::Nothing);
        let expected = [("system call", 3), ("vzeroupper", 2), ("clac", 1)];
        assert_eq!(counters.completions(), expected.map(|(name, count)| (name.to_owned(), count)));
        assert_eq!(counters.total(), 0);
    }

    #[test]
    fn without_room_for_them_completions_are_not_counted() {
        let counters = Counters::default();
        counters.count_instruction(Mnemonic::Clac);
        counters.count_stop(Stopped::Call);
        assert!(counters.completions().is_empty());
    }
}
