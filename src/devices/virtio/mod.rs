//! Virtio devices (Virtual I/O Device specification 1.2).
//!
//! Three things, kept apart: a *transport* ([`mmio`]) has the registers by which a driver finds a device, agrees
//! on features and sets queues up; a *device* ([`Device`]) knows what requests mean; a *backend* moves the bytes and
//! knows nothing of virtio (`storage/`). Between transport and device stand [`Queue`], which checks what the driver
//! put into it, and the threads that serve it.
//!
//! Everything in guest memory is hostile. What no correct driver does is [`Misuse`]: the device stops, asks to be
//! reset, and all others go on.

pub mod balloon;
pub mod blk;
mod complaints;
pub mod console;
mod features;
#[cfg(test)]
mod hostile;
mod interrupt;
mod limit;
mod link;
pub mod mmio;
mod queue;
pub mod rng;
#[cfg(test)]
mod testing;
mod worker;

use std::time::Duration;

pub use interrupt::Interrupt;
pub use limit::{Limits, Rate};
pub use link::Link;
pub use queue::{Buffer, Chain, Misuse, Queue, Taken};

use crate::devices;
use crate::saved::Envelope;

/// The device follows the specification's version 1 (section 6).
pub const VERSION_1: u64 = 1 << 32;
/// Descriptors may be tables of further ones.
pub const INDIRECT_DESCRIPTORS: u64 = 1 << 28;
/// Both sides tell how far they want to hear nothing.
pub const EVENT_INDEX: u64 = 1 << 29;
/// What every device here offers, besides its own features.
pub const COMMON_FEATURES: u64 = VERSION_1 | INDIRECT_DESCRIPTORS | EVENT_INDEX;

/// What a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// The number that drivers know it by (section 5).
    pub id: u32,
    /// Its name, for listings and messages.
    pub name: &'static str,
}

/// What a device leaves in a queue that it has served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// Nothing: somebody rings if that changes.
    Nothing,
    /// There may be more, which it wants to do now.
    More,
    /// There is more, which it wants to do when so much time has passed, or somebody rings before that.
    After(Duration),
}

impl Left {
    /// What is left if there may be more, or not.
    pub fn more(more: bool) -> Self {
        if more { Self::More } else { Self::Nothing }
    }
}

/// What requests mean. Called by vCPU threads for its configuration, by its own threads for its queues.
pub trait Device: Send + Sync + 'static {
    /// What it is.
    fn kind(&self) -> Kind;

    /// The features it offers besides [`COMMON_FEATURES`].
    fn features(&self) -> u64;

    /// The largest size of each of its queues.
    fn queue_sizes(&self) -> &[u16];

    /// How many queues each of its threads serves, which have them one after the other.
    fn queues_per_thread(&self) -> usize {
        self.queue_sizes().len().max(1)
    }

    /// Its configuration space. Bytes behind the end read as zero.
    fn config(&self) -> Vec<u8>;

    /// The driver writes to the configuration space.
    fn write_config(&self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }

    /// Called once, before all else: how it reaches its driver and its threads when nobody has called it.
    fn connect(&self, link: Link) {
        let _ = link;
    }

    /// What a snapshot keeps of it. It rests.
    fn save_state(&self) -> Envelope;

    /// Puts back the bytes of an envelope that [`save_state`](Self::save_state) gave, into a device of the same kind
    /// that has not been used. Its transport comes after it.
    fn restore_state(&self, bytes: &[u8]) -> Result<(), devices::Error>;

    /// The driver has reset it: what was agreed on and what the driver said is forgotten. None of its threads runs.
    fn reset(&self) {}

    /// The driver has accepted these features and is ready.
    fn start(&self, features: u64) {
        let _ = features;
    }

    /// Does what waits in the queue with this number, or a part of it; what is left.
    fn serve(&self, number: u16, queue: &mut Queue) -> Result<Left, Misuse>;

    /// Its thread ends, and takes the queue with it. What the device has begun of it and not given back has to be
    /// waited for.
    fn finish(&self, number: u16, queue: &mut Queue) -> Result<(), Misuse> {
        let _ = (number, queue);
        Ok(())
    }
}
