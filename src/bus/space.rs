//! One address space: its owners in ascending order, and the dispatch of accesses to them.
//!
//! Ports and guest-physical addresses are served by the same code; a port is an address below 0x10000.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::{Action, Claim, Device, Error, Widths};
use crate::hv::Direction;

/// What a read yields where nobody drives the bus.
const FLOATING: u8 = 0xff;

/// A device and the addresses that are its own.
struct Range {
    first: u64,
    last: u64,
    widths: Widths,
    name: &'static str,
    device: Arc<dyn Device>,
}

impl Range {
    /// Whether the device is to see an access of `width` bytes at `address`, which is in this range.
    fn takes(&self, address: u64, width: usize) -> bool {
        // A contained width is at least 1 and at most 8.
        self.widths.contains(width) && self.last - address >= width as u64 - 1
    }

    /// Serves elements that the device takes; `data` holds a whole number of them.
    fn serve(&self, address: u64, width: usize, direction: Direction, data: &mut [u8]) -> Action {
        let offset = address - self.first;
        match direction {
            Direction::Read => {
                for element in data.chunks_exact_mut(width) {
                    scatter(self.device.read(offset, width as u8), element);
                }
                Action::None
            }
            Direction::Write if data.len() == width => self.device.write(offset, width as u8, gather(data)),
            Direction::Write => self.device.write_run(offset, width as u8, data),
        }
    }
}

/// The value of a little-endian element of up to eight bytes.
pub(super) fn gather(element: &[u8]) -> u64 {
    element.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

/// Writes the low bytes of `value` into a little-endian element of up to eight bytes.
fn scatter(mut value: u64, element: &mut [u8]) {
    for byte in element {
        *byte = value as u8;
        value >>= 8;
    }
}

/// The claims of one address space.
#[derive(Default)]
pub(super) struct SpaceBuilder {
    /// Ascending, disjoint.
    ranges: Vec<Range>,
}

impl SpaceBuilder {
    /// Adds a claim; `end` is the last address of the space and `kind` what its addresses are called.
    pub(super) fn claim(
        &mut self,
        kind: &'static str,
        claim: Claim<u64>,
        end: u64,
        device: Arc<dyn Device>,
    ) -> Result<(), Error> {
        let Claim { name, base: first, len, widths } = claim;
        let Some(beyond_first) = len.checked_sub(1) else {
            return Err(Error::Empty { name, kind, base: first });
        };
        let last = match first.checked_add(beyond_first) {
            Some(last) if last <= end => last,
            _ => return Err(Error::Wraps { name, kind, base: first, len, last: end }),
        };
        let place = self.ranges.partition_point(|range| range.last < first);
        if let Some(other) = self.ranges.get(place).filter(|other| other.first <= last) {
            let (first, last) = (first.max(other.first), last.min(other.last));
            return Err(Error::Overlap { name, owner: other.name, kind, first, last });
        }
        self.ranges.insert(place, Range { first, last, widths, name, device });
        Ok(())
    }

    pub(super) fn build(self) -> Space {
        Space { ranges: self.ranges.into(), reads: 0.into(), writes: 0.into(), last: 0.into() }
    }
}

/// One address space.
pub(super) struct Space {
    /// Ascending, disjoint. A machine has a dozen of them: a binary search takes four steps.
    ranges: Box<[Range]>,
    reads: AtomicU64,
    writes: AtomicU64,
    last: AtomicU64,
}

impl Space {
    fn find(&self, address: u64) -> Option<&Range> {
        let following = self.ranges.partition_point(|range| range.first <= address);
        self.ranges[..following].last().filter(|range| address <= range.last)
    }

    pub(super) fn owner(&self, address: u64) -> Option<&'static str> {
        self.find(address).map(|range| range.name)
    }

    /// Serves elements of `width` bytes, all at `address`.
    pub(super) fn access(&self, address: u64, width: usize, direction: Direction, data: &mut [u8]) -> Action {
        if let Some(range) = self.find(address)
            && range.takes(address, width)
            && (data.len() == width || data.len().is_multiple_of(width))
        {
            return range.serve(address, width, direction, data);
        }
        self.access_one_by_one(address, width.max(1), direction, data)
    }

    /// The same for whatever is not simply one device's: nothing here is fast, anything may be odd.
    #[cold]
    fn access_one_by_one(&self, address: u64, width: usize, direction: Direction, data: &mut [u8]) -> Action {
        for element in data.chunks_mut(width) {
            let action = match self.find(address) {
                Some(range) if range.takes(address, element.len()) => {
                    range.serve(address, element.len(), direction, element)
                }
                _ => self.access_bytes(address, direction, element),
            };
            if action != Action::None {
                return action;
            }
        }
        Action::None
    }

    /// Splits one element into bytes, each for the owner of its own address.
    fn access_bytes(&self, address: u64, direction: Direction, element: &mut [u8]) -> Action {
        let mut action = Action::None;
        let mut unowned = false;
        for (index, byte) in element.iter_mut().enumerate() {
            let taker = address
                .checked_add(index as u64)
                .and_then(|address| Some((address, self.find(address)?)))
                .filter(|(address, range)| range.takes(*address, 1));
            match taker {
                Some((address, range)) => {
                    action = range.serve(address, 1, direction, std::slice::from_mut(byte));
                    if action != Action::None {
                        break;
                    }
                }
                None => {
                    unowned = true;
                    if direction == Direction::Read {
                        *byte = FLOATING;
                    }
                }
            }
        }
        if unowned {
            self.count_unowned(address, direction);
        }
        action
    }

    fn count_unowned(&self, address: u64, direction: Direction) {
        match direction {
            Direction::Read => self.reads.fetch_add(1, Relaxed),
            Direction::Write => self.writes.fetch_add(1, Relaxed),
        };
        self.last.store(address, Relaxed);
    }

    pub(super) fn unowned(&self) -> UnownedAccesses {
        let (reads, writes) = (self.reads.load(Relaxed), self.writes.load(Relaxed));
        let last = (reads + writes > 0).then(|| self.last.load(Relaxed));
        UnownedAccesses { reads, writes, last }
    }
}

impl fmt::Debug for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let owners = self.ranges.iter().map(|range| (range.name, range.first..=range.last));
        f.debug_map().entries(owners).finish()
    }
}

/// Accesses of which at least one byte found no device that takes it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct UnownedAccesses {
    /// How many reads; each element of a string access counts.
    pub reads: u64,
    /// How many writes.
    pub writes: u64,
    /// The port or address of the last of them.
    pub last: Option<u64>,
}

#[cfg(test)]
#[path = "space_test.rs"]
mod tests;
