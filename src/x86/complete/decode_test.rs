//! Fetching: rights, page ends, segment ends and the longest instruction.

use crate::x86::complete::testing::{CODE, Guest, PRESENT};
use crate::x86::mode::EFER_NXE;

const POPCNT: [u8; 5] = [0xf3, 0x48, 0x0f, 0xb8, 0xc8]; // popcnt rcx, rax

#[test]
fn an_instruction_may_begin_on_one_page_and_end_on_the_next() {
    let mut guest = Guest::new();
    guest.state.registers.rip = CODE + 0xffd;
    guest.works(&POPCNT);
    // One that ends with the page needs no next one.
    guest.map(CODE + 0x1000, 0);
    guest.state.registers.rip = CODE + 0xffb;
    guest.works(&POPCNT);
}

#[test]
fn a_page_that_cannot_be_fetched_from_is_told_with_its_own_address() {
    let mut guest = Guest::new();
    guest.state.special.efer |= EFER_NXE;
    guest.map(CODE + 0x1000, (CODE + 0x1000) | PRESENT | 1 << 63);
    guest.state.registers.rip = CODE + 0xffd;
    guest.raises(&POPCNT, 14, Some(17));
    assert_eq!(guest.state.special.cr2, CODE + 0x1000);
    guest.map(CODE, CODE);
    guest.raises(&POPCNT, 14, Some(16));
    assert_eq!(guest.state.special.cr2, CODE + 0xffd);
}

#[test]
fn more_than_fifteen_bytes_are_a_protection_fault() {
    let mut guest = Guest::new();
    let mut code = [0x66; 16];
    code[11..].copy_from_slice(&[0x0f, 0x6f, 0xc8, 0x90, 0x90]); // movdqa xmm1, xmm0
    guest.works(&code[..14]);
    code = [0x66; 16];
    code[13..].copy_from_slice(&[0x0f, 0x6f, 0xc8]);
    guest.raises(&code, 13, Some(0));
}

#[test]
fn what_is_no_instruction_is_undefined() {
    let mut guest = Guest::new();
    for code in [&[0x06][..], &[0x0f, 0x0b], &[0x0f, 0xff, 0xc0], &[0xf0, 0x0f, 0xc7, 0xc8]] {
        guest.raises(code, 6, None);
    }
}

#[test]
fn a_segment_ends_at_its_limit() {
    let mut guest = Guest::new().protected();
    let code = &[0xf3, 0x0f, 0xb8, 0xc8]; // popcnt ecx, eax
    guest.state.special.cs.limit = CODE as u32 + 3;
    guest.works(code);
    guest.state.special.cs.limit -= 1;
    guest.raises(code, 13, Some(0));
    guest.state.special.cs.limit = 0x10;
    guest.raises(code, 13, Some(0));
}

#[test]
fn the_pointer_is_as_wide_as_the_code() {
    let mut guest = Guest::new().protected();
    guest.state.special.cs.base = 0x1_8004;
    guest.state.registers.rip = 0xffff_fffc;
    guest.run(&[0xf3, 0x0f, 0xb8, 0xc8]).unwrap();
    assert_eq!(guest.state.registers.rip, 0);
    let mut guest = Guest::new().real();
    guest.state.special.cs.base = 0x1_0000;
    guest.state.registers.rax = 0xffff_0003;
    guest.works(&[0xf3, 0x0f, 0xb8, 0xc8]); // popcnt cx, ax
    assert_eq!(guest.state.registers.rcx, 2);
}

#[test]
fn a_pointer_that_is_not_canonical_is_a_protection_fault() {
    let mut guest = Guest::new();
    guest.state.registers.rip = 1 << 47;
    guest.go().unwrap();
    assert_eq!(guest.exceptions()[0].vector, 13);
}
