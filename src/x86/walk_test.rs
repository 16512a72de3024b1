//! The page-table walker against tables made by hand.

use super::*;
use crate::memory::{Layout, Options};
use crate::x86::mode::{CR0_PE, EFER_LME};

const SIZE: u64 = 1 << 20;

fn memory() -> GuestMemory {
    GuestMemory::map(Layout::new(SIZE, 48).unwrap(), Options::default()).unwrap()
}

fn put(memory: &GuestMemory, table: u64, number: u64, entry: u64) {
    memory.mapped().write_obj(entry, GuestAddress(table + number * 8)).unwrap();
}

fn put32(memory: &GuestMemory, table: u64, number: u64, entry: u32) {
    memory.mapped().write_obj(entry, GuestAddress(table + number * 4)).unwrap();
}

fn registers(cr3: u64, cr4: u64, efer: u64) -> SpecialRegisters {
    SpecialRegisters { cr0: CR0_PE | CR0_PG, cr3, cr4, efer, ..SpecialRegisters::default() }
}

fn four_levels() -> SpecialRegisters {
    registers(0x1000, CR4_PAE, EFER_LME | EFER_LMA)
}

#[test]
fn without_paging_a_linear_address_is_a_physical_one() {
    let special = SpecialRegisters { cr0: CR0_PE, ..SpecialRegisters::default() };
    assert_eq!(walk(&memory(), &special, 0x1_1234_5678), Ok(0x1234_5678));
}

#[test]
fn four_level_paging_reaches_pages_of_all_three_sizes() {
    let memory = memory();
    put(&memory, 0x1000, 0, 0x2003);
    put(&memory, 0x1000, 511, 0x2003);
    put(&memory, 0x2000, 0, 0x3003);
    put(&memory, 0x2000, 1, 0x40_0000_0083);
    put(&memory, 0x3000, 2, 0x4003);
    put(&memory, 0x3000, 3, 0x1234_5678_9a00_0083 & ADDRESS | 0x83 | 1 << 12);
    // Execute-disable, a protection key and software bits belong to no address.
    put(&memory, 0x4000, 5, 1 << 63 | 0xf << 59 | 7 << 52 | 0xab_c000 | 0xe03);
    let special = four_levels();
    assert_eq!(walk(&memory, &special, 0x40_5123), Ok(0xab_c123));
    assert_eq!(walk(&memory, &special, 0x7f_ffff), Ok(0x4_5678_9a1f_ffff));
    assert_eq!(walk(&memory, &special, 0x4abc_def0), Ok(0x40_0abc_def0));
    assert_eq!(walk(&memory, &special, 0xffff_ff80_0040_5123), Ok(0xab_c123));
}

#[test]
fn five_level_paging_has_one_table_more() {
    let memory = memory();
    put(&memory, 0x1000, 1, 0x2003);
    put(&memory, 0x2000, 0, 0x3003);
    put(&memory, 0x3000, 0, 0x8000_0083);
    let special = registers(0x1000, CR4_PAE | CR4_LA57, EFER_LME | EFER_LMA);
    assert_eq!(walk(&memory, &special, (1 << 48) | 0x12_3456), Ok(0x8012_3456));
    let linear = 1 << 57;
    assert_eq!(walk(&memory, &special, linear), Err(Fault::NotCanonical { linear }));
}

#[test]
fn pae_paging_starts_from_a_root_of_four_entries() {
    let memory = memory();
    let special = registers(0x1020, CR4_PAE, 0);
    put(&memory, 0x1020, 3, 0x2001);
    put(&memory, 0x2000, 511, 0x3003);
    put(&memory, 0x2000, 0, 0x1_2340_0083);
    put(&memory, 0x3000, 511, 0xf_0000_5003);
    assert_eq!(walk(&memory, &special, 0xffff_f678), Ok(0xf_0000_5678));
    assert_eq!(walk(&memory, &special, 0xc01f_ffff), Ok(0x1_235f_ffff));
    // A root entry cannot be a page.
    put(&memory, 0x1020, 0, 0x83);
    assert_eq!(walk(&memory, &special, 0), Err(Fault::Reserved { linear: 0, level: 3, entry: 0x83 }));
}

#[test]
fn thirty_two_bit_paging_has_large_pages_only_where_they_are_enabled() {
    let memory = memory();
    put32(&memory, 0x1000, 0x300, 0x2003);
    put32(&memory, 0x2000, 1, 0xdead_b003);
    // 4 MiB at 0x12_0040_0000: the upper address bits are in bits 13 to 20.
    put32(&memory, 0x1000, 1, 0x0040_0083 | 0x12 << 13);
    let small_only = registers(0x1000, 0, 0);
    let large_too = registers(0x1000, CR4_PSE, 0);
    assert_eq!(walk(&memory, &small_only, 0xc000_1abc), Ok(0xdead_babc));
    assert_eq!(walk(&memory, &large_too, 0xc000_1abc), Ok(0xdead_babc));
    assert_eq!(walk(&memory, &large_too, 0x7f_ffff), Ok(0x12_007f_ffff));
    // Without the extension bit 7 means nothing and the entry points to a table.
    let linear = 0x7f_ffff;
    assert!(matches!(walk(&memory, &small_only, linear), Err(Fault::OutsideMemory { level: 1, .. })));
    put32(&memory, 0x1000, 2, 0x0060_0083);
    assert!(matches!(walk(&memory, &large_too, 0x80_0000), Err(Fault::Reserved { level: 2, .. })));
}

