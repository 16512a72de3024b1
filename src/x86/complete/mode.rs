//! In which mode the processor executes, and what follows from that for addresses.

use super::Cpu;
use crate::x86::mode::{CR0_PE, CR4_LA57, EFER_LMA};
use crate::x86::walk::is_canonical;

const RFLAGS_VM: u64 = 1 << 17;

impl Cpu<'_> {
    /// Whether the code is 64-bit code.
    pub(super) fn is_64_bit(&self) -> bool {
        self.special.efer & EFER_LMA != 0 && self.special.cs.long
    }

    /// How many bits addresses and operands of the code have where nothing else is said.
    pub(super) fn code_bits(&self) -> u32 {
        match (self.is_64_bit(), self.special.cs.default_big) {
            (true, _) => 64,
            (false, true) => 32,
            (false, false) => 16,
        }
    }

    /// Protected mode or long mode; neither real mode nor virtual 8086 mode.
    pub(super) fn is_protected(&self) -> bool {
        self.special.cr0 & CR0_PE != 0 && self.general.rflags & RFLAGS_VM == 0
    }

    /// Whether `linear` is an address at all, in long mode.
    pub(super) fn is_canonical(&self, linear: u64) -> bool {
        is_canonical(linear, if self.special.cr4 & CR4_LA57 != 0 { 5 } else { 4 })
    }
}
