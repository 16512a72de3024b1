//! Where code goes on, and bytes that do not mean what they seem to.

use super::*;

#[test]
fn returns_find_the_selector_where_their_operand_size_puts_it() {
    // retf with 32-bit operands, with 64-bit ones, with 16-bit ones, and one that pops 0x0f bytes more
    for (code, selector) in [(&[0xcb][..], 4), (&[0x48, 0xcb], 8), (&[0x66, 0xcb], 2), (&[0xca, 0x0f, 0], 4)]
    {
        let mut bench = Bench::with(code);
        for ring in [0, 3] {
            bench.put(STACK, 0);
            bench.bytes(STACK + selector, &[0x30 | ring]);
            let expected = if ring == 3 { Leave::ToUser } else { Leave::Step };
            assert_eq!(bench.run(), expected, "{code:x?}");
            bench.bytes(STACK, &[0; 16]);
        }
    }
}

#[test]
fn branches_that_processors_disagree_about_are_left_alone() {
    // Each with an operand-size prefix: jmp, call, jz, ret, jmp rax, jrcxz
    let branches: [&[u8]; 6] =
        [&[0xeb, 0], &[0xe8, 0, 0, 0, 0], &[0x74, 0], &[0xc3], &[0xff, 0xe0], &[0xe3, 0]];
    for branch in branches {
        for prefixes in [&[0x66][..], &[0x2e, 0x66], &[0x66, 0x48]] {
            let mut bench = Bench::with(&[prefixes, branch].concat());
            bench.put(STACK, CODE + 0x100);
            bench.expect_untouched();
        }
    }
    // movsxd r12w, [rsi]: how much of memory it reads
    Bench::with(&[0x66, 0x44, 0x63, 0x26]).expect_untouched();
}

#[test]
fn a_pause_with_another_register_is_an_exchange() {
    // rep nop with REX.B: processors exchange R8 and RAX
    Bench::with(&[0xf3, 0x41, 0x90]).expect_untouched();
    let mut bench = Bench::with(&[0xf3, 0x90, END]);
    assert_eq!(bench.run(), Leave::Step);
    assert_eq!(bench.soft.executed(), 1);
}

#[test]
fn jumps_out_of_the_canonical_addresses_are_left_in_front_of_them() {
    const LAST: u64 = 0x7fff_ffff_f000;
    // jmp to the next page; a call there; jz there; jmp rax; ret
    let branches: [&[u8]; 5] =
        [&[0xe9, 0, 0x10, 0, 0], &[0xe8, 0, 0x10, 0, 0], &[0x74, 0x7f], &[0xff, 0xe0], &[0xc3]];
    for branch in branches {
        let mut bench = Bench::with(&[]);
        bench.map_at(LAST, CODE);
        bench.general.rip = LAST + 0xf90;
        bench.bytes(CODE + 0xf90, branch);
        bench.general.rax = 1 << 47;
        bench.put(STACK, 1 << 47);
        bench.general.rflags |= flag::ZERO;
        bench.expect_untouched();
        assert_eq!(bench.soft.executed(), 0);
    }
}

#[test]
fn code_that_became_valid_is_decoded_anew() {
    // An instruction that does not exist; in its place: nop word [rax]
    let mut bench = Bench::with(&[0x0f, 0x04, 0xc0, 0x90, END]);
    bench.expect_untouched();
    bench.bytes(CODE, &[0x0f, 0x1f, 0x00]);
    assert_eq!(bench.run(), Leave::Step);
    assert_eq!(bench.soft.executed(), 2);
}

#[test]
fn code_is_looked_for_again_where_another_page_has_taken_its_place() {
    // mov al, 1; invlpg [rsi]; hlt, and in another page the same with 2
    let code = |number| [0xb0, number, 0x0f, 0x01, 0x3e, END];
    let mut bench = Bench::with(&code(1));
    bench.bytes(DATA, &code(2));
    bench.general.rsi = CODE;
    for (page, number, space) in [(CODE, 1, 0), (DATA, 2, 0), (CODE, 1, 0), (CODE, 1, 8), (DATA, 2, 16)] {
        bench.put(LAST_TABLE + CODE / PAGE_SIZE * 8, page | PLAIN);
        bench.special.cr3 = ROOT | space;
        for _ in 0..2 {
            (bench.general.rip, bench.general.rax) = (CODE, 0);
            assert_eq!(bench.run(), Leave::Step);
        }
        // The first time it may still have been the other one.
        assert_eq!(bench.general.rax, number);
    }
}

#[test]
fn a_halt_is_told_from_other_instructions_of_the_hypervisors() {
    let mut bench = Bench::with(&[0x90, 0xf4]);
    assert_eq!(bench.soft.run(&mut bench.general, &bench.special), Leave::Halt);
    assert_eq!(bench.general.rip, CODE + 1);
}
