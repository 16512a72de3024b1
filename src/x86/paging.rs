//! Identity page tables: the ones with which a guest in long mode starts.
//!
//! Four-level tables with 2 MiB pages, which every 64-bit processor has (1 GiB pages are optional). The first
//! 4 GiB are always mapped; what lies beyond is mapped where `boot/` put something. Relies on `memory/`.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::entry::{LARGE, PRESENT, WRITABLE};
use crate::memory::{GuestMemory, PAGE_SIZE, Region};

const ENTRIES: usize = 512;
const TABLE_SIZE: u64 = PAGE_SIZE;
const LARGE_PAGE_SHIFT: u32 = 21;
/// What one page directory maps.
const GIB_SHIFT: u32 = 30;
/// What one table of the level above maps.
const HALF_TIB_SHIFT: u32 = 39;
/// Linear addresses from here on are not canonical, so that they cannot equal physical ones.
const IDENTITY_END: u64 = 1 << 47;
const ALWAYS_MAPPED_GIB: u64 = 4;

/// How much memory the tables may take. Enough for pieces of a guest spread over more than fifty GiB.
pub const MAX_SIZE: u64 = 64 * TABLE_SIZE;

/// Why a piece of memory cannot be mapped to its own address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Four-level paging ends here.
    #[error("addresses from {IDENTITY_END:#x} on cannot be mapped one to one")]
    TooHigh,
    /// The tables would take more than [`MAX_SIZE`].
    #[error("page tables for it take more than the {} pages set aside for them", MAX_SIZE / TABLE_SIZE)]
    TooMany,
}

/// Page tables that are to be written.
#[derive(Debug)]
pub struct IdentityTables {
    base: u64,
    /// The GiB that are mapped, ascending: one page directory each.
    gibs: Vec<u64>,
    /// The 512 GiB that they lie in, ascending: one table each.
    half_tibs: Vec<u64>,
}

impl IdentityTables {
    /// Tables from `base` (page aligned) on that map the first 4 GiB and all of `reach`.
    pub fn plan(base: u64, reach: &[Region]) -> Result<Self, Error> {
        let mut gibs: Vec<u64> = (0..ALWAYS_MAPPED_GIB).collect();
        for region in reach.iter().filter(|region| region.size > 0) {
            let last = region.start.checked_add(region.size - 1).ok_or(Error::TooHigh)?;
            if last >= IDENTITY_END {
                return Err(Error::TooHigh);
            }
            let (first, last) = (region.start >> GIB_SHIFT, last >> GIB_SHIFT);
            if last - first >= MAX_SIZE / TABLE_SIZE {
                return Err(Error::TooMany);
            }
            gibs.extend(first.max(ALWAYS_MAPPED_GIB)..=last);
        }
        gibs.sort_unstable();
        gibs.dedup();
        let mut half_tibs: Vec<u64> = gibs.iter().map(|gib| gib >> (HALF_TIB_SHIFT - GIB_SHIFT)).collect();
        half_tibs.dedup();
        let tables = Self { base, gibs, half_tibs };
        if tables.size() > MAX_SIZE { Err(Error::TooMany) } else { Ok(tables) }
    }

    /// The address of the root, for CR3.
    pub fn root(&self) -> u64 {
        self.base
    }

    /// How many bytes the tables take from their base on.
    pub fn size(&self) -> u64 {
        (1 + self.half_tibs.len() + self.gibs.len()) as u64 * TABLE_SIZE
    }

    /// Writes them.
    pub fn write(&self, memory: &GuestMemory) -> Result<(), GuestMemoryError> {
        let directories = self.base + TABLE_SIZE * (1 + self.half_tibs.len() as u64);
        let mut writer = Writer { memory, at: self.base };

        let middle = self.half_tibs.iter().zip(1_u64..);
        writer.table(middle.map(|(half_tib, nth)| (*half_tib, link(self.base + nth * TABLE_SIZE))))?;
        for half_tib in &self.half_tibs {
            let inside = self.gibs.iter().zip(0_u64..);
            let inside = inside.filter(|(gib, _)| *gib >> (HALF_TIB_SHIFT - GIB_SHIFT) == *half_tib);
            writer.table(inside.map(|(gib, nth)| (*gib, link(directories + nth * TABLE_SIZE))))?;
        }
        for gib in &self.gibs {
            let pages = 0..ENTRIES as u64;
            writer.table(pages.map(|page| {
                let address = gib << GIB_SHIFT | page << LARGE_PAGE_SHIFT;
                (page, address | PRESENT | WRITABLE | LARGE)
            }))?;
        }
        Ok(())
    }
}

