//! Registers within the image of the vector state.
//!
//! The image has the standard format of `xsave`: a component whose bit in the header is clear is in its initial
//! state, whatever its bytes say. Where the larger components lie is the host processor's choice, told by CPUID.
//! Intel SDM volume 1, "Managing State Using the XSAVE Feature Set".

use std::arch::x86_64::__cpuid_count;
use std::ops::Range;
use std::sync::OnceLock;

use crate::hv::Vectors;

/// The x87 control word.
const FCW: usize = 0;
/// The x87 status word.
const FSW: usize = 2;
/// The SSE control and status register.
pub(super) const MXCSR: usize = 24;
/// Which of its bits exist; 0 stands for [`DEFAULT_MXCSR_MASK`].
pub(super) const MXCSR_MASK: usize = 28;
/// What processors have that do not tell.
pub(super) const DEFAULT_MXCSR_MASK: u32 = 0xffbf;
/// Which components are not in their initial state.
const STATE_BITS: usize = 512;

const INITIAL_FCW: u16 = 0x37f;
const INITIAL_MXCSR: u32 = 0x1f80;
const X87_EXCEPTIONS: u16 = 0x3f;

/// Components, by their bits in XCR0.
pub(super) const X87: u32 = 0;
pub(super) const SSE: u32 = 1;
const AVX: u32 = 2;
const MASKS: u32 = 5;
const UPPER_HALVES: u32 = 6;
const UPPER_REGISTERS: u32 = 7;

/// The widest vector register.
pub(super) type Wide = [u8; 64];

/// Where a component of the extended region lies; an empty range if this processor has it not, or if the image
/// ends before it.
fn extended(component: u32) -> Range<usize> {
    static PLACES: OnceLock<[(usize, usize); 8]> = OnceLock::new();
    let places = PLACES.get_or_init(|| {
        std::array::from_fn(|component| match component {
            0 | 1 => (0, 0),
            _ => {
                let leaf = __cpuid_count(0xd, component as u32);
                let (start, end) = (leaf.ebx as usize, leaf.ebx as usize + leaf.eax as usize);
                if end <= size_of::<Vectors>() { (start, end) } else { (0, 0) }
            }
        })
    });
    let (start, end) = places.get(component as usize).copied().unwrap_or_default();
    start..end
}

/// 32 bits of the image.
pub(super) fn word(vectors: &Vectors, at: usize) -> u32 {
    u32::from_le_bytes(array(vectors, at))
}

fn short(vectors: &Vectors, at: usize) -> u16 {
    u16::from_le_bytes(array(vectors, at))
}

fn array<const N: usize>(vectors: &Vectors, at: usize) -> [u8; N] {
    std::array::from_fn(|index| vectors.0[at + index])
}

/// The components that are not in their initial state.
pub(super) fn state_bits(vectors: &Vectors) -> u64 {
    u64::from_le_bytes(array(vectors, STATE_BITS))
}

fn set_state_bits(vectors: &mut Vectors, bits: u64) {
    vectors.0[STATE_BITS..STATE_BITS + 8].copy_from_slice(&bits.to_le_bytes());
}

fn is_present(vectors: &Vectors, component: u32) -> bool {
    state_bits(vectors) >> component & 1 != 0
}

/// Makes the bytes of a component count.
fn make_present(vectors: &mut Vectors, component: u32) {
    if is_present(vectors, component) {
        return;
    }
    match component {
        X87 => {
            vectors.0[..MXCSR].fill(0);
            vectors.0[FCW..FCW + 2].copy_from_slice(&INITIAL_FCW.to_le_bytes());
            vectors.0[32..160].fill(0);
        }
        SSE => vectors.0[160..416].fill(0),
        _ => vectors.0[extended(component)].fill(0),
    }
    let bits = state_bits(vectors) | 1 << component;
    set_state_bits(vectors, bits);
}

/// Whether an x87 exception waits to be reported.
pub(super) fn has_pending_x87_exception(vectors: &Vectors) -> bool {
    is_present(vectors, X87) && short(vectors, FSW) & !short(vectors, FCW) & X87_EXCEPTIONS != 0
}

/// Sets the SSE control and status register. Its value counts only where a vector component is present.
pub(super) fn set_mxcsr(vectors: &mut Vectors, value: u32) {
    make_present(vectors, SSE);
    vectors.0[MXCSR..MXCSR + 4].copy_from_slice(&value.to_le_bytes());
}

