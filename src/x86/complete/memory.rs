//! Guest memory as an instruction sees it: by linear address, with rights, page by page.
//!
//! An access that spans pages is all or nothing: every page is looked up, and has to be memory, before the
//! first byte is moved.

use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileSlice};

use super::rights::{Access, Actor, Purpose};
use super::{Beyond, Cpu, Stop};
use crate::memory::PAGE_SIZE;
use crate::x86::mode::EFER_LMA;

/// The most pages that one operand spans: state of 8 KiB that begins in the middle of a page, and some more.
const MOST_PAGES: usize = 4;

/// Pieces of memory that together make up an operand.
struct Pieces<'m> {
    pieces: [Option<VolatileSlice<'m>>; MOST_PAGES],
}

impl<'m> Pieces<'m> {
    fn iter(&self) -> impl Iterator<Item = &VolatileSlice<'m>> {
        self.pieces.iter().flatten()
    }
}

const READ: Access = Access { purpose: Purpose::Read, actor: Actor::Program };
const WRITE: Access = Access { purpose: Purpose::Write, actor: Actor::Program };
const SYSTEM_READ: Access = Access { purpose: Purpose::Read, actor: Actor::System };
const SYSTEM_WRITE: Access = Access { purpose: Purpose::Write, actor: Actor::System };

impl Cpu<'_> {
    /// Reads what the program may read at `linear`.
    pub fn read(&self, linear: u64, buffer: &mut [u8]) -> Result<(), Stop> {
        self.read_with(linear, buffer, READ)
    }

    /// Writes where the program may write: everything, or nothing if a part of it cannot be written.
    pub fn write(&self, linear: u64, bytes: &[u8]) -> Result<(), Stop> {
        self.write_with(linear, bytes, WRITE)
    }

    /// Reads as the processor itself does, which looks into tables as supervisor whatever the program's
    /// privilege is.
    pub fn read_as_system(&self, linear: u64, buffer: &mut [u8]) -> Result<(), Stop> {
        self.read_with(linear, buffer, SYSTEM_READ)
    }

    /// Writes as the processor itself does.
    pub fn write_as_system(&self, linear: u64, bytes: &[u8]) -> Result<(), Stop> {
        self.write_with(linear, bytes, SYSTEM_WRITE)
    }

    /// Faults as a write of `length` bytes would, and writes nothing.
    pub fn check_write(&self, linear: u64, length: usize) -> Result<(), Stop> {
        self.pieces(linear, length, WRITE).map(drop)
    }

    /// The same, for the bytes of `length` whose bit in `chosen` is set.
    pub(super) fn check_write_chosen(&self, linear: u64, length: usize, chosen: u64) -> Result<(), Stop> {
        runs(chosen, length)
            .try_for_each(|(start, end)| self.check_write(linear.wrapping_add(start as u64), end - start))
    }

    /// Reads the bytes of an instruction.
    pub(super) fn fetch(&self, linear: u64, buffer: &mut [u8]) -> Result<(), Stop> {
        self.read_with(linear, buffer, Access { purpose: Purpose::Execute, actor: Actor::Program })
    }

    /// Writes those of `bytes` whose bit in `chosen` is set: all of them or none. Where no bit is set nothing
    /// faults.
    pub(super) fn write_chosen(&self, linear: u64, bytes: &[u8], chosen: u64) -> Result<(), Stop> {
        self.check_write_chosen(linear, bytes.len(), chosen)?;
        for (start, end) in runs(chosen, bytes.len()) {
            self.write(linear.wrapping_add(start as u64), &bytes[start..end])?;
        }
        Ok(())
    }

    /// Reads the bytes whose bit in `chosen` is set and leaves the others alone.
    pub(super) fn read_chosen(&self, linear: u64, buffer: &mut [u8], chosen: u64) -> Result<(), Stop> {
        runs(chosen, buffer.len()).try_for_each(|(start, end)| {
            self.read(linear.wrapping_add(start as u64), &mut buffer[start..end])
        })
    }

    /// The memory behind an operand that is changed in place, if it lies within one page. It stays mapped as
    /// long as this processor's memory does.
    pub(super) fn in_place(&self, linear: u64, length: usize) -> Result<Option<VolatileSlice<'_>>, Stop> {
        let mut pieces = self.pieces(linear, length, WRITE)?.pieces;
        Ok(if pieces[1].is_none() { pieces[0].take() } else { None })
    }

    fn read_with(&self, linear: u64, buffer: &mut [u8], access: Access) -> Result<(), Stop> {
        let mut rest = buffer;
        for piece in self.pieces(linear, rest.len(), access)?.iter() {
            let done = piece.copy_to(rest);
            rest = &mut rest[done..];
        }
        Ok(())
    }

    fn write_with(&self, linear: u64, bytes: &[u8], access: Access) -> Result<(), Stop> {
        let mut rest = bytes;
        for piece in self.pieces(linear, rest.len(), access)?.iter() {
            piece.copy_from(&rest[..piece.len()]);
            rest = &rest[piece.len()..];
        }
        Ok(())
    }

    fn pieces(&self, linear: u64, length: usize, access: Access) -> Result<Pieces<'_>, Stop> {
        let mut pieces = [const { None }; MOST_PAGES];
        let mut done = 0;
        let mut slots = pieces.iter_mut();
        while done < length {
            let at = self.wrap(linear.wrapping_add(done as u64));
            let in_page = (PAGE_SIZE - at % PAGE_SIZE) as usize;
            let size = in_page.min(length - done);
            let Some(slot) = slots.next() else {
                let text = format!("its operand of {length} bytes at {linear:#x} spans too many pages");
                return Err(Beyond { text }.into());
            };
            let physical = self.translate(at, access)?;
            *slot = Some(self.memory.mapped().get_slice(GuestAddress(physical), size).map_err(|_| Beyond {
                text: format!(
                    "{at:#x} is mapped to {physical:#x}, where there is no memory; only accesses that KVM itself \
                     makes can reach devices"
                ),
            })?);
            done += size;
        }
        Ok(Pieces { pieces })
    }

    /// Outside long mode linear addresses have 32 bits.
    fn wrap(&self, linear: u64) -> u64 {
        if self.special.efer & EFER_LMA != 0 { linear } else { linear & 0xffff_ffff }
    }
}

/// Where runs of set bits start and end, within the first `length` bits.
fn runs(chosen: u64, length: usize) -> impl Iterator<Item = (usize, usize)> {
    let is_chosen = move |bit: &usize| *bit < length.min(64) && chosen >> bit & 1 != 0;
    let mut from = 0;
    std::iter::from_fn(move || {
        let start = (from..length.min(64)).find(is_chosen)?;
        let end = (start..64).find(|bit| !is_chosen(bit)).unwrap_or(64);
        from = end;
        Some((start, end))
    })
}

#[cfg(test)]
#[path = "memory_test.rs"]
mod tests;
