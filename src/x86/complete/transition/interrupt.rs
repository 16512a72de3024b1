//! `int n`, `int3` and `into` in ring 3, which were taken for undefined instructions.
//!
//! `int3` in 64-bit code arrives as it should on the hosts known; in 32-bit code nothing of the three does
//! (measured). The undefined instruction's frame has the same form as that of an interrupt: where both handlers
//! have the same stack it only has to be corrected.

use iced_x86::{Decoder, DecoderOptions, Mnemonic};

use super::{
    Frame, Gate, RFLAGS_FIXED, RFLAGS_IF, RFLAGS_NT, RFLAGS_RF, RFLAGS_TF, RFLAGS_VM, UNDEFINED, readable,
    words,
};
use crate::hv::{self, Exception, Segment, Vcpu};
use crate::x86::complete::Cpu;
use crate::x86::{segments, walk};

const RFLAGS_OF: u64 = 1 << 11;
const NOT_PRESENT: u8 = 11;
const PROTECTION: u8 = 13;
/// In an error code: the selector is an index into the interrupt table.
const IN_INTERRUPT_TABLE: u32 = 1 << 1;
/// In a selector: the descriptor is in the local table.
const LOCAL: u16 = 1 << 2;
/// The longest that an instruction can be.
const LONGEST: usize = 15;
/// In a task state segment: the stack of ring 0, and in front of the first of seven others.
const RING_0_STACK: u64 = 4;
const BEFORE_STACKS: u64 = 28;

/// Delivers what the instruction in ring 3 asked for. False, and nothing done, if it was undefined.
pub(super) fn deliver(vcpu: &dyn Vcpu, cpu: &Cpu<'_>) -> hv::Result<bool> {
    let Some(frame) = Frame::read(cpu, cpu.general.rsp)? else { return Ok(false) };
    if !frame.is_from_ring_3() {
        return Ok(false);
    }
    let Some((vector, next)) = interrupt_at(cpu, &frame)? else { return Ok(false) };
    match find_gate(cpu, vector)? {
        Found::Gate(gate) => enter(vcpu, cpu, &Frame { rip: next, ..frame }, &gate),
        Found::Refused(exception) => raise_in_ring_3(vcpu, cpu, &frame, exception),
        Found::Nothing => Ok(false),
    }
}

/// Which interrupt the instruction at the frame's RIP raises, and where it ends.
fn interrupt_at(cpu: &Cpu<'_>, frame: &Frame) -> hv::Result<Option<(u8, u64)>> {
    let Some(code) = segment(cpu, frame.cs as u16)? else { return Ok(None) };
    let (bits, base) = match (code.long, code.default_big) {
        (true, _) => (64, 0),
        (false, true) => (32, code.base),
        (false, false) => (16, code.base),
    };
    let mut bytes = [0; LONGEST];
    // As far as it is there. Nobody's rights count: ring 3 has fetched the instruction, and where ring 0 may not
    // touch what belongs to ring 3 (SMAP), this is not ring 0.
    let length = walk::read_linear(cpu.memory, &cpu.special, base.wrapping_add(frame.rip), &mut bytes);
    let instruction = Decoder::with_ip(bits, &bytes[..length], frame.rip, DecoderOptions::NONE).decode();
    let next = instruction.next_ip();
    Ok(match instruction.mnemonic() {
        Mnemonic::Int => Some((instruction.immediate8(), next)),
        Mnemonic::Int3 => Some((3, next)),
        Mnemonic::Into if frame.rflags & RFLAGS_OF != 0 => Some((4, next)),
        _ => None,
    })
}

enum Found {
    Gate(Gate),
    /// Ring 3 may not use it, or there is none.
    Refused(Exception),
    /// What cannot be told; the guest is left with its undefined instruction.
    Nothing,
}

/// The gate of `vector`, with the checks in the order in which the processor makes them (Intel SDM volume 2,
/// INT n).
fn find_gate(cpu: &Cpu<'_>, vector: u8) -> hv::Result<Found> {
    let error_code = Some(u32::from(vector) << 3 | IN_INTERRUPT_TABLE);
    let refused = |vector| Ok(Found::Refused(Exception { vector, error_code }));
    let Some(address) = Gate::address(&cpu.special, vector) else { return refused(PROTECTION) };
    let mut bytes = [0; 16];
    let Some(()) = readable(cpu.read_as_system(address, &mut bytes))? else { return Ok(Found::Nothing) };
    let gate = Gate::decode(words(&bytes));
    if !gate.is_of_use() || gate.privilege < 3 {
        return refused(PROTECTION);
    }
    if !gate.present {
        return refused(NOT_PRESENT);
    }
    Ok(Found::Gate(gate))
}

