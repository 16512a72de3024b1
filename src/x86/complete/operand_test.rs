//! Effective addresses, segments and limits in the three kinds of code.

use iced_x86::{Decoder, DecoderOptions};

use super::*;
use crate::hv::{Registers, Vcpu};
use crate::x86::complete::testing::{CODE, Guest};

const AT: u64 = CODE;

fn address(guest: &Guest, code: &[u8], purpose: Purpose) -> Result<u64, u8> {
    guest.vcpu.restore(&guest.state).unwrap();
    let cpu = Cpu::load(&guest.vcpu, &guest.memory).unwrap();
    let instruction = Decoder::with_ip(cpu.code_bits(), code, AT, DecoderOptions::NONE).decode();
    let size = instruction.memory_size().size() as u64;
    memory_operand(&cpu, &instruction, size, purpose).map_err(|stop| match stop {
        Stop::Fault(fault) => {
            assert_eq!(fault.exception.error_code, Some(0));
            fault.exception.vector
        }
        other => panic!("{other:?}"),
    })
}

fn with(registers: Registers, change: impl FnOnce(&mut Guest)) -> Guest {
    let mut guest = Guest::new();
    guest.state.registers = Registers { rip: CODE, rflags: 2, ..registers };
    change(&mut guest);
    guest
}

#[test]
fn base_index_scale_and_displacement_add_up_in_64_bits() {
    let registers = Registers { rbx: 0x1000, r9: 0x20, rax: u64::MAX, ..Registers::default() };
    let guest = with(registers, |_| {});
    // mov ecx, [rbx + r9 * 4 + 0x10]
    assert_eq!(address(&guest, &[0x42, 0x8b, 0x4c, 0x8b, 0x10], Purpose::Read), Ok(0x1090));
    // mov ecx, [rbx - 8]
    assert_eq!(address(&guest, &[0x8b, 0x4b, 0xf8], Purpose::Read), Ok(0xff8));
    // mov ecx, [rip - 2]
    assert_eq!(address(&guest, &[0x8b, 0x0d, 0xfe, 0xff, 0xff, 0xff], Purpose::Read), Ok(AT + 4));
    // mov ecx, [eip - 2]
    assert_eq!(address(&guest, &[0x67, 0x8b, 0x0d, 0xfe, 0xff, 0xff, 0xff], Purpose::Read), Ok(AT + 5));
    // mov ecx, [eax + ebx]: cut to 32 bits.
    assert_eq!(address(&guest, &[0x67, 0x8b, 0x0c, 0x18], Purpose::Read), Ok(0xfff));
    // mov ecx, [0xfffffffffffff000], and the same with 32 bits of address
    let absolute = [0x8b, 0x0c, 0x25, 0x00, 0xf0, 0xff, 0xff];
    assert_eq!(address(&guest, &absolute, Purpose::Read), Ok(0xffff_ffff_ffff_f000));
    let narrow = [[0x67].as_slice(), &absolute].concat();
    assert_eq!(address(&guest, &narrow, Purpose::Read), Ok(0xffff_f000));
}

#[test]
fn in_64_bit_code_only_fs_and_gs_have_bases() {
    let guest = with(Registers { rbx: 0x1000, ..Registers::default() }, |guest| {
        let special = &mut guest.state.special;
        [special.ds.base, special.es.base, special.ss.base, special.cs.base] = [0x100_0000; 4];
        (special.fs.base, special.gs.base) = (0x10_0000, 0xffff_8000_0000_0000);
        special.ds.limit = 0;
    });
    let code = |prefix: &[u8]| [prefix, &[0x8b, 0x0b]].concat(); // mov ecx, [rbx]
    for prefix in [&[][..], &[0x26], &[0x2e], &[0x36], &[0x3e]] {
        assert_eq!(address(&guest, &code(prefix), Purpose::Write), Ok(0x1000));
    }
    assert_eq!(address(&guest, &code(&[0x64]), Purpose::Read), Ok(0x10_1000));
    assert_eq!(address(&guest, &code(&[0x65]), Purpose::Read), Ok(0xffff_8000_0000_1000));
}

