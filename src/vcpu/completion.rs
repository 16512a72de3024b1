//! What the run loop does with exits that only a host with gaps has.
//!
//! The loop is compiled once for ordinary hosts, with [`Nobody`] to help, and once for hosts whose KVM lacks
//! something, with a [`Completer`]. So an ordinary run pays nothing for it, not even a comparison.

use super::counters::Counters;
use super::fatal::Cause;
use crate::hv::{self, InternalError, Msr, Vcpu};
use crate::memory::GuestMemory;
use crate::x86::complete::{self, Gaps, Transitions};

/// Every how many accesses to devices the guest's interrupt table is looked into. A look costs half a
/// microsecond if registers are exchanged, and ten times that if not; an access ten or more.
const WATCH_EVERY: u32 = 16;
const WATCH_EVERY_WITHOUT_EXCHANGE: u32 = 64;
/// The suberror of an instruction that KVM could not run.
const EMULATION: u32 = 1;

/// Helps where KVM gives up.
pub(super) trait Help<V> {
    /// The loop is entered: anything may have happened to the processor meanwhile.
    fn enter(&mut self, vcpu: &mut V) -> hv::Result<()>;
    /// A device was accessed.
    fn accessed(&mut self, vcpu: &V) -> hv::Result<()>;
    /// The guest writes a model-specific register; what comes of it, or why it cannot go on.
    fn msr_write(&mut self, vcpu: &mut V, msr: Msr) -> Helped;
    /// The processor stopped at a breakpoint.
    fn breakpoint(&mut self, vcpu: &mut V) -> Helped;
    /// A program is about to run whose kernel runs elsewhere: the processor has to stop where it arrives in the kernel.
    fn watch_for_kernel(&mut self, vcpu: &mut V) -> hv::Result<()>;
    /// The processor stopped because it has arrived in the kernel, which goes on from there.
    fn arrived(&mut self, vcpu: &mut V) -> hv::Result<()>;
    /// Registers are going to be read and set often.
    fn registers_are_needed(&mut self, vcpu: &mut V);
    /// Executes instructions on vector registers from RIP on; whether there were any.
    fn vectors(&mut self, vcpu: &mut V) -> hv::Result<bool>;
    /// KVM gave up.
    fn internal_error(&mut self, vcpu: &mut V, error: InternalError) -> Helped;
}

/// The outer error ends the thread, the inner one the guest.
pub(super) type Helped = hv::Result<Result<(), Cause>>;

/// On ordinary hosts.
pub(super) struct Nobody;

/// Nothing asked for this exit.
const UNASKED: Cause = Cause::Unexpected { reason: 0 };

impl<V> Help<V> for Nobody {
    fn enter(&mut self, _vcpu: &mut V) -> hv::Result<()> {
        Ok(())
    }

    fn accessed(&mut self, _vcpu: &V) -> hv::Result<()> {
        Ok(())
    }

    fn msr_write(&mut self, _vcpu: &mut V, _msr: Msr) -> Helped {
        Ok(Err(UNASKED))
    }

    fn breakpoint(&mut self, _vcpu: &mut V) -> Helped {
        Ok(Err(UNASKED))
    }

    fn watch_for_kernel(&mut self, _vcpu: &mut V) -> hv::Result<()> {
        Ok(())
    }

    fn arrived(&mut self, _vcpu: &mut V) -> hv::Result<()> {
        Ok(())
    }

    fn registers_are_needed(&mut self, _vcpu: &mut V) {}

    fn vectors(&mut self, _vcpu: &mut V) -> hv::Result<bool> {
        Ok(false)
    }

    fn internal_error(&mut self, _vcpu: &mut V, error: InternalError) -> Helped {
        Ok(Err(Cause::InternalError(error)))
    }
}

/// On hosts with gaps.
pub(super) struct Completer<'a> {
    transitions: Transitions,
    memory: &'a GuestMemory,
    counters: &'a Counters,
    accesses: u32,
    exchanging: bool,
}

impl<'a> Completer<'a> {
    pub(super) fn new(gaps: Gaps, memory: &'a GuestMemory, counters: &'a Counters) -> Self {
        Self { transitions: Transitions::new(gaps), memory, counters, accesses: 0, exchanging: false }
    }
}

impl Completer<'_> {
    /// Registers have been needed, and will be again: many guests never need them, and would pay for it at each
    /// exit.
    fn exchange_from_now_on(&mut self, vcpu: &mut impl Vcpu) {
        if !self.exchanging {
            vcpu.exchange_registers(true);
            self.exchanging = true;
        }
    }
}

impl<V: Vcpu> Help<V> for Completer<'_> {
    fn enter(&mut self, vcpu: &mut V) -> hv::Result<()> {
        self.transitions.arm(vcpu, self.memory)?;
        if self.transitions.is_watching() {
            self.exchange_from_now_on(vcpu);
        }
        Ok(())
    }

    fn accessed(&mut self, vcpu: &V) -> hv::Result<()> {
        self.accesses = self.accesses.wrapping_add(1);
        let often = if self.exchanging { WATCH_EVERY } else { WATCH_EVERY_WITHOUT_EXCHANGE };
        if self.accesses.is_multiple_of(often) || self.transitions.is_unsettled() {
            self.transitions.watch(vcpu, self.memory)?;
        }
        Ok(())
    }

    fn msr_write(&mut self, vcpu: &mut V, msr: Msr) -> Helped {
        self.exchange_from_now_on(vcpu);
        if !self.transitions.write_msr(vcpu, self.memory, msr)? {
            vcpu.refuse_msr_write();
        }
        Ok(Ok(()))
    }

    fn breakpoint(&mut self, vcpu: &mut V) -> Helped {
        self.exchange_from_now_on(vcpu);
        self.counters.count_stop(self.transitions.stopped(vcpu, self.memory)?);
        Ok(Ok(()))
    }

    fn watch_for_kernel(&mut self, vcpu: &mut V) -> hv::Result<()> {
        self.transitions.watch_for_kernel(vcpu, self.memory)
    }

    fn arrived(&mut self, vcpu: &mut V) -> hv::Result<()> {
        self.counters.count_stop(self.transitions.arrived(vcpu, self.memory)?);
        Ok(())
    }

    fn registers_are_needed(&mut self, vcpu: &mut V) {
        self.exchange_from_now_on(vcpu);
    }

    fn vectors(&mut self, vcpu: &mut V) -> hv::Result<bool> {
        let counters = self.counters;
        complete::complete_stretch(vcpu, self.memory, &mut |mnemonic| counters.count_instruction(mnemonic))
    }

    fn internal_error(&mut self, vcpu: &mut V, error: InternalError) -> Helped {
        if error.suberror != EMULATION {
            return Ok(Err(Cause::InternalError(error)));
        }
        self.exchange_from_now_on(vcpu);
        // Vector code comes in runs.
        if <Self as Help<V>>::vectors(self, vcpu)? {
            return Ok(Ok(()));
        }
        match complete::complete(vcpu, self.memory)? {
            Ok(completed) => {
                self.counters.count_instruction(completed.mnemonic);
                self.transitions.watch(vcpu, self.memory)?;
                Ok(Ok(()))
            }
            Err(beyond) => Ok(Err(Cause::Beyond { error, why: beyond.text })),
        }
    }
}
