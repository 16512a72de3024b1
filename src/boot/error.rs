//! Why a kernel could not be loaded, in words that say which field, why, and what to do.

use std::fmt;
use std::io;

use vm_memory::GuestMemoryError;

use crate::memory::{HOLE_END, HOLE_START, Layout, Region, human};
use crate::x86::paging;

use super::{bzimage, payload};

/// What a file was to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The kernel.
    Kernel,
    /// The initial file system.
    Initrd,
    /// Where the kernel's symbols are.
    Symbols,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::Initrd => "initrd",
            Self::Symbols => "symbol file",
        })
    }
}

/// Why a guest could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system does not give the file.
    #[error("cannot open {role} {name}: {source}")]
    Open {
        /// What it was to be.
        role: Role,
        /// Its path.
        name: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// The path leads to something that cannot be loaded.
    #[error("cannot open {role} {name}: it is {kind}, not a file")]
    NotAFile {
        /// What it was to be.
        role: Role,
        /// Its path.
        name: String,
        /// What it is.
        kind: &'static str,
    },
    /// There is nothing in it.
    #[error("cannot load {role} {name}: it is empty")]
    Empty {
        /// What it was to be.
        role: Role,
        /// Its path or name.
        name: String,
    },
    /// Reading it failed.
    #[error("cannot read {role} {name}: {source}")]
    Read {
        /// What it was to be.
        role: Role,
        /// Its path or name.
        name: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// The kernel's contents are not what they should be.
    #[error("cannot load kernel {name}: {problem}")]
    Kernel {
        /// Its path or name.
        name: String,
        /// What is wrong with it.
        problem: Problem,
    },
    /// The initrd finds no room.
    #[error(
        "cannot load initrd {}, but the largest free piece of the guest's memory below {} has {free}; {}",
        initrd_files(.files, *.size),
        human(*.below),
        initrd_advice(*.more_helps)
    )]
    InitrdTooLarge {
        /// Path or name, and size, of each of its files.
        files: Vec<(String, u64)>,
        /// How much room they take together.
        size: u64,
        /// How much would fit.
        free: u64,
        /// Where the memory ends in which it has to lie.
        below: u64,
        /// Whether there would be more room if the guest had more memory.
        more_helps: bool,
    },
    /// The command line is too long.
    #[error("the command line has {length} bytes, {} takes at most {most}", if *.own {"this kernel"} else {"a kernel"})]
    CommandLineTooLong {
        /// Its length.
        length: usize,
        /// The most that is possible.
        most: usize,
        /// Whether it is this very kernel that takes no more.
        own: bool,
    },
    /// There are more devices than can be described.
    #[error(
        "the ACPI tables of this machine take {size:#x} bytes, there is room for {room:#x}: it has too many devices"
    )]
    AcpiTooLarge {
        /// How long they are.
        size: u64,
        /// The room for them.
        room: u64,
    },
    /// The operating system gives no random bytes.
    #[error("cannot get random bytes for the guest's kernel: {0}")]
    Random(io::Error),
    /// The command line has a zero in it, where the kernel would see its end.
    #[error("the command line has a zero byte at position {at}")]
    CommandLineZero {
        /// Where.
        at: usize,
    },
    /// Guest memory could not be written where there should be some.
    #[error("cannot write to guest memory: {0}")]
    Memory(#[from] GuestMemoryError),
}

/// A part of a kernel that takes a place in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The `PT_LOAD` entry with this number among the program headers.
    Segment(usize),
    /// A flat image, all of it; of a bzImage what is not for real mode.
    Image,
    /// Where a bzImage unpacks its kernel, apart from where it lies itself.
    Workspace,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment(number) => write!(f, "segment {number}"),
            Self::Image => f.write_str("the image"),
            Self::Workspace => f.write_str("the room into which the image unpacks its kernel"),
        }
    }
}

/// An address range, printed with its end outside: `0x1000..0x2000`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The first address.
    pub start: u64,
    /// How many bytes. The end may lie beyond what 64 bits can express.
    pub size: u64,
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start, u128::from(self.start) + u128::from(self.size))
    }
}

impl From<Region> for Range {
    fn from(region: Region) -> Self {
        Self { start: region.start, size: region.size }
    }
}

