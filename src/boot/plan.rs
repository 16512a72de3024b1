//! One load: first everything is decided, then everything is written.

use crate::memory::{GuestMemory, Layout, Region};
use crate::x86::mode::InitialState;
use crate::x86::paging::IdentityTables;
use crate::x86::segments;

use super::error::{Error, Problem};
use super::image::Image;
use super::place::{self, Piece};
use super::{Kernel, Mode, Protocol, Start, map, parameters};

/// All that is to be written, known to fit.
pub struct Plan<'a> {
    kernel: Region,
    pieces: Vec<Piece>,
    initrd: Option<(Image<'a>, Region)>,
    protocol: Protocol,
    handover: Handover,
}

impl<'a> Plan<'a> {
    /// Decides where everything goes.
    pub fn make(
        image: &Image<'_>,
        kernel: Kernel,
        initrd: Option<Image<'a>>,
        layout: &Layout,
    ) -> Result<Self, Error> {
        let refuse = |problem| image.refuse(problem);
        let Kernel { mut pieces, protocol, entry } = kernel;
        let kernel = place::check_pieces(&mut pieces, layout).map_err(refuse)?;
        let handover = Handover::new(protocol, entry, &pieces).map_err(refuse)?;
        place::check_boot_data(&pieces, handover.boot_data()).map_err(refuse)?;
        let initrd = match initrd {
            Some(initrd) => Some(place_initrd(initrd, layout, &pieces, handover.boot_data())?),
            None => None,
        };
        Ok(Self { kernel, pieces, initrd, protocol, handover })
    }

    /// Writes it. Only a failing read, or a file that has become shorter, can stop this half way.
    pub fn carry_out(
        &self,
        image: &Image<'_>,
        memory: &GuestMemory,
        command_line: &str,
    ) -> Result<Start, Error> {
        for piece in self.pieces.iter().filter(|piece| piece.in_file > 0) {
            image.copy_to(memory, piece.offset, piece.in_file, piece.place.start)?;
        }
        if let Some((initrd, place)) = &self.initrd {
            initrd.copy_to(memory, 0, place.size, place.start)?;
        }
        let initrd = self.initrd.as_ref().map(|(_, place)| *place);
        self.handover.write(memory, command_line, initrd)?;
        Ok(Start {
            protocol: self.protocol,
            state: self.handover.initial_state(),
            kernel: self.kernel,
            initrd,
        })
    }
}

fn place_initrd<'a>(
    initrd: Image<'a>,
    layout: &Layout,
    pieces: &[Piece],
    boot_data: Region,
) -> Result<(Image<'a>, Region), Error> {
    let size = initrd.size();
    match place::initrd(size, layout, pieces, boot_data) {
        Ok(place) => Ok((initrd, place)),
        Err(free) => Err(Error::InitrdTooLarge { name: initrd.name().to_owned(), size, free }),
    }
}

/// What is put into low memory for the kernel, and where it is entered.
enum Handover {
    Real { entry: u32 },
    Pvh { entry: u32 },
    Long { entry: u64, tables: IdentityTables },
}

impl Handover {
    fn new(protocol: Protocol, entry: u64, pieces: &[Piece]) -> Result<Self, Problem> {
        Ok(match protocol {
            // Real mode ends at 1 MiB and a PVH note holds 32 bits: both entries were read as such.
            Protocol::Flat(Mode::Real) => Self::Real { entry: entry as u32 },
            Protocol::Pvh => Self::Pvh { entry: entry as u32 },
            Protocol::Linux64 | Protocol::Flat(Mode::Long) => {
                Self::Long { entry, tables: place::page_tables(pieces)? }
            }
        })
    }

    /// The memory that this takes, and that nothing else may lie in.
    fn boot_data(&self) -> Region {
        let (start, end) = match self {
            Self::Real { .. } => (0, 0),
            Self::Pvh { .. } => (map::DESCRIPTORS, map::ZERO_PAGE),
            Self::Long { tables, .. } => (map::BIOS_DATA_END, tables.root() + tables.size()),
        };
        Region { start, size: end - start }
    }

    fn write(&self, memory: &GuestMemory, command_line: &str, initrd: Option<Region>) -> Result<(), Error> {
        match self {
            Self::Real { .. } => return Ok(()),
            Self::Pvh { .. } => {
                parameters::write_descriptors(memory, &segments::code32())?;
                parameters::write_pvh(memory, initrd)?;
            }
            Self::Long { tables, .. } => {
                parameters::write_descriptors(memory, &segments::code64())?;
                parameters::write_zero_page(memory, initrd)?;
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
                parameters: map::PVH_START_INFO as u32,
                descriptors: map::DESCRIPTORS,
            },
            Self::Long { entry, tables } => InitialState::Long {
                entry: *entry,
                parameters: map::ZERO_PAGE,
                stack: map::STACK,
                page_tables: tables.root(),
                descriptors: map::DESCRIPTORS,
            },
        }
    }
}
