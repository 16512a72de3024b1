//! Transitions from ring 3 to ring 0 that the host's KVM delivers as something else.
//!
//! On a KVM that runs ring 3 natively and interprets ring 0, `syscall` goes to LSTAR without leaving ring 3, so
//! that the guest gets a page fault there, and `int n` is an undefined instruction. Both arrive at a handler of
//! the guest's, in ring 0, where breakpoints work: [`Transitions`] keeps one on the entry of the page fault
//! handler and one on that of the undefined instruction handler, which it finds in the guest's interrupt
//! table. When the processor stops there, the frame on the stack tells what it was. A call is given the state
//! that it should have arrived with; everything else is the handler's, and is passed on to it.
//!
//! A breakpoint makes each entry into the guest 5 µs slower on such a host (measured). So the first is there only
//! once there is an entry for `syscall`, and the second only while ring 3 may use interrupt 0x80, the one by which
//! 32-bit programs have always called their kernels.
//!
//! Kernels change their interrupt table without any exit that would tell. So the table is looked into at each
//! stop and at each write to the registers of `syscall`, and the caller has it looked into now and then besides
//! ([`Transitions::watch`]). All of it is in long mode only, and the guest's own hardware breakpoints are out of
//! action.
//!
//! What the guest has to say is not believed: a frame is taken for a call only if nothing but a call can have
//! made it, because ring 3 may jump to LSTAR and raise undefined instructions, too. CR2 keeps the address of the
//! page fault that was none; nobody looks at it but a page fault's handler, for which it is set anew.

mod call;
mod handler;
mod interrupt;

use super::{Cpu, Gaps, Stop};
use crate::hv::{self, MOST_BREAKPOINTS, Msr, SpecialRegisters, Vcpu};
use crate::memory::GuestMemory;
use crate::x86::mode::EFER_LMA;
use crate::x86::walk;

const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const SYSCALL_MASK: u32 = 0xc000_0084;
/// The model-specific registers whose writes have to be exits.
pub const TRAPPED: [u32; 3] = [STAR, LSTAR, SYSCALL_MASK];

const UNDEFINED: u8 = 6;
const SYSTEM_CALL: u8 = 0x80;
const PAGE_FAULT: u8 = 14;

const RFLAGS_FIXED: u64 = 1 << 1;
const RFLAGS_TF: u64 = 1 << 8;
const RFLAGS_IF: u64 = 1 << 9;
const RFLAGS_NT: u64 = 1 << 14;
const RFLAGS_RF: u64 = 1 << 16;
const RFLAGS_VM: u64 = 1 << 17;

/// What a stop at a breakpoint was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// A system call by `syscall`, which has arrived now.
    Call,
    /// An `int n`, which has arrived now.
    Interrupt,
    /// A page fault or an undefined instruction; its handler goes on.
    Exception,
    /// Nothing any more: the breakpoint was not needed any longer.
    Nothing,
}

/// What one processor's transitions need.
#[derive(Debug, Default)]
pub struct Transitions {
    gaps: Gaps,
    star: u64,
    lstar: u64,
    mask: u64,
    entries: Entries,
    /// The vectors of the interrupts that came last.
    interrupts: [Option<u8>; 2],
    /// What the processor was given.
    breakpoints: Vec<u64>,
}

/// Where the handlers begin that get what is no exception.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Entries {
    page_fault: Option<u64>,
    undefined: Option<u64>,
}

impl Entries {
    fn iter(self) -> impl Iterator<Item = u64> {
        self.page_fault.into_iter().chain(self.undefined.filter(|_| self.undefined != self.page_fault))
    }
}

impl Transitions {
    /// For a processor of a host with these gaps. Nothing happens before [`arm`](Self::arm).
    pub fn new(gaps: Gaps) -> Self {
        Self { gaps, breakpoints: Vec::with_capacity(MOST_BREAKPOINTS), ..Self::default() }
    }

    /// Whether any breakpoint is set.
    pub fn is_watching(&self) -> bool {
        !self.breakpoints.is_empty()
    }

    /// Reads from the processor what there is to know: before it runs for the first time, and whenever somebody
    /// else may have changed it.
    pub fn arm(&mut self, vcpu: &dyn Vcpu, memory: &GuestMemory) -> hv::Result<()> {
        if self.gaps.syscall {
            self.read_msrs(vcpu)?;
        }
        self.watch(vcpu, memory)
    }

    /// Each costs a call, and most processors are armed before the guest has thought of system calls.
    fn read_msrs(&mut self, vcpu: &dyn Vcpu) -> hv::Result<()> {
        let value = |index| Ok::<_, hv::Error>(vcpu.msr(index)?.unwrap_or(0));
        self.lstar = value(LSTAR)?;
        if self.lstar != 0 {
            (self.star, self.mask) = (value(STAR)?, value(SYSCALL_MASK)?);
        }
        Ok(())
    }

