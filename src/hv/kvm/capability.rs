//! Which of KVM's capabilities lodger uses, and for what.

use kvm_ioctls::{Cap, Kvm};

/// A capability as the kernel's documentation names it.
#[derive(Debug, Clone, Copy)]
pub struct Capability {
    /// Its name in the kernel's documentation.
    pub name: &'static str,
    /// What lodger uses it for, to be read after "needed".
    pub purpose: &'static str,
    /// Whether no guest can run without it.
    pub required: bool,
    cap: Cap,
}

const fn required(name: &'static str, cap: Cap, purpose: &'static str) -> Capability {
    Capability { name, purpose, required: true, cap }
}

const fn optional(name: &'static str, cap: Cap, purpose: &'static str) -> Capability {
    Capability { name, purpose, required: false, cap }
}

/// Every capability that lodger asks for, required ones first.
pub const CAPABILITIES: [Capability; 20] = [
    required("KVM_CAP_USER_MEMORY", Cap::UserMemory, "to give a guest memory of this process"),
    required("KVM_CAP_SET_TSS_ADDR", Cap::SetTssAddr, "to run real-mode code on Intel processors"),
    required("KVM_CAP_EXT_CPUID", Cap::ExtCpuid, "to describe the processor to the guest"),
    required("KVM_CAP_IRQCHIP", Cap::Irqchip, "for the guest's interrupt controllers"),
    required("KVM_CAP_PIT2", Cap::Pit2, "for the guest's interval timer"),
    required("KVM_CAP_MP_STATE", Cap::MpState, "to start further processors"),
    required("KVM_CAP_IMMEDIATE_EXIT", Cap::ImmediateExit, "to stop a guest without losing the request"),
    optional("KVM_CAP_IRQFD", Cap::Irqfd, "for interrupts raised without a system call of their own"),
    optional("KVM_CAP_IOEVENTFD", Cap::Ioeventfd, "for doorbells that cause no exit to user space"),
    optional("KVM_CAP_VCPU_EVENTS", Cap::VcpuEvents, "to save a processor's pending events"),
    optional("KVM_CAP_DEBUGREGS", Cap::Debugregs, "to save a processor's debug registers"),
    optional("KVM_CAP_XSAVE", Cap::Xsave, "to save a processor's vector registers"),
    optional("KVM_CAP_XCRS", Cap::Xcrs, "to save a processor's extended control registers"),
    optional("KVM_CAP_PIT_STATE2", Cap::PitState2, "to save the interval timer"),
    optional("KVM_CAP_ADJUST_CLOCK", Cap::AdjustClock, "to save the guest's clock"),
    optional("KVM_CAP_GET_TSC_KHZ", Cap::GetTscKhz, "to tell the guest the frequency of its clock"),
    optional("KVM_CAP_TSC_DEADLINE_TIMER", Cap::TscDeadlineTimer, "for the guest's most precise timer"),
    optional(
        "KVM_CAP_SET_GUEST_DEBUG",
        Cap::SetGuestDebug,
        "to complete system calls that KVM cannot deliver",
    ),
    optional("KVM_CAP_X86_MSR_FILTER", Cap::X86MsrFilter, "to complete system calls that KVM cannot deliver"),
    optional("KVM_CAP_SYNC_REGS", Cap::SyncRegs, "to complete instructions quickly that KVM cannot run"),
];

impl Capability {
    /// Whether this KVM has it.
    pub(super) fn present(&self, kvm: &Kvm) -> bool {
        kvm.check_extension(self.cap)
    }
}
