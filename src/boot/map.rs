//! The guest's first MiB, and what the guest is told about all of its memory.
//!
//! Everything that is put into guest memory besides the kernel and its initrd lies here, low enough for
//! machines with 1 MiB of memory:
//!
//! ```text
//! 0x00000  ┬ interrupt vectors and BIOS data of real mode: left alone
//! 0x00500  ┼ stack for the first instructions, growing down from 0x01000
//! 0x01000  ┼ descriptor table                      ┐
//! 0x01040  │ Linux: a seed of random bytes         │
//! 0x01100  │ PVH: start information, 56 bytes      │ one page, all that PVH needs
//! 0x01140  │ PVH: list of modules, one entry       │
//! 0x01180  │ PVH: memory map                       │
//! 0x01800  │ command line, 2048 bytes with its end ┘
//! 0x02000  ┼ Linux: boot parameters ("zero page")
//! 0x03000  ┼ long mode: page tables, six pages as a rule, 64 at most
//! 0x43000  ┼ free
//! 0x9fc00  ┼ MP: floating pointer ┐
//! 0xa0000  │ video memory, ROMs   │ memory that the guest is told is not free
//! 0xdf000  │ id of the generation │
//! 0xe0000  │ ACPI tables          │
//! 0xf0000  │ MP: table            │
//! 0xffff0  │ code that resets     ┘
//! 0x100000 ┴ the kernel, as a rule; the embedded guest is linked here
//! ```
//!
//! Where a kernel would look for them by itself: the floating pointer in the last KiB of base memory, the ACPI
//! root pointer at the start of the 128 KiB below 1 MiB. Linux takes everything below 1 MiB for itself anyway,
//! so that tables there cost a guest no memory, and seeds below 64 KiB are never in its way.
//!
//! What a protocol does not use stays untouched and free for the kernel. Used by the rest of `boot/`.

use crate::memory::{Layout, PAGE_SIZE, Region};

/// End of what real mode has at the start of memory.
pub const BIOS_DATA_END: u64 = 0x500;
/// Initial stack pointer.
pub const STACK: u64 = 0x1000;
/// The descriptor table.
pub const DESCRIPTORS: u64 = 0x1000;
/// Linux: a list of one `setup_data` with a seed for the kernel's random numbers.
pub const SEED: u64 = 0x1040;
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
/// The pointer to the table of the MultiProcessor Specification.
pub const MP_POINTER: u64 = EXTENDED_BIOS_DATA;
/// The page of the id that tells a guest that it goes on from a snapshot; nothing else is in it.
pub const GENERATION_PAGE: u64 = 0xd_f000;
/// The id. Not where the page begins: kernels look there for ROMs, and any bytes may stand in it.
pub const GENERATION_ID: u64 = GENERATION_PAGE + 0x10;
/// How long the id is.
pub const GENERATION_ID_SIZE: u64 = 16;
/// ACPI's root pointer and all tables.
pub const ACPI_TABLES: u64 = 0xe_0000;
/// The table of the MultiProcessor Specification, and the end of the room for ACPI tables.
pub const MP_TABLE: u64 = 0xf_0000;
/// Room for the ACPI tables.
pub const ACPI_ROOM: u64 = MP_TABLE - ACPI_TABLES;
/// Where a PC's firmware starts: whoever jumps here in real mode wants the machine to be reset.
pub const RESET_CODE: u64 = 0xf_fff0;
/// Where memory is ordinary again.
pub const HIGH_MEMORY: u64 = 0x10_0000;

/// What the guest may do with a range of memory. The numbers are those of both the BIOS's (e820) and the PVH
/// memory map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// What it likes.
    Free = 1,
    /// Nothing.
    Reserved = 2,
    /// Read ACPI tables, and then what it likes.
    Acpi = 3,
}

/// A range of memory as the guest is told about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryRange {
    /// Where.
    pub region: Region,
    /// What for.
    pub usage: Use,
}

/// All memory of a machine whose ACPI tables take `acpi`, in ascending order and without gaps or overlaps:
/// at most six ranges.
pub fn memory_map(layout: &Layout, acpi: Option<Region>) -> Vec<MemoryRange> {
    let range = |start, end: u64, usage| MemoryRange { region: Region { start, size: end - start }, usage };
    let mut map = vec![range(0, EXTENDED_BIOS_DATA, Use::Free)];
    match acpi {
        None => map.push(range(EXTENDED_BIOS_DATA, HIGH_MEMORY, Use::Reserved)),
        Some(acpi) => {
            // Guests map and free memory by pages.
            let end = acpi.end().next_multiple_of(PAGE_SIZE);
            map.push(range(EXTENDED_BIOS_DATA, acpi.start, Use::Reserved));
            map.push(range(acpi.start, end, Use::Acpi));
            map.push(range(end, HIGH_MEMORY, Use::Reserved));
        }
    }
    map.push(range(HIGH_MEMORY, layout.low().end(), Use::Free));
    map.extend(layout.regions()[1..].iter().map(|region| MemoryRange { region: *region, usage: Use::Free }));
    map.retain(|range| range.region.size > 0);
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    fn map(size: u64, acpi: Option<Region>) -> Vec<(u64, u64, Use)> {
        let layout = Layout::new(size, 48).unwrap();
        let map = memory_map(&layout, acpi);
        map.iter().map(|range| (range.region.start, range.region.end(), range.usage)).collect()
    }

    #[test]
    fn the_guest_is_told_of_all_its_memory_but_the_last_part_of_the_first_mib() {
        let first = [(0, 0x9_fc00, Use::Free), (0x9_fc00, 0x10_0000, Use::Reserved)];
        assert_eq!(map(MIB, None), first);
        for (size, above) in [
            (2 * MIB, vec![(MIB, 2 * MIB, Use::Free)]),
            (64 * MIB, vec![(MIB, 64 * MIB, Use::Free)]),
            (3 * GIB, vec![(MIB, 3 * GIB, Use::Free)]),
            (3584 * MIB, vec![(MIB, 3 * GIB, Use::Free), (4 * GIB, 4608 * MIB, Use::Free)]),
            (5 * GIB, vec![(MIB, 3 * GIB, Use::Free), (4 * GIB, 6 * GIB, Use::Free)]),
        ] {
            assert_eq!(map(size, None), [&first[..], &above].concat());
        }
    }

    #[test]
    fn acpi_tables_are_marked_as_such_by_whole_pages() {
        for (size, end) in [(1, 0xe_1000), (0x1000, 0xe_1000), (0x1001, 0xe_2000), (ACPI_ROOM, 0xf_0000)] {
            let expected = [
                (0, 0x9_fc00, Use::Free),
                (0x9_fc00, 0xe_0000, Use::Reserved),
                (0xe_0000, end, Use::Acpi),
                (end, 0x10_0000, Use::Reserved),
            ];
            assert_eq!(map(MIB, Some(Region { start: ACPI_TABLES, size })), expected);
        }
    }

    #[test]
    fn the_ranges_cover_the_memory_and_nothing_else() {
        let acpi = Region { start: ACPI_TABLES, size: 0x234 };
        for size in [MIB, 2 * MIB, 64 * MIB, 3 * GIB, 3584 * MIB, 5 * GIB] {
            let map = map(size, Some(acpi));
            assert!(map.is_sorted_by(|low, high| low.1 <= high.0));
            assert_eq!(map.iter().map(|range| range.1 - range.0).sum::<u64>(), size);
            let kept: u64 =
                map.iter().filter(|range| range.2 != Use::Free).map(|range| range.1 - range.0).sum();
            assert_eq!(kept, 385 << 10, "a guest loses no more than on a PC");
        }
    }
}
