//! `xsave`, `xrstor` and their relatives: the guest's extended state to and from its memory.
//!
//! The hypervisor holds that state in the standard format, as the host's processor lays it out and as its guests
//! are told; the guest may want it compacted, in part, or in the form of another mode. Intel SDM volume 1, chapter
//! 13; where it leaves a choice, what the host's processor does was measured, because it is what guests are told
//! they have. One thing is left out: `xsaveopt` and `xsaves` may skip what has not changed since the last `xrstor`
//! from the same place, but need not, and nothing here remembers that.

mod layout;
mod state;

use iced_x86::{Instruction, Mnemonic};

use super::cpu::Cpu;
use super::fault::{Beyond, Fault, Stop};
use crate::x86::mode::EFER_LMA;
use layout::{AVX, COMPACTED, HEADER, Layout, MXCSR, SSE, X87, X87_CONTROL, numbers};
use state::{INITIAL_MXCSR, State, is_amd, mxcsr_mask, narrow_pointers};

const CR0_TS: u64 = 1 << 3;
const CR4_OSXSAVE: u64 = 1 << 18;
const IA32_XSS: u32 = 0xda0;
const AREA_ALIGNMENT: u64 = 64;
/// XSTATE_BV and XCOMP_BV; what follows is reserved.
const HEADER_SIZE: usize = 64;

/// What an instruction of the family does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Standard format; tells what is initial but writes it all the same.
    Save,
    /// Standard format, without what is initial.
    SaveOptimised,
    /// Compacted format, without what is initial.
    SaveCompacted,
    /// Either format.
    Restore,
    /// Compacted format only.
    RestoreCompacted,
}

/// One instruction of the family in one guest.
struct Operation {
    kind: Kind,
    /// Linear address of the area.
    address: u64,
    /// Whether the x87 pointers have 64 bits.
    wide_pointers: bool,
    /// Whether the code is 64-bit code.
    wide: bool,
    /// The components that the guest has enabled.
    enabled: u64,
    /// Those of them that it asks for (RFBM).
    requested: u64,
    layout: &'static Layout,
}

/// Executes an instruction of the family whose memory operand lies at the linear address `address`.
///
/// The caller moves RIP on.
pub fn execute(cpu: &mut Cpu<'_>, instruction: &Instruction, address: u64) -> Result<(), Stop> {
    let Some((kind, privileged, wide_pointers)) = kind(instruction) else {
        return Err(beyond("it is not of the xsave family"));
    };
    check(cpu, instruction, address)?;

    let supervisor = if privileged { cpu.msr(IA32_XSS)?.unwrap_or(0) } else { 0 };
    let enabled = cpu.enabled_state()? | supervisor;
    let requested = enabled & (cpu.general.rdx << 32 | cpu.general.rax & 0xffff_ffff);
    let layout = Layout::host();
    if let Some(number) = numbers(enabled & !layout.known()).next() {
        let why = format!("state component {number} is enabled, which this host's KVM does not give out");
        return Err(beyond(&why));
    }
    let wide = cpu.special.efer & EFER_LMA != 0 && cpu.special.cs.long;
    let operation = Operation { kind, address, wide_pointers, wide, enabled, requested, layout };
    match kind {
        Kind::Save | Kind::SaveOptimised | Kind::SaveCompacted => operation.save(cpu),
        Kind::Restore | Kind::RestoreCompacted => operation.restore(cpu),
    }
}

fn beyond(why: &str) -> Stop {
    Stop::Beyond(Beyond { text: why.to_owned() })
}

/// Raises what the instruction raises whatever lies at its operand's address.
pub(super) fn check(cpu: &Cpu<'_>, instruction: &Instruction, address: u64) -> Result<(), Fault> {
    if cpu.special.cr4 & CR4_OSXSAVE == 0 || instruction.has_lock_prefix() {
        return Err(Fault::UNDEFINED);
    }
    if cpu.special.cr0 & CR0_TS != 0 {
        return Err(Fault::NO_VECTORS);
    }
    let privileged = kind(instruction).is_some_and(|(_, privileged, _)| privileged);
    if privileged && cpu.privilege() != 0 || !address.is_multiple_of(AREA_ALIGNMENT) {
        return Err(Fault::PROTECTION);
    }
    Ok(())
}

