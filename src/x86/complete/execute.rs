//! One instruction: found, handed to the module that knows its kind, finished.

use iced_x86::{Formatter, Instruction, IntelFormatter, Mnemonic};

use super::{Beyond, Cpu, Fault, Stop, decode, descriptor, native, system, xsave};

const RFLAGS_TF: u64 = 1 << 8;
const RFLAGS_RF: u64 = 1 << 16;

/// Executes the instruction at RIP. The result holds the exception that follows a completed instruction: a
/// trap of its own, or single-stepping.
pub(super) fn one(cpu: &mut Cpu<'_>) -> (Mnemonic, Result<Option<Fault>, Stop>) {
    let instruction = match decode::decode(cpu) {
        Ok(instruction) => instruction,
        Err(stop) => return (Mnemonic::INVALID, Err(stop)),
    };
    let stepping = cpu.general.rflags & RFLAGS_TF != 0;
    let end = match dispatch(cpu, &instruction) {
        Ok(()) => {
            finish(cpu, &instruction);
            Ok(stepping.then_some(Fault::DEBUG))
        }
        Err(Stop::Fault(fault)) if fault.trap => {
            finish(cpu, &instruction);
            Ok(Some(fault))
        }
        Err(Stop::Fault(fault)) => {
            // What is pushed with a fault keeps breakpoints from striking again at the same instruction.
            cpu.general.rflags |= RFLAGS_RF;
            Err(Stop::Fault(fault))
        }
        Err(Stop::Beyond(Beyond { text })) => Err(Beyond { text: describe(&instruction, &text) }.into()),
        Err(error) => Err(error),
    };
    (instruction.mnemonic(), end)
}

/// Executes the instruction at RIP if it uses vector registers and nothing comes in between.
pub(super) fn one_with_vectors(cpu: &mut Cpu<'_>) -> Option<Mnemonic> {
    let instruction = decode::decode(cpu).ok()?;
    let uses_vectors = (0..instruction.op_count()).any(|operand| {
        let register = instruction.op_register(operand);
        register.is_vector_register() || register.is_k()
    });
    if !uses_vectors || cpu.general.rflags & RFLAGS_TF != 0 {
        return None;
    }
    dispatch(cpu, &instruction).ok()?;
    finish(cpu, &instruction);
    Some(instruction.mnemonic())
}

fn finish(cpu: &mut Cpu<'_>, instruction: &Instruction) {
    cpu.general.rip = decode::next(cpu, instruction);
    cpu.general.rflags &= !RFLAGS_RF;
}

fn dispatch(cpu: &mut Cpu<'_>, instruction: &Instruction) -> Result<(), Stop> {
    use Mnemonic as M;
    match instruction.mnemonic() {
        M::Int3 | M::Int1 | M::Into | M::Ud0 | M::Ud1 | M::Ud2 => {
            system::exception(cpu, instruction.mnemonic())
        }
        M::Clac => system::set_alignment_flag(cpu, false),
        M::Stac => system::set_alignment_flag(cpu, true),
        M::Wait => system::wait(cpu),
        M::Lsl => descriptor::load_limit(cpu, instruction),
        M::Ldmxcsr | M::Vldmxcsr => system::load_mxcsr(cpu, instruction),
        M::Stmxcsr | M::Vstmxcsr => system::store_mxcsr(cpu, instruction),
        M::Xsave
        | M::Xsave64
        | M::Xsaveopt
        | M::Xsaveopt64
        | M::Xsavec
        | M::Xsavec64
        | M::Xsaves
        | M::Xsaves64
        | M::Xrstor
        | M::Xrstor64
        | M::Xrstors
        | M::Xrstors64 => save_or_restore_state(cpu, instruction),
        _ => native::execute(cpu, instruction),
    }
}

fn save_or_restore_state(cpu: &mut Cpu<'_>, instruction: &Instruction) -> Result<(), Stop> {
    match super::operand::memory_address(cpu, instruction) {
        Ok(address) => xsave::execute(cpu, instruction, address),
        Err(Stop::Fault(fault)) => {
            // What has nothing to do with the segment is found out first.
            xsave::check(cpu, instruction, super::operand::offset(cpu, instruction))?;
            Err(fault.into())
        }
        Err(stop) => Err(stop),
    }
}

fn describe(instruction: &Instruction, why: &str) -> String {
    let mut name = String::new();
    IntelFormatter::new().format(instruction, &mut name);
    format!("{name}: {why}")
}

#[cfg(test)]
#[path = "execute_test.rs"]
mod tests;
