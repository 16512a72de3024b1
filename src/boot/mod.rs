//! Loading a guest: from a kernel file to memory contents and the state of the boot processor.
//!
//! [`load`] finds out what the kernel is from its content ([`Format`]), unpacks what is packed ([`payload`]),
//! checks everything that it claims, puts it and its initrd into guest memory together with what its boot
//! protocol hands over, and returns how the boot processor has to start. Nothing is written before everything is
//! known to fit.
//!
//! Guest memory must read as zero: what a kernel expects to be zero is not written. Memory that a guest has
//! used must be discarded (`MADV_DONTNEED`) before a guest is loaded into it again.
//!
//! Relies on `memory/` and `x86/`; `vm/` calls it. `map` is the picture of the first MiB.

mod acpi;
mod bzimage;
mod command_line;
mod elf;
pub mod embedded;
mod error;
mod image;
pub mod map;
mod mp;
mod parameters;
pub mod payload;
mod place;
mod plan;
mod platform;
mod symbols;
mod tables;
mod text;

pub use bzimage::Problem as BzImageProblem;
pub use command_line::{
    LINUX_DEFAULT as LINUX_COMMAND_LINE, LINUX_DEFAULT_VIRTIO as LINUX_COMMAND_LINE_VIRTIO,
};
pub use error::{Error, Part, Problem, Range, Role};
pub use image::Source;
pub use platform::{Platform, ResetPort, SerialPort, SleepPorts, VirtioMmio};
pub use symbols::{Symbols, SymbolsError, SymbolsProblem};
pub use text::TextError;

use crate::memory::{GuestMemory, Layout, Region};
use crate::x86::mode::InitialState;

use bzimage::SetupHeader;
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

/// By which of its entry points a kernel is started. A bzImage has those of the ELF image that it holds, and one
/// of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Entry {
    /// What the kernel gets most from: for Linux the ELF entry point, for others PVH if they have it, else the
    /// ELF entry point; for a bzImage that holds no ELF image for 64-bit processors, its own.
    ///
    /// Linux by its 64-bit entry is given a seed for its random numbers, which PVH has no place for; without
    /// one it collects randomness for seconds while it boots, or leaves those who ask for it waiting.
    #[default]
    Auto,
    /// PVH: 32-bit protected mode, at the address in the kernel's note.
    Pvh,
    /// The 64-bit Linux boot protocol, at the ELF entry point.
    Linux64,
    /// The bzImage's own code, which unpacks the kernel inside the guest: by the 64-bit Linux boot protocol if
    /// it has that, else by the 32-bit one.
    Image,
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
    /// By which of its entry points the kernel is started.
    pub entry: Entry,
    /// The kernel's command line. If there is none, Linux gets [`LINUX_COMMAND_LINE`], or with a virtio console
    /// [`LINUX_COMMAND_LINE_VIRTIO`], and others nothing.
    pub command_line: Option<&'a str>,
    /// Whether there is a virtio console.
    pub virtio_console: bool,
    /// What is added to the command line, each with a space in front.
    pub append: &'a [String],
    /// The initial file system: files that the guest sees as one, each beginning at a multiple of four bytes, as
    /// cpio archives do.
    pub initrds: &'a [Source<'a>],
    /// Whether the guest's processors lack the no-execute bit. Such a kernel gets no seed: Linux maps the list in which
    /// it would be before it has looked whether that bit may be set (`parse_setup_data` comes before
    /// `x86_configure_nx`), and dies of it.
    pub without_nx: bool,
    /// What else the guest is told of the machine, by ACPI and MP tables; without, there are none. Images that
    /// start in real mode have the first MiB to themselves and are told nothing.
    pub platform: Option<&'a Platform<'a>>,
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
    /// The 32-bit Linux boot protocol.
    Linux32,
    /// A flat image in the given mode.
    Flat(Mode),
}

/// A guest that is in memory and ready to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// How it was loaded.
    pub protocol: Protocol,
    /// How the kernel was packed, if it was unpacked on the way.
    pub unpacked: Option<payload::Format>,
    /// How the boot processor has to start.
    pub state: InitialState,
    /// What the kernel takes, from its lowest to its highest byte.
    pub kernel: Region,
    /// Where the initrd is.
    pub initrd: Option<Region>,
    /// Where the id of the machine's generation belongs, if the guest is told of one. It is not written here.
    pub generation_id: Option<u64>,
}

/// Loads `kernel` into `memory`, which must read as zero.
pub fn load(memory: &GuestMemory, kernel: Source<'_>, options: &Options<'_>) -> Result<Start, Error> {
    let image = Image::open(Role::Kernel, kernel)?;
    let initrds =
        options.initrds.iter().map(|source| Image::open(Role::Initrd, *source)).collect::<Result<_, _>>()?;
    let kernel = Kernel::read(image, options, memory.layout())?;
    let longest = kernel.header.as_ref().map(SetupHeader::longest_command_line);
    let devices = devices_on_command_line(&kernel, options)?;
    let line = command_line::compose(kernel.is_linux, longest, options, &devices)?;
    let plan = Plan::make(kernel, initrds, options.platform, memory.layout())?;
    plan.carry_out(memory, &line, !options.without_nx)
}

