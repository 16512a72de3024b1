//! Rights, error codes and marks, in every paging mode.

use vm_memory::Bytes;

use super::*;
use crate::hv::Vcpu;
use crate::x86::complete::testing::{DATA, Guest, LAST_TABLE, PRESENT as P, SIZE, USER as U, WRITABLE as W};
use crate::x86::mode::{CR4_LA57, CR4_PSE, EFER_LMA};

const READ: Access = Access { purpose: Purpose::Read, actor: Actor::Program };
const WRITE: Access = Access { purpose: Purpose::Write, actor: Actor::Program };
const FETCH: Access = Access { purpose: Purpose::Execute, actor: Actor::Program };
const SYSTEM: Access = Access { purpose: Purpose::Read, actor: Actor::System };
const A: u64 = ACCESSED;
const D: u64 = DIRTY;

/// What an access ends in: an address, or a page fault's error code.
fn look(guest: &Guest, linear: u64, access: Access) -> Result<u64, u32> {
    guest.vcpu.restore(&guest.state).unwrap();
    let cpu = Cpu::load(&guest.vcpu, &guest.memory).unwrap();
    cpu.translate(linear, access).map_err(|stop| match stop {
        Stop::Fault(fault) => {
            assert_eq!((fault.exception.vector, fault.address, fault.trap), (14, Some(linear), false));
            fault.exception.error_code.unwrap()
        }
        other => panic!("{other:?}"),
    })
}

fn guest(page: u64, ring: u8) -> Guest {
    let mut guest = Guest::new();
    guest.map(DATA, DATA | page);
    guest.state.special.ss.dpl = ring;
    guest.state.special.cr0 |= CR0_WP;
    guest.state.special.efer |= EFER_NXE;
    guest
}

#[test]
fn rights_decide_and_the_error_code_says_what_was_missing() {
    // Page, ring, access, what follows.
    let cases = [
        (0, 0, READ, Err(0)),
        (0, 0, WRITE, Err(2)),
        (0, 0, FETCH, Err(16)),
        (0, 3, READ, Err(4)),
        (0, 3, WRITE, Err(6)),
        (P, 0, READ, Ok(DATA)),
        (P, 0, WRITE, Err(3)),
        (P, 3, READ, Err(5)),
        (P | W, 0, WRITE, Ok(DATA)),
        (P | W, 3, WRITE, Err(7)),
        (P | U, 3, READ, Ok(DATA)),
        (P | U, 3, WRITE, Err(7)),
        (P | U | W, 3, WRITE, Ok(DATA)),
        (P | U | W, 3, FETCH, Ok(DATA)),
        (P | NO_EXECUTE, 0, FETCH, Err(17)),
        (P | NO_EXECUTE, 0, READ, Ok(DATA)),
        (P | U | NO_EXECUTE, 3, FETCH, Err(21)),
        (P, 3, SYSTEM, Ok(DATA)),
        (0, 3, SYSTEM, Err(0)),
    ];
    for (page, ring, access, expected) in cases {
        assert_eq!(look(&guest(page, ring), DATA, access), expected, "{page:#x} in ring {ring}: {access:?}");
    }
}

#[test]
fn every_level_has_a_say() {
    for table in [0x1000, 0x2000, 0x3000] {
        let guest = guest(P | W | U, 3);
        let next = guest.word(table) & !0xfff;
        guest.put(table, &(next | P | W).to_le_bytes());
        assert_eq!(look(&guest, DATA, READ), Err(5));
        guest.put(table, &(next | P | U).to_le_bytes());
        assert_eq!(look(&guest, DATA, WRITE), Err(7));
        guest.put(table, &(next | P | U | W | NO_EXECUTE).to_le_bytes());
        assert_eq!(look(&guest, DATA, FETCH), Err(21));
    }
}

#[test]
fn the_supervisor_writes_anywhere_where_protection_is_off() {
    let mut guest = guest(P, 0);
    guest.state.special.cr0 &= !CR0_WP;
    assert_eq!(look(&guest, DATA, WRITE), Ok(DATA));
    guest.state.special.ss.dpl = 3;
    assert_eq!(look(&guest, DATA, WRITE), Err(7));
}

