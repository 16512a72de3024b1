//! One load: first everything is decided, then everything is written.

use crate::memory::{GuestMemory, HOLE_START, Layout, Region};
use crate::x86::mode::{InitialState, Parameters};
use crate::x86::paging::IdentityTables;
use crate::x86::segments;

use super::bzimage::SetupHeader;
use super::error::{Error, Problem};
use super::image::Image;
use super::parameters::{self, Told};
use super::payload::Format;
use super::place::{self, Piece};
use super::platform::Platform;
use super::tables::Tables;
use super::{Kernel, Mode, Protocol, Start, map};

/// Where each file of an initrd begins: at a multiple of this, as the headers within cpio archives do.
const INITRD_FILE_ALIGNMENT: u64 = 4;

/// All that is to be written, known to fit.
pub struct Plan<'a> {
    kernel: Region,
    pieces: Vec<Piece>,
    initrd: Option<Initrd<'a>>,
    protocol: Protocol,
    unpacked: Option<Format>,
    image: Image<'a>,
    handover: Handover,
    tables: Option<Tables>,
}

impl<'a> Plan<'a> {
    /// Decides where everything goes.
    pub fn make(
        kernel: Kernel<'a>,
        initrds: Vec<Image<'a>>,
        platform: Option<&Platform<'_>>,
        layout: &Layout,
    ) -> Result<Self, Error> {
        let Kernel { image, mut pieces, protocol, entry, header, unpacked, initrd_end, is_linux: _ } = kernel;
        let refuse = |problem| image.refuse(problem);
        let kernel = place::check_pieces(&mut pieces, layout).map_err(refuse)?;
        let handover = Handover::new(protocol, entry, header, &pieces).map_err(refuse)?;
        place::check_boot_data(&pieces, handover.boot_data()).map_err(refuse)?;
        let tables = match handover {
            Handover::Real { .. } => None,
            _ => platform.map(Tables::make).transpose()?,
        };
        if let Some(tables) = &tables {
            place::check_tables(&pieces, &tables.regions()).map_err(refuse)?;
        }
        let initrd = match &initrds[..] {
            [] => None,
            _ => {
                let below = initrd_end.unwrap_or(HOLE_START).min(HOLE_START);
                Some(Initrd::place(initrds, below, layout, &pieces, handover.boot_data())?)
            }
        };
        Ok(Self { kernel, pieces, initrd, protocol, unpacked, image, handover, tables })
    }

    /// Writes it. Only a failing read, or a file that has become shorter, can stop this half way.
    pub fn carry_out(&self, memory: &GuestMemory, command_line: &str, seed: bool) -> Result<Start, Error> {
        for piece in self.pieces.iter().filter(|piece| piece.in_file > 0) {
            self.image.copy_to(memory, piece.offset, piece.in_file, piece.place.start)?;
        }
        if let Some(initrd) = &self.initrd {
            initrd.copy_to(memory)?;
        }
        if let Some(tables) = &self.tables {
            tables.write(memory)?;
        }
        let acpi = self.tables.as_ref().map(Tables::acpi);
        let initrd = self.initrd.as_ref().map(|initrd| initrd.place);
        let told = Told {
            map: map::memory_map(memory.layout(), acpi),
            initrd,
            acpi_root: acpi.map(|acpi| acpi.start),
            seed,
        };
        self.handover.write(memory, command_line, &told)?;
        Ok(Start {
            protocol: self.protocol,
            unpacked: self.unpacked,
            state: self.handover.initial_state(),
            kernel: self.kernel,
            initrd,
            generation_id: self.tables.as_ref().map(|_| map::GENERATION_ID),
        })
    }
}

/// The files of an initrd and where they go, one behind the other.
struct Initrd<'a> {
    files: Vec<Image<'a>>,
    place: Region,
}

impl<'a> Initrd<'a> {
    fn place(
        files: Vec<Image<'a>>,
        below: u64,
        layout: &Layout,
        pieces: &[Piece],
        boot_data: Region,
    ) -> Result<Self, Error> {
        // Sizes come from the file system, which may claim anything.
        let size = files.iter().fold(0_u64, |end, file| offset_behind(end).saturating_add(file.size()));
        let memory_end = layout.low().end();
        match place::initrd(size, below.min(memory_end), pieces, boot_data) {
            Ok(place) => Ok(Self { files, place }),
            Err(free) => Err(Error::InitrdTooLarge {
                files: files.iter().map(|file| (file.name().to_owned(), file.size())).collect(),
                size,
                free,
                below,
                more_helps: memory_end < below,
            }),
        }
    }

