//! Finding the instruction at RIP.

use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction};

use super::{Cpu, Fault, Stop};
use crate::memory::PAGE_SIZE;

/// The longest that an instruction can be.
const LONGEST: usize = 15;

/// The instruction at CS:RIP, with what fetching and decoding it may raise.
pub(super) fn decode(cpu: &Cpu<'_>) -> Result<Instruction, Stop> {
    let (linear, in_segment) = place(cpu)?;
    let mut bytes = [0; LONGEST];
    let within = LONGEST.min(in_segment);
    let in_page = ((PAGE_SIZE - linear % PAGE_SIZE) as usize).min(within);
    cpu.fetch(linear, &mut bytes[..in_page])?;
    let mut decoded = decode_bytes(cpu, &bytes[..in_page]);
    if decoded.1 == DecoderError::NoMoreBytes && in_page < within {
        // What lies on the next page belongs to it.
        cpu.fetch(linear.wrapping_add(in_page as u64), &mut bytes[in_page..within])?;
        decoded = decode_bytes(cpu, &bytes[..within]);
    }
    match decoded {
        (instruction, DecoderError::None) => Ok(instruction),
        // It is longer than the segment.
        (_, DecoderError::NoMoreBytes) => Err(Fault::PROTECTION.into()),
        _ if within == LONGEST && is_too_long(cpu, &bytes) => Err(Fault::PROTECTION.into()),
        _ => Err(Fault::UNDEFINED.into()),
    }
}

/// Whether what is no instruction is one that would be longer than instructions can be. The decoder tells no
/// difference, but it would have to see the last byte, too.
fn is_too_long(cpu: &Cpu<'_>, bytes: &[u8; LONGEST]) -> bool {
    decode_bytes(cpu, &bytes[..LONGEST - 1]).1 == DecoderError::NoMoreBytes
}

fn decode_bytes(cpu: &Cpu<'_>, bytes: &[u8]) -> (Instruction, DecoderError) {
    let mut decoder = Decoder::with_ip(cpu.code_bits(), bytes, pointer(cpu), DecoderOptions::NONE);
    let instruction = decoder.decode();
    (instruction, decoder.last_error())
}

/// RIP, EIP or IP.
fn pointer(cpu: &Cpu<'_>) -> u64 {
    match cpu.code_bits() {
        64 => cpu.general.rip,
        32 => cpu.general.rip & 0xffff_ffff,
        _ => cpu.general.rip & 0xffff,
    }
}

/// Where the instruction begins, and how many bytes may follow in its segment.
fn place(cpu: &Cpu<'_>) -> Result<(u64, usize), Stop> {
    let pointer = pointer(cpu);
    if cpu.is_64_bit() {
        return match cpu.is_canonical(pointer) {
            true => Ok((pointer, LONGEST)),
            false => Err(Fault::PROTECTION.into()),
        };
    }
    let cs = &cpu.special.cs;
    let left = u64::from(cs.limit).checked_sub(pointer).ok_or(Fault::PROTECTION)?;
    let linear = cs.base.wrapping_add(pointer) & 0xffff_ffff;
    Ok((linear, usize::try_from(left).unwrap_or(LONGEST).saturating_add(1)))
}

/// The pointer behind the instruction, as wide as the code's pointers are.
pub(super) fn next(cpu: &Cpu<'_>, instruction: &Instruction) -> u64 {
    let next = pointer(cpu).wrapping_add(instruction.len() as u64);
    match cpu.code_bits() {
        64 => next,
        32 => next & 0xffff_ffff,
        _ => next & 0xffff,
    }
}

#[cfg(test)]
#[path = "decode_test.rs"]
mod tests;
