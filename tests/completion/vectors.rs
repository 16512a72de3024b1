//! The vector and x87 registers with which an instruction begins, as a processor would have saved them.

use std::arch::x86_64::{__cpuid_count, _fxsave64};
use std::ops::Range;

use iced_x86::Register;
use lodger::hv::Vectors;

use crate::contents::{Contents, extended};
use crate::random::Random;

/// The header's place in the area.
pub const HEADER: usize = 512;
const X87: u64 = 1 << 0;
const SSE: u64 = 1 << 1;
const MXCSR: usize = 24;
const INITIAL_MXCSR: u32 = 0x1f80;

/// Where the components of the extended state lie: offset and size by number.
pub struct Layout {
    enabled: u64,
    mxcsr_mask: u32,
    components: Vec<(u32, usize, usize)>,
}

impl Layout {
    /// The host's.
    pub fn new(enabled: u64) -> Self {
        let components = (2..63).filter(|number| enabled >> number & 1 != 0).map(|number| {
            let answer = __cpuid_count(0xd, number);
            (number, answer.ebx as usize, answer.eax as usize)
        });
        Self { enabled, mxcsr_mask: mxcsr_mask(), components: components.collect() }
    }

    /// All components, as bits.
    pub fn enabled(&self) -> u64 {
        self.enabled
    }

    fn part(&self, component: u32, offset: usize, size: usize) -> Option<Range<usize>> {
        let (_, start, _) = *self.components.iter().find(|(number, ..)| *number == component)?;
        Some(start + offset..start + offset + size)
    }

    /// Where the pieces of a vector register lie, lowest first, and how large each is.
    pub fn register(&self, number: usize) -> Vec<Range<usize>> {
        match number {
            0..16 => [
                Some(160 + number * 16..176 + number * 16),
                self.part(2, number * 16, 16),
                self.part(6, number * 32, 32),
            ]
            .into_iter()
            .flatten()
            .collect(),
            _ => self.part(7, (number - 16) * 64, 64).into_iter().collect(),
        }
    }

    /// What of the full vector register lies beyond this one.
    pub fn beyond(&self, register: Register) -> Vec<Range<usize>> {
        let mut skip = register.size();
        let mut parts = self.register(register.number());
        for part in &mut parts {
            let step = skip.min(part.len());
            part.start += step;
            skip -= step;
        }
        parts
    }

    /// Random state.
    pub fn random(&self, contents: &Contents, random: &mut Random) -> Box<Vectors> {
        let mut vectors = Box::<Vectors>::default();
        let bytes = &mut vectors.0;
        let initial = if random.one_in(4) { random.next() } else { 0 };
        let present = self.enabled & !(initial & random.next());
        set_x87(bytes, random);
        contents.fill(&mut bytes[160..416], random);
        for (number, offset, size) in &self.components {
            contents.fill(&mut bytes[*offset..offset + size], random);
            if *number == 5 {
                set_masks(&mut bytes[*offset..offset + size], random);
            }
        }
        if present & SSE != 0 {
            bytes[MXCSR..MXCSR + 4].copy_from_slice(&mxcsr(random).to_le_bytes());
        } else {
            bytes[MXCSR..MXCSR + 4].copy_from_slice(&INITIAL_MXCSR.to_le_bytes());
        }
        bytes[MXCSR + 4..MXCSR + 8].copy_from_slice(&self.mxcsr_mask.to_le_bytes());
        bytes[HEADER..HEADER + 8].copy_from_slice(&present.to_le_bytes());
        self.settle(bytes);
        vectors
    }

    /// Spells out what is in its initial configuration, so that states can be compared.
    ///
    /// The manuals and the kernel agree that MXCSR belongs to the SSE component where a state is handed over.
    pub fn settle(&self, bytes: &mut [u8; 4096]) {
        let present = word(bytes, HEADER);
        if present & X87 == 0 {
            bytes[..24].fill(0);
            bytes[32..160].fill(0);
            bytes[..2].copy_from_slice(&0x37f_u16.to_le_bytes());
        }
        if present & SSE == 0 {
            bytes[160..416].fill(0);
            bytes[MXCSR..MXCSR + 4].copy_from_slice(&INITIAL_MXCSR.to_le_bytes());
        }
        for (number, offset, size) in &self.components {
            if present >> number & 1 == 0 {
                bytes[*offset..offset + size].fill(0);
            }
        }
    }

