//! One request to a disk: a header, data in either direction, a status byte.

use std::io;

use vm_memory::GuestMemoryMmap;

use super::super::queue::{self, Buffer, Chain, Misuse, length};
use super::{MOST_RANGES, MOST_SECTORS, SECTOR, SERIAL_LENGTH};
use crate::storage::Storage;

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
enum Status {
    Done = 0,
    Failed = 1,
    Unsupported = 2,
}

/// A request whose parts are where they have to be.
pub(super) struct Request<'a> {
    kind: u32,
    sector: u64,
    chain: &'a Chain,
    /// How much there is to read behind the header, and to write before the status.
    given: u64,
    wanted: u64,
}

impl<'a> Request<'a> {
    pub(super) fn parse(chain: &'a Chain, memory: &GuestMemoryMmap) -> Result<Self, Misuse> {
        let mut header = [0; HEADER];
        queue::read(memory, chain.readable(), &mut header).ok_or(Misuse::Request)?;
        let [a, b, c, d, _, _, _, _, sector @ ..] = header;
        let given = length(chain.readable()) - HEADER as u64;
        let wanted = length(chain.writable()).checked_sub(1).ok_or(Misuse::Request)?;
        Ok(Self {
            kind: u32::from_le_bytes([a, b, c, d]),
            sector: u64::from_le_bytes(sector),
            chain,
            given,
            wanted,
        })
    }

    /// Carries it out, and returns how many bytes were written to guest memory.
    pub(super) fn carry_out(
        &self,
        storage: &dyn Storage,
        serial: &[u8; SERIAL_LENGTH],
        memory: &GuestMemoryMmap,
    ) -> Result<u32, Misuse> {
        let mut filled = 0;
        let status = match self.kind {
            kind::READ => {
                filled = self.wanted;
                self.transfer(memory, self.chain.writable(), 0, self.wanted, |offset, slices| {
                    storage.read(offset, slices)
                })?
            }
            kind::WRITE => {
                self.transfer(memory, self.chain.readable(), HEADER as u64, self.given, |offset, slices| {
                    storage.write(offset, slices)
                })?
            }
            kind::FLUSH => told(storage.flush()),
            kind::GET_ID => {
                filled = SERIAL_LENGTH as u64;
                if self.wanted < filled {
                    return Err(Misuse::Request);
                }
                queue::write(memory, self.chain.writable(), serial).ok_or(Misuse::Buffer)?;
                Status::Done
            }
            kind::DISCARD | kind::WRITE_ZEROES => self.ranges(storage, memory)?,
            _ => Status::Unsupported,
        };
        let done = if status == Status::Done { filled } else { 0 };
        self.put_status(memory, status)?;
        // What lies between is the driver's as it was.
        Ok(if self.wanted == done { u32::try_from(done + 1).unwrap_or(u32::MAX) } else { done as u32 })
    }

    fn transfer(
        &self,
        memory: &GuestMemoryMmap,
        buffers: &[Buffer],
        skip: u64,
        length: u64,
        go: impl FnOnce(u64, &[vm_memory::VolatileSlice<'_>]) -> io::Result<()>,
    ) -> Result<Status, Misuse> {
        if !length.is_multiple_of(SECTOR) {
            return Err(Misuse::Request);
        }
        let Some(offset) = self.sector.checked_mul(SECTOR) else { return Ok(Status::Failed) };
        let mut slices = Vec::with_capacity(buffers.len());
        queue::slices(memory, buffers, skip, length, &mut slices)?;
        Ok(told(go(offset, &slices)))
    }

    /// Discards or zeroes ranges (section 5.2.6).
    fn ranges(&self, storage: &dyn Storage, memory: &GuestMemoryMmap) -> Result<Status, Misuse> {
        let count = self.given / RANGE as u64;
        if count == 0 || !self.given.is_multiple_of(RANGE as u64) {
            return Err(Misuse::Request);
        }
        if count > MOST_RANGES.into() {
            return Ok(Status::Failed);
        }
        let mut bytes = vec![0; HEADER + self.given as usize];
        queue::read(memory, self.chain.readable(), &mut bytes).ok_or(Misuse::Request)?;
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

    /// The last byte that can be written.
    fn put_status(&self, memory: &GuestMemoryMmap, status: Status) -> Result<(), Misuse> {
        let last = self.chain.writable().last().ok_or(Misuse::Request)?;
        let at = Buffer { address: last.address + u64::from(last.length) - 1, length: 1 };
        queue::write(memory, &[at], &[status as u8]).ok_or(Misuse::Buffer)
    }
}

fn told(result: io::Result<()>) -> Status {
    match result {
        Ok(()) => Status::Done,
        Err(error) => {
            log::debug!("a request to a disk failed: {error}");
            Status::Failed
        }
    }
}