#[test]
fn the_supervisor_is_kept_from_user_pages() {
    let mut guest = guest(P | W | U, 0);
    assert_eq!(look(&guest, DATA, FETCH), Ok(DATA));
    guest.state.special.cr4 |= CR4_SMEP | CR4_SMAP;
    assert_eq!(look(&guest, DATA, FETCH), Err(17));
    assert_eq!((look(&guest, DATA, READ), look(&guest, DATA, WRITE)), (Err(1), Err(3)));
    guest.state.registers.rflags |= RFLAGS_AC;
    assert_eq!((look(&guest, DATA, READ), look(&guest, DATA, WRITE)), (Ok(DATA), Ok(DATA)));
    // No flag excuses the processor's own accesses.
    assert_eq!(look(&guest, DATA, SYSTEM), Err(1));
    guest.state.special.ss.dpl = 3;
    assert_eq!(look(&guest, DATA, SYSTEM), Err(1));
    assert_eq!(look(&guest, DATA, FETCH), Ok(DATA));
}

#[test]
fn reserved_bits_are_a_fault_of_their_own() {
    let mut guest = guest(P | 1 << 51, 0);
    let above = u64::from(physical_address_bits());
    if above < 52 {
        assert_eq!(look(&guest, DATA, READ), Err(9));
    }
    guest.map(DATA, DATA | P | NO_EXECUTE);
    guest.state.special.efer &= !EFER_NXE;
    assert_eq!(look(&guest, DATA, READ), Err(9));
    // A fetch is told apart only where something could forbid it.
    assert_eq!(look(&guest, DATA, FETCH), Err(9));
    guest.state.special.cr4 |= CR4_SMEP;
    assert_eq!(look(&guest, DATA, FETCH), Err(25));
    // One that is not present has no reserved bits.
    guest.map(DATA, NO_EXECUTE);
    assert_eq!(look(&guest, DATA, READ), Err(0));
    // The root can be no page.
    guest.put(0x1000, &0x83_u64.to_le_bytes());
    assert_eq!(look(&guest, DATA, WRITE), Err(11));
}

#[test]
fn what_was_used_is_marked_and_what_faulted_is_not() {
    let guest = guest(P | W, 0);
    let marks = || [0x1000, 0x2000, 0x3000, LAST_TABLE + (DATA >> 9)].map(|at| guest.word(at) & (A | D));
    guest.map(DATA, DATA | P);
    assert!(look(&guest, DATA, WRITE).is_err());
    assert_eq!(marks(), [0; 4]);
    assert!(look(&guest, DATA, READ).is_ok());
    assert_eq!(marks(), [A; 4]);
    guest.map(DATA, DATA | P | W);
    assert!(look(&guest, DATA, WRITE).is_ok());
    assert_eq!(marks(), [A, A, A, A | D]);
}

#[test]
fn large_pages_are_marked_where_they_are() {
    let guest = guest(P, 0);
    guest.put(0x3000, &(0x83_u64).to_le_bytes());
    assert_eq!(look(&guest, 0x1_2345, WRITE), Ok(0x1_2345));
    assert_eq!(guest.word(0x3000), 0x83 | A | D);
    assert_eq!(guest.word(0x2000) & (A | D), A);
}

#[test]
fn five_levels_are_walked_and_marked() {
    let mut guest = guest(P | W, 0);
    guest.put(0x9000, &(0x1000 | P | W).to_le_bytes());
    guest.state.special.cr3 = 0x9000;
    guest.state.special.cr4 |= CR4_LA57;
    assert_eq!(look(&guest, DATA, WRITE), Ok(DATA));
    assert_eq!(guest.word(0x9000) & (A | D), A);
    assert_eq!(look(&guest, 1 << 50, READ), Err(0));
}

#[test]
fn in_pae_mode_the_root_has_neither_rights_nor_marks() {
    let mut guest = guest(P | W | U, 3);
    guest.state.special.efer &= !EFER_LMA;
    guest.state.special.cr3 = 0x9020;
    guest.put(0x9020, &(0x3000 | P).to_le_bytes());
    assert_eq!(look(&guest, DATA, WRITE), Ok(DATA));
    assert_eq!(guest.word(0x9020), 0x3000 | P);
    assert_eq!(guest.word(0x3000) & (A | D), A);
    guest.put(0x9020, &(0x3000 | P | W).to_le_bytes());
    assert_eq!(look(&guest, DATA, READ), Err(13));
    guest.put(0x9020, &(0x3000 | P).to_le_bytes());
    guest.map(DATA, DATA | P | U | 1 << 55);
    assert_eq!(look(&guest, DATA, READ), Err(13));
}

