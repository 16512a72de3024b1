//! `syscall` that has arrived at LSTAR in ring 3, and so in a page fault.

use super::{Frame, RFLAGS_FIXED, RFLAGS_RF, Transitions, readable};
use crate::hv::{self, Vcpu};
use crate::x86::complete::Cpu;
use crate::x86::segments;

/// In a page fault's error code: the page is there; ring 3 did it; an instruction was to be fetched, which is
/// said only where pages can be closed to that.
const PRESENT: u64 = 1 << 0;
const USER: u64 = 1 << 2;
const FETCH: u64 = 1 << 4;

impl Transitions {
    /// Gives a system call the state that `syscall` arrives with (AMD64 manual volume 3, SYSCALL). False, and
    /// nothing done, if the page fault is none.
    pub(super) fn deliver_call(&self, vcpu: &dyn Vcpu, cpu: &Cpu<'_>) -> hv::Result<bool> {
        let stack = cpu.general.rsp;
        let mut code = [0; 8];
        let Some(()) = readable(cpu.read_as_system(stack, &mut code))? else { return Ok(false) };
        let Some(frame) = Frame::read(cpu, stack.wrapping_add(8))? else { return Ok(false) };
        if !self.is_call(cpu, u64::from_le_bytes(code), &frame) {
            return Ok(false);
        }
        // RCX and R11 are set already. SS's descriptor is not read: it is what a flat one would be.
        let selector = (self.star >> 32) as u16 & !3;
        let mut special = cpu.special;
        special.cs = hv::Segment { selector, ..segments::code64() };
        special.ss = hv::Segment { selector: selector.wrapping_add(8), ..segments::data() };
        let mut general = cpu.general;
        general.rip = self.lstar;
        general.rsp = frame.rsp;
        general.rflags = frame.rflags & !(self.mask | RFLAGS_RF) | RFLAGS_FIXED;
        vcpu.set_special_registers(&special)?;
        vcpu.set_registers(&general)?;
        Ok(true)
    }

    /// Whether only `syscall` can have led here. Ring 3 may jump to LSTAR itself, with RCX and R11 as it likes,
    /// and the guest's kernel takes these for what the processor left there: but it cannot clear the interrupt
    /// flag, which every kernel has in its mask, and what the mask leaves of the flags must be in R11, too.
    fn is_call(&self, cpu: &Cpu<'_>, error_code: u64, frame: &Frame) -> bool {
        let left = !(self.mask | RFLAGS_RF);
        error_code & !(PRESENT | FETCH) == USER
            && frame.is_from_ring_3()
            && frame.rip == self.lstar
            && cpu.special.cr2 == self.lstar
            && frame.rflags & self.mask & !RFLAGS_RF == 0
            && (frame.rflags ^ cpu.general.r11) & left == 0
    }
}