/// The devices that the kernel has to be told of in words: those that only ACPI describes, where Linux was built
/// without it. With both it would find each device twice.
fn devices_on_command_line(kernel: &Kernel<'_>, options: &Options<'_>) -> Result<Vec<String>, Error> {
    let devices = options.platform.map_or(&[][..], |platform| platform.virtio);
    if devices.is_empty() || !kernel.is_linux || kernel.knows_acpi()? {
        return Ok(Vec::new());
    }
    let word = |device: &VirtioMmio| {
        format!("virtio_mmio.device={}@{:#x}:{}", device.size, device.base, device.interrupt)
    };
    Ok(devices.iter().map(word).collect())
}

/// Where an initrd has to end if the kernel does not say so: what every Linux since boot protocol 2.03 can reach.
const CAREFUL_INITRD_END: u64 = 2 << 30;

/// The kernel's pieces and how it is to be entered, before any memory is looked at.
struct Kernel<'a> {
    /// Where the pieces' contents are.
    image: Image<'a>,
    pieces: Vec<Piece>,
    protocol: Protocol,
    entry: u64,
    /// Whether it is Linux, by its notes or by the image which it came in.
    is_linux: bool,
    /// That of the bzImage which it came in.
    header: Option<SetupHeader>,
    unpacked: Option<payload::Format>,
    /// The first address that its initrd must not take, if there is a limit.
    initrd_end: Option<u64>,
}

impl<'a> Kernel<'a> {
    fn read(image: Image<'a>, options: &Options<'_>, layout: &Layout) -> Result<Self, Error> {
        let format = match options.flat {
            Some(_) => Format::Flat,
            None => detect(&image)?,
        };
        match format {
            Format::Elf => Self::from_elf(image, options.entry),
            Format::BzImage => bzimage::read(image, options, layout),
            Format::Flat => Self::from_flat(image, options),
        }
    }

    /// A kernel of which no more is known.
    fn new(image: Image<'a>, pieces: Vec<Piece>, protocol: Protocol, entry: u64) -> Self {
        let initrd_end = Some(CAREFUL_INITRD_END);
        Self { image, pieces, protocol, entry, is_linux: false, header: None, unpacked: None, initrd_end }
    }

    fn from_elf(image: Image<'a>, asked: Entry) -> Result<Self, Error> {
        let kernel = elf::read(&image)?;
        let is_linux = kernel.is_linux(&image);
        let is_code = |entry| kernel.pieces.iter().any(|piece| piece.has_contents_at(entry));
        let pvh = match asked {
            Entry::Linux64 => None,
            Entry::Auto if is_linux && is_code(kernel.entry) => None,
            Entry::Auto | Entry::Pvh => kernel.pvh_entry(&image)?,
            Entry::Image => return Err(image.refuse(Problem::NoImageEntry)),
        };
        let (protocol, which, entry) = match pvh {
            Some(entry) => (Protocol::Pvh, "PVH", u64::from(entry)),
            None if asked == Entry::Pvh => return Err(image.refuse(Problem::NoPvhEntry)),
            None => (Protocol::Linux64, "ELF", kernel.entry),
        };
        if !is_code(entry) {
            return Err(image.refuse(Problem::EntryOutside { which, entry }));
        }
        Ok(Self { is_linux, ..Self::new(image, kernel.pieces, protocol, entry) })
    }

    /// Whether it can read ACPI tables, as far as can be seen: then the name of one of them is in it. A kernel that is
    /// still packed is taken to know them, as all distributions' do.
    fn knows_acpi(&self) -> Result<bool, Error> {
        const TABLE: &[u8] = b"DSDT";
        const AT_ONCE: u64 = 1 << 20;
        if self.header.is_some() && self.unpacked.is_none() {
            return Ok(true);
        }
        let mut bytes = vec![0; AT_ONCE as usize + TABLE.len()];
        for piece in &self.pieces {
            for start in (0..piece.in_file).step_by(AT_ONCE as usize) {
                let count = (piece.in_file - start).min(bytes.len() as u64);
                let bytes = &mut bytes[..count as usize];
                self.image.read_at(piece.offset + start, bytes)?;
                if memchr::memmem::find(bytes, TABLE).is_some() {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    fn from_flat(image: Image<'a>, options: &Options<'_>) -> Result<Self, Error> {
        let Flat { address, mode } = options.flat.unwrap_or_default();
        let place = Range { start: address, size: image.size() };
        if let Err(problem) = check_flat(place, mode, options) {
            return Err(image.refuse(problem));
        }
        let piece = Piece { part: Part::Image, offset: 0, in_file: image.size(), place };
        Ok(Self::new(image, vec![piece], Protocol::Flat(mode), address))
    }
}

fn check_flat(place: Range, mode: Mode, options: &Options<'_>) -> Result<(), Problem> {
    let asked = match options.entry {
        Entry::Auto => None,
        Entry::Pvh => Some("a PVH entry"),
        Entry::Linux64 => Some("an ELF entry"),
        Entry::Image => Some("a bzImage's entry"),
    };
    if let Some(asked) = asked {
        return Err(Problem::FlatEntry { asked });
    }
    if mode == Mode::Real {
        if place.start.checked_add(place.size).is_none_or(|end| end > map::HIGH_MEMORY) {
            return Err(Problem::AboveRealMode { place });
        }
        if !options.initrds.is_empty() || !command_line::given(options).is_empty() {
            return Err(Problem::RealModeParameters);
        }
    }
    Ok(())
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
#[path = "../../tests/images/bz_image.rs"]
mod bz_image;

#[cfg(test)]
#[path = "load_test.rs"]
mod tests;

#[cfg(test)]
mod handed_test;

#[cfg(test)]
mod mutation_test;
