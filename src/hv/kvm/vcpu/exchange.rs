//! Registers that travel with each entry and exit, instead of by calls of their own.
//!
//! `KVM_CAP_SYNC_REGS`: the kernel leaves general registers, special registers and pending events in the page it
//! shares with us at every exit, and takes changed ones from there at the next entry. Where each call for a
//! vCPU costs 5 µs (measured on a KVM without hardware virtualization) that is most of what it costs to
//! complete an instruction. Where nobody looks at registers it would only cost, so it is off until asked for.

use std::cell::Cell;

use kvm_bindings::{
    KVM_SYNC_X86_EVENTS, KVM_SYNC_X86_REGS, KVM_SYNC_X86_SREGS, kvm_regs, kvm_sregs, kvm_vcpu_events,
};
use kvm_ioctls::{SyncReg, VcpuFd};

/// The registers of one vCPU that are on their way.
#[derive(Debug, Default)]
pub(super) struct Exchange {
    possible: bool,
    on: bool,
    /// Whether the shared page holds what the processor has, apart from what was changed since.
    current: Cell<bool>,
    changed: Cell<Changed>,
}

/// What is to be handed over at the next entry.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Changed {
    pub general: Option<kvm_regs>,
    pub special: Option<kvm_sregs>,
    pub events: Option<kvm_vcpu_events>,
}

impl Exchange {
    pub(super) fn new(possible: bool) -> Self {
        Self { possible, ..Self::default() }
    }

    pub(super) fn switch(&mut self, on: bool, fd: &mut VcpuFd) {
        self.on = on && self.possible;
        for registers in [SyncReg::Register, SyncReg::SystemRegister, SyncReg::VcpuEvents] {
            if self.on {
                fd.set_sync_valid_reg(registers);
            } else {
                fd.clear_sync_valid_reg(registers);
            }
        }
    }

    /// Whether changes wait for the next entry, which is then the last of this kind if it was switched off.
    pub(super) fn is_used(&self) -> bool {
        self.on || self.current.get()
    }

    /// Before an entry.
    pub(super) fn hand_over(&self, fd: &mut VcpuFd) {
        let Changed { general, special, events } = self.changed.take();
        let mut dirty = 0;
        let page = fd.sync_regs_mut();
        if let Some(general) = general {
            page.regs = general;
            dirty |= KVM_SYNC_X86_REGS;
        }
        if let Some(special) = special {
            page.sregs = special;
            dirty |= KVM_SYNC_X86_SREGS;
        }
        // The kernel sets the bit of an interrupt that it has accepted and not delivered, and never clears one here, as
        // it does where it is asked. With an old one, changed registers would make it deliver that interrupt once more,
        // also where interrupts are off. What it has accepted it knows.
        page.sregs.interrupt_bitmap = Default::default();
        if let Some(events) = events {
            page.events = events;
            dirty |= KVM_SYNC_X86_EVENTS;
        }
        fd.get_kvm_run().kvm_dirty_regs |= u64::from(dirty);
        // Switched off, the page is not filled in any more.
        self.current.set(self.on);
    }

    /// What was changed and not yet handed over; from now on it is the caller's to set. Whatever the shared page
    /// holds is not relied on until the next exit.
    pub(super) fn take_back(&self) -> Changed {
        self.current.set(false);
        self.changed.take()
    }

    pub(super) fn has_changes(&self) -> bool {
        let Changed { general, special, events } = self.changed.get();
        general.is_some() || special.is_some() || events.is_some()
    }

    pub(super) fn general(&self, fd: &VcpuFd) -> Option<kvm_regs> {
        self.changed.get().general.or_else(|| self.current.get().then(|| fd.sync_regs().regs))
    }

    pub(super) fn special(&self, fd: &VcpuFd) -> Option<kvm_sregs> {
        self.changed.get().special.or_else(|| self.current.get().then(|| fd.sync_regs().sregs))
    }

    pub(super) fn events(&self, fd: &VcpuFd) -> Option<kvm_vcpu_events> {
        self.changed.get().events.or_else(|| self.current.get().then(|| fd.sync_regs().events))
    }

    /// Notes changes for the next entry.
    pub(super) fn change(&self, change: impl FnOnce(&mut Changed)) {
        let mut changed = self.changed.get();
        change(&mut changed);
        self.changed.set(changed);
    }
}