    /// Whether the breakpoints are not where the handlers are, or a handler has not been found that there has to
    /// be: then [`watch`](Self::watch) is due at the next exit.
    pub fn is_unsettled(&self) -> bool {
        self.lstar != 0 && self.entries.page_fault.is_none()
            || !self.entries.iter().eq(self.breakpoints.iter().copied())
    }

    /// Looks into the interrupt table, and sets the breakpoints where the handlers are now.
    pub fn watch(&mut self, vcpu: &dyn Vcpu, memory: &GuestMemory) -> hv::Result<()> {
        self.find_entries(&vcpu.special_registers()?, memory);
        self.set_breakpoints(vcpu, self.entries.iter())
    }

    fn find_entries(&mut self, special: &SpecialRegisters, memory: &GuestMemory) {
        let gate = |vector| usable_gate(memory, special, vector);
        let target = |gate: Gate| gate.target;
        let has_calls = self.gaps.syscall && self.lstar != 0;
        let has_interrupts = self.gaps.interrupt && gate(SYSTEM_CALL).is_some_and(|gate| gate.privilege == 3);
        self.entries = Entries {
            page_fault: has_calls.then(|| gate(PAGE_FAULT)).flatten().map(target),
            undefined: has_interrupts.then(|| gate(UNDEFINED)).flatten().map(target),
        };
    }

    /// The same where the guest's kernel is run by others, so that the processor has to stop at each arrival in it:
    /// also at the handlers of the interrupts that came last.
    pub fn watch_for_kernel(&mut self, vcpu: &dyn Vcpu, memory: &GuestMemory) -> hv::Result<()> {
        let special = vcpu.special_registers()?;
        self.find_entries(&special, memory);
        if let Some(vector) = vcpu.last_interrupt()?
            && self.interrupts[0] != Some(vector)
        {
            self.interrupts = [Some(vector), self.interrupts[0]];
        }
        let gates = self.interrupts.into_iter().flatten();
        let handlers =
            gates.filter_map(|vector| usable_gate(memory, &special, vector)).map(|gate| gate.target);
        self.set_breakpoints(vcpu, self.entries.iter().chain(handlers))
    }

    /// Deals with a stop where the kernel goes on elsewhere, which needs no help with the handler's first instruction.
    pub fn arrived(&mut self, vcpu: &dyn Vcpu, memory: &GuestMemory) -> hv::Result<Stopped> {
        let cpu = Cpu::load(vcpu, memory)?;
        Ok(self.deliver(vcpu, &cpu, false)?.unwrap_or(Stopped::Exception))
    }

    /// Does a write to one of [`TRAPPED`]; whether the processor accepts the value.
    pub fn write_msr(&mut self, vcpu: &dyn Vcpu, memory: &GuestMemory, msr: Msr) -> hv::Result<bool> {
        let accepted = vcpu.set_msr(msr)?;
        if accepted {
            self.read_msrs(vcpu)?;
            self.watch(vcpu, memory)?;
        }
        Ok(accepted)
    }

    /// Deals with a stop at a breakpoint. Whatever is found, the processor can go on.
    pub fn stopped(&mut self, vcpu: &dyn Vcpu, memory: &GuestMemory) -> hv::Result<Stopped> {
        let cpu = Cpu::load(vcpu, memory)?;
        let rip = cpu.general.rip;
        // Behind the first instruction of a handler that was passed on only the handlers themselves are of
        // interest again. If an interrupt came between, a call may have got this far.
        let behind = !self.entries.iter().any(|entry| entry == rip);
        self.watch(vcpu, memory)?;
        match self.deliver(vcpu, &cpu, behind)? {
            Some(stopped) => Ok(stopped),
            None => self.pass_on(vcpu, memory, rip),
        }
    }

    /// Gives a call the state to arrive with; none if this is no call. `anywhere`: not only a page fault's handler may
    /// have been stopped by one.
    fn deliver(&self, vcpu: &dyn Vcpu, cpu: &Cpu<'_>, anywhere: bool) -> hv::Result<Option<Stopped>> {
        let rip = Some(cpu.general.rip);
        if !cpu.is_64_bit() || cpu.privilege() != 0 {
            return Ok(None);
        }
        if (anywhere || self.entries.page_fault == rip) && self.deliver_call(vcpu, cpu)? {
            return Ok(Some(Stopped::Call));
        }
        // With one entry for both, a page fault's frame would be taken for an undefined instruction's.
        let is_undefined = self.entries.undefined == rip && self.entries.page_fault != rip;
        let is_interrupt = is_undefined && interrupt::deliver(vcpu, cpu)?;
        Ok(is_interrupt.then_some(Stopped::Interrupt))
    }

