//! One request to a disk: a header, data in either direction, a status byte.

use std::io;

use vm_memory::{GuestMemoryMmap, VolatileSlice};

use super::super::queue::{self, Buffer, Chain, Misuse, length};
use super::{MOST_RANGES, MOST_SECTORS, SECTOR, SERIAL_LENGTH};
use crate::storage::{Direction, Storage};

const HEADER: usize = 16;
const RANGE: usize = 16;

mod kind {
    pub const READ: u32 = 0;
    pub const WRITE: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
}

/// What the driver learns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Done = 0,
    Failed = 1,
    Unsupported = 2,
}

/// A request whose parts are where they have to be, as its header was when it was read: the driver may change that at
/// any time.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Request {
    kind: u32,
    sector: u64,
    /// How much there is to read behind the header, and to write before the status.
    given: u64,
    wanted: u64,
}

/// What is to be done for a request.
pub(super) enum Task {
    /// Bytes move, from the disk's `offset` on.
    Transfer { direction: Direction, offset: u64 },
    /// What was written has to stay.
    Flush,
    /// Something that is done at once, or cannot be done.
    Other,
}

impl Request {
    pub fn parse(chain: &Chain, memory: &GuestMemoryMmap) -> Result<Self, Misuse> {
        let mut header = [0; HEADER];
        queue::read(memory, chain.readable(), &mut header).ok_or(Misuse::Request)?;
        let [a, b, c, d, _, _, _, _, sector @ ..] = header;
        let given = length(chain.readable()) - HEADER as u64;
        let wanted = length(chain.writable()).checked_sub(1).ok_or(Misuse::Request)?;
        Ok(Self { kind: u32::from_le_bytes([a, b, c, d]), sector: u64::from_le_bytes(sector), given, wanted })
    }

    /// What is to be done. If bytes move, `slices` becomes the memory that they come from or go to.
    pub fn task<'m>(
        &self,
        chain: &Chain,
        memory: &'m GuestMemoryMmap,
        slices: &mut Vec<VolatileSlice<'m>>,
    ) -> Result<Task, Misuse> {
        let (direction, buffers, skip, length) = match self.kind {
            kind::READ => (Direction::Read, chain.writable(), 0, self.wanted),
            kind::WRITE => (Direction::Write, chain.readable(), HEADER as u64, self.given),
            kind::FLUSH => return Ok(Task::Flush),
            _ => return Ok(Task::Other),
        };
        if !length.is_multiple_of(SECTOR) {
            return Err(Misuse::Request);
        }
        queue::slices(memory, buffers, skip, length, slices)?;
        // A sector whose bytes cannot even be counted lies behind the end of any disk.
        Ok(Task::Transfer { direction, offset: self.sector.saturating_mul(SECTOR) })
    }

    /// How many bytes are to move.
    pub fn moves(&self) -> u64 {
        match self.kind {
            kind::READ => self.wanted,
            kind::WRITE => self.given,
            _ => 0,
        }
    }

    /// Does what is neither a transfer nor a flush.
    pub fn carry_out(
        &self,
        chain: &Chain,
        storage: &dyn Storage,
        serial: &[u8; SERIAL_LENGTH],
        memory: &GuestMemoryMmap,
    ) -> Result<Status, Misuse> {
        match self.kind {
            kind::GET_ID if self.wanted < SERIAL_LENGTH as u64 => Err(Misuse::Request),
            kind::GET_ID => {
                queue::write(memory, chain.writable(), serial).ok_or(Misuse::Buffer)?;
                Ok(Status::Done)
            }
            kind::DISCARD | kind::WRITE_ZEROES => self.ranges(chain, storage, memory),
            _ => Ok(Status::Unsupported),
        }
    }

    /// Tells the driver how it went, and returns how many bytes were written to guest memory.
    pub fn end(&self, chain: &Chain, memory: &GuestMemoryMmap, status: Status) -> Result<u32, Misuse> {
        let filled = match self.kind {
            kind::READ if status == Status::Done => self.wanted,
            kind::GET_ID if status == Status::Done => SERIAL_LENGTH as u64,
            _ => 0,
        };
        put_status(chain, memory, status)?;
        // What lies between is the driver's as it was.
        let written = if self.wanted == filled { filled + 1 } else { filled };
        Ok(u32::try_from(written).unwrap_or(u32::MAX))
    }

    /// Discards or zeroes ranges (section 5.2.6).
    fn ranges(
        &self,
        chain: &Chain,
        storage: &dyn Storage,
        memory: &GuestMemoryMmap,
    ) -> Result<Status, Misuse> {
        let count = self.given / RANGE as u64;
        if count == 0 || !self.given.is_multiple_of(RANGE as u64) {
            return Err(Misuse::Request);
        }
        if count > MOST_RANGES.into() {
            return Ok(Status::Failed);
        }
        let mut bytes = vec![0; HEADER + self.given as usize];
        queue::read(memory, chain.readable(), &mut bytes).ok_or(Misuse::Request)?;
        for range in bytes[HEADER..].as_chunks::<RANGE>().0 {
            let status = self.range(storage, range);
            if status != Status::Done {
                return Ok(status);
            }
        }
        Ok(Status::Done)
    }

    fn range(&self, storage: &dyn Storage, range: &[u8; RANGE]) -> Status {
        const UNMAP: u32 = 1;
        let [sector @ .., a, b, c, d, e, f, g, h] = *range;
        let (sector, sectors) = (u64::from_le_bytes(sector), u32::from_le_bytes([a, b, c, d]));
        let flags = u32::from_le_bytes([e, f, g, h]);
        let discards = self.kind == kind::DISCARD;
        // The flag belongs to zeroes alone, and no other is known.
        if flags & !UNMAP != 0 || (discards && flags != 0) {
            return Status::Unsupported;
        }
        let Some(offset) = sector.checked_mul(SECTOR).filter(|_| sectors <= MOST_SECTORS) else {
            return Status::Failed;
        };
        let length = u64::from(sectors) * SECTOR;
        told(match discards {
            true => storage.discard(offset, length),
            false => storage.write_zeroes(offset, length, flags & UNMAP != 0),
        })
    }
}

/// The last byte that can be written.
fn put_status(chain: &Chain, memory: &GuestMemoryMmap, status: Status) -> Result<(), Misuse> {
    let last = chain.writable().last().ok_or(Misuse::Request)?;
    let at = Buffer { address: last.address + u64::from(last.length) - 1, length: 1 };
    queue::write(memory, &[at], &[status as u8]).ok_or(Misuse::Buffer)
}

pub(super) fn told(result: io::Result<()>) -> Status {
    match result {
        Ok(()) => Status::Done,
        Err(error) => {
            log::debug!("a request to a disk failed: {error}");
            Status::Failed
        }
    }
}
