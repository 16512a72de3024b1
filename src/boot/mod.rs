//! Loading a guest: from a kernel file to memory contents and the state of the boot processor.
//!
//! [`load`] finds out what the kernel is from its content ([`Format`]), checks everything that it claims, puts
//! it and its initrd into guest memory together with what its boot protocol hands over, and returns how the
//! boot processor has to start. Nothing is written before everything is known to fit.
//!
//! Guest memory must read as zero: what a kernel expects to be zero is not written. Memory that a guest has
//! used must be discarded (`MADV_DONTNEED`) before a guest is loaded into it again.
//!
//! Relies on `memory/` and `x86/`; `vm/` calls it. `map` is the picture of the first MiB.

mod elf;
pub mod embedded;
mod error;
mod image;
pub mod map;
mod parameters;
mod place;
mod plan;
mod text;

pub use error::{Error, Part, Problem, Range, Role};
pub use image::Source;
pub use text::TextError;

use crate::memory::{GuestMemory, Region};
use crate::x86::mode::InitialState;

use image::Image;
use place::Piece;
use plan::Plan;

/// What a kernel file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// ELF, such as Linux's vmlinux.
    Elf,
    /// Linux's bzImage.
    BzImage,
    /// Anything else: code that runs from its first byte on.
    Flat,
}

/// Where a bzImage has its two marks, and how much of a file has to be seen to know what it is.
const BOOT_FLAG_AT: usize = 0x1fe;
const HEADER_MAGIC_AT: usize = 0x202;
const HEAD_SIZE: usize = HEADER_MAGIC_AT + 4;

impl Format {
    /// What a file that starts with `head` holds. The first 518 bytes decide.
    pub fn detect(head: &[u8]) -> Self {
        let has = |at: usize, mark: &[u8]| head.get(at..at + mark.len()) == Some(mark);
        if has(0, elf::MAGIC) {
            Self::Elf
        } else if has(BOOT_FLAG_AT, &[0x55, 0xaa]) && has(HEADER_MAGIC_AT, b"HdrS") {
            Self::BzImage
        } else {
            Self::Flat
        }
    }
}

/// By which of its entry points an ELF kernel is started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Entry {
    /// PVH if the kernel has it, else the ELF entry point.
    #[default]
    Auto,
    /// PVH: 32-bit protected mode, at the address in the kernel's note.
    Pvh,
    /// The 64-bit Linux boot protocol, at the ELF entry point.
    Linux64,
}

/// The mode in which a flat image starts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mode {
    /// 64-bit mode, with the same registers and parameters as the 64-bit Linux boot protocol.
    #[default]
    Long,
    /// 16-bit real mode, with CS, DS and ES at the image's first paragraph (see [`InitialState::Real`]).
    Real,
}

/// How a flat image is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flat {
    /// Where its first byte goes.
    pub address: u64,
    /// In which mode it starts.
    pub mode: Mode,
}

impl Default for Flat {
    /// At 1 MiB, in 64-bit mode.
    fn default() -> Self {
        Self { address: map::HIGH_MEMORY, mode: Mode::Long }
    }
}

/// How to load a guest.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options<'a> {
    /// By which of its entry points an ELF kernel is started.
    pub entry: Entry,
    /// The kernel's command line.
    pub command_line: &'a str,
    /// The initial file system.
    pub initrd: Option<Source<'a>>,
    /// Take the kernel for a flat image, whatever it looks like, and load it like this. Without, the content
    /// decides, and flat images are loaded as [`Flat::default`] says.
    pub flat: Option<Flat>,
}

/// How a guest was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// PVH.
    Pvh,
    /// The 64-bit Linux boot protocol.
    Linux64,
    /// A flat image in the given mode.
    Flat(Mode),
}

/// A guest that is in memory and ready to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// How it was loaded.
    pub protocol: Protocol,
    /// How the boot processor has to start.
    pub state: InitialState,
    /// What the kernel takes, from its lowest to its highest byte.
    pub kernel: Region,
    /// Where the initrd is.
    pub initrd: Option<Region>,
}