/// What the instruction does, whether it is privileged, and whether it is of the form with 64-bit x87 pointers.
fn kind(instruction: &Instruction) -> Option<(Kind, bool, bool)> {
    use Kind::{Restore, RestoreCompacted, Save, SaveCompacted, SaveOptimised};
    Some(match instruction.mnemonic() {
        Mnemonic::Xsave => (Save, false, false),
        Mnemonic::Xsave64 => (Save, false, true),
        Mnemonic::Xsaveopt => (SaveOptimised, false, false),
        Mnemonic::Xsaveopt64 => (SaveOptimised, false, true),
        Mnemonic::Xsavec => (SaveCompacted, false, false),
        Mnemonic::Xsavec64 => (SaveCompacted, false, true),
        Mnemonic::Xsaves => (SaveCompacted, true, false),
        Mnemonic::Xsaves64 => (SaveCompacted, true, true),
        Mnemonic::Xrstor => (Restore, false, false),
        Mnemonic::Xrstor64 => (Restore, false, true),
        Mnemonic::Xrstors => (RestoreCompacted, true, false),
        Mnemonic::Xrstors64 => (RestoreCompacted, true, true),
        _ => return None,
    })
}

impl Operation {
    fn save(&self, cpu: &mut Cpu<'_>) -> Result<(), Stop> {
        let state = State::new(cpu.vectors()?, self.layout);
        let compacted = self.kind == Kind::SaveCompacted;
        let in_use = if compacted { state.in_use_with_mxcsr() } else { state.in_use() } & self.requested;
        self.check_write(cpu, compacted.then_some(self.requested))?;
        if compacted {
            self.write(cpu, HEADER as u64, &in_use.to_le_bytes())?;
            self.write(cpu, HEADER as u64 + 8, &(COMPACTED | self.requested).to_le_bytes())?;
        } else {
            let mut before = [0; 8];
            self.read(cpu, HEADER as u64, &mut before)?;
            let others = u64::from_le_bytes(before) & !self.requested;
            self.write(cpu, HEADER as u64, &(others | in_use).to_le_bytes())?;
        }

        let written = if self.kind == Kind::Save { self.requested } else { in_use };
        for number in numbers(written) {
            self.save_component(cpu, &state, number)?;
        }
        let with_mxcsr = if compacted { written & SSE } else { self.requested & (SSE | AVX) };
        if with_mxcsr != 0 {
            let both = u64::from(mxcsr_mask()) << 32 | u64::from(state.mxcsr());
            self.write(cpu, MXCSR.start as u64, &both.to_le_bytes())?;
        }
        Ok(())
    }

    /// Faults where the processor does, before anything is written. AMD's look at the first and the last byte that is
    /// asked for, even if nothing has to be written there.
    fn check_write(&self, cpu: &Cpu<'_>, compacted: Option<u64>) -> Result<(), Stop> {
        cpu.check_write(self.linear(0), 1)?;
        if is_amd() {
            let end = self.layout.end(self.requested, compacted);
            cpu.check_write(self.linear(end - 1), 1)?;
        }
        cpu.check_write(self.linear(HEADER as u64), HEADER_SIZE)
    }

    fn save_component(&self, cpu: &Cpu<'_>, state: &State, number: u32) -> Result<(), Stop> {
        let moved = match self.kind {
            Kind::SaveCompacted => self.layout.moved(number, self.requested),
            _ => 0,
        };
        for part in self.layout.parts(number, self.wide) {
            let at = moved.wrapping_add(part.start as u64);
            if part == X87_CONTROL && !self.wide_pointers {
                let mut narrow = [0; X87_CONTROL.end];
                narrow.copy_from_slice(state.bytes(part));
                narrow_pointers(&mut narrow);
                self.write(cpu, at, &narrow)?;
            } else {
                self.write(cpu, at, state.bytes(part))?;
            }
        }
        Ok(())
    }