#[test]
fn addresses_that_are_not_canonical_are_faults_of_their_segment() {
    let bad = (1 << 47) - 2;
    let guest = with(Registers { rbx: bad, rbp: bad, rsp: bad, ..Registers::default() }, |_| {});
    assert_eq!(address(&guest, &[0x8b, 0x0b], Purpose::Read), Err(13)); // mov ecx, [rbx]
    assert_eq!(address(&guest, &[0x66, 0x8b, 0x0b], Purpose::Read), Ok(bad)); // mov cx, [rbx]
    assert_eq!(address(&guest, &[0x8b, 0x4d, 0x00], Purpose::Read), Err(12)); // mov ecx, [rbp]
    assert_eq!(address(&guest, &[0x8b, 0x0c, 0x24], Purpose::Read), Err(12)); // mov ecx, [rsp]
    assert_eq!(address(&guest, &[0x64, 0x8b, 0x4d, 0x00], Purpose::Read), Err(13)); // mov ecx, fs:[rbp]
}

#[test]
fn legacy_segments_have_bases_limits_and_rights() {
    let mut guest = Guest::new().protected();
    guest.state.registers.rbx = 0x1000;
    guest.state.registers.rbp = 0x1000;
    let code = [0x8b, 0x0b]; // mov ecx, [ebx]
    let stack = [0x8b, 0x4d, 0x00]; // mov ecx, [ebp]
    guest.state.special.ds.base = 0xffff_f800;
    assert_eq!(address(&guest, &code, Purpose::Read), Ok(0x800));
    guest.state.special.ds.limit = 0x1003;
    assert_eq!(address(&guest, &code, Purpose::Write), Ok(0x800));
    guest.state.special.ds.limit = 0x1002;
    assert_eq!(address(&guest, &code, Purpose::Read), Err(13));
    guest.state.special.ss.limit = 0x1002;
    assert_eq!(address(&guest, &stack, Purpose::Read), Err(12));
    assert_eq!(address(&guest, &[0x2e, 0x8b, 0x0b], Purpose::Read), Ok(0x1000));
    assert_eq!(address(&guest, &[0x2e, 0x8b, 0x0b], Purpose::Write), Err(13));
    guest.state.special.cs.kind &= !KIND_ACCESSIBLE;
    assert_eq!(address(&guest, &[0x2e, 0x8b, 0x0b], Purpose::Read), Err(13));
    guest.state.special.es.kind &= !KIND_ACCESSIBLE;
    assert_eq!(address(&guest, &[0x26, 0x8b, 0x0b], Purpose::Read), Ok(0x1000));
    assert_eq!(address(&guest, &[0x26, 0x8b, 0x0b], Purpose::Write), Err(13));
    guest.state.special.es.unusable = true;
    assert_eq!(address(&guest, &[0x26, 0x8b, 0x0b], Purpose::Read), Err(13));
}

#[test]
fn a_segment_that_grows_down_begins_behind_its_limit() {
    let mut guest = Guest::new().protected();
    guest.state.special.ds.kind |= KIND_EXPAND_DOWN;
    guest.state.special.ds.limit = 0xfff;
    let at = |guest: &mut Guest, rbx| {
        guest.state.registers.rbx = rbx;
        address(guest, &[0x8b, 0x0b], Purpose::Read)
    };
    assert_eq!(at(&mut guest, 0x1000), Ok(0x1000));
    assert_eq!(at(&mut guest, 0xfff), Err(13));
    assert_eq!(at(&mut guest, 0xffff_fffc), Ok(0xffff_fffc));
    assert_eq!(at(&mut guest, 0xffff_fffd), Err(13));
    guest.state.special.ds.default_big = false;
    assert_eq!(at(&mut guest, 0xfffc), Ok(0xfffc));
    assert_eq!(at(&mut guest, 0xfffd), Err(13));
}

#[test]
fn real_mode_adds_16_bits_and_a_paragraph() {
    let mut guest = Guest::new().real();
    let registers = &mut guest.state.registers;
    (registers.rbx, registers.rsi, registers.rbp) = (0x1_fff0, 0x30, 0xfffe);
    guest.state.special.ds.base = 0x1_2340;
    guest.state.special.ss.base = 0x4_0000;
    assert_eq!(address(&guest, &[0x8b, 0x08], Purpose::Read), Ok(0x1_2360)); // mov cx, [bx + si]
    assert_eq!(address(&guest, &[0x8b, 0x4e, 0x00], Purpose::Read), Ok(0x4_fffe)); // mov cx, [bp]
    assert_eq!(address(&guest, &[0x8b, 0x4e, 0x01], Purpose::Read), Err(12)); // mov cx, [bp + 1]
    assert_eq!(address(&guest, &[0x2e, 0x89, 0x0e, 0x34, 0x12], Purpose::Write), Ok(0x1234)); // mov cs:[0x1234], cx
    // mov cx, [ebx]: an offset of 32 bits beyond the limit.
    assert_eq!(address(&guest, &[0x67, 0x8b, 0x0b], Purpose::Read), Err(13));
}