#[test]
fn the_fault_names_the_level_at_which_the_walk_ended() {
    let memory = memory();
    let special = four_levels();
    let linear = 0x1000;
    let fault = |level, entry| Err(Fault::NotPresent { linear, level, entry });
    assert_eq!(walk(&memory, &special, linear), fault(4, 0));
    put(&memory, 0x1000, 0, 0x2003);
    put(&memory, 0x2000, 0, 0x8000);
    assert_eq!(walk(&memory, &special, linear), fault(3, 0x8000));
    put(&memory, 0x2000, 0, 0x3003);
    put(&memory, 0x3000, 0, 0x4003);
    put(&memory, 0x4000, 1, 0x12_3002);
    assert_eq!(walk(&memory, &special, linear), fault(1, 0x12_3002));
    let text = walk(&memory, &special, linear).unwrap_err().to_string();
    assert_eq!(text, "0x1000 is not mapped: the level 1 entry is 0x123002");
}

#[test]
fn tables_outside_memory_and_reserved_bits_are_faults() {
    let memory = memory();
    let special = four_levels();
    put(&memory, 0x1000, 0, (SIZE - 4096) | 3);
    put(&memory, SIZE - 4096, 511, SIZE | 3);
    let linear = 0x7f_c000_0000;
    assert_eq!(walk(&memory, &special, linear), Err(Fault::OutsideMemory { linear, level: 2, at: SIZE }));
    let nowhere = registers(ADDRESS, CR4_PAE, EFER_LMA);
    let at = ADDRESS;
    assert_eq!(walk(&memory, &nowhere, 0), Err(Fault::OutsideMemory { linear: 0, level: 4, at }));
    put(&memory, 0x1000, 1, 0x83);
    let linear = 1 << 39;
    assert_eq!(walk(&memory, &special, linear), Err(Fault::Reserved { linear, level: 4, entry: 0x83 }));
    // A page of 2 MiB that starts in the middle of one.
    put(&memory, 0x1000, 2, 0x2003);
    put(&memory, 0x2000, 0, 0x3003);
    put(&memory, 0x3000, 0, 0x10_0083);
    assert!(matches!(walk(&memory, &special, 2 << 39), Err(Fault::Reserved { level: 2, .. })));
}

#[test]
fn addresses_that_are_not_canonical_are_refused() {
    for linear in [1 << 47, 0xffff_7fff_ffff_ffff, 1 << 63] {
        assert_eq!(walk(&memory(), &four_levels(), linear), Err(Fault::NotCanonical { linear }));
    }
}

#[test]
fn tables_that_point_to_themselves_end_the_walk_all_the_same() {
    let memory = memory();
    for number in 0..512 {
        put(&memory, 0x1000, number, 0x1003);
    }
    assert_eq!(walk(&memory, &four_levels(), 0x1234_5678), Ok(0x1678));
}

#[test]
fn bytes_are_read_across_pages_until_the_mapping_or_the_memory_ends() {
    let memory = memory();
    put(&memory, 0x1000, 0, 0x2003);
    put(&memory, 0x2000, 0, 0x3003);
    put(&memory, 0x3000, 0, 0x4003);
    // Two neighbours whose pages lie apart, the second one the last of memory, then one beyond it.
    put(&memory, 0x4000, 0, 0x8003);
    put(&memory, 0x4000, 1, (SIZE - 4096) | 3);
    put(&memory, 0x4000, 2, SIZE | 3);
    memory.mapped().write_slice(&[1, 2], GuestAddress(0x8ffe)).unwrap();
    memory.mapped().write_slice(&[3, 4], GuestAddress(SIZE - 4096)).unwrap();
    let special = four_levels();
    let mut buffer = [0; 4];
    assert_eq!(read_linear(&memory, &special, 0xffe, &mut buffer), 4);
    assert_eq!(buffer, [1, 2, 3, 4]);
    assert_eq!(read_linear(&memory, &special, 0x1ffe, &mut buffer), 2);
    assert_eq!(read_linear(&memory, &special, 0x3000, &mut buffer), 0);
    let flat = SpecialRegisters::default();
    assert_eq!(read_linear(&memory, &flat, SIZE - 3, &mut buffer), 3);
    assert_eq!(read_linear(&memory, &flat, u64::MAX, &mut buffer), 0);
}
