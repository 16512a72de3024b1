//! How the guest's memory is used, as it says itself (specification 1.2, section 5.5.6.3).
//!
//! One buffer goes to and fro: the driver fills it and hands it over, and the device keeps it until somebody asks. Then
//! it goes back to the driver, which fills it again.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vm_memory::GuestMemoryMmap;

use super::super::queue::{self, Chain, Misuse, Queue, length};
use crate::threads::lock;

/// A tag and a value.
const ENTRY: usize = 10;
/// More than there are tags, so that unknown ones may be among them.
const MOST_ENTRIES: usize = 64;

/// What the guest says; it need not say all of it, and nobody checks it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    /// Bytes read from swap.
    pub swapped_in: Option<u64>,
    /// Bytes written to swap.
    pub swapped_out: Option<u64>,
    /// Page faults that had to wait for a disk.
    pub major_faults: Option<u64>,
    /// Page faults that had not.
    pub minor_faults: Option<u64>,
    /// Bytes that are not used for anything.
    pub free: Option<u64>,
    /// Bytes there are.
    pub total: Option<u64>,
    /// Bytes that programs could have without swapping.
    pub available: Option<u64>,
    /// Bytes in caches that can be dropped.
    pub caches: Option<u64>,
    /// Huge pages that were allocated.
    pub huge_pages_allocated: Option<u64>,
    /// Huge pages that could not be allocated.
    pub huge_pages_failed: Option<u64>,
}

/// Why the guest did not say how its memory is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoStatistics {
    /// Nobody to ask.
    #[error("the guest has no driver for its balloon, or one without statistics")]
    NoDriver,
    /// No answer.
    #[error("the guest did not answer in time")]
    NoAnswer,
}

impl Statistics {
    fn read(chain: &Chain, memory: &GuestMemoryMmap) -> Result<Self, Misuse> {
        if !chain.writable().is_empty() {
            return Err(Misuse::Request);
        }
        let mut bytes = [0; ENTRY * MOST_ENTRIES];
        let count = length(chain.readable()).min(bytes.len() as u64) as usize;
        let bytes = &mut bytes[..count];
        queue::read(memory, chain.readable(), bytes).ok_or(Misuse::Buffer)?;
        Ok(Self::parse(bytes))
    }

    /// Tags that mean nothing here are passed over.
    pub(super) fn parse(bytes: &[u8]) -> Self {
        let mut read = Self::default();
        for &[a, b, ref value @ ..] in bytes.as_chunks::<ENTRY>().0 {
            let field = match u16::from_le_bytes([a, b]) {
                0 => &mut read.swapped_in,
                1 => &mut read.swapped_out,
                2 => &mut read.major_faults,
                3 => &mut read.minor_faults,
                4 => &mut read.free,
                5 => &mut read.total,
                6 => &mut read.available,
                7 => &mut read.caches,
                8 => &mut read.huge_pages_allocated,
                9 => &mut read.huge_pages_failed,
                _ => continue,
            };
            *field = Some(u64::from_le_bytes(*value));
        }
        read
    }
}

/// Where those who ask meet the thread that serves the queue.
#[derive(Debug, Default)]
pub(super) struct Exchange {
    state: Mutex<State>,
    answered: Condvar,
}

#[derive(Debug, Default)]
struct State {
    last: Option<Statistics>,
    /// Somebody waits for new ones.
    asked: bool,
    /// How often that was answered.
    answers: u64,
    /// What is in the queue's buffer is known already.
    seen: bool,
}

impl Exchange {
    pub(super) fn last(&self) -> Option<Statistics> {
        self.state().last
    }

    pub(super) fn restore(&self, last: Option<Statistics>) {
        self.state().last = last;
    }

    /// The driver's buffers are gone, and what it said is about a system that may be gone as well.
    pub(super) fn reset(&self) {
        let mut state = self.state();
        (state.last, state.asked, state.seen) = (None, false, false);
    }

    /// Asks, has `wake` wake the queue's thread, and waits.
    pub(super) fn ask(&self, limit: Duration, wake: impl FnOnce()) -> Result<Statistics, NoStatistics> {
        let start = Instant::now();
        let mut state = self.state();
        let before = state.answers;
        state.asked = true;
        wake();
        while state.answers == before {
            let left = limit.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Err(NoStatistics::NoAnswer);
            }
            state = self.answered.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.last.ok_or(NoStatistics::NoAnswer)
    }

    /// Gives the buffer back if somebody asks, and reads what came.
    pub(super) fn serve(&self, queue: &mut Queue) -> Result<(), Misuse> {
        let (asked, mut seen) = {
            let state = self.state();
            (state.asked, state.seen)
        };
        if asked && seen && queue.one(|_, _| Ok(0))? {
            seen = false;
            self.state().seen = false;
        }
        if seen {
            return Ok(());
        }
        let Some(read) = queue.peek(Statistics::read)? else { return Ok(()) };
        let mut state = self.state();
        (state.last, state.seen) = (Some(read), true);
        if std::mem::take(&mut state.asked) {
            state.answers += 1;
            self.answered.notify_all();
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}