    /// Where two settled states differ: what is there, and the bytes.
    pub fn differences(&self, one: &[u8; 4096], other: &[u8; 4096]) -> Vec<String> {
        let mut found = Vec::new();
        let mut compare = |name: String, part: Range<usize>| {
            if one[part.clone()] != other[part.clone()] {
                found.push(format!(
                    "{name}: {} natively, {} completed",
                    hex(&one[part.clone()]),
                    hex(&other[part])
                ));
            }
        };
        for (name, part) in [
            ("x87 control", 0..2),
            ("x87 status", 2..4),
            ("x87 tags", 4..6),
            ("x87 opcode", 6..8),
            ("x87 instruction pointer", 8..16),
            ("x87 data pointer", 16..24),
            ("mxcsr", 24..28),
        ] {
            compare(name.to_owned(), part);
        }
        for register in 0..8 {
            compare(format!("st{register}"), 32 + register * 16..48 + register * 16);
        }
        for register in 0..32 {
            for part in self.register(register) {
                compare(format!("vector register {register} (state byte {})", part.start), part);
            }
        }
        for register in 0..8 {
            self.part(5, register * 8, 8).into_iter().for_each(|part| compare(format!("k{register}"), part));
        }
        for (number, offset, size) in &self.components {
            if !matches!(number, 2 | 5 | 6 | 7) {
                compare(format!("state component {number}"), *offset..offset + size);
            }
        }
        found
    }
}

/// The 64-bit number at an offset.
pub fn word(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().rev().map(|byte| format!("{byte:02x}")).collect()
}

/// A value for MXCSR: mostly with exceptions masked, sometimes with some that are not.
pub fn mxcsr(random: &mut Random) -> u32 {
    let modes = random.next() as u32 & 0xe040;
    match random.below(8) {
        0..3 => INITIAL_MXCSR,
        3..6 => INITIAL_MXCSR | modes | random.below(64) as u32,
        _ => modes | random.below(0x2000) as u32,
    }
}

/// Which bits the host's MXCSR has. A hypervisor puts it into what it hands over.
fn mxcsr_mask() -> u32 {
    let mut area = Vectors::default();
    // SAFETY: the area is larger than the 512 bytes that are written, and aligned.
    unsafe { _fxsave64(area.0.as_mut_ptr()) };
    word(&area.0, 24).wrapping_shr(32) as u32
}

fn set_masks(bytes: &mut [u8], random: &mut Random) {
    for mask in bytes.chunks_exact_mut(8) {
        let value = match random.below(4) {
            0 => u64::MAX,
            1 => random.next() & random.next() & random.next(),
            _ => random.next(),
        };
        mask.copy_from_slice(&value.to_le_bytes());
    }
}

/// State of the x87 unit as it saves it: consistent, and with pointers only where an exception is pending.
fn set_x87(bytes: &mut [u8; 4096], random: &mut Random) {
    let control = match random.below(4) {
        0 => random.next() as u16 & 0x1f3f | 0x40,
        1 => 0x7f | random.next() as u16 & 0xf00,
        _ => 0x37f,
    };
    let flags = if random.one_in(3) { random.below(64) as u16 } else { 0 };
    // A pending exception is what most instructions of the unit then raise: not too often.
    let flags = if random.one_in(4) { flags } else { flags & control & 0x3f };
    let pending = flags & !control & 0x3f != 0;
    let status = random.next() as u16 & 0x7f40 & !0x80 | flags | if pending { 0x8080 } else { 0 };
    bytes[..2].copy_from_slice(&control.to_le_bytes());
    bytes[2..4].copy_from_slice(&status.to_le_bytes());
    bytes[4] = match random.below(4) {
        0 => 0,
        1 => 0xff,
        _ => random.next() as u8,
    };
    if pending {
        bytes[6..8].copy_from_slice(&(random.next() as u16 & 0x7ff).to_le_bytes());
        bytes[8..16].copy_from_slice(&(random.next() & 0x7fff_ffff_ffff).to_le_bytes());
        bytes[16..24].copy_from_slice(&(random.next() & 0x7fff_ffff_ffff).to_le_bytes());
    }
    for register in 0..8 {
        let at = 32 + register * 16;
        bytes[at..at + 10].copy_from_slice(&extended(random));
    }
}
