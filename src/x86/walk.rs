//! Following the guest's own page tables, in every paging mode.
//!
//! The report of a fatal exit reads the code at RIP with it: [`walk`] asks what lies there, not who may use it.
//! [`complete`](super::complete) asks that, too: [`trace`] tells all entries that a walk went through, and their
//! rights are judged there. The tables are the guest's and may say anything; a walk reads at most one entry for
//! each level. Intel SDM volume 3, chapter "Paging". Relies on `memory/`.

use vm_memory::{ByteValued, Bytes, GuestAddress};

use super::entry::{LARGE, PRESENT};
use super::mode::{CR0_PG, CR4_LA57, CR4_PAE, CR4_PSE, EFER_LMA};
use crate::hv::SpecialRegisters;
use crate::memory::{GuestMemory, PAGE_SIZE};

/// Bits 12 to 51 of an entry, or of CR3.
const ADDRESS: u64 = (1 << 52) - PAGE_SIZE;
/// Bit 12 of a large page's entry selects its cache attributes; address bits start above it.
const LARGE_PAGE_ATTRIBUTE: u64 = 1 << 12;
/// In PAE mode CR3 points to a table of four entries, aligned to 32 bytes.
const PAE_ROOT: u64 = 0xffff_ffe0;
/// Legacy modes have 32 bits of linear address.
const LINEAR_32: u64 = 0xffff_ffff;

/// Why a linear address leads nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The upper bits are not copies of the highest bit in use.
    #[error("{linear:#x} is not a canonical address")]
    NotCanonical {
        /// The address.
        linear: u64,
    },
    /// An entry has its present bit clear.
    #[error("{linear:#x} is not mapped: the level {level} entry is {entry:#x}")]
    NotPresent {
        /// The address.
        linear: u64,
        /// The level of the entry; 1 is the last one.
        level: u32,
        /// The entry.
        entry: u64,
    },
    /// An entry has bits set that must be clear.
    #[error("{linear:#x} is mapped by a level {level} entry with reserved bits set: {entry:#x}")]
    Reserved {
        /// The address.
        linear: u64,
        /// The level of the entry.
        level: u32,
        /// The entry.
        entry: u64,
    },
    /// A table lies where the guest has no memory.
    #[error("{linear:#x} cannot be looked up: its level {level} entry would be at {at:#x}, outside memory")]
    OutsideMemory {
        /// The address.
        linear: u64,
        /// The level of the entry.
        level: u32,
        /// Where the entry would be.
        at: u64,
    },
}

/// An entry of the guest's tables that a walk went through.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Step {
    /// Where the entry lies in guest-physical memory.
    pub at: u64,
    /// What it says.
    pub entry: u64,
    /// The level of its table; 1 is the last one.
    pub level: u32,
}

/// The form of the guest's tables, which decides how an entry's rights are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tables {
    /// Paging is off.
    None,
    /// Entries of four bytes, two levels.
    Narrow,
    /// Entries of eight bytes, three levels; those of the first have no rights.
    Pae,
    /// Entries of eight bytes, four or five levels.
    Long,
}

/// A walk with everything it went through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trace {
    /// The form of the tables.
    pub tables: Tables,
    steps: [Step; 5],
    count: usize,
    /// The guest-physical address, which need not be in memory, or why there is none.
    pub end: Result<u64, Fault>,
}

impl Trace {
    /// The entries that were read, from the root on. All of them but the last are present.
    pub fn steps(&self) -> &[Step] {
        &self.steps[..self.count]
    }
}

/// The guest-physical address behind `linear`, which need not be in memory.
pub fn walk(memory: &GuestMemory, special: &SpecialRegisters, linear: u64) -> Result<u64, Fault> {
    trace(memory, special, linear).end
}

/// Looks up `linear` and tells the entries on the way.
pub fn trace(memory: &GuestMemory, special: &SpecialRegisters, linear: u64) -> Trace {
    let has = |register: u64, bit: u64| register & bit != 0;
    let (tables, linear) = if !has(special.cr0, CR0_PG) {
        (Tables::None, linear & LINEAR_32)
    } else if has(special.efer, EFER_LMA) {
        (Tables::Long, linear)
    } else if has(special.cr4, CR4_PAE) {
        (Tables::Pae, linear & LINEAR_32)
    } else {
        (Tables::Narrow, linear & LINEAR_32)
    };
    let mut walk = Walk { memory, linear, tables, steps: [Step::default(); 5], count: 0 };
    let end = match tables {
        Tables::None => Ok(linear),
        Tables::Long => {
            let levels = if has(special.cr4, CR4_LA57) { 5 } else { 4 };
            match is_canonical(linear, levels) {
                true => walk.wide(special.cr3 & ADDRESS, levels),
                false => Err(Fault::NotCanonical { linear }),
            }
        }
        Tables::Pae => walk.wide(special.cr3 & PAE_ROOT, 3),
        Tables::Narrow => walk.narrow(special.cr3 & ADDRESS & LINEAR_32, has(special.cr4, CR4_PSE)),
    };
    Trace { tables, steps: walk.steps, count: walk.count, end }
}

