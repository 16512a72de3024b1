//! A disk (specification 1.2, section 5.2).
//!
//! What the driver asks for is carried out by a [`Storage`]. What is in the host's page cache, or goes into it, is
//! moved at once; what has to wait for the host's disk is left to its kernel, as much at a time as the driver asks for.
//! What its [`Limits`] do not let go yet stays in its queue. A request that fails fails for the guest alone.

mod lane;
mod request;
mod saved;

use std::sync::{Arc, Mutex, OnceLock};

use super::limit::Limiter;
use super::{Device, Kind, Left, Limits, Link, Misuse, Queue};
use crate::devices;
use crate::saved::Envelope;
use crate::storage::Storage;
use crate::threads::lock;
use lane::Lane;
pub use saved::SavedBlk;

/// In such units the driver counts.
pub const SECTOR: u64 = 512;
/// How long a serial number can be.
pub const SERIAL_LENGTH: usize = 20;

const QUEUE_SIZE: u16 = 256;
/// A chain has two descriptors besides those of the data.
const MOST_SEGMENTS: u32 = QUEUE_SIZE as u32 - 2;
/// What one request may discard or overwrite, in sectors: 1 GiB, so that none takes for ever.
const MOST_SECTORS: u32 = 1 << 21;
/// How many ranges such a request may have.
const MOST_RANGES: u32 = 16;

/// The device's own features.
mod feature {
    pub const MOST_SEGMENTS: u64 = 1 << 2;
    pub const READ_ONLY: u64 = 1 << 5;
    pub const BLOCK_SIZE: u64 = 1 << 6;
    pub const FLUSH: u64 = 1 << 9;
    pub const SEVERAL_QUEUES: u64 = 1 << 12;
    pub const DISCARD: u64 = 1 << 13;
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// The device.
pub struct Blk {
    size: u64,
    read_only: bool,
    serial: [u8; SERIAL_LENGTH],
    queues: Vec<u16>,
    /// One for each queue, and each has the storage: so it is there without a further lock.
    lanes: Vec<Mutex<Lane>>,
    link: OnceLock<Link>,
    /// No part of what is saved: the limits are the owner's, who describes the machine, and how much of them is used is
    /// a matter of the host's time. A reset changes neither, or a guest could help itself to a burst by each.
    limiter: Limiter,
}

impl Blk {
    /// A disk of what is in `storage`, with `queues` queues. Of `serial` the first [`SERIAL_LENGTH`] bytes count.
    pub fn new(storage: Arc<dyn Storage>, serial: &str, queues: u16) -> Self {
        let mut padded = [0; SERIAL_LENGTH];
        padded.iter_mut().zip(serial.bytes()).for_each(|(to, from)| *to = from);
        let queues = vec![QUEUE_SIZE; queues.max(1).into()];
        let lanes = queues.iter().map(|_| Mutex::new(Lane::new(Arc::clone(&storage)))).collect();
        Self {
            size: storage.size(),
            read_only: storage.read_only(),
            serial: padded,
            queues,
            lanes,
            link: OnceLock::new(),
            limiter: Limiter::new(),
        }
    }

    /// Has all requests from now on carried out by `storage`, without the driver noticing: the disk is as large, can
    /// be written or not as before, and has the same content, which is the caller's part to see to. Fails, and changes
    /// nothing, unless it rests.
    pub fn exchange_storage(&self, storage: &Arc<dyn Storage>) -> Result<(), CannotExchange> {
        if (self.size, self.read_only) != (storage.size(), storage.read_only()) {
            return Err(CannotExchange::Different);
        }
        // Of all queues together, so that none is served by the old one once another is served by the new one.
        let mut lanes: Vec<_> = self.lanes.iter().map(lock).collect();
        if lanes.iter().any(|lane| lane.under_way() > 0) {
            return Err(CannotExchange::Busy);
        }
        lanes.iter_mut().for_each(|lane| lane.exchange(Arc::clone(storage)));
        Ok(())
    }

    /// What it may do in a time, all its queues together.
    pub fn limits(&self) -> Limits {
        self.limiter.limits()
    }

    /// Exchanges that, at any moment; requests that wait now go as the new limits let them. Every request is one
    /// operation, and those that read or write move bytes.
    pub fn set_limits(&self, limits: Limits) {
        self.limiter.set(limits);
        if let Some(link) = self.link.get() {
            (0..).zip(&self.queues).for_each(|(number, _)| link.wake(number));
        }
    }
}

/// Why a disk stays with the storage that it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CannotExchange {
    /// The driver would notice.
    #[error(
        "the other storage has another size, or can be written where this one cannot or the other way round"
    )]
    Different,
    /// Something would be lost.
    #[error("requests are under way: pause the machine first")]
    Busy,
}

impl Device for Blk {
    fn kind(&self) -> Kind {
        Kind { id: 2, name: "virtio-blk" }
    }

    fn features(&self) -> u64 {
        let always = feature::MOST_SEGMENTS | feature::BLOCK_SIZE | feature::FLUSH;
        let writable =
            if self.read_only { feature::READ_ONLY } else { feature::DISCARD | feature::WRITE_ZEROES };
        let several = if self.queues.len() > 1 { feature::SEVERAL_QUEUES } else { 0 };
        always | writable | several
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queues
    }

    fn queues_per_thread(&self) -> usize {
        1
    }

    fn config(&self) -> Vec<u8> {
        let mut config = Vec::with_capacity(60);
        config.extend((self.size / SECTOR).to_le_bytes());
        config.extend([0; 4]); // no limit for a segment
        config.extend(MOST_SEGMENTS.to_le_bytes());
        config.extend([0; 4]); // no geometry
        config.extend((SECTOR as u32).to_le_bytes());
        config.extend([0; 10]); // no topology, and a cache that is always there
        config.extend((self.queues.len() as u16).to_le_bytes());
        for most in [MOST_SECTORS, MOST_RANGES] {
            config.extend(most.to_le_bytes());
        }
        config.extend(8_u32.to_le_bytes()); // discards are best aligned to 4 KiB
        for most in [MOST_SECTORS, MOST_RANGES] {
            config.extend(most.to_le_bytes());
        }
        config.extend([1, 0, 0, 0]); // zeroes may give their space back
        config
    }

    fn connect(&self, link: Link) {
        // A device is put behind one transport.
        let _: Result<(), Link> = self.link.set(link);
    }

    fn save_state(&self) -> Envelope {
        Envelope::of(&SavedBlk::of(self))
    }

    fn restore_state(&self, bytes: &[u8]) -> Result<(), devices::Error> {
        let saved: SavedBlk = crate::saved::decode(bytes)?;
        match saved.difference(&SavedBlk::of(self)) {
            None => Ok(()),
            Some(reason) => Err(devices::Error::Inconsistent { device: self.kind().name, reason }),
        }
    }

    fn serve(&self, number: u16, queue: &mut Queue) -> Result<Left, Misuse> {
        let Some(lane) = self.lanes.get(usize::from(number)) else { return Ok(Left::Nothing) };
        lock(lane).serve(self, number, queue)
    }

    fn finish(&self, number: u16, queue: &mut Queue) -> Result<(), Misuse> {
        let Some(lane) = self.lanes.get(usize::from(number)) else { return Ok(()) };
        lock(lane).finish(queue)
    }
}

#[cfg(test)]
#[path = "blk_test.rs"]
mod tests;

#[cfg(test)]
#[path = "limits_test.rs"]
mod limits_tests;
