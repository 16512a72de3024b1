//! The guest's first MiB, and what the guest is told about all of its memory.
//!
//! Everything that is put into guest memory besides the kernel and its initrd lies here, low enough for
//! machines with 1 MiB of memory:
//!
//! ```text
//! 0x00000  ┬ interrupt vectors and BIOS data of real mode: left alone
//! 0x00500  ┼ stack for the first instructions, growing down from 0x01000
//! 0x01000  ┼ descriptor table                      ┐
//! 0x01100  │ PVH: start information, 56 bytes      │ one page, all that PVH needs
//! 0x01140  │ PVH: list of modules, one entry       │
//! 0x01180  │ PVH: memory map                       │
//! 0x01800  │ command line, 2048 bytes with its end ┘
//! 0x02000  ┼ Linux: boot parameters ("zero page")
//! 0x03000  ┼ long mode: page tables, six pages as a rule, 64 at most
//! 0x43000  ┼ free
//! 0x9fc00  ┼ extended BIOS data   ┐
//! 0xa0000  ┼ video memory, ROMs   ┘ memory that the guest is told is not free
//! 0x100000 ┴ the kernel, as a rule; the embedded guest is linked here
//! ```
//!
//! What a protocol does not use stays untouched and free for the kernel. Used by the rest of `boot/`.

use crate::memory::{Layout, Region};

/// End of what real mode has at the start of memory.
pub const BIOS_DATA_END: u64 = 0x500;
/// Initial stack pointer.
pub const STACK: u64 = 0x1000;
/// The descriptor table.
pub const DESCRIPTORS: u64 = 0x1000;
/// PVH: `hvm_start_info`.
pub const PVH_START_INFO: u64 = 0x1100;
/// PVH: `hvm_modlist_entry`, one.
pub const PVH_MODULES: u64 = 0x1140;
/// PVH: `hvm_memmap_table_entry`, one for each range of [`memory_map`].
pub const PVH_MEMORY_MAP: u64 = 0x1180;
/// The command line, with a zero behind it.
pub const COMMAND_LINE: u64 = 0x1800;
/// Room for the command line and its zero: what Linux has on x86 (`COMMAND_LINE_SIZE`).
pub const COMMAND_LINE_ROOM: u64 = 2048;
/// Linux: `boot_params`.
pub const ZERO_PAGE: u64 = 0x2000;
/// Long mode: the root of the page tables, the others behind it.
pub const PAGE_TABLES: u64 = 0x3000;
/// From here to 1 MiB there is memory, but PCs have other things.
pub const EXTENDED_BIOS_DATA: u64 = 0x9_fc00;
/// Where memory is ordinary again.
pub const HIGH_MEMORY: u64 = 0x10_0000;

/// A range of memory as the guest is told about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryRange {
    /// Where.
    pub region: Region,
    /// Whether the guest may use it as it likes.
    pub usable: bool,
}

impl MemoryRange {
    /// The type number in both the BIOS's (e820) and the PVH memory map.
    pub fn kind(&self) -> u32 {
        if self.usable { 1 } else { 2 }
    }
}

/// All memory of a machine, in ascending order: at most four ranges.
pub fn memory_map(layout: &Layout) -> impl Iterator<Item = MemoryRange> {
    let range = |start, end: u64, usable| MemoryRange { region: Region { start, size: end - start }, usable };
    let low = [
        range(0, EXTENDED_BIOS_DATA, true),
        range(EXTENDED_BIOS_DATA, HIGH_MEMORY, false),
        range(HIGH_MEMORY, layout.low().end(), true),
    ];
    let high = layout.regions()[1..].iter().map(|region| MemoryRange { region: *region, usable: true });
    low.into_iter().filter(|range| range.region.size > 0).chain(high)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(size: u64) -> Vec<(u64, u64, bool)> {
        let layout = Layout::new(size, 48).unwrap();
        memory_map(&layout).map(|range| (range.region.start, range.region.end(), range.usable)).collect()
    }

    #[test]
    fn the_guest_is_told_of_all_its_memory_but_the_last_part_of_the_first_mib() {
        const GIB: u64 = 1 << 30;
        let first = [(0, 0x9_fc00, true), (0x9_fc00, 0x10_0000, false)];
        assert_eq!(map(1 << 20), first);
        assert_eq!(map(64 << 20), [&first[..], &[(1 << 20, 64 << 20, true)]].concat());
        let high = [(1 << 20, 3 * GIB, true), (4 * GIB, 6 * GIB, true)];
        assert_eq!(map(5 * GIB), [&first[..], &high].concat());
    }
}
