//! Execution of one re-encoded instruction on the host's processor.

use std::arch::x86_64::{__cpuid, _xgetbv};
use std::io;
use std::sync::OnceLock;

use iced_x86::{Encoder, Instruction};

use super::pages::{DATA_SIZE, Pages};
use super::recovery;
use super::switch::{FLAGS, Frame, enter, leave};
use crate::hv::Vectors;
use crate::x86::complete::vectors;

/// Where an operand may begin: at any place within a cache line.
const LINE: usize = 64;

/// The registers on which an instruction is executed.
pub(super) struct Job<'j> {
    /// The instruction, re-encoded for 64-bit code, with its memory operand at an address of this program.
    pub instruction: &'j Instruction,
    /// General registers, by their numbers in machine code; RSP is not used.
    pub general: &'j mut [u64; 16],
    /// RFLAGS; only arithmetic flags and the direction flag are used and changed.
    pub flags: &'j mut u64,
    /// The vector state and the components that the guest has enabled, if the instruction uses any of it.
    pub vectors: Option<(&'j mut Vectors, u64)>,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// With its results in place.
    Done,
    /// With an exception of the processor; registers are as they were, except for flags in MXCSR.
    Trap(u8),
    /// With a page fault at this address.
    PageFault(u64),
    /// It has no encoding in 64-bit code.
    NoEncoding,
}

/// A thread's place for executing instructions.
pub(super) struct Engine {
    pages: Pages,
    encoder: Encoder,
    buffer: Vec<u8>,
}

impl Engine {
    /// Makes the place for the thread that calls this; no other may use it.
    pub(super) fn new() -> io::Result<Self> {
        let pages = Pages::map()?;
        recovery::catch();
        recovery::set_code_page(pages.code());
        Ok(Self { pages, encoder: Encoder::new(64), buffer: Vec::with_capacity(64) })
    }

    /// The buffer for an operand whose address in the guest is `linear`: its place, and where it lies in
    /// [`Engine::data`]. Relative to cache lines it lies as it does in the guest, so that it is aligned if and
    /// only if the guest's is.
    pub(super) fn place_for(&self, linear: u64) -> (u64, usize) {
        let offset = LINE + linear as usize % LINE;
        (self.pages.data_address() as u64 + offset as u64, offset)
    }

    /// A place where nothing is, for an operand whose address in the guest is `linear`.
    pub(super) fn place_outside(&self, linear: u64) -> u64 {
        self.data_address() + (DATA_SIZE + LINE + linear as usize % LINE) as u64
    }

    /// Where [`Engine::data`] is. The pages before and behind it are nobody's.
    pub(super) fn data_address(&self) -> u64 {
        self.pages.data_address() as u64
    }

    /// The memory in which operands are placed.
    pub(super) fn data(&mut self) -> &mut [u8; DATA_SIZE] {
        self.pages.data()
    }

    /// Whether `address` is one of an instruction executed here, or of its operand.
    pub(super) fn owns(&self, address: u64) -> bool {
        let start = self.pages.code() as u64;
        (start..start + 0x4000).contains(&address)
    }

    /// Executes the instruction.
    ///
    /// # Safety
    /// The instruction must do nothing but computation, and touch no memory but one operand that lies in
    /// [`Engine::data`] or in guest memory.
    pub(super) unsafe fn run(&mut self, job: Job<'_>) -> End {
        let Job { instruction, general, flags, vectors } = job;
        if self.place(instruction).is_none() {
            return End::NoEncoding;
        }
        let mut frame = Frame {
            general: *general,
            flags: *flags & FLAGS | 1 << 1,
            vectors: std::ptr::null_mut(),
            components: 0,
            entry: self.pages.code() as u64,
            trap: None,
            address: 0,
        };
        let kept = vectors.map(|(image, enabled)| {
            let host = host();
            let components = vectors::loadable(enabled) & host.components;
            let others = vectors::prepare(image, components, host.mxcsr_mask);
            frame.vectors = image;
            frame.components = components;
            (image, components, others)
        });
        // SAFETY: the caller vouches for the instruction; the jump to `leave` follows it; the image was made
        // one that the processor accepts, with components that the host has enabled.
        unsafe { enter(&mut frame) };
        if let Some((image, components, others)) = kept {
            vectors::settle(image, components, others);
        }
        match frame.trap {
            Some(14) => End::PageFault(frame.address),
            Some(trap) => End::Trap(trap),
            None => {
                let rsp = general[4];
                *general = frame.general;
                general[4] = rsp;
                *flags = *flags & !FLAGS | frame.flags & FLAGS;
                End::Done
            }
        }
    }

    /// Puts the instruction on the code page, with the jump back behind it.
    fn place(&mut self, instruction: &Instruction) -> Option<()> {
        self.buffer.clear();
        self.encoder.set_buffer(std::mem::take(&mut self.buffer));
        let encoded = self.encoder.encode(instruction, self.pages.code() as u64);
        self.buffer = self.encoder.take_buffer();
        encoded.ok()?;
        // jmp [rip + 0], with the address behind it.
        self.buffer.extend([0xff, 0x25, 0, 0, 0, 0]);
        self.buffer.extend((leave as *const () as u64).to_le_bytes());
        self.pages.write_code(&self.buffer);
        Some(())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        recovery::set_code_page(0);
    }
}

/// What the host has enabled.
#[derive(Clone, Copy)]
struct Host {
    components: u64,
    mxcsr_mask: u32,
}

fn host() -> Host {
    static HOST: OnceLock<Host> = OnceLock::new();
    *HOST.get_or_init(|| {
        // SAFETY: `has_state` was asked before an engine was made.
        let components = unsafe { enabled_components() };
        let mut area = Vectors::default();
        // SAFETY: the area is larger and better aligned than `fxsave` wants; every 64-bit processor has it.
        unsafe { std::arch::x86_64::_fxsave64(area.0.as_mut_ptr()) };
        let mxcsr_mask = match vectors::word(&area, vectors::MXCSR_MASK) {
            0 => vectors::DEFAULT_MXCSR_MASK,
            mask => mask,
        };
        Host { components, mxcsr_mask }
    })
}

#[target_feature(enable = "xsave")]
fn enabled_components() -> u64 {
    // SAFETY: register 0 exists where the instruction does.
    unsafe { _xgetbv(0) }
}

/// Whether the host has `xsave`, without which there is no way to load and store a guest's registers.
pub(super) fn has_state() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| __cpuid(1).ecx >> 27 & 1 != 0)
}
