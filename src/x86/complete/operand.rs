//! Where an instruction's memory operand lies: effective address, segment, limit.
//!
//! Intel SDM volume 1, "Operand Addressing"; volume 3, "Limit Checking" and "Segment Loading Instructions in
//! IA-32e Mode".

use iced_x86::{CodeSize, Instruction, Register};

use super::rights::Purpose;
use super::{Cpu, Fault, Stop, registers};
use crate::hv::Segment;

const KIND_CODE: u8 = 1 << 3;
/// Of data: the limit is the lowest offset that is not in the segment.
const KIND_EXPAND_DOWN: u8 = 1 << 2;
/// Of data: writable. Of code: readable.
const KIND_ACCESSIBLE: u8 = 1 << 1;

/// The linear address of the instruction's memory operand, which is checked to be one that can be read.
pub fn memory_address(cpu: &Cpu<'_>, instruction: &Instruction) -> Result<u64, Stop> {
    let size = instruction.memory_size().size().max(1);
    memory_operand(cpu, instruction, size as u64, Purpose::Read)
}

/// The linear address of a memory operand of `size` bytes. Whether a page is there is not looked at.
pub fn memory_operand(
    cpu: &Cpu<'_>,
    instruction: &Instruction,
    size: u64,
    purpose: Purpose,
) -> Result<u64, Stop> {
    linear_address(cpu, instruction, offset(cpu, instruction), size, purpose)
}

/// The linear address of `size` bytes at `offset` in the segment that the instruction uses.
pub(super) fn linear_address(
    cpu: &Cpu<'_>,
    instruction: &Instruction,
    offset: u64,
    size: u64,
    purpose: Purpose,
) -> Result<u64, Stop> {
    let name = instruction.memory_segment();
    let segment = segment(cpu, name);
    if cpu.is_64_bit() {
        let has_base = matches!(name, Register::FS | Register::GS);
        let linear = offset.wrapping_add(if has_base { segment.base } else { 0 });
        let last = linear.wrapping_add(size.max(1) - 1);
        if cpu.is_canonical(linear) && cpu.is_canonical(last) {
            return Ok(linear);
        }
        return Err(outside(is_on_stack(instruction, name)).into());
    }
    if !is_within(cpu, segment, offset, size, purpose) {
        return Err(outside(name == Register::SS).into());
    }
    Ok(segment.base.wrapping_add(offset) & 0xffff_ffff)
}

/// The address within the segment: the sum of base, scaled index and displacement, cut to the address size.
pub(super) fn offset(cpu: &Cpu<'_>, instruction: &Instruction) -> u64 {
    offset_moved_by(cpu, instruction, 0)
}

/// The address `away` bytes from it, cut to the address size.
pub(super) fn offset_moved_by(cpu: &Cpu<'_>, instruction: &Instruction, away: u64) -> u64 {
    if instruction.is_ip_rel_memory_operand() {
        let bytes = if instruction.memory_base() == Register::EIP { 4 } else { 8 };
        return instruction.ip_rel_memory_address().wrapping_add(away) & mask(bytes);
    }
    let index = registers::get(&cpu.general, instruction.memory_index());
    let scaled = index.wrapping_mul(u64::from(instruction.memory_index_scale()));
    offset_with_index(cpu, instruction, scaled.wrapping_add(away))
}

/// The same with another index, already scaled.
pub(super) fn offset_with_index(cpu: &Cpu<'_>, instruction: &Instruction, scaled: u64) -> u64 {
    let base = registers::get(&cpu.general, instruction.memory_base());
    let sum = base.wrapping_add(scaled).wrapping_add(instruction.memory_displacement64());
    sum & mask(address_bytes(instruction))
}

fn mask(bytes: usize) -> u64 {
    match bytes {
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    }
}

/// How many bytes the instruction's addresses have: what a register used in one has; else the displacement's
/// size, which the decoder derives from the address size; else the code's.
fn address_bytes(instruction: &Instruction) -> usize {
    let used = [instruction.memory_base(), instruction.memory_index()];
    if let Some(register) = used.into_iter().find(|register| register.is_gpr()) {
        return register.size();
    }
    match (instruction.memory_displ_size(), instruction.code_size()) {
        (size @ 2.., _) => size as usize,
        (_, CodeSize::Code16) => 2,
        (_, CodeSize::Code32) => 4,
        _ => 8,
    }
}

fn segment<'c>(cpu: &'c Cpu<'_>, name: Register) -> &'c Segment {
    match name {
        Register::ES => &cpu.special.es,
        Register::CS => &cpu.special.cs,
        Register::SS => &cpu.special.ss,
        Register::FS => &cpu.special.fs,
        Register::GS => &cpu.special.gs,
        _ => &cpu.special.ds,
    }
}

/// In 64-bit code only the base register decides whether an access is one to the stack.
fn is_on_stack(instruction: &Instruction, segment: Register) -> bool {
    let stack = matches!(instruction.memory_base().full_register(), Register::RSP | Register::RBP);
    stack && !matches!(segment, Register::FS | Register::GS)
}

fn outside(stack: bool) -> Fault {
    if stack { Fault::STACK } else { Fault::PROTECTION }
}

fn is_within(cpu: &Cpu<'_>, segment: &Segment, offset: u64, size: u64, purpose: Purpose) -> bool {
    let last = offset + size.max(1) - 1;
    let is_code = segment.kind & KIND_CODE != 0;
    if cpu.is_protected() {
        let usable = segment.present && !segment.unusable;
        let accessible = segment.kind & KIND_ACCESSIBLE != 0;
        let allowed = match (is_code, purpose) {
            (true, Purpose::Write) => false,
            (true, _) | (false, Purpose::Write) => accessible,
            (false, _) => true,
        };
        if !(usable && allowed) {
            return false;
        }
    }
    let limit = u64::from(segment.limit);
    if !is_code && segment.kind & KIND_EXPAND_DOWN != 0 {
        let highest = if segment.default_big { 0xffff_ffff } else { 0xffff };
        return offset > limit && last <= highest;
    }
    last <= limit
}

#[cfg(test)]
#[path = "operand_test.rs"]
mod tests;
