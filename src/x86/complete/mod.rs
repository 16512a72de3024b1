//! Completion of what the host's KVM cannot run: one guest instruction, executed here.
//!
//! On hosts without VT-x or SVM a KVM interprets guest kernels, and its interpreter lacks instructions that
//! kernels use. When it gives up at one, [`complete`] reads the processor's registers, fetches and decodes the
//! instruction at RIP, executes it as the processor would, with the page walks, rights and faults that belong
//! to it, and puts the result back, so that the guest goes on as if nothing had happened.
//!
//! Each step has its place, so that it can grow from one instruction to many in a row: [`cpu`] is the
//! processor's state, [`memory`] its view of memory and [`rights`] the page walks behind it, `decode` finds the
//! instruction, [`operand`] its memory operand, `execute` hands it to the module that knows its kind (of which
//! [`xsave`] is one), and [`fault`] is what stops it. Nothing here is reached on a host whose KVM needs no help.
//! Relies on `hv/`'s traits and `memory/`; `vcpu/` calls it.

mod availability;
pub mod cpu;
mod decode;
mod descriptor;
mod execute;
pub mod fault;
pub mod gaps;
pub mod memory;
mod mode;
mod native;
pub mod operand;
mod registers;
pub mod rights;
mod system;
pub mod transition;
mod vectors;
pub mod xsave;

use iced_x86::Mnemonic;

use crate::hv::{self, Vcpu};
use crate::memory::GuestMemory;
pub use cpu::Cpu;
pub use fault::{Beyond, Fault, Stop};
pub use gaps::Gaps;
pub use transition::Transitions;

/// What was executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Completed {
    /// The instruction's name: something to count by. [`Mnemonic::INVALID`] where there was no instruction to
    /// be found, which is an exception like any other.
    pub mnemonic: Mnemonic,
}

/// Executes the instruction at RIP, which the hypervisor could not.
///
/// An exception of the instruction is delivered to the guest: that, too, is completion. The inner error says
/// why the instruction is beyond this module; no register has changed then.
pub fn complete(vcpu: &dyn Vcpu, memory: &GuestMemory) -> hv::Result<Result<Completed, Beyond>> {
    let mut cpu = Cpu::load(vcpu, memory)?;
    let (mnemonic, end) = execute::one(&mut cpu);
    let fault = match end {
        Ok(fault) => fault,
        Err(Stop::Fault(fault)) => Some(fault),
        Err(Stop::Beyond(beyond)) => return Ok(Err(beyond)),
        Err(Stop::Hypervisor(error)) => return Err(error),
    };
    cpu.store(fault)?;
    Ok(Ok(Completed { mnemonic }))
}

/// How many instructions are executed in a row at most, so that interrupts need not wait for long.
const STRETCH: usize = 256;

/// Executes the instructions from RIP on for as long as they use vector registers, which are read and put back once
/// for all of them; `completed` is told the name of each. Returns whether there was one.
///
/// An instruction that raises an exception is not executed: that is left to [`complete`].
pub fn complete_stretch(
    vcpu: &dyn Vcpu,
    memory: &GuestMemory,
    completed: &mut dyn FnMut(Mnemonic),
) -> hv::Result<bool> {
    let mut cpu = Cpu::load(vcpu, memory)?;
    let mut any = false;
    for _ in 0..STRETCH {
        let before = cpu.general;
        match execute::one_with_vectors(&mut cpu) {
            Some(mnemonic) => completed(mnemonic),
            None => {
                cpu.general = before;
                break;
            }
        }
        any = true;
    }
    if any {
        cpu.store(None)?;
    }
    Ok(any)
}

#[cfg(test)]
mod testing;
