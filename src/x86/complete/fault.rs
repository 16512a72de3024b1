//! What stops an instruction: an exception of the guest's, or the end of what can be done here.

use crate::hv::{self, Exception};

/// An exception that the instruction has caused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// What is delivered.
    pub exception: Exception,
    /// What the processor leaves in CR2: the linear address of a page fault.
    pub address: Option<u64>,
    /// Whether RIP is behind the instruction when it is delivered, as for `int3`.
    pub trap: bool,
}

const fn plain(vector: u8, error_code: Option<u32>) -> Fault {
    Fault { exception: Exception { vector, error_code }, address: None, trap: false }
}

impl Fault {
    /// Division error.
    pub const DIVIDE: Self = plain(0, None);
    /// `int1`, and the end of a single step: RIP is behind it.
    pub const DEBUG: Self = Self { trap: true, ..plain(1, None) };
    /// `into`: RIP is behind it.
    pub const OVERFLOW: Self = Self { trap: true, ..plain(4, None) };
    /// `int3`: RIP is behind it.
    pub const BREAKPOINT: Self = Self { trap: true, ..plain(3, None) };
    /// Undefined instruction.
    pub const UNDEFINED: Self = plain(6, None);
    /// The vector registers are not available (CR0.TS or CR0.EM).
    pub const NO_VECTORS: Self = plain(7, None);
    /// Stack segment fault.
    pub const STACK: Self = plain(12, Some(0));
    /// General protection, with error code 0.
    pub const PROTECTION: Self = plain(13, Some(0));
    /// An x87 exception.
    pub const X87: Self = plain(16, None);
    /// An operand that is not aligned where that is checked.
    pub const ALIGNMENT: Self = plain(17, Some(0));
    /// An SSE or AVX exception.
    pub const VECTOR_MATHS: Self = plain(19, None);

    /// A page fault at a linear address.
    pub const fn page(address: u64, error_code: u32) -> Self {
        Self { address: Some(address), ..plain(14, Some(error_code)) }
    }
}

/// An instruction that cannot be executed here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Beyond {
    /// The instruction, disassembled, and why.
    pub text: String,
}

/// Why an instruction did not come to its end.
#[derive(Debug)]
pub enum Stop {
    /// It caused an exception.
    Fault(Fault),
    /// It is beyond what can be done here.
    Beyond(Beyond),
    /// The hypervisor did not do what it was asked.
    Hypervisor(hv::Error),
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<Beyond> for Stop {
    fn from(beyond: Beyond) -> Self {
        Self::Beyond(beyond)
    }
}

impl From<hv::Error> for Stop {
    fn from(error: hv::Error) -> Self {
        Self::Hypervisor(error)
    }
}