/// What is wrong with a kernel.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A bzImage's setup header.
    #[error(transparent)]
    BzImage(#[from] bzimage::Problem),
    /// A bzImage's payload.
    #[error(transparent)]
    Payload(#[from] payload::Problem),
    /// A bzImage's own entry was asked for.
    #[error("it is an ELF image; only a bzImage has code of its own to be entered by (--entry image)")]
    NoImageEntry,
    /// The file ends within the ELF header.
    #[error("truncated: an ELF header has 64 bytes, the file has {found}")]
    HeaderTruncated {
        /// The file's length.
        found: u64,
    },
    /// `EI_CLASS`.
    #[error("this is {} ELF, lodger boots 64-bit ones", match .class { 1 => "a 32-bit".into(), other => format!("a class {other}") })]
    Class {
        /// Its value.
        class: u8,
    },
    /// `EI_DATA`.
    #[error("this is {} ELF, lodger boots little-endian ones", match .data { 2 => "a big-endian".into(), other => format!("a data encoding {other}") })]
    Encoding {
        /// Its value.
        data: u8,
    },
    /// `EI_VERSION` or `e_version`.
    #[error("its ELF version is {version}, only 1 is known")]
    Version {
        /// Its value.
        version: u32,
    },
    /// `e_machine`.
    #[error("this is an ELF for {} (machine {machine}), lodger runs x86-64 guests", machine_name(*.machine))]
    Machine {
        /// Its value.
        machine: u16,
    },
    /// `e_type`.
    #[error("this is {} (ELF type {kind}), not an executable", type_name(*.kind))]
    Type {
        /// Its value.
        kind: u16,
    },
    /// `e_phentsize`.
    #[error("its program headers have {size} bytes each (e_phentsize), 64-bit ELF has 56")]
    ProgramHeaderSize {
        /// Its value.
        size: u16,
    },
    /// `e_phnum`.
    #[error("it has {count} program headers (e_phnum), lodger reads at most {most}")]
    TooManyProgramHeaders {
        /// Its value.
        count: u16,
        /// How many are read.
        most: u16,
    },
    /// `e_phoff` and `e_phnum` lead outside the file.
    #[error("truncated: its program headers need bytes {bytes}, the file has {found:#x}")]
    ProgramHeadersTruncated {
        /// Where they are said to be.
        bytes: Range,
        /// The file's length.
        found: u64,
    },
    /// Nothing to load.
    #[error("it has nothing to load: no PT_LOAD segment with memory")]
    NoSegments,
    /// `p_offset` and `p_filesz` lead outside the file.
    #[error("truncated: segment {number} needs bytes {bytes}, the file has {found:#x}")]
    SegmentTruncated {
        /// Which program header.
        number: usize,
        /// Where its contents are said to be.
        bytes: Range,
        /// The file's length.
        found: u64,
    },
    /// `p_memsz` is less than `p_filesz`.
    #[error("segment {number} has {in_file:#x} bytes in the file, but only {in_memory:#x} in memory")]
    SegmentSizes {
        /// Which program header.
        number: usize,
        /// `p_filesz`.
        in_file: u64,
        /// `p_memsz`.
        in_memory: u64,
    },
    /// It does not fit into the guest's memory.
    #[error("{part} ({place}) lies outside the guest's {} of memory{advice}", human(*.memory))]
    OutsideMemory {
        /// What does not fit.
        part: Part,
        /// Where it was to lie.
        place: Range,
        /// How much memory the guest has.
        memory: u64,
        /// What to do.
        advice: String,
    },
    /// Two segments want the same memory.
    #[error("{first} ({first_place}) and {second} ({second_place}) overlap in memory")]
    Overlap {
        /// The lower one.
        first: Part,
        /// Where it lies.
        first_place: Range,
        /// The other.
        second: Part,
        /// Where it lies.
        second_place: Range,
    },
    /// It lies where lodger puts what the kernel is given.
    #[error(
        "{part} ({place}) overlaps {boot_data}, where lodger puts boot parameters and page tables: place it \
         at {:#x} or above", boot_data.start + boot_data.size
    )]
    OnBootData {
        /// What is in the way.
        part: Part,
        /// Where it lies.
        place: Range,
        /// What is needed.
        boot_data: Range,
    },
    /// It lies where lodger puts tables that describe the machine.
    #[error("{part} ({place}) overlaps {tables}, where lodger puts ACPI and MP tables: place it elsewhere")]
    OnTables {
        /// What is in the way.
        part: Part,
        /// Where it lies.
        place: Range,
        /// What is needed.
        tables: Range,
    },
    /// Nothing is loaded where execution starts.
    #[error(
        "its {which} entry point {entry:#x} is in none of the segments' contents (physical addresses count)"
    )]
    EntryOutside {
        /// Which of its entry points.
        which: &'static str,
        /// The address.
        entry: u64,
    },
    /// A note leads outside its segment.
    #[error("note segment {number} is damaged: the note at its byte {at:#x} reaches beyond its end")]
    NoteTruncated {
        /// Which program header.
        number: usize,
        /// Where in the segment the note starts.
        at: u64,
    },
    /// Too many notes to look at.
    #[error("note segment {number} has {size:#x} bytes, lodger reads at most {most:#x}")]
    NotesTooLong {
        /// Which program header.
        number: usize,
        /// `p_filesz`.
        size: u64,
        /// How much is read.
        most: u64,
    },
    /// The PVH note does not hold a 32-bit address.
    #[error("its PVH note does not hold a 32-bit address ({size} bytes)")]
    PvhNote {
        /// The size of what it holds.
        size: u32,
    },
    /// PVH was asked for.
    #[error("it has no PVH entry point (ELF note 18 of Xen); Linux has one if built with CONFIG_PVH")]
    NoPvhEntry,
    /// An ELF entry point was asked for.
    #[error("it is a flat image, which is entered at its first byte; {asked} was asked for")]
    FlatEntry {
        /// What was asked for.
        asked: &'static str,
    },
    /// Real mode ends at 1 MiB.
    #[error("the image ({place}) does not lie below 1 MiB, where real mode ends")]
    AboveRealMode {
        /// Where it was to lie.
        place: Range,
    },
    /// Nothing tells a real-mode image of a command line or an initrd.
    #[error("an image started in real mode can be given neither a command line nor an initrd")]
    RealModeParameters,
    /// Page tables cannot reach it.
    #[error("{part} ({place}) is out of reach: {source}")]
    Unmappable {
        /// What cannot be reached: the first part beyond 4 GiB.
        part: Part,
        /// Where it lies.
        place: Range,
        /// Why.
        source: paging::Error,
    },
}