fn link(table: u64) -> u64 {
    table | PRESENT | WRITABLE
}

/// Writes one table after the other.
struct Writer<'m> {
    memory: &'m GuestMemory,
    at: u64,
}

impl Writer<'_> {
    /// Writes a table from (number, entry); only the lower nine bits of the number count.
    fn table(&mut self, entries: impl Iterator<Item = (u64, u64)>) -> Result<(), GuestMemoryError> {
        let mut bytes = [0_u8; TABLE_SIZE as usize];
        for (number, entry) in entries {
            let offset = number as usize % ENTRIES * 8;
            bytes[offset..offset + 8].copy_from_slice(&entry.to_le_bytes());
        }
        self.memory.mapped().write_slice(&bytes, GuestAddress(self.at))?;
        self.at += TABLE_SIZE;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hv::SpecialRegisters;
    use crate::memory::{Layout, Options};
    use crate::x86::{mode, walk};

    const GIB: u64 = 1 << 30;

    fn memory() -> GuestMemory {
        GuestMemory::map(Layout::new(1 << 20, 48).unwrap(), Options::default()).unwrap()
    }

    fn long_mode(root: u64) -> SpecialRegisters {
        SpecialRegisters {
            cr0: mode::CR0_PE | mode::CR0_PG,
            cr3: root,
            cr4: mode::CR4_PAE,
            efer: mode::EFER_LMA | mode::EFER_LME,
            ..SpecialRegisters::default()
        }
    }

    #[test]
    fn the_first_four_gib_take_six_pages_and_are_mapped_to_themselves() {
        let memory = memory();
        let tables = IdentityTables::plan(0x3000, &[]).unwrap();
        assert_eq!(tables.size(), 6 * 4096);
        tables.write(&memory).unwrap();
        let special = long_mode(tables.root());
        for linear in [0, 0xfff, 0x1000, 0x20_0000, GIB - 1, GIB, 3 * GIB + 12345, 4 * GIB - 1] {
            assert_eq!(walk::walk(&memory, &special, linear), Ok(linear));
        }
        assert!(walk::walk(&memory, &special, 4 * GIB).is_err());
    }

    #[test]
    fn pieces_far_above_are_mapped_and_nothing_between_them() {
        let memory = memory();
        let reach = [
            Region { start: 1 << 40, size: GIB + 1 },
            Region { start: 6 * GIB - 1, size: 2 },
            Region { start: 0x10_0000, size: 0 },
        ];
        let tables = IdentityTables::plan(0x3000, &reach).unwrap();
        // Root, two tables for 512 GiB each, directories for 4 + 2 + 2 GiB.
        assert_eq!(tables.size(), 11 * 4096);
        tables.write(&memory).unwrap();
        let special = long_mode(tables.root());
        let mapped = [0, 5 * GIB, 6 * GIB, 7 * GIB - 1, 1 << 40, (1 << 40) + 2 * GIB - 1];
        for linear in mapped {
            assert_eq!(walk::walk(&memory, &special, linear), Ok(linear));
        }
        for linear in [4 * GIB, 7 * GIB, (1 << 40) - 1, (1 << 40) + 2 * GIB] {
            assert!(walk::walk(&memory, &special, linear).is_err(), "{linear:#x}");
        }
    }

    #[test]
    fn what_cannot_be_mapped_is_refused() {
        let plan =
            |start, size| IdentityTables::plan(0, &[Region { start, size }]).map(|tables| tables.size());
        assert_eq!(plan(0, 1 << 40), Err(Error::TooMany));
        assert_eq!(plan(4 * GIB, 60 * GIB), Err(Error::TooMany));
        assert_eq!(plan(4 * GIB, 58 * GIB), Ok(MAX_SIZE));
        assert_eq!(plan(1 << 47, 1), Err(Error::TooHigh));
        assert_eq!(plan(u64::MAX, 2), Err(Error::TooHigh));
        assert!(plan((1 << 47) - 1, 1).is_ok());
    }
}
