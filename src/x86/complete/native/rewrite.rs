//! Re-encoding an instruction so that it can be executed here.
//!
//! Its memory operand gets another address, RSP, which stays the host's, is replaced by a register that the
//! instruction does not use, and forms that 64-bit code lacks are replaced by ones that it has.

use iced_x86::{Code, CodeSize, Instruction, InstructionInfo, OpAccess, OpKind, Register};

use super::allow::has_high_byte;
use crate::x86::complete::registers::number;

/// Where the memory operand is while the instruction is executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Next to the code.
    Near(u64),
    /// Anywhere: a register is needed to hold the address.
    Far(u64),
}

/// A register that stands for another, or for an address, while the instruction is executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Substitute {
    /// The register's number.
    pub number: usize,
    /// What it holds.
    pub value: u64,
    /// Whether its value afterwards is that of RSP.
    pub result_in_rsp: bool,
}

/// An instruction to be executed here.
#[derive(Debug)]
pub(super) struct Rewritten {
    pub instruction: Instruction,
    /// At most one for the address, one for RSP and one for a bit's number.
    pub substitutes: [Option<Substitute>; 3],
}

/// Registers in the order in which they serve as substitutes: first those that need no additional prefix.
const CANDIDATES: [usize; 15] = [3, 6, 7, 1, 2, 0, 5, 8, 9, 10, 11, 12, 13, 14, 15];
const WITHOUT_PREFIX: usize = 7;
const RSP: usize = 4;

struct Free {
    used: u16,
    candidates: &'static [usize],
}

impl Free {
    fn take(&mut self) -> Option<usize> {
        let number = self.candidates.iter().copied().find(|number| self.used >> number & 1 == 0)?;
        self.used |= 1 << number;
        Some(number)
    }
}

/// Rewrites the instruction. `rsp` is the guest's; `bit` the number of a bit within its operand, where the
/// instruction takes it from a register.
pub(super) fn rewrite(
    original: &Instruction,
    info: &InstructionInfo,
    place: Option<Place>,
    rsp: u64,
    bit: Option<u64>,
) -> Option<Rewritten> {
    let mut instruction = *original;
    let mut substitutes = [None; 3];
    let used = info.used_registers().iter().filter_map(|used| number(used.register()));
    let candidates = if has_high_byte(original) { &CANDIDATES[..WITHOUT_PREFIX] } else { &CANDIDATES[..] };
    let mut free = Free { used: used.fold(1 << RSP, |all, number| all | 1 << number), candidates };
    instruction.set_code(in_64_bit_code(instruction.code()));
    instruction.set_code_size(CodeSize::Code64);
    instruction.set_has_xacquire_prefix(false);
    instruction.set_has_xrelease_prefix(false);
    match place {
        Some(place) => substitutes[0] = redirect(&mut instruction, place, &mut free)?,
        // The guest's address means nothing here, and must never be used.
        None if has_memory_operand(original) => return None,
        None => {}
    }
    if let Some(bit) = bit {
        let number = free.take()?;
        instruction.set_op1_register(named(number, instruction.op1_register().size())?);
        substitutes[1] = Some(Substitute { number, value: bit, result_in_rsp: false });
    }
    substitutes[2] = replace_stack_pointer(&mut instruction, info, rsp, &mut free)?;
    Some(Rewritten { instruction, substitutes })
}

fn has_memory_operand(instruction: &Instruction) -> bool {
    (0..instruction.op_count()).any(|operand| instruction.op_kind(operand) == OpKind::Memory)
}

#[allow(clippy::option_option)] // no register left, or none needed
fn redirect(instruction: &mut Instruction, place: Place, free: &mut Free) -> Option<Option<Substitute>> {
    instruction.set_segment_prefix(Register::None);
    instruction.set_memory_index(Register::None);
    instruction.set_memory_index_scale(1);
    match place {
        Place::Near(address) => {
            instruction.set_memory_base(Register::RIP);
            instruction.set_memory_displ_size(8);
            instruction.set_memory_displacement64(address);
            Some(None)
        }
        Place::Far(address) => {
            let number = free.take()?;
            instruction.set_memory_base(named(number, 8)?);
            instruction.set_memory_displ_size(0);
            instruction.set_memory_displacement64(0);
            Some(Some(Substitute { number, value: address, result_in_rsp: false }))
        }
    }
}

#[allow(clippy::option_option)] // no register left, or none needed
fn replace_stack_pointer(
    instruction: &mut Instruction,
    info: &InstructionInfo,
    rsp: u64,
    free: &mut Free,
) -> Option<Option<Substitute>> {
    let mut substitute: Option<Substitute> = None;
    for operand in 0..instruction.op_count() {
        let is_register = instruction.op_kind(operand) == OpKind::Register;
        if !is_register || number(instruction.op_register(operand)) != Some(RSP) {
            continue;
        }
        // AH to BH have the numbers of the registers from RSP on, but belong to others.
        let number = match substitute {
            Some(substitute) => substitute.number,
            None => free.take()?,
        };
        let written =
            !matches!(info.op_access(operand), OpAccess::Read | OpAccess::CondRead | OpAccess::None);
        let before = substitute.is_some_and(|substitute| substitute.result_in_rsp);
        substitute = Some(Substitute { number, value: rsp, result_in_rsp: before || written });
        let register = named(number, instruction.op_register(operand).size())?;
        instruction.set_op_register(operand, register);
    }
    Some(substitute)
}

/// The general register of that number and size.
fn named(number: usize, size: usize) -> Option<Register> {
    let number = u32::try_from(number).ok().filter(|number| *number < 16)?;
    Some(match (size, number) {
        (8, _) => Register::RAX + number,
        (4, _) => Register::EAX + number,
        (2, _) => Register::AX + number,
        (1, 0..4) => Register::AL + number,
        (1, _) => Register::SPL + (number - 4),
        _ => return None,
    })
}

/// The short forms of `inc` and `dec` are prefixes in 64-bit code; the short forms of `mov` have an address of
/// their own, which cannot be another one.
fn in_64_bit_code(code: Code) -> Code {
    match code {
        Code::Inc_r16 => Code::Inc_rm16,
        Code::Inc_r32 => Code::Inc_rm32,
        Code::Dec_r16 => Code::Dec_rm16,
        Code::Dec_r32 => Code::Dec_rm32,
        Code::Mov_AL_moffs8 => Code::Mov_r8_rm8,
        Code::Mov_AX_moffs16 => Code::Mov_r16_rm16,
        Code::Mov_EAX_moffs32 => Code::Mov_r32_rm32,
        Code::Mov_RAX_moffs64 => Code::Mov_r64_rm64,
        Code::Mov_moffs8_AL => Code::Mov_rm8_r8,
        Code::Mov_moffs16_AX => Code::Mov_rm16_r16,
        Code::Mov_moffs32_EAX => Code::Mov_rm32_r32,
        Code::Mov_moffs64_RAX => Code::Mov_rm64_r64,
        other => other,
    }
}