/// Names the files of an initrd and says how large they are.
fn initrd_files(files: &[(String, u64)], size: u64) -> String {
    match files {
        [(name, _)] => format!("{name}: it has {size} bytes"),
        _ => {
            let files: Vec<_> = files.iter().map(|(name, size)| format!("{name} ({size} bytes)")).collect();
            format!("{}: together they take {size} bytes", files.join(", "))
        }
    }
}

fn initrd_advice(more_helps: bool) -> &'static str {
    if more_helps {
        "give the guest more memory (--memory)"
    } else {
        "no more of it can be had, so it has to become smaller"
    }
}

/// Advises how to make memory cover `place`.
pub(super) fn memory_advice(place: Range, layout: &Layout) -> String {
    const MIB: u64 = 1 << 20;
    /// A machine larger than this is not what somebody forgot to ask for.
    const FAR: u64 = 1 << 44;

    let Some(end) = place.start.checked_add(place.size) else { return far_advice() };
    let reaches_hole = end > HOLE_START && place.start < HOLE_END;
    if reaches_hole {
        return ": no guest has any between 3G and 4G".to_owned();
    }
    let behind_hole = place.start >= HOLE_END;
    let needed = end - if behind_hole { HOLE_END - HOLE_START } else { 0 };
    if needed > FAR || needed <= layout.size() {
        return far_advice();
    }
    let needed = human(needed.next_multiple_of(MIB));
    format!(": give the guest at least {needed} (--memory {needed})")
}

fn far_advice() -> String {
    "; is that a virtual address?".to_owned()
}

fn machine_name(machine: u16) -> &'static str {
    match machine {
        2 | 18 | 43 => "SPARC",
        3 => "32-bit x86",
        4 => "Motorola 68000",
        8 | 10 => "MIPS",
        15 => "PA-RISC",
        20 => "PowerPC",
        21 => "64-bit PowerPC",
        22 => "S/390",
        40 => "32-bit Arm",
        42 => "SuperH",
        50 => "Itanium",
        183 => "AArch64",
        243 => "RISC-V",
        247 => "BPF",
        258 => "LoongArch",
        _ => "another processor",
    }
}

fn type_name(kind: u16) -> &'static str {
    match kind {
        0 => "an ELF of no type",
        1 => "an object file or kernel module",
        4 => "a core dump",
        _ => "an ELF of unknown type",
    }
}