    fn copy_to(&self, memory: &GuestMemory) -> Result<(), Error> {
        let mut end = 0;
        for file in &self.files {
            let offset = offset_behind(end);
            file.copy_to(memory, 0, file.size(), self.place.start + offset)?;
            end = offset + file.size();
        }
        Ok(())
    }
}

/// Where the next file begins if the last one ends at `end`. What lies between reads as zero.
fn offset_behind(end: u64) -> u64 {
    end.checked_next_multiple_of(INITRD_FILE_ALIGNMENT).unwrap_or(u64::MAX)
}

/// What is put into low memory for the kernel, and where it is entered.
enum Handover {
    Real { entry: u32 },
    Pvh { entry: u32 },
    Linux32 { entry: u32, header: Option<SetupHeader> },
    Long { entry: u64, tables: IdentityTables, header: Option<SetupHeader> },
}

impl Handover {
    fn new(
        protocol: Protocol,
        entry: u64,
        header: Option<SetupHeader>,
        pieces: &[Piece],
    ) -> Result<Self, Problem> {
        Ok(match protocol {
            // Real mode ends at 1 MiB, a PVH note holds 32 bits and so does a setup header: all these entries
            // were read as such.
            Protocol::Flat(Mode::Real) => Self::Real { entry: entry as u32 },
            Protocol::Pvh => Self::Pvh { entry: entry as u32 },
            Protocol::Linux32 => Self::Linux32 { entry: entry as u32, header },
            Protocol::Linux64 | Protocol::Flat(Mode::Long) => {
                Self::Long { entry, tables: place::page_tables(pieces)?, header }
            }
        })
    }

    /// The memory that this takes, and that nothing else may lie in.
    fn boot_data(&self) -> Region {
        let (start, end) = match self {
            Self::Real { .. } => (0, 0),
            Self::Pvh { .. } => (map::DESCRIPTORS, map::ZERO_PAGE),
            Self::Linux32 { .. } => (map::BIOS_DATA_END, map::PAGE_TABLES),
            Self::Long { tables, .. } => (map::BIOS_DATA_END, tables.root() + tables.size()),
        };
        Region { start, size: end - start }
    }

    fn write(&self, memory: &GuestMemory, command_line: &str, told: &Told) -> Result<(), Error> {
        match self {
            Self::Real { .. } => return Ok(()),
            Self::Pvh { .. } => {
                parameters::write_descriptors(memory, &segments::code32())?;
                parameters::write_pvh(memory, told)?;
            }
            Self::Linux32 { header, .. } => {
                parameters::write_descriptors(memory, &segments::code32())?;
                parameters::write_zero_page(memory, told, header.as_ref())?;
            }
            Self::Long { tables, header, .. } => {
                parameters::write_descriptors(memory, &segments::code64())?;
                parameters::write_zero_page(memory, told, header.as_ref())?;
                tables.write(memory)?;
            }
        }
        Ok(parameters::write_command_line(memory, command_line)?)
    }

    fn initial_state(&self) -> InitialState {
        match self {
            Self::Real { entry } => InitialState::Real { entry: *entry, stack: map::STACK as u16 },
            Self::Pvh { entry } => InitialState::Protected {
                entry: *entry,
                parameters: Parameters::Ebx(map::PVH_START_INFO as u32),
                descriptors: map::DESCRIPTORS,
            },
            Self::Linux32 { entry, .. } => InitialState::Protected {
                entry: *entry,
                parameters: Parameters::Esi(map::ZERO_PAGE as u32),
                descriptors: map::DESCRIPTORS,
            },
            Self::Long { entry, tables, .. } => InitialState::Long {
                entry: *entry,
                parameters: map::ZERO_PAGE,
                stack: map::STACK,
                page_tables: tables.root(),
                descriptors: map::DESCRIPTORS,
            },
        }
    }
}
