//! Operands of which only some elements are touched.
//!
//! Elements whose mask bit is clear are not written, and may lie where no memory is. Intel SDM volume 2, "VMASKMOV",
//! and volume 1, "Opmask Registers", of fault suppression.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::x86::complete::vectors::{get_mask, get_vector};
use crate::x86::complete::{Cpu, Stop};

/// Which bytes of its memory operand an instruction touches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Touched {
    /// All of them.
    All,
    /// Those whose bit is set.
    Bytes(u64),
    /// Those whose bit is set, but the others have to be there as well.
    Checked(u64),
    /// Perhaps not all, depending on its mask and on what it does: the processor knows.
    Unknown,
}

/// Which bytes of its memory operand the instruction touches.
pub(super) fn touched(cpu: &mut Cpu<'_>, instruction: &Instruction) -> Result<Touched, Stop> {
    let memory = instruction.memory_size();
    let (size, element) = (memory.size(), memory.element_size().max(1));
    if let Some(element) = sign_masked(instruction.mnemonic()) {
        let mask = get_vector(cpu.vectors()?, instruction.op1_register().number());
        let is_set = |index: usize| mask[(index + 1) * element - 1] >> 7 != 0;
        return Ok(Touched::Bytes(bytes_of(size, element, is_set)));
    }
    let register = instruction.op_mask();
    if register == Register::None {
        return Ok(Touched::All);
    }
    let mask = get_mask(cpu.vectors()?, register.number());
    let stores = instruction.op0_kind() == OpKind::Memory;
    if is_compressed(instruction.mnemonic()) {
        let lanes = size / element;
        let count = (mask & low_bits(lanes)).count_ones() as usize;
        return Ok(Touched::Bytes(low_bits(count * element)));
    }
    if is_extraction(instruction.mnemonic()) {
        return Ok(Touched::Checked(bytes_of(size, element, |index| mask >> index & 1 != 0)));
    }
    if stores || moves_elements(instruction.mnemonic()) {
        return Ok(Touched::Bytes(bytes_of(size, element, |index| mask >> index & 1 != 0)));
    }
    Ok(Touched::Unknown)
}

fn low_bits(count: usize) -> u64 {
    if count >= 64 { u64::MAX } else { (1 << count) - 1 }
}

fn bytes_of(size: usize, element: usize, is_set: impl Fn(usize) -> bool) -> u64 {
    let elements = (0..size.min(64) / element).filter(|&index| is_set(index));
    elements.fold(0, |all, index| all | low_bits(element) << (index * element))
}

/// The element size of those whose mask is the signs of a vector register.
fn sign_masked(mnemonic: Mnemonic) -> Option<usize> {
    match mnemonic {
        Mnemonic::Vmaskmovps | Mnemonic::Vpmaskmovd => Some(4),
        Mnemonic::Vmaskmovpd | Mnemonic::Vpmaskmovq => Some(8),
        _ => None,
    }
}

/// In memory the elements with a mask bit lie side by side.
fn is_compressed(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Vcompressps
            | M::Vcompresspd
            | M::Vpcompressb
            | M::Vpcompressw
            | M::Vpcompressd
            | M::Vpcompressq
            | M::Vexpandps
            | M::Vexpandpd
            | M::Vpexpandb
            | M::Vpexpandw
            | M::Vpexpandd
            | M::Vpexpandq
    )
}

/// Stores of a part of a register, whose masks suppress no faults (exception class E6NF).
fn is_extraction(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Vextractf32x4
            | M::Vextractf32x8
            | M::Vextractf64x2
            | M::Vextractf64x4
            | M::Vextracti32x4
            | M::Vextracti32x8
            | M::Vextracti64x2
            | M::Vextracti64x4
    )
}

/// Loads in which each element in memory is that of the same mask bit.
fn moves_elements(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Vmovdqu8
            | M::Vmovdqu16
            | M::Vmovdqu32
            | M::Vmovdqu64
            | M::Vmovdqa32
            | M::Vmovdqa64
            | M::Vmovups
            | M::Vmovupd
            | M::Vmovaps
            | M::Vmovapd
            | M::Vmovss
            | M::Vmovsd
    )
}
