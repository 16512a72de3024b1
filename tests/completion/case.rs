//! One case: a processor's state and an instruction. And what comes of it.

use iced_x86::Instruction;
use lodger::hv::Vectors;

/// An instruction, and everything it can depend on.
pub struct Case {
    /// What generated it.
    pub seed: u64,
    /// The instruction, decoded.
    pub instruction: Instruction,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Where they lie.
    pub rip: u64,
    /// The general registers by their numbers in machine code.
    pub general: [u64; 16],
    /// RFLAGS.
    pub flags: u64,
    /// Where the GS segment starts.
    pub gs_base: u64,
    /// The privilege level in the guest; in this process it is always 3.
    pub privilege: u8,
    /// The vector registers.
    pub vectors: Box<Vectors>,
    /// The data pages.
    pub data: Vec<u8>,
    /// Where the memory operand was aimed at.
    pub target: Option<u64>,
}

/// An exception.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Raised {
    /// Its vector.
    pub vector: u8,
    /// Its error code, or 0.
    pub error: u32,
    /// CR2, for page faults.
    pub address: u64,
}

/// The state after an instruction.
pub struct Outcome {
    /// The general registers.
    pub general: [u64; 16],
    /// RFLAGS.
    pub flags: u64,
    /// RIP, which an exception would save.
    pub rip: u64,
    /// The vector registers in the standard format of `xsave`.
    pub vectors: Box<[u8; 4096]>,
    /// The data pages.
    pub data: Vec<u8>,
    /// What the instruction raised.
    pub raised: Option<Raised>,
}