/// Enters the gate's handler, with `frame` on its stack.
fn enter(vcpu: &dyn Vcpu, cpu: &Cpu<'_>, frame: &Frame, gate: &Gate) -> hv::Result<bool> {
    let Some(code) = segment(cpu, gate.selector)? else { return Ok(false) };
    // Kernels are in ring 0, and their code is 64-bit code; anything else is not worth the trouble.
    let is_code = code.code_or_data && code.kind & 0x8 != 0;
    if !is_code || !code.present || !code.long || code.dpl != 0 || !cpu.is_canonical(gate.target) {
        return Ok(false);
    }
    let Some(stack) = stack(cpu, gate)? else { return Ok(false) };
    let frame = Frame { rflags: frame.rflags & !RFLAGS_RF, ..*frame };
    if frame.write(cpu, stack)?.is_none() {
        return Ok(false);
    }
    let mut cleared = RFLAGS_TF | RFLAGS_NT | RFLAGS_RF | RFLAGS_VM;
    if gate.kind == Gate::INTERRUPT {
        cleared |= RFLAGS_IF;
    }
    let mut general = cpu.general;
    general.rip = gate.target;
    general.rsp = stack;
    general.rflags = frame.rflags & !cleared | RFLAGS_FIXED;
    let selector = gate.selector & !3;
    if selector != cpu.special.cs.selector {
        let cs = Segment { selector, base: 0, limit: u32::MAX, ..code };
        vcpu.set_special_registers(&hv::SpecialRegisters { cs, ..cpu.special })?;
    }
    vcpu.set_registers(&general)?;
    Ok(true)
}

/// Where the frame lies: where it is, unless the handler's gate names another stack.
fn stack(cpu: &Cpu<'_>, gate: &Gate) -> hv::Result<Option<u64>> {
    let Some(address) = Gate::address(&cpu.special, UNDEFINED) else { return Ok(None) };
    let mut bytes = [0; 16];
    let Some(()) = readable(cpu.read_as_system(address, &mut bytes))? else { return Ok(None) };
    if Gate::decode(words(&bytes)).stack == gate.stack {
        return Ok(Some(cpu.general.rsp));
    }
    let offset = match gate.stack {
        0 => RING_0_STACK,
        number => BEFORE_STACKS + 8 * u64::from(number),
    };
    let mut top = [0; 8];
    let at = cpu.special.tr.base.wrapping_add(offset);
    let Some(()) = readable(cpu.read_as_system(at, &mut top))? else { return Ok(None) };
    Ok(Some((u64::from_le_bytes(top) & !0xf).wrapping_sub(Frame::SIZE)))
}

/// Goes back to the instruction and has it raise `exception`.
fn raise_in_ring_3(vcpu: &dyn Vcpu, cpu: &Cpu<'_>, frame: &Frame, exception: Exception) -> hv::Result<bool> {
    let code = segment(cpu, frame.cs as u16)?.filter(|code| code.dpl == 3 && code.present);
    let stack = segment(cpu, frame.ss as u16)?.filter(|stack| stack.dpl == 3 && stack.present);
    let (Some(cs), Some(ss)) = (code, stack) else { return Ok(false) };
    let mut general = cpu.general;
    general.rip = frame.rip;
    general.rsp = frame.rsp;
    general.rflags = frame.rflags | RFLAGS_FIXED;
    vcpu.set_special_registers(&hv::SpecialRegisters { cs, ss, ..cpu.special })?;
    vcpu.set_registers(&general)?;
    vcpu.raise(exception)?;
    Ok(true)
}

/// The segment behind a selector, as the descriptor table has it.
fn segment(cpu: &Cpu<'_>, selector: u16) -> hv::Result<Option<Segment>> {
    let offset = u64::from(selector & !7);
    let (base, limit) = match selector & LOCAL {
        0 if offset == 0 => return Ok(None),
        0 => (cpu.special.gdt.base, u64::from(cpu.special.gdt.limit)),
        _ if cpu.special.ldt.unusable || !cpu.special.ldt.present => return Ok(None),
        _ => (cpu.special.ldt.base, u64::from(cpu.special.ldt.limit)),
    };
    if offset + 7 > limit {
        return Ok(None);
    }
    let mut entry = [0; 8];
    let read = readable(cpu.read_as_system(base.wrapping_add(offset), &mut entry))?;
    Ok(read.map(|()| segments::decode(selector, u64::from_le_bytes(entry))))
}
