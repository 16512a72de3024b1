//! A driver of disks (specification 1.2, section 5.2): many requests at once, each in descriptors of its own.

use core::ptr;

use super::queue::{Part, Queue};
use super::{Kind, Registers, Unusable, feature};
use crate::memory::Arena;

/// In such units disks count.
pub const SECTOR: u64 = 512;
/// Header, data, status.
const DESCRIPTORS: u16 = 3;
const HEADER: u64 = 16;
/// What was never answered.
const UNANSWERED: u8 = 0xff;

/// What a request does.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Action {
    Read = 0,
    Write = 1,
}

/// A disk in use: its first queue, and as many places for requests as were wanted.
pub struct Disk {
    queue: Queue,
    sectors: u64,
    places: u16,
    headers: u64,
    data: u64,
    most: u64,
    statuses: u64,
}

impl Disk {
    /// Sets a disk up for `places` requests at a time, of at most `most` bytes each.
    pub fn set_up(registers: Registers, places: u16, most: u64, arena: &mut Arena) -> Result<Self, Unusable> {
        if registers.kind() != Kind::DISK {
            return Err(Unusable::NoQueue);
        }
        let features = registers.offered() & (feature::VERSION_1 | feature::EVENT_INDEX);
        registers.agree(features)?;
        let queue = Queue::set_up(registers, 0, u16::MAX, features, arena)?;
        let places = places.min(queue.size() / DESCRIPTORS);
        let count = u64::from(places);
        let mut take = |length| arena.take(length).ok_or(Unusable::NoMemory);
        let disk = Self {
            queue,
            sectors: registers.wide_configuration(0),
            places,
            headers: take(HEADER * count)?,
            data: take(most * count)?,
            most,
            statuses: take(count)?,
        };
        registers.run();
        Ok(disk)
    }

    /// How large it is.
    pub fn size(&self) -> u64 {
        self.sectors * SECTOR
    }

    /// How many requests there can be at a time.
    pub fn places(&self) -> u16 {
        self.places
    }

    /// Where the data of the request in this place is.
    pub fn data(&self, place: u16) -> u64 {
        self.data + self.most * u64::from(place)
    }

    /// Prepares a place for requests that do this with so many bytes; only the sector changes from one to the next.
    pub fn prepare(&self, place: u16, action: Action, length: u32) {
        let header = self.headers + HEADER * u64::from(place);
        // SAFETY: the places for headers and statuses lie in memory that the arena gave for them.
        unsafe {
            let header: *mut u32 = ptr::with_exposed_provenance_mut(header as usize);
            header.write_volatile(action as u32);
            header.add(1).write_volatile(0);
        }
        let header = Part { address: header, length: HEADER as u32, written: false };
        let data = Part { address: self.data(place), length, written: action == Action::Read };
        let status = Part { address: self.statuses + u64::from(place), length: 1, written: true };
        let first = place * DESCRIPTORS;
        self.queue.describe(first, &[header, data, status]);
    }

    /// Puts the request in this place into the queue; [`Disk::go`] shows it to the device.
    pub fn give(&mut self, place: u16, sector: u64) {
        let sector_at = self.headers + HEADER * u64::from(place) + 8;
        let status_at = self.statuses + u64::from(place);
        // SAFETY: as in `prepare`; the device has done with this place.
        unsafe {
            ptr::write_volatile(ptr::with_exposed_provenance_mut(sector_at as usize), sector);
            ptr::write_volatile(ptr::with_exposed_provenance_mut(status_at as usize), UNANSWERED);
        }
        self.queue.give(place * DESCRIPTORS);
    }

    /// Shows the device what was given. Returns whether it had to be rung for.
    pub fn go(&mut self) -> bool {
        self.queue.show()
    }

    /// A place whose request is done, and how that went: 0 is well.
    pub fn done(&mut self) -> Option<(u16, u8)> {
        let (head, _) = self.queue.take()?;
        let place = (head / DESCRIPTORS).min(self.places - 1);
        let status_at = (self.statuses + u64::from(place)) as usize;
        // SAFETY: as in `prepare`.
        Some((place, unsafe { ptr::read_volatile(ptr::with_exposed_provenance(status_at)) }))
    }
}