    fn pass_on(&mut self, vcpu: &dyn Vcpu, memory: &GuestMemory, rip: u64) -> hv::Result<Stopped> {
        if !self.entries.iter().any(|entry| entry == rip) {
            return Ok(Stopped::Nothing);
        }
        if let Some(next) = handler::pass_first_instruction(vcpu, memory)? {
            let others = self.entries.iter().filter(|&entry| entry != rip).collect::<Vec<_>>();
            self.set_breakpoints(vcpu, next.into_iter().chain(others))?;
        }
        Ok(Stopped::Exception)
    }

    fn set_breakpoints(&mut self, vcpu: &dyn Vcpu, at: impl Iterator<Item = u64>) -> hv::Result<()> {
        let mut wanted = [0; MOST_BREAKPOINTS];
        let mut count = 0;
        at.zip(&mut wanted).for_each(|(address, slot)| {
            *slot = address;
            count += 1;
        });
        let wanted = &wanted[..count];
        if wanted != self.breakpoints {
            vcpu.set_breakpoints(wanted)?;
            self.breakpoints.clear();
            self.breakpoints.extend(wanted);
        }
        Ok(())
    }
}

/// A gate of an interrupt table in long mode (Intel SDM volume 3, "64-Bit Mode IDT").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Gate {
    target: u64,
    selector: u16,
    stack: u8,
    privilege: u8,
    present: bool,
    kind: u8,
}

impl Gate {
    const INTERRUPT: u8 = 0xe;
    const TRAP: u8 = 0xf;

    fn decode([low, high]: [u64; 2]) -> Self {
        Self {
            target: low & 0xffff | (low >> 48) << 16 | high << 32,
            selector: (low >> 16) as u16,
            stack: (low >> 32) as u8 & 7,
            privilege: (low >> 45) as u8 & 3,
            present: low >> 47 & 1 != 0,
            // With bit 44, which is set in descriptors of code and data.
            kind: (low >> 40) as u8 & 0x1f,
        }
    }

    fn is_of_use(&self) -> bool {
        matches!(self.kind, Self::INTERRUPT | Self::TRAP)
    }

    /// Where the gate of `vector` lies, if the table has it.
    fn address(special: &SpecialRegisters, vector: u8) -> Option<u64> {
        let offset = u16::from(vector) * 16;
        (offset + 15 <= special.idt.limit).then(|| special.idt.base.wrapping_add(offset.into()))
    }
}

/// The gate of `vector`, if it leads anywhere, as the interrupt table says at this moment.
fn usable_gate(memory: &GuestMemory, special: &SpecialRegisters, vector: u8) -> Option<Gate> {
    if special.efer & EFER_LMA == 0 {
        return None;
    }
    let mut bytes = [0; 16];
    let read = walk::read_linear(memory, special, Gate::address(special, vector)?, &mut bytes);
    let gate = Gate::decode(words(&bytes));
    let usable = read == bytes.len() && gate.present && gate.is_of_use() && gate.target != 0;
    usable.then_some(gate)
}

/// Little-endian words, one behind the other.
fn words<const COUNT: usize>(bytes: &[u8]) -> [u64; COUNT] {
    let mut words = [0; COUNT];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = bytes.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
    }
    words
}

/// What the processor pushes when it enters a handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Frame {
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

impl Frame {
    const SIZE: u64 = 40;

    /// The frame at `address`, if it can be read.
    fn read(cpu: &Cpu<'_>, address: u64) -> hv::Result<Option<Self>> {
        let mut bytes = [0; Self::SIZE as usize];
        let Some(()) = readable(cpu.read_as_system(address, &mut bytes))? else { return Ok(None) };
        let [rip, cs, rflags, rsp, ss] = words(&bytes);
        Ok(Some(Self { rip, cs, rflags, rsp, ss }))
    }

    fn write(&self, cpu: &Cpu<'_>, address: u64) -> hv::Result<Option<()>> {
        let Self { rip, cs, rflags, rsp, ss } = *self;
        let bytes = [rip, cs, rflags, rsp, ss].map(u64::to_le_bytes).concat();
        readable(cpu.write_as_system(address, &bytes))
    }

    fn is_from_ring_3(&self) -> bool {
        self.cs & 3 == 3
    }
}

/// What cannot be read is no reason to end anything: then it is not what was looked for.
fn readable<T>(result: Result<T, Stop>) -> hv::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Stop::Hypervisor(error)) => Err(error),
        Err(Stop::Fault(_) | Stop::Beyond(_)) => Ok(None),
    }
}

#[cfg(test)]
#[path = "transition_test.rs"]
mod tests;
