//! Whether the guest's system has made an instruction's registers available.
//!
//! Intel SDM volume 2, "Instruction Exception Specification": the tables of exception classes 1 to 14, and
//! volume 3, "System Programming for Instruction Set Extensions".

use iced_x86::{EncodingKind, Instruction};

use super::{Cpu, Fault, Stop};

const CR0_EM: u64 = 1 << 2;
const CR0_TS: u64 = 1 << 3;
const CR4_OSFXSR: u64 = 1 << 9;
const CR4_OSXSAVE: u64 = 1 << 18;

const STATE_AVX: u64 = 0x6;
const STATE_AVX512: u64 = 0xe6;

/// What registers an instruction works on, apart from general ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// None.
    Scalar,
    /// The x87 stack.
    X87,
    /// MM0 to MM7.
    Mmx,
    /// XMM and wider.
    Vector,
    /// Mask registers, alone or with vector registers.
    Masked,
}

/// Raises what the processor raises when the instruction's registers are not available.
pub(super) fn check(cpu: &mut Cpu<'_>, instruction: &Instruction, kind: Kind) -> Result<(), Stop> {
    let encoding = instruction.encoding();
    let extended = encoding != EncodingKind::Legacy && encoding != EncodingKind::D3NOW;
    if extended && !cpu.is_protected() {
        return Err(Fault::UNDEFINED.into());
    }
    let (cr0, cr4) = (cpu.special.cr0, cpu.special.cr4);
    let defined = match kind {
        Kind::Scalar => return Ok(()),
        Kind::X87 if cr0 & (CR0_EM | CR0_TS) != 0 => return Err(Fault::NO_VECTORS.into()),
        Kind::X87 => return Ok(()),
        Kind::Mmx => cr0 & CR0_EM == 0,
        Kind::Vector | Kind::Masked if extended => {
            let masked = kind == Kind::Masked || encoding == EncodingKind::EVEX;
            let needed = if masked { STATE_AVX512 } else { STATE_AVX };
            cr4 & CR4_OSXSAVE != 0 && cpu.enabled_state()? & needed == needed
        }
        Kind::Vector | Kind::Masked => cr0 & CR0_EM == 0 && cr4 & CR4_OSFXSR != 0,
    };
    match (defined, cr0 & CR0_TS) {
        (false, _) => Err(Fault::UNDEFINED.into()),
        (true, 0) => Ok(()),
        (true, _) => Err(Fault::NO_VECTORS.into()),
    }
}
