//! The registers on which kernel code runs.

use super::alu::flag;
use crate::hv::{Registers, SpecialRegisters};
use crate::x86::mode::{CR0_PE, CR0_PG, CR4_CET, EFER_LMA};

/// Protection keys of supervisor pages.
const CR4_PKS: u64 = 1 << 24;

/// RSP's number.
pub const RSP: u8 = 4;

/// The registers that kernel code uses, in the order of their numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    pub general: [u64; 16],
    pub rip: u64,
    pub flags: u64,
    pub fs_base: u64,
    pub gs_base: u64,
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    /// 64-bit code in ring 0, with paging.
    kernel_mode: bool,
}

impl State {
    pub fn load(general: &Registers, special: &SpecialRegisters) -> Self {
        let Registers { rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, .. } = *general;
        let Registers { r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags, .. } = *general;
        let paging = CR0_PE | CR0_PG;
        Self {
            general: [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15],
            rip,
            flags: rflags,
            fs_base: special.fs.base,
            gs_base: special.gs.base,
            cr0: special.cr0,
            cr3: special.cr3,
            cr4: special.cr4,
            efer: special.efer,
            kernel_mode: special.cr0 & paging == paging
                && special.efer & EFER_LMA != 0
                // With shadow stacks calls and returns do more than is done here.
                && special.cr4 & (CR4_CET | CR4_PKS) == 0
                && special.cs.long
                && special.ss.dpl == 0
                && special.cs.dpl == 0,
        }
    }

    pub fn store(&self, general: &mut Registers) {
        let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = self.general;
        let (rip, rflags) = (self.rip, self.flags);
        *general = Registers {
            rax,
            rcx,
            rdx,
            rbx,
            rsp,
            rbp,
            rsi,
            rdi,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
            rip,
            rflags,
        };
    }

    /// Whether code in this state can be run here at all.
    pub fn runs_here(&self) -> bool {
        self.kernel_mode && self.flags & flag::TRAP == 0
    }

    /// Whether RFLAGS.AC lifts SMAP.
    pub fn may_touch_user_pages(&self) -> bool {
        self.flags & flag::ALIGNMENT != 0
    }
}
