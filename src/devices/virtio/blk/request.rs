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
    /// Ranges are discarded or zeroed. They are those that were counted: the driver may change its memory at any time.
    Ranges(Vec<Range>),
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
            kind::DISCARD | kind::WRITE_ZEROES => return self.ranges(chain, memory).map(Task::Ranges),
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

    /// How many bytes count against a limit: also zeroes, as not every host can put them there without writing.
    pub fn costs(&self, task: &Task) -> u64 {
        match task {
            Task::Ranges(ranges) if self.kind == kind::WRITE_ZEROES => ranges.iter().map(Range::length).sum(),
            _ => self.moves(),
        }
    }

    /// Does what is no transfer, no flush, and has no ranges.
    pub fn carry_out(
        &self,
        chain: &Chain,
        serial: &[u8; SERIAL_LENGTH],
        memory: &GuestMemoryMmap,
    ) -> Result<Status, Misuse> {
        match self.kind {
            kind::GET_ID if self.wanted < SERIAL_LENGTH as u64 => Err(Misuse::Request),
            kind::GET_ID => {
                queue::write(memory, chain.writable(), serial).ok_or(Misuse::Buffer)?;
                Ok(Status::Done)
            }
            _ => Ok(Status::Unsupported),
        }
    }

    /// Discards or zeroes ranges.
    pub fn carry_out_ranges(&self, ranges: &[Range], storage: &dyn Storage) -> Status {
        if ranges.len() > MOST_RANGES as usize {
            return Status::Failed;
        }
        let mut statuses = ranges.iter().map(|range| self.range(storage, range));
        statuses.find(|status| *status != Status::Done).unwrap_or(Status::Done)
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

    /// The ranges (section 5.2.6): one more than there may be, if there are too many.
    fn ranges(&self, chain: &Chain, memory: &GuestMemoryMmap) -> Result<Vec<Range>, Misuse> {
        let count = self.given / RANGE as u64;
        if count == 0 || !self.given.is_multiple_of(RANGE as u64) {
            return Err(Misuse::Request);
        }
        let count = count.min(u64::from(MOST_RANGES) + 1) as usize;
        let mut bytes = vec![0; HEADER + count * RANGE];
        queue::read(memory, chain.readable(), &mut bytes).ok_or(Misuse::Request)?;
        Ok(bytes[HEADER..].as_chunks().0.iter().map(Range::of).collect())
    }

    fn range(&self, storage: &dyn Storage, range: &Range) -> Status {
        const UNMAP: u32 = 1;
        let discards = self.kind == kind::DISCARD;
        // The flag belongs to zeroes alone, and no other is known.
        if range.flags & !UNMAP != 0 || (discards && range.flags != 0) {
            return Status::Unsupported;
        }
        let Some(offset) = range.sector.checked_mul(SECTOR).filter(|_| range.sectors <= MOST_SECTORS) else {
            return Status::Failed;
        };
        told(match discards {
            true => storage.discard(offset, range.length()),
            false => storage.write_zeroes(offset, range.length(), range.flags & UNMAP != 0),
        })
    }
}

/// A range as the driver describes it, whatever that is worth.
pub(super) struct Range {
    sector: u64,
    sectors: u32,
    flags: u32,
}

impl Range {
    fn of(bytes: &[u8; RANGE]) -> Self {
        let [sector @ .., a, b, c, d, e, f, g, h] = *bytes;
        Self {
            sector: u64::from_le_bytes(sector),
            sectors: u32::from_le_bytes([a, b, c, d]),
            flags: u32::from_le_bytes([e, f, g, h]),
        }
    }

    /// How many bytes of it are touched: none if it is longer than any may be.
    fn length(&self) -> u64 {
        if self.sectors > MOST_SECTORS { 0 } else { u64::from(self.sectors) * SECTOR }
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