/// Whether the bits of `linear` that `levels` levels of tables do not use are copies of the highest one in use.
pub fn is_canonical(linear: u64, levels: u32) -> bool {
    let unused = 64 - (12 + 9 * levels);
    (linear as i64) << unused >> unused == linear as i64
}

/// Reads what lies at a linear address, as far as it is mapped to memory; returns how many bytes that is.
pub fn read_linear(
    memory: &GuestMemory,
    special: &SpecialRegisters,
    linear: u64,
    buffer: &mut [u8],
) -> usize {
    let mut done = 0;
    while done < buffer.len() {
        let at = linear.wrapping_add(done as u64);
        let in_page = (PAGE_SIZE - at % PAGE_SIZE) as usize;
        let end = buffer.len().min(done + in_page);
        let Ok(physical) = walk(memory, special, at) else { break };
        let Ok(read) = memory.mapped().read(&mut buffer[done..end], GuestAddress(physical)) else { break };
        done += read;
        if done < end {
            break;
        }
    }
    done
}

struct Walk<'m> {
    memory: &'m GuestMemory,
    linear: u64,
    tables: Tables,
    steps: [Step; 5],
    count: usize,
}

impl Walk<'_> {
    /// Tables with entries of eight bytes.
    fn wide(&mut self, root: u64, levels: u32) -> Result<u64, Fault> {
        let linear = self.linear;
        let mut table = root;
        for level in (2..=levels).rev() {
            let shift = 12 + 9 * (level - 1);
            // The root of PAE mode has four entries; the 32 bits of its addresses see to that.
            let entry = self.entry::<u64>(table + (linear >> shift & 0x1ff) * 8, level)?;
            self.check_present(entry, level)?;
            if entry & LARGE != 0 {
                let page = 1_u64 << shift;
                let misaligned = entry & ADDRESS & (page - 1) & !LARGE_PAGE_ATTRIBUTE;
                if level > 3 || (self.tables == Tables::Pae && level == 3) || misaligned != 0 {
                    return Err(Fault::Reserved { linear, level, entry });
                }
                return Ok(entry & ADDRESS & !(page - 1) | linear & (page - 1));
            }
            table = entry & ADDRESS;
        }
        let last = self.entry::<u64>(table + (linear >> 12 & 0x1ff) * 8, 1)?;
        self.check_present(last, 1)?;
        Ok(last & ADDRESS | (linear % PAGE_SIZE))
    }

    /// The two levels of 32-bit paging, with entries of four bytes.
    fn narrow(&mut self, root: u64, large_pages: bool) -> Result<u64, Fault> {
        let linear = self.linear;
        let entry = self.entry::<u32>(root + (linear >> 22) * 4, 2)?;
        self.check_present(entry, 2)?;
        if large_pages && entry & LARGE != 0 {
            if entry & 1 << 21 != 0 {
                return Err(Fault::Reserved { linear, level: 2, entry });
            }
            // Bits 13 to 20 are bits 32 to 39 of the address (PSE-36).
            let high = (entry >> 13 & 0xff) << 32;
            return Ok(high | entry & 0xffc0_0000 | linear & 0x3f_ffff);
        }
        let last = self.entry::<u32>((entry & ADDRESS) + (linear >> 12 & 0x3ff) * 4, 1)?;
        self.check_present(last, 1)?;
        Ok(last & ADDRESS | (linear % PAGE_SIZE))
    }

    fn entry<E: ByteValued + Into<u64>>(&mut self, at: u64, level: u32) -> Result<u64, Fault> {
        let outside = |_| Fault::OutsideMemory { linear: self.linear, level, at };
        let entry: E = self.memory.mapped().read_obj(GuestAddress(at)).map_err(outside)?;
        let entry = entry.into();
        self.steps[self.count] = Step { at, entry, level };
        self.count += 1;
        Ok(entry)
    }

    fn check_present(&self, entry: u64, level: u32) -> Result<(), Fault> {
        match entry & PRESENT {
            0 => Err(Fault::NotPresent { linear: self.linear, level, entry }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
#[path = "walk_test.rs"]
mod tests;