#[test]
fn narrow_entries_have_the_same_rights_and_marks() {
    let mut guest = guest(0, 3);
    let special = &mut guest.state.special;
    special.efer = 0;
    special.cr4 = CR4_PSE;
    special.cr3 = 0x9000;
    let put = |at, entry: u32| guest.put(at, &entry.to_le_bytes());
    put(0x9000, 0xa007);
    put(0xa000 + 4 * 0x10, 0x1_0005);
    put(0xa000 + 4 * 0x11, 0x1_1003);
    assert_eq!(look(&guest, 0x1_0123, READ), Ok(0x1_0123));
    assert_eq!(look(&guest, 0x1_0123, WRITE), Err(7));
    assert_eq!(look(&guest, 0x1_1123, READ), Err(5));
    assert_eq!(look(&guest, 0x1_2000, READ), Err(4));
    // Nothing forbids fetches here, and no error code tells of one.
    assert_eq!(look(&guest, 0x1_1123, FETCH), Err(5));
    assert_eq!(guest.get(0xa040), 0x1_0025_u32.to_le_bytes());
    assert_eq!(guest.get(0xa044), 0x1_1003_u32.to_le_bytes());
    put(0x9004, 0x0040_0087);
    assert_eq!(look(&guest, 0x40_0000, WRITE), Ok(0x40_0000));
    assert_eq!(guest.get(0x9004), 0x0040_00e7_u32.to_le_bytes());
}

#[test]
fn without_paging_everything_is_allowed_and_32_bits_wide() {
    let guest = Guest::new().protected();
    assert_eq!(look(&guest, 0x1_0000_1234, WRITE), Ok(0x1234));
}

#[test]
fn tables_in_no_memory_are_beyond() {
    let guest = guest(P | W, 0);
    guest.put(0x3000, &(SIZE | P | W).to_le_bytes());
    guest.vcpu.restore(&guest.state).unwrap();
    let cpu = Cpu::load(&guest.vcpu, &guest.memory).unwrap();
    let Err(Stop::Beyond(beyond)) = cpu.translate(DATA, READ) else { panic!() };
    assert!(beyond.text.contains("outside memory"), "{beyond}");
}

#[test]
fn pages_with_a_protection_key_are_beyond_and_others_are_not() {
    let mut guest = guest(P | W | U | 1 << 59, 3);
    assert_eq!(look(&guest, DATA, READ), Ok(DATA));
    guest.state.special.cr4 |= CR4_PKE;
    guest.vcpu.restore(&guest.state).unwrap();
    let cpu = Cpu::load(&guest.vcpu, &guest.memory).unwrap();
    assert!(matches!(cpu.translate(DATA, READ), Err(Stop::Beyond(_))));
    assert!(cpu.translate(DATA, FETCH).is_ok());
    guest.map(DATA, DATA | P | U);
    assert_eq!(look(&guest, DATA, READ), Ok(DATA));
}

#[test]
fn two_processors_marking_one_entry_lose_no_bit() {
    let guest = guest(P | W, 0);
    guest.vcpu.restore(&guest.state).unwrap();
    let at = vm_memory::GuestAddress(LAST_TABLE + (DATA >> 9));
    let memory = &guest.memory;
    // What a guest's other processor might do: bits of its own, set in the same entry, at the same time.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..20_000 {
                let slice = memory.mapped().get_slice(at, 8).unwrap();
                slice.get_atomic_ref::<AtomicU64>(0).unwrap().fetch_xor(1 << 9, Ordering::SeqCst);
            }
        });
        let cpu = Cpu::load(&guest.vcpu, memory).unwrap();
        for _ in 0..5_000 {
            cpu.translate(DATA, WRITE).unwrap();
            let slice = memory.mapped().get_slice(at, 8).unwrap();
            let before = slice.get_atomic_ref::<AtomicU64>(0).unwrap().fetch_and(!(A | D), Ordering::SeqCst);
            assert_eq!(before & (A | D), A | D);
        }
    });
    assert_eq!(memory.mapped().read_obj::<u64>(at).unwrap() & 1 << 9, 0, "an even number of changes");
}
