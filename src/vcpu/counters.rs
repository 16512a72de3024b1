//! How often a vCPU left the guest, by kind of exit.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::hv::ExitKind;

/// Written by the vCPU's own thread only, read by anyone at any time.
#[derive(Debug, Default)]
pub struct Counters {
    counts: [AtomicU64; ExitKind::ALL.len()],
}

impl Counters {
    /// Counts one exit. A plain load and store: there is one writer, and a locked instruction would cost
    /// more than the rest of the bookkeeping.
    pub(super) fn count(&self, kind: ExitKind) {
        let counter = &self.counts[kind as usize];
        counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// How often `kind` happened.
    pub fn get(&self, kind: ExitKind) -> u64 {
        self.counts[kind as usize].load(Ordering::Relaxed)
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
        assert_eq!(counters.total(), 55);
    }
}