/// Loads `kernel` into `memory`, which must read as zero.
pub fn load(memory: &GuestMemory, kernel: Source<'_>, options: &Options<'_>) -> Result<Start, Error> {
    check_command_line(options.command_line)?;
    let image = Image::open(Role::Kernel, kernel)?;
    let initrd = options.initrd.map(|source| Image::open(Role::Initrd, source)).transpose()?;
    let kernel = Kernel::read(&image, options)?;
    let plan = Plan::make(&image, kernel, initrd, memory.layout())?;
    plan.carry_out(&image, memory, options.command_line)
}

fn check_command_line(line: &str) -> Result<(), Error> {
    if line.len() as u64 >= map::COMMAND_LINE_ROOM {
        return Err(Error::CommandLineTooLong { length: line.len() });
    }
    match line.bytes().position(|byte| byte == 0) {
        Some(at) => Err(Error::CommandLineZero { at }),
        None => Ok(()),
    }
}

/// The kernel's pieces and how it is to be entered, before any memory is looked at.
struct Kernel {
    pieces: Vec<Piece>,
    protocol: Protocol,
    entry: u64,
}

impl Kernel {
    fn read(image: &Image<'_>, options: &Options<'_>) -> Result<Self, Error> {
        let format = match options.flat {
            Some(_) => Format::Flat,
            None => detect(image)?,
        };
        match format {
            Format::Elf => Self::from_elf(image, options.entry),
            Format::BzImage => Err(image.refuse(Problem::BzImage)),
            Format::Flat => Self::from_flat(image, options).map_err(|problem| image.refuse(problem)),
        }
    }

    fn from_elf(image: &Image<'_>, asked: Entry) -> Result<Self, Error> {
        let kernel = elf::read(image)?;
        let pvh = match asked {
            Entry::Linux64 => None,
            Entry::Auto | Entry::Pvh => kernel.pvh_entry(image)?,
        };
        let (protocol, which, entry) = match pvh {
            Some(entry) => (Protocol::Pvh, "PVH", u64::from(entry)),
            None if asked == Entry::Pvh => return Err(image.refuse(Problem::NoPvhEntry)),
            None => (Protocol::Linux64, "ELF", kernel.entry),
        };
        if !kernel.pieces.iter().any(|piece| piece.has_contents_at(entry)) {
            return Err(image.refuse(Problem::EntryOutside { which, entry }));
        }
        Ok(Self { pieces: kernel.pieces, protocol, entry })
    }

    fn from_flat(image: &Image<'_>, options: &Options<'_>) -> Result<Self, Problem> {
        let asked = match options.entry {
            Entry::Auto => None,
            Entry::Pvh => Some("a PVH entry"),
            Entry::Linux64 => Some("an ELF entry"),
        };
        if let Some(asked) = asked {
            return Err(Problem::FlatEntry { asked });
        }
        let Flat { address, mode } = options.flat.unwrap_or_default();
        let place = Range { start: address, size: image.size() };
        if mode == Mode::Real {
            if address.checked_add(image.size()).is_none_or(|end| end > map::HIGH_MEMORY) {
                return Err(Problem::AboveRealMode { place });
            }
            if options.initrd.is_some() || !options.command_line.is_empty() {
                return Err(Problem::RealModeParameters);
            }
        }
        let piece = Piece { part: Part::Image, offset: 0, in_file: image.size(), place };
        Ok(Self { pieces: vec![piece], protocol: Protocol::Flat(mode), entry: address })
    }
}

fn detect(image: &Image<'_>) -> Result<Format, Error> {
    let mut head = [0; HEAD_SIZE];
    let head = &mut head[..image.size().min(HEAD_SIZE as u64) as usize];
    image.read_at(0, head)?;
    Ok(Format::detect(head))
}

#[cfg(test)]
mod testing;

#[cfg(test)]
#[path = "load_test.rs"]
mod tests;

#[cfg(test)]
mod mutation_test;
