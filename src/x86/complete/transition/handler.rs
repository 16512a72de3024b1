//! Letting a handler go on at whose first instruction the processor was stopped.
//!
//! The breakpoint is still there, and would strike again. So the instruction is executed here: by the executor,
//! or, of those it leaves to others, the few that handlers begin with. For any other the breakpoint is moved
//! behind it for one stop. An interrupt between these two would let calls pass unseen, but handlers of
//! exceptions begin with interrupts off as a rule; and what stops behind the instruction is looked at, too.

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};

use super::{RFLAGS_IF, RFLAGS_RF, readable};
use crate::hv::{self, Msr, Vcpu};
use crate::memory::GuestMemory;
use crate::x86::complete::{self, Cpu};

const KERNEL_GS_BASE: u32 = 0xc000_0102;
/// The longest that an instruction can be.
const LONGEST: usize = 15;

/// Executes the instruction at RIP. If that cannot be done, says where the processor may be after it.
pub(super) fn pass_first_instruction(vcpu: &dyn Vcpu, memory: &GuestMemory) -> hv::Result<Option<Vec<u64>>> {
    if complete::complete(vcpu, memory)?.is_ok() {
        return Ok(None);
    }
    let mut cpu = Cpu::load(vcpu, memory)?;
    let Some(instruction) = instruction(&cpu)? else {
        // Not to be fetched: the fault that this is comes by itself.
        return Ok(Some(Vec::new()));
    };
    if execute(vcpu, &mut cpu, &instruction)? {
        cpu.general.rflags &= !RFLAGS_RF;
        vcpu.set_registers(&cpu.general)?;
        return Ok(None);
    }
    Ok(Some(successors(&instruction)))
}

fn instruction(cpu: &Cpu<'_>) -> hv::Result<Option<Instruction>> {
    let mut bytes = [0; LONGEST];
    let mut length = 0;
    while length < LONGEST {
        let at = cpu.general.rip.wrapping_add(length as u64);
        match readable(cpu.fetch(at, &mut bytes[length..=length]))? {
            Some(()) => length += 1,
            None => break,
        }
    }
    let bits = if cpu.is_64_bit() { 64 } else { 32 };
    let mut decoder = Decoder::with_ip(bits, &bytes[..length], cpu.general.rip, DecoderOptions::NONE);
    let instruction = decoder.decode();
    Ok((!instruction.is_invalid()).then_some(instruction))
}

/// Executes one of the instructions with which handlers begin, in 64-bit ring 0. False, and nothing done, if it
/// is another, or one that would fault.
fn execute(vcpu: &dyn Vcpu, cpu: &mut Cpu<'_>, instruction: &Instruction) -> hv::Result<bool> {
    if !cpu.is_64_bit() || cpu.privilege() != 0 || instruction.has_lock_prefix() {
        return Ok(false);
    }
    let mut next = instruction.next_ip();
    match instruction.mnemonic() {
        Mnemonic::Cli => cpu.general.rflags &= !RFLAGS_IF,
        Mnemonic::Swapgs => {
            let Some(other) = vcpu.msr(KERNEL_GS_BASE)? else { return Ok(false) };
            let base = std::mem::replace(&mut cpu.special.gs.base, other);
            if !vcpu.set_msr(Msr { index: KERNEL_GS_BASE, value: base })? {
                return Ok(false);
            }
            vcpu.set_special_registers(&cpu.special)?;
        }
        Mnemonic::Push => {
            let Some(value) = pushed(cpu, instruction) else { return Ok(false) };
            let stack = cpu.general.rsp.wrapping_sub(8);
            if readable(cpu.write(stack, &value.to_le_bytes()))?.is_none() {
                return Ok(false);
            }
            cpu.general.rsp = stack;
        }
        Mnemonic::Jmp if instruction.op0_kind() == OpKind::NearBranch64 => {
            next = instruction.near_branch_target();
        }
        _ => return Ok(false),
    }
    cpu.general.rip = next;
    Ok(true)
}

/// What a `push` of eight bytes pushes, if that is in a register or in the instruction.
fn pushed(cpu: &Cpu<'_>, instruction: &Instruction) -> Option<u64> {
    let general = &cpu.general;
    Some(match instruction.code() {
        Code::Pushq_imm8 => instruction.immediate8to64() as u64,
        Code::Pushq_imm32 => instruction.immediate32to64() as u64,
        Code::Push_r64 => match instruction.op0_register() {
            Register::RAX => general.rax,
            Register::RBX => general.rbx,
            Register::RCX => general.rcx,
            Register::RDX => general.rdx,
            Register::RSI => general.rsi,
            Register::RDI => general.rdi,
            Register::RSP => general.rsp,
            Register::RBP => general.rbp,
            Register::R8 => general.r8,
            Register::R9 => general.r9,
            Register::R10 => general.r10,
            Register::R11 => general.r11,
            Register::R12 => general.r12,
            Register::R13 => general.r13,
            Register::R14 => general.r14,
            Register::R15 => general.r15,
            _ => return None,
        },
        _ => return None,
    })
}

/// Where the processor may be after the instruction, apart from handlers of what it raises.
fn successors(instruction: &Instruction) -> Vec<u64> {
    let target = || match instruction.op0_kind() {
        OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
            Some(instruction.near_branch_target())
        }
        _ => None,
    };
    match instruction.flow_control() {
        FlowControl::Next => vec![instruction.next_ip()],
        FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch | FlowControl::Call => {
            let next =
                (instruction.flow_control() == FlowControl::ConditionalBranch).then(|| instruction.next_ip());
            target().into_iter().chain(next).collect()
        }
        // Nowhere that could be told: the breakpoint comes back with the next exit.
        _ => Vec::new(),
    }
}