    fn restore(&self, cpu: &mut Cpu<'_>) -> Result<(), Stop> {
        self.read(cpu, 0, &mut [0])?;
        let header = self.read_header(cpu)?;
        if is_amd() {
            // In the compacted format only what is present counts.
            let present = if header.compacted.is_some() { header.present } else { u64::MAX };
            let end = self.layout.end(self.requested & present, header.compacted);
            self.read(cpu, end - 1, &mut [0])?;
        }
        let mut state = State::new(cpu.vectors()?, self.layout);
        for number in numbers(self.requested) {
            if header.present >> number & 1 != 0 {
                self.restore_component(cpu, &mut state, number, &header)?;
            } else {
                state.initialise(number, self.wide);
            }
        }
        if let Some(value) = self.mxcsr(cpu, &header)? {
            state.set_mxcsr(value);
        }
        *cpu.vectors_mut()? = state.finish();
        Ok(())
    }

    fn restore_component(
        &self,
        cpu: &Cpu<'_>,
        state: &mut State,
        number: u32,
        header: &Header,
    ) -> Result<(), Stop> {
        let moved = header.compacted.map_or(0, |contents| self.layout.moved(number, contents));
        for part in self.layout.parts(number, self.wide) {
            let at = moved.wrapping_add(part.start as u64);
            self.read(cpu, at, state.bytes_mut(part))?;
        }
        if 1 << number == X87 {
            if !self.wide_pointers {
                narrow_pointers(state.bytes_mut(X87_CONTROL));
            }
            state.settle_x87();
        }
        Ok(())
    }

    /// What is loaded into MXCSR. It belongs to the SSE component in the compacted format; in the standard one it
    /// is loaded whatever XSTATE_BV says, and with AVX alone.
    fn mxcsr(&self, cpu: &Cpu<'_>, header: &Header) -> Result<Option<u32>, Stop> {
        let loaded = match header.compacted {
            Some(_) if self.requested & !header.present & SSE != 0 => return Ok(Some(INITIAL_MXCSR)),
            Some(_) => self.requested & SSE,
            None => self.requested & (SSE | AVX),
        };
        if loaded == 0 {
            return Ok(None);
        }
        let mut bytes = [0; 4];
        self.read(cpu, MXCSR.start as u64, &mut bytes)?;
        let value = u32::from_le_bytes(bytes);
        if value & !mxcsr_mask() != 0 { Err(Fault::PROTECTION.into()) } else { Ok(Some(value)) }
    }

    fn read_header(&self, cpu: &Cpu<'_>) -> Result<Header, Stop> {
        let mut bytes = [0; HEADER_SIZE];
        self.read(cpu, HEADER as u64, &mut bytes)?;
        Ok(Header::parse(&bytes, self.enabled, self.kind)?)
    }

    fn write(&self, cpu: &Cpu<'_>, offset: u64, bytes: &[u8]) -> Result<(), Stop> {
        cpu.write(self.linear(offset), bytes)
    }

    fn read(&self, cpu: &Cpu<'_>, offset: u64, bytes: &mut [u8]) -> Result<(), Stop> {
        cpu.read(self.linear(offset), bytes)
    }

    fn linear(&self, offset: u64) -> u64 {
        let linear = self.address.wrapping_add(offset);
        if self.wide { linear } else { linear & 0xffff_ffff }
    }
}

/// What the header of an area says that is to be restored.
struct Header {
    /// The components that are in the area (XSTATE_BV).
    present: u64,
    /// Those that have a place in it, if it has the compacted format.
    compacted: Option<u64>,
}

impl Header {
    fn parse(bytes: &[u8; HEADER_SIZE], enabled: u64, kind: Kind) -> Result<Self, Fault> {
        let field =
            |at: usize| bytes[at..at + 8].iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte));
        let (present, format) = (field(0), field(8));
        let is_compacted = format & COMPACTED != 0;
        // The standard format has reserved bits that are not looked at.
        let reserved_end = if is_compacted { HEADER_SIZE } else { 24 };
        let contents = format & !COMPACTED;
        let allowed = if is_compacted { contents } else { enabled };
        let wrong = bytes[16..reserved_end].iter().any(|byte| *byte != 0)
            || !is_compacted && (format != 0 || kind == Kind::RestoreCompacted)
            || contents & !enabled != 0
            || present & !allowed != 0;
        if wrong {
            return Err(Fault::PROTECTION);
        }
        Ok(Self { present, compacted: is_compacted.then_some(contents) })
    }
}

#[cfg(test)]
#[path = "xsave_test.rs"]
mod tests;
