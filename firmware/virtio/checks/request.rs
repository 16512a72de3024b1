//! A disk that runs, and requests to it: what the checks of disks share.

use super::subject::{Subject, bytes};
use super::{Failure, Outcome, holds, same};
use crate::virtio::disk::SECTOR;
use crate::virtio::queue::{Part, Queue};

/// What a request wants.
pub mod kind {
    pub const READ: u32 = 0;
    pub const WRITE: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
}

pub const DONE: u8 = 0;
pub const FAILED: u8 = 1;
pub const UNSUPPORTED: u8 = 2;

pub const HEADER: u32 = 16;
/// The most parts of a request that a check makes.
const MOST_PARTS: usize = 64;

pub fn to_read(address: u64, length: u32) -> Part {
    Part { address, length, written: false }
}

pub fn to_write(address: u64, length: u32) -> Part {
    Part { address, length, written: true }
}

/// A disk that runs, and room for the ends of a request.
pub struct Running<'s, 'm> {
    pub subject: &'s mut Subject<'m>,
    pub queue: Queue,
    pub ends: u64,
}

impl<'s, 'm> Running<'s, 'm> {
    pub fn start(subject: &'s mut Subject<'m>) -> Result<Self, Failure> {
        Self::start_with(subject, 0)
    }

    /// With this queue alone.
    pub fn start_with(subject: &'s mut Subject<'m>, number: u16) -> Result<Self, Failure> {
        let queue = subject.start(number, u16::MAX, subject.offered)?;
        let ends = subject.memory(64)?;
        Ok(Self { subject, queue, ends })
    }

    /// Makes a request with these parts between header and status. Its status, and how much was written.
    pub fn ask(&mut self, kind: u32, sector: u64, data: &[Part]) -> Result<(u8, u32), Failure> {
        let end = self.prepare(kind, sector);
        let (parts, count) = self.around(data);
        let written = self.subject.ask(&mut self.queue, &parts[..count])?;
        Ok((crate::memory::read8(end), written))
    }

    /// These parts between header and status, and how many they are then.
    fn around(&self, data: &[Part]) -> ([Part; MOST_PARTS], usize) {
        let mut parts = [to_write(self.ends + u64::from(HEADER), 1); MOST_PARTS];
        let count = data.len().min(MOST_PARTS - 2) + 2;
        parts[0] = to_read(self.ends, HEADER);
        parts[1..count - 1].copy_from_slice(&data[..count - 2]);
        (parts, count)
    }

    /// After a request with these parts the device has to be reset.
    pub fn is_misused(self, kind: u32, data: &[Part]) -> Outcome {
        self.prepare(kind, 0);
        let (parts, count) = self.around(data);
        misused(self.subject, self.queue, &parts[..count])
    }

    /// Writes the header, and gives the place of the status.
    pub fn prepare(&self, kind: u32, sector: u64) -> u64 {
        let end = self.ends + u64::from(HEADER);
        crate::memory::write(self.ends, kind.into(), 8);
        crate::memory::write(self.ends + 8, sector, 8);
        crate::memory::write(end, 0xee, 1);
        end
    }

    /// Has it do something, with this end.
    pub fn does(&mut self, kind: u32, sector: u64, data: &[Part], expected: u8) -> Outcome {
        let (status, _) = self.ask(kind, sector, data)?;
        same("status", status, expected)
    }

    /// Writes a pattern of so many sectors.
    pub fn write(&mut self, sector: u64, sectors: u64) -> Outcome {
        let address = self.subject.memory(sectors * SECTOR)?;
        fill(address, sectors * SECTOR, sector);
        self.does(kind::WRITE, sector, &[to_read(address, (sectors * SECTOR) as u32)], DONE)
    }

    /// Reads so many sectors to where nothing was.
    pub fn read(&mut self, sector: u64, sectors: u64) -> Result<u64, Failure> {
        let address = self.subject.memory(sectors * SECTOR)?;
        bytes(address, sectors * SECTOR).fill(0xcc);
        let length = (sectors * SECTOR) as u32;
        let (status, written) = self.ask(kind::READ, sector, &[to_write(address, length)])?;
        same("status", status, DONE)?;
        same("written", written, length + 1)?;
        Ok(address)
    }

    /// The pattern is where it was written.
    pub fn has(&mut self, sector: u64, sectors: u64) -> Outcome {
        let address = self.read(sector, sectors)?;
        holds(is_filled(address, sectors * SECTOR, sector), "what is read is not what was written")
    }
}

/// A pattern: each word tells its sector and where it is in what was written there.
fn word(sector: u64, index: u64) -> u64 {
    (sector << 32 | index).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

pub fn fill(address: u64, length: u64, sector: u64) {
    let (words, _) = bytes(address, length).as_chunks_mut();
    words.iter_mut().zip(0..).for_each(|(bytes, index)| *bytes = word(sector, index).to_le_bytes());
}

pub fn is_filled(address: u64, length: u64, sector: u64) -> bool {
    let (words, _) = bytes(address, length).as_chunks();
    words.iter().zip(0..).all(|(bytes, index)| *bytes == word(sector, index).to_le_bytes())
}

/// After a chain of these parts the device has to be reset.
pub fn misused(subject: &mut Subject, mut queue: Queue, parts: &[Part]) -> Outcome {
    queue.describe(0, parts);
    queue.give(0);
    queue.show();
    subject.stops()?;
    subject.works()
}
