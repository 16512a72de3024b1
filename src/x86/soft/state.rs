//! The registers on which kernel code runs.

use super::alu::flag;
use super::decode::Segment;
use crate::hv::{Registers, SpecialRegisters};
use crate::x86::mode::{CR0_PE, CR0_PG, CR4_CET, EFER_LMA};

/// Protection keys of supervisor pages.
const CR4_PKS: u64 = 1 << 24;

/// RSP's number.
pub const RSP: u8 = 4;

/// The registers that kernel code uses, in the order of their numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// The general registers, and behind them what is always zero: parts of addresses that are missing. As many as
    /// five bits can tell apart, so that none has to be checked.
    pub general: [u64; 32],
    pub rip: u64,
    pub flags: u64,
    /// Where segments begin, by [`Segment`].
    bases: [u64; 4],
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    /// 64-bit code in ring 0, with paging.
    kernel_mode: bool,
}

impl State {
    pub fn load(registers: &Registers, special: &SpecialRegisters) -> Self {
        let mut general = [0; 32];
        general[..16].copy_from_slice(&registers.numbered());
        let mut bases = [0; 4];
        bases[Segment::Fs as usize] = special.fs.base;
        bases[Segment::Gs as usize] = special.gs.base;
        let paging = CR0_PE | CR0_PG;
        Self {
            general,
            rip: registers.rip,
            flags: registers.rflags,
            bases,
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
        let mut values = [0; 16];
        values.copy_from_slice(&self.general[..16]);
        *general = Registers { rip: self.rip, rflags: self.flags, ..general.with_numbered(values) };
    }

    /// A part of an address, by the number of its register.
    #[inline]
    pub fn part(&self, number: u8) -> u64 {
        self.general[usize::from(number & 31)]
    }

    /// What is added to addresses in a segment.
    #[inline]
    pub fn segment_base(&self, segment: Segment) -> u64 {
        self.bases[segment as usize]
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
