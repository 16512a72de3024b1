//! A balloon (specification 1.2, section 5.5): memory that the guest gives back to the host.
//!
//! The guest inflates it as far as [`Balloon::set_target`] asks, and takes pages out again by itself when it has none
//! left. It also reports free memory without being asked, if the balloon was made for it. Both are given back at once,
//! in as few calls as there are runs of neighbouring pages; a page that the guest uses again is a new one, of zeroes.

mod pages;
mod saved;
mod statistics;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use super::{Device, Kind, Left, Link, Misuse, Queue};
use crate::devices;
use crate::memory::{self, GuestMemory};
use crate::saved::Envelope;
use crate::threads::lock;
use pages::PAGE;
pub use saved::SavedBalloon;
use statistics::Exchange;
pub use statistics::{NoStatistics, Statistics};

/// Drivers count the queues of the features that they accepted, and some leave no number out for those that they did
/// not: reports come through the fourth or the fifth.
const QUEUE_SIZES: [u16; 5] = [128; 5];
const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
const STATISTICS: u16 = 2;

/// The device's own features.
mod feature {
    pub const STATISTICS: u64 = 1 << 1;
    pub const DEFLATE_ON_OOM: u64 = 1 << 2;
    pub const PAGE_POISON: u64 = 1 << 4;
    pub const REPORTING: u64 = 1 << 5;
}

/// The device.
pub struct Balloon {
    /// How much memory the guest has.
    memory: u64,
    /// Whether the guest may report what is free.
    reporting: bool,
    config: Mutex<Configuration>,
    /// What the driver accepted; none while there is no driver.
    features: AtomicU64,
    given_back: Counters,
    exchange: Exchange,
    link: OnceLock<Link>,
}

/// The configuration space, in pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Configuration {
    target: u32,
    /// What the driver says that the balloon holds.
    actual: u32,
    /// What the guest fills its free pages with.
    poison: u32,
}

#[derive(Debug, Default)]
struct Counters {
    inflated: AtomicU64,
    reported: AtomicU64,
}

/// How many bytes the guest has given back to the host, all in all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GivenBack {
    /// By inflating the balloon.
    pub inflated: u64,
    /// By reporting them as free.
    pub reported: u64,
}

/// No balloon has room for so much.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "a balloon of {} leaves nothing of the {} that the guest has: choose a smaller one",
    memory::human(*.target),
    memory::human(*.memory)
)]
pub struct TooLarge {
    /// What was asked for.
    pub target: u64,
    /// The guest's memory.
    pub memory: u64,
}

impl Balloon {
    /// A balloon in a guest with `memory` bytes, empty and with nothing to hold. With `reporting`, the guest also
    /// tells what is free.
    pub fn new(memory: u64, reporting: bool) -> Self {
        Self {
            memory,
            reporting,
            config: Mutex::default(),
            features: AtomicU64::new(0),
            given_back: Counters::default(),
            exchange: Exchange::default(),
            link: OnceLock::new(),
        }
    }

    /// Asks the guest to have the balloon hold `target` bytes, rounded down to pages. It takes its time, and may hold
    /// less if it has no memory to spare.
    pub fn set_target(&self, target: u64) -> Result<(), TooLarge> {
        let too_large = TooLarge { target, memory: self.memory };
        if target >= self.memory {
            return Err(too_large);
        }
        let pages = u32::try_from(target / PAGE).map_err(|_| too_large)?;
        let changed = {
            let mut config = self.config();
            std::mem::replace(&mut config.target, pages) != pages
        };
        // Who is not in use yet reads the configuration when it begins.
        if let Some(link) = self.link.get().filter(|_| changed && self.features() != 0) {
            link.configuration_changed();
        }
        Ok(())
    }

    /// What the guest was asked to have the balloon hold, in bytes.
    pub fn target(&self) -> u64 {
        u64::from(self.config().target) * PAGE
    }

    /// What the balloon holds in bytes, as the guest says.
    pub fn actual(&self) -> u64 {
        u64::from(self.config().actual) * PAGE
    }

    /// What was given back to the host.
    pub fn given_back(&self) -> GivenBack {
        let Counters { inflated, reported } = &self.given_back;
        GivenBack { inflated: inflated.load(Ordering::Relaxed), reported: reported.load(Ordering::Relaxed) }
    }

    /// Asks the guest how its memory is used, and waits for the answer, but not for longer than `limit`.
    pub fn statistics(&self, limit: Duration) -> Result<Statistics, NoStatistics> {
        let Some(link) = self.link.get().filter(|_| self.has(feature::STATISTICS)) else {
            return Err(NoStatistics::NoDriver);
        };
        self.exchange.ask(limit, || link.wake(STATISTICS))
    }

    /// What the guest said last about how its memory is used.
    pub fn last_statistics(&self) -> Option<Statistics> {
        self.exchange.last()
    }

    /// Its state. The device has to rest.
    pub fn save(&self) -> SavedBalloon {
        // The features come back with the transport's state; a question under way is asked again by who asked it.
        let Self { memory: _, reporting: _, config: _, features: _, given_back: _, exchange, link: _ } = self;
        let Configuration { target, actual, poison } = *self.config();
        let GivenBack { inflated, reported } = self.given_back();
        SavedBalloon { target, actual, poison, inflated, reported, statistics: exchange.last() }
    }

