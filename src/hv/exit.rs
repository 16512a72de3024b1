//! Why a vCPU came back from the guest.

use serde::Serialize;

use super::Msr;

/// One exit, borrowed from the vCPU that made it: answers to reads are written into its `data`.
#[derive(Debug)]
pub enum Exit<'a> {
    /// An access to a port, possibly of many elements (`rep ins`, `rep outs`).
    Pio(Pio<'a>),
    /// An access to a guest-physical address without memory behind it.
    Mmio(Mmio<'a>),
    /// A write to a model-specific register that [`Vm::trap_msr_writes`](super::Vm::trap_msr_writes) named. It
    /// has not been done; the guest goes on behind it, unless
    /// [`Vcpu::refuse_msr_write`](super::Vcpu::refuse_msr_write) says otherwise.
    MsrWrite(Msr),
    /// The processor is about to execute the instruction at an address that
    /// [`Vcpu::set_breakpoints`](super::Vcpu::set_breakpoints) was given.
    Breakpoint,
    /// `hlt` in a machine without interrupt controller: nothing will wake this processor.
    Halt,
    /// A triple fault, or whatever else shuts a processor down.
    Shutdown,
    /// A signal or [`Kick`](super::Kick) arrived; nothing is pending.
    Interrupted,
    /// The hypervisor itself gave up, for example at an instruction it cannot run.
    InternalError(InternalError),
    /// The processor refused the state it was to enter the guest with.
    FailedEntry {
        /// The hardware's reason code.
        reason: u64,
        /// The host processor on which it happened.
        cpu: u32,
    },
    /// An exit for which this program has no use.
    Unexpected {
        /// The hypervisor's number for it.
        reason: u32,
    },
}

/// An access to a port.
#[derive(Debug)]
pub struct Pio<'a> {
    /// The port of every element.
    pub port: u16,
    /// Bytes per element: 1, 2 or 4.
    pub width: u8,
    /// Who gives the data.
    pub direction: Direction,
    /// All elements, one behind the other.
    pub data: &'a mut [u8],
}

/// An access to a guest-physical address.
#[derive(Debug)]
pub struct Mmio<'a> {
    /// The address of the first byte.
    pub address: u64,
    /// Who gives the data.
    pub direction: Direction,
    /// One to eight bytes.
    pub data: &'a mut [u8],
}

/// Whether the guest reads or writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// The guest wants a value.
    Read,
    /// The guest gives a value.
    Write,
}

/// What a hypervisor says when it gives up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InternalError {
    /// 1: instruction could not be emulated; 2: several exceptions at once; 3: exit during event delivery;
    /// 4: unexpected exit reason.
    pub suberror: u32,
    /// What came with it; its meaning depends on the suberror.
    pub data: Vec<u64>,
}

/// Exits without their data: what is counted and remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)] // each is the exit of the same name
pub enum ExitKind {
    PioRead,
    PioWrite,
    MmioRead,
    MmioWrite,
    MsrWrite,
    Breakpoint,
    Halt,
    Shutdown,
    Interrupted,
    InternalError,
    FailedEntry,
    Unexpected,
}

impl ExitKind {
    /// Every kind, in the order in which they are counted and printed.
    pub const ALL: [Self; 12] = [
        Self::PioRead,
        Self::PioWrite,
        Self::MmioRead,
        Self::MmioWrite,
        Self::MsrWrite,
        Self::Breakpoint,
        Self::Halt,
        Self::Shutdown,
        Self::Interrupted,
        Self::InternalError,
        Self::FailedEntry,
        Self::Unexpected,
    ];

    /// The name used in listings.
    pub fn name(self) -> &'static str {
        match self {
            Self::PioRead => "pio-read",
            Self::PioWrite => "pio-write",
            Self::MmioRead => "mmio-read",
            Self::MmioWrite => "mmio-write",
            Self::MsrWrite => "msr-write",
            Self::Breakpoint => "breakpoint",
            Self::Halt => "halt",
            Self::Shutdown => "shutdown",
            Self::Interrupted => "interrupted",
            Self::InternalError => "internal-error",
            Self::FailedEntry => "failed-entry",
            Self::Unexpected => "unexpected",
        }
    }
}

impl Exit<'_> {
    /// What kind of exit this is.
    pub fn kind(&self) -> ExitKind {
        match self {
            Self::Pio(pio) => match pio.direction {
                Direction::Read => ExitKind::PioRead,
                Direction::Write => ExitKind::PioWrite,
            },
            Self::Mmio(mmio) => match mmio.direction {
                Direction::Read => ExitKind::MmioRead,
                Direction::Write => ExitKind::MmioWrite,
            },
            Self::MsrWrite(_) => ExitKind::MsrWrite,
            Self::Breakpoint => ExitKind::Breakpoint,
            Self::Halt => ExitKind::Halt,
            Self::Shutdown => ExitKind::Shutdown,
            Self::Interrupted => ExitKind::Interrupted,
            Self::InternalError(_) => ExitKind::InternalError,
            Self::FailedEntry { .. } => ExitKind::FailedEntry,
            Self::Unexpected { .. } => ExitKind::Unexpected,
        }
    }
}
