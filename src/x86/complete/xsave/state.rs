//! A processor's extended state as components that are in their initial configuration or not.

use std::arch::x86_64::{__cpuid, _fxsave64};
use std::ops::Range;
use std::sync::OnceLock;

use super::layout::{HEADER, Layout, MXCSR, SSE, X87, X87_CONTROL, X87_REGISTERS, numbers};
use crate::hv::Vectors;

/// What MXCSR is in its initial configuration: every exception masked.
pub const INITIAL_MXCSR: u32 = 0x1f80;
/// The same for the x87 control word.
const INITIAL_CONTROL: u16 = 0x37f;

const CONTROL: Range<usize> = 0..2;
const STATUS: Range<usize> = 2..4;
const TAGS_RESERVED: usize = 5;
const OPCODE: Range<usize> = 6..8;
const POINTERS: Range<usize> = 8..24;
/// What the 32-bit forms have no pointer bits for. They keep segment selectors there, which current processors
/// save as 0, and which no KVM carries: it keeps a guest's state in the 64-bit form.
const POINTERS_UPPER: [Range<usize>; 2] = [12..16, 20..24];

/// Infinity, rounding and precision control and the six masks; bit 6 reads as 1, the others as 0.
const CONTROL_BITS: u16 = 0x1f3f;
const CONTROL_FIXED: u16 = 0x40;
const EXCEPTIONS: u16 = 0x3f;
/// In the status word: an unmasked exception is pending (and the old "busy" bit, its copy).
const PENDING: u16 = 0x8080;
const OPCODE_BITS: u16 = 0x7ff;

/// The state, with each component spelled out even where it is in its initial configuration.
#[derive(Clone)]
pub struct State {
    vectors: Vectors,
    layout: &'static Layout,
}

impl State {
    /// The state that a hypervisor has saved. It need not have written what is initial.
    pub fn new(vectors: &Vectors, layout: &'static Layout) -> Self {
        let mut state = Self { vectors: vectors.clone(), layout };
        let present = state.header();
        if present & SSE == 0 {
            state.set_mxcsr(INITIAL_MXCSR);
        }
        for number in numbers(layout.known() & !present) {
            state.initialise(number, true);
        }
        state
    }

    /// The state for the hypervisor to restore.
    pub fn finish(mut self) -> Vectors {
        let unknown = self.header() & !self.layout.known();
        let header = unknown | self.in_use_with_mxcsr();
        self.vectors.0[HEADER..HEADER + 8].copy_from_slice(&header.to_le_bytes());
        self.vectors
    }

    fn header(&self) -> u64 {
        self.vectors.0[HEADER..HEADER + 8].iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte))
    }

    /// A part of a component.
    pub fn bytes(&self, part: Range<usize>) -> &[u8] {
        &self.vectors.0[part]
    }

    /// A part of a component, to be changed.
    pub fn bytes_mut(&mut self, part: Range<usize>) -> &mut [u8] {
        &mut self.vectors.0[part]
    }

    /// The components that are not in their initial configuration, which the manuals call XINUSE.
    ///
    /// A processor may say so of a component that is, but AMD's do not. XMM registers only: MXCSR does not count.
    pub fn in_use(&self) -> u64 {
        numbers(self.layout.known())
            .filter(|number| !self.is_initial(*number))
            .map(|number| 1 << number)
            .sum()
    }

    /// The same with MXCSR as a part of the SSE component, as the compacting instructions see it.
    pub fn in_use_with_mxcsr(&self) -> u64 {
        self.in_use() | if self.mxcsr() == INITIAL_MXCSR { 0 } else { SSE }
    }

    /// Puts a component into its initial configuration, as far as code of this mode sees it.
    pub fn initialise(&mut self, number: u32, wide: bool) {
        for part in self.layout.parts(number, wide) {
            self.vectors.0[part].fill(0);
        }
        if 1 << number == X87 {
            self.set_word(CONTROL, INITIAL_CONTROL);
        }
    }

    fn is_initial(&self, number: u32) -> bool {
        let zero = |part: Range<usize>| self.vectors.0[part].iter().all(|byte| *byte == 0);
        match 1 << number {
            X87 => {
                self.word(CONTROL) == INITIAL_CONTROL
                    && zero(CONTROL.end..X87_CONTROL.end)
                    && zero(X87_REGISTERS)
            }
            _ => self.layout.parts(number, true).all(zero),
        }
    }

    /// MXCSR.
    pub fn mxcsr(&self) -> u32 {
        let [a, b, c, d, ..] = self.vectors.0[MXCSR] else { return INITIAL_MXCSR };
        u32::from_le_bytes([a, b, c, d])
    }

    /// Sets MXCSR, and the mask of the bits that it has here.
    pub fn set_mxcsr(&mut self, value: u32) {
        let both = u64::from(mxcsr_mask()) << 32 | u64::from(value);
        self.vectors.0[MXCSR].copy_from_slice(&both.to_le_bytes());
    }

    /// Makes of what was loaded for the x87 unit what it then holds.
    pub fn settle_x87(&mut self) {
        let control = self.word(CONTROL) & CONTROL_BITS | CONTROL_FIXED;
        let status = self.word(STATUS);
        let pending = status & !control & EXCEPTIONS != 0;
        self.set_word(CONTROL, control);
        self.set_word(STATUS, status & !PENDING | if pending { PENDING } else { 0 });
        self.vectors.0[TAGS_RESERVED] = 0;
        self.set_word(OPCODE, self.word(OPCODE) & OPCODE_BITS);
        if !pending && is_amd() {
            // Measured on one with XSAVEERPTR: what is restored without a pending exception is saved as 0.
            self.set_word(OPCODE, 0);
            self.vectors.0[POINTERS].fill(0);
        }
        for register in self.vectors.0[X87_REGISTERS].chunks_exact_mut(16) {
            register[10..].fill(0);
        }
    }

    fn word(&self, at: Range<usize>) -> u16 {
        let [low, high] = self.vectors.0[at] else { return 0 };
        u16::from_le_bytes([low, high])
    }

    fn set_word(&mut self, at: Range<usize>, value: u16) {
        self.vectors.0[at].copy_from_slice(&value.to_le_bytes());
    }
}

/// Makes of the first part of the x87 component what the 32-bit form has there.
pub fn narrow_pointers(part: &mut [u8]) {
    for upper in POINTERS_UPPER {
        part[upper].fill(0);
    }
}

/// Which bits MXCSR has on the host.
pub fn mxcsr_mask() -> u32 {
    /// What processors have that save 0 as the mask.
    const OLDEST: u32 = 0xffbf;
    #[repr(align(16))]
    struct Legacy([u8; 512]);

    static MASK: OnceLock<u32> = OnceLock::new();
    *MASK.get_or_init(|| {
        let mut area = Legacy([0; 512]);
        // SAFETY: the area has the size and alignment that fxsave needs, and every 64-bit processor has fxsave.
        unsafe { _fxsave64(area.0.as_mut_ptr()) };
        let [a, b, c, d] = area.0[28..32] else { return OLDEST };
        match u32::from_le_bytes([a, b, c, d]) {
            0 => OLDEST,
            mask => mask,
        }
    })
}

/// Whether the host's processor is AMD's, or a relative.
pub fn is_amd() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        let answer = __cpuid(0);
        let vendor = [answer.ebx, answer.edx, answer.ecx].map(u32::to_le_bytes).concat();
        [b"AuthenticAMD", b"HygonGenuine"].iter().any(|name| vendor == name.as_slice())
    })
}