    /// Puts back what [`save`](Self::save) gave, into a balloon that has not been used.
    pub fn restore(&self, saved: &SavedBalloon) -> Result<(), devices::Error> {
        let SavedBalloon { target, actual, poison, inflated, reported, statistics } = *saved;
        if u64::from(target) * PAGE >= self.memory {
            return Err(devices::Error::Inconsistent {
                device: self.kind().name,
                reason: "it is to hold more than the guest has",
            });
        }
        *self.config() = Configuration { target, actual, poison };
        self.given_back.inflated.store(inflated, Ordering::Relaxed);
        self.given_back.reported.store(reported, Ordering::Relaxed);
        self.exchange.restore(statistics);
        Ok(())
    }

    fn config(&self) -> MutexGuard<'_, Configuration> {
        lock(&self.config)
    }

    fn features(&self) -> u64 {
        self.features.load(Ordering::SeqCst)
    }

    fn has(&self, feature: u64) -> bool {
        self.features() & feature != 0
    }

    fn inflate(&self, queue: &mut Queue) -> Result<bool, Misuse> {
        let memory = queue.memory().clone();
        let mut numbers = Vec::new();
        queue.each(|chain, mapped| {
            pages::read(chain, mapped, &mut numbers)?;
            for (address, length) in pages::runs(&mut numbers) {
                give_back(&memory, address, length, &self.given_back.inflated)?;
            }
            Ok(0)
        })
    }

    /// What the guest takes out of the balloon needs nothing to be done.
    fn deflate(queue: &mut Queue) -> Result<bool, Misuse> {
        let mut numbers = Vec::new();
        queue.each(|chain, memory| pages::read(chain, memory, &mut numbers).map(|()| 0))
    }

    /// Each buffer is a range of free pages, which is the driver's again when it comes back.
    fn take_report(&self, queue: &mut Queue) -> Result<bool, Misuse> {
        let memory = queue.memory().clone();
        // Pages that are expected to have other contents than zeroes keep them (section 5.5.6.7).
        let keep = self.has(feature::PAGE_POISON) && self.config().poison != 0;
        queue.each(|chain, _| {
            if !chain.readable().is_empty() {
                return Err(Misuse::Request);
            }
            for range in chain.writable().iter().filter(|_| !keep) {
                give_back(&memory, range.address, range.length.into(), &self.given_back.reported)?;
            }
            Ok(0)
        })
    }
}

fn give_back(memory: &GuestMemory, address: u64, length: u64, count: &AtomicU64) -> Result<(), Misuse> {
    match memory.give_back(address, length) {
        Ok(bytes) => {
            count.fetch_add(bytes, Ordering::Relaxed);
            Ok(())
        }
        Err(memory::Error::NotMemory { .. }) => Err(Misuse::Buffer),
        // The host keeps paying for it, which is no matter of the guest's.
        Err(error) => {
            log::debug!("{error}");
            Ok(())
        }
    }
}

impl Device for Balloon {
    fn kind(&self) -> Kind {
        Kind { id: 5, name: "virtio-balloon" }
    }

    fn features(&self) -> u64 {
        let reporting = if self.reporting { feature::REPORTING | feature::PAGE_POISON } else { 0 };
        feature::STATISTICS | feature::DEFLATE_ON_OOM | reporting
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> Vec<u8> {
        self.config().to_bytes().to_vec()
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        self.config().write(offset, data);
    }

    fn connect(&self, link: Link) {
        // A device is put behind one transport.
        let _: Result<(), Link> = self.link.set(link);
    }

    fn save_state(&self) -> Envelope {
        Envelope::of(&self.save())
    }

    fn restore_state(&self, bytes: &[u8]) -> Result<(), devices::Error> {
        self.restore(&crate::saved::decode(bytes)?)
    }

    fn reset(&self) {
        self.features.store(0, Ordering::SeqCst);
        // Whatever was in the balloon, no driver holds it any longer.
        let mut config = self.config();
        (config.actual, config.poison) = (0, 0);
        drop(config);
        self.exchange.reset();
    }

    fn start(&self, features: u64) {
        self.features.store(features, Ordering::SeqCst);
    }

    fn serve(&self, number: u16, queue: &mut Queue) -> Result<Left, Misuse> {
        let more = match number {
            INFLATE => self.inflate(queue),
            DEFLATE => Self::deflate(queue),
            STATISTICS if self.has(feature::STATISTICS) => self.exchange.serve(queue).map(|()| false),
            _ if self.has(feature::REPORTING) => self.take_report(queue),
            // A queue that nothing was agreed on for.
            _ => Ok(false),
        };
        more.map(Left::more)
    }
}

impl Configuration {
    /// Target, what it holds, a field of a feature that is not offered, poison.
    fn to_bytes(self) -> [u8; 16] {
        let Self { target, actual, poison } = self;
        let mut bytes = [0; 16];
        for (field, value) in bytes.as_chunks_mut().0.iter_mut().zip([target, actual, 0, poison]) {
            *field = value.to_le_bytes();
        }
        bytes
    }

    /// The driver's fields are written; of others nothing is.
    fn write(&mut self, offset: u64, data: &[u8]) {
        let mut bytes = self.to_bytes();
        for (at, &byte) in (offset..).zip(data) {
            if let Some(place) = usize::try_from(at).ok().and_then(|at| bytes.get_mut(at)) {
                *place = byte;
            }
        }
        let [_, actual, _, poison] = [0, 1, 2, 3]
            .map(|field| u32::from_le_bytes(bytes.as_chunks().0.get(field).copied().unwrap_or_default()));
        (self.actual, self.poison) = (actual, poison);
    }
}

#[cfg(test)]
#[path = "balloon_test.rs"]
mod tests;
