//! Which flags the manuals define after an instruction: Intel SDM volume 2, "Flags affected", and AMD's where it says
//! less.

use iced_x86::{Mnemonic as M, OpKind};

use super::cases::Case;

const CARRY: u64 = 1 << 0;
const PARITY: u64 = 1 << 2;
const ADJUST: u64 = 1 << 4;
const ZERO: u64 = 1 << 6;
const SIGN: u64 = 1 << 7;
const OVERFLOW: u64 = 1 << 11;

/// The bits of RFLAGS that can be compared after `case`.
pub fn flags(case: &Case) -> u64 {
    !undefined(case)
}

fn undefined(case: &Case) -> u64 {
    match case.instruction.mnemonic() {
        M::And | M::Or | M::Xor | M::Test => ADJUST,
        M::Mul | M::Imul => SIGN | ZERO | ADJUST | PARITY,
        M::Div | M::Idiv => CARRY | OVERFLOW | SIGN | ZERO | ADJUST | PARITY,
        M::Bt | M::Bts | M::Btr | M::Btc => OVERFLOW | SIGN | ADJUST | PARITY,
        M::Bsf | M::Bsr => CARRY | OVERFLOW | SIGN | ADJUST | PARITY,
        M::Tzcnt | M::Lzcnt => OVERFLOW | SIGN | ADJUST | PARITY,
        M::Shl | M::Sal | M::Shr => shift(case, ADJUST, true),
        M::Sar | M::Shld | M::Shrd => shift(case, ADJUST, false),
        M::Rol | M::Ror => shift(case, 0, false),
        _ => 0,
    }
}

fn shift(case: &Case, always: u64, loses_carry: bool) -> u64 {
    const RCX: usize = 1;
    let instruction = &case.instruction;
    let bits = 8 * match instruction.op0_kind() {
        OpKind::Register => instruction.op0_register().size(),
        _ => instruction.memory_size().size(),
    } as u64;
    let last = instruction.op_count() - 1;
    let count = instruction.try_immediate(last).unwrap_or(case.general[RCX]);
    match count & if bits == 64 { 63 } else { 31 } {
        0 => 0,
        1 => always,
        count if loses_carry && count >= bits => always | OVERFLOW | CARRY,
        _ => always | OVERFLOW,
    }
}