/// The parts of a vector register: its bytes, the component that holds them and their place in it.
fn parts(register: usize) -> [(Range<usize>, u32, usize); 3] {
    let none = (0..0, SSE, 0);
    match register {
        0..16 => [
            (0..16, SSE, 160 + register * 16),
            (16..32, AVX, extended(AVX).start + register * 16),
            (32..64, UPPER_HALVES, extended(UPPER_HALVES).start + register * 32),
        ],
        16..32 => {
            let place = extended(UPPER_REGISTERS).start + (register - 16) * 64;
            [(0..64, UPPER_REGISTERS, place), none.clone(), none]
        }
        _ => [none.clone(), none.clone(), none],
    }
}

fn exists(component: u32) -> bool {
    component <= SSE || !extended(component).is_empty()
}

/// A vector register, as wide as it can be.
pub(super) fn get_vector(vectors: &Vectors, register: usize) -> Wide {
    let mut value = [0; 64];
    for (bytes, component, place) in parts(register) {
        if exists(component) && is_present(vectors, component) {
            let size = bytes.len();
            value[bytes].copy_from_slice(&vectors.0[place..place + size]);
        }
    }
    value
}

/// Sets a vector register in its full width.
pub(super) fn set_vector(vectors: &mut Vectors, register: usize, value: &Wide) {
    for (bytes, component, place) in parts(register) {
        let bytes = &value[bytes];
        let matters = is_present(vectors, component) || bytes.iter().any(|byte| *byte != 0);
        if exists(component) && matters {
            make_present(vectors, component);
            vectors.0[place..place + bytes.len()].copy_from_slice(bytes);
        }
    }
}

fn mask_place(register: usize) -> usize {
    extended(MASKS).start + (register & 7) * 8
}

/// A mask register.
pub(super) fn get_mask(vectors: &Vectors, register: usize) -> u64 {
    match exists(MASKS) && is_present(vectors, MASKS) {
        true => u64::from_le_bytes(array(vectors, mask_place(register))),
        false => 0,
    }
}

/// Sets a mask register.
pub(super) fn set_mask(vectors: &mut Vectors, register: usize, value: u64) {
    if exists(MASKS) {
        make_present(vectors, MASKS);
        let place = mask_place(register);
        vectors.0[place..place + 8].copy_from_slice(&value.to_le_bytes());
    }
}

/// What the processor adds to the state when it reports where an x87 instruction and its operand were.
pub(super) mod x87_pointers {
    use super::{Vectors, array};

    const OPCODE: usize = 6;
    const INSTRUCTION: usize = 8;
    const DATA: usize = 16;

    /// Where the last x87 instruction and its operand were.
    pub(crate) fn get(vectors: &Vectors) -> (u64, u64) {
        (u64::from_le_bytes(array(vectors, INSTRUCTION)), u64::from_le_bytes(array(vectors, DATA)))
    }

    /// Replaces them.
    pub(crate) fn set(vectors: &mut Vectors, instruction: u64, data: u64) {
        vectors.0[INSTRUCTION..INSTRUCTION + 8].copy_from_slice(&instruction.to_le_bytes());
        vectors.0[DATA..DATA + 8].copy_from_slice(&data.to_le_bytes());
    }

    /// Replaces the opcode of the last x87 instruction.
    pub(crate) fn set_opcode(vectors: &mut Vectors, opcode: u16) {
        vectors.0[OPCODE..OPCODE + 2].copy_from_slice(&opcode.to_le_bytes());
    }
}

/// Makes an image one that the processor can load `components` of, whoever made it: standard format, no bits
/// that do not exist. Returns what [`settle`] needs.
pub(super) fn prepare(vectors: &mut Vectors, components: u64, mxcsr_mask: u32) -> u64 {
    let mxcsr = word(vectors, MXCSR) & mxcsr_mask;
    vectors.0[MXCSR..MXCSR + 4].copy_from_slice(&mxcsr.to_le_bytes());
    let bits = state_bits(vectors);
    set_state_bits(vectors, bits & components);
    vectors.0[STATE_BITS + 8..STATE_BITS + 64].fill(0);
    bits & !components
}

/// Makes an image complete that the processor has stored `components` of: the others are what they were, and
/// MXCSR, whose value needs the bit of a component to count, has it.
pub(super) fn settle(vectors: &mut Vectors, components: u64, others: u64) {
    let bits = state_bits(vectors) & components | others;
    set_state_bits(vectors, bits);
    if word(vectors, MXCSR) != INITIAL_MXCSR {
        make_present(vectors, SSE);
    }
}

/// The components of `enabled` that instructions work on, lie within an image and are no danger to load: not
/// the protection keys, which would take this program's own memory away.
pub(super) fn loadable(enabled: u64) -> u64 {
    let components = [AVX, MASKS, UPPER_HALVES, UPPER_REGISTERS];
    let present = components.into_iter().filter(|&component| exists(component));
    let all = present.fold(0b11, |all, component| all | 1 << component);
    (enabled | 0b11) & all
}

#[cfg(test)]
#[path = "vectors_test.rs"]
mod tests;
