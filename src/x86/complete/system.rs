//! Instructions whose effect is on the processor's own state, done by hand.
//!
//! Intel SDM volume 2, each under its name.

use std::arch::x86_64::__cpuid_count;
use std::sync::OnceLock;

use iced_x86::{Instruction, Mnemonic};

use super::rights::Purpose;
use super::vectors::{self, MXCSR, MXCSR_MASK};
use super::{Beyond, Cpu, Fault, Stop, availability, operand};
use crate::x86::mode::CR4_SMAP;

const RFLAGS_OF: u64 = 1 << 11;
const RFLAGS_AC: u64 = 1 << 18;
const CR0_MP: u64 = 1 << 1;
const CR0_TS: u64 = 1 << 3;
const CR0_NE: u64 = 1 << 5;

/// Instructions that are nothing but an exception.
pub(super) fn exception(cpu: &Cpu<'_>, mnemonic: Mnemonic) -> Result<(), Stop> {
    let fault = match mnemonic {
        Mnemonic::Int3 => Fault::BREAKPOINT,
        Mnemonic::Int1 => Fault::DEBUG,
        Mnemonic::Into if cpu.general.rflags & RFLAGS_OF == 0 => return Ok(()),
        Mnemonic::Into => Fault::OVERFLOW,
        _ => Fault::UNDEFINED,
    };
    Err(fault.into())
}

/// `clac` and `stac`.
pub(super) fn set_alignment_flag(cpu: &mut Cpu<'_>, value: bool) -> Result<(), Stop> {
    if cpu.privilege() != 0 || !has_smap(cpu) {
        return Err(Fault::UNDEFINED.into());
    }
    if value {
        cpu.general.rflags |= RFLAGS_AC;
    } else {
        cpu.general.rflags &= !RFLAGS_AC;
    }
    Ok(())
}

/// What KVM lets a guest enable, the guest has. Before that the host's own processor tells: KVMs that need
/// completion offer what the host has.
fn has_smap(cpu: &Cpu<'_>) -> bool {
    static HOST: OnceLock<bool> = OnceLock::new();
    let host = || *HOST.get_or_init(|| __cpuid_count(7, 0).ebx >> 20 & 1 != 0);
    cpu.special.cr4 & CR4_SMAP != 0 || host()
}

/// `wait`, also called `fwait`.
pub(super) fn wait(cpu: &mut Cpu<'_>) -> Result<(), Stop> {
    if cpu.special.cr0 & (CR0_MP | CR0_TS) == CR0_MP | CR0_TS {
        return Err(Fault::NO_VECTORS.into());
    }
    if vectors::has_pending_x87_exception(cpu.vectors()?) {
        return Err(x87_exception(cpu));
    }
    Ok(())
}

/// How an x87 exception is reported.
pub(super) fn x87_exception(cpu: &Cpu<'_>) -> Stop {
    match cpu.special.cr0 & CR0_NE {
        0 => {
            Beyond { text: "an x87 exception is to be reported by interrupt 13 (CR0.NE is clear)".to_owned() }
                .into()
        }
        _ => Fault::X87.into(),
    }
}

/// `ldmxcsr`
pub(super) fn load_mxcsr(cpu: &mut Cpu<'_>, instruction: &Instruction) -> Result<(), Stop> {
    availability::check(cpu, instruction, availability::Kind::Vector)?;
    let address = operand::memory_operand(cpu, instruction, 4, Purpose::Read)?;
    let mut bytes = [0; 4];
    cpu.read(address, &mut bytes)?;
    let value = u32::from_le_bytes(bytes);
    let vectors = cpu.vectors()?;
    let allowed = match vectors::word(vectors, MXCSR_MASK) {
        0 => vectors::DEFAULT_MXCSR_MASK,
        mask => mask,
    };
    if value & !allowed != 0 {
        return Err(Fault::PROTECTION.into());
    }
    vectors::set_mxcsr(cpu.vectors_mut()?, value);
    Ok(())
}

/// `stmxcsr`
pub(super) fn store_mxcsr(cpu: &mut Cpu<'_>, instruction: &Instruction) -> Result<(), Stop> {
    availability::check(cpu, instruction, availability::Kind::Vector)?;
    let address = operand::memory_operand(cpu, instruction, 4, Purpose::Write)?;
    let value = vectors::word(cpu.vectors()?, MXCSR);
    cpu.write(address, &value.to_le_bytes())
}

#[cfg(test)]
#[path = "system_test.rs"]
mod tests;
