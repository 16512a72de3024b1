//! bzImages: Linux as it is installed, a packed kernel behind code that unpacks it.
//!
//! Unpacking is done here, natively, and the ELF image that comes out is started like any other. The image's own
//! code is run where that cannot be: when the payload's format is not known or holds something else, and when
//! it is asked for.
//!
//! Documentation/arch/x86/boot.rst. `header` reads the setup header, `checksum` finds what damage nothing
//! else does, `place` finds room for the image when its own code is run, and `boot::payload` unpacks.

mod checksum;
mod header;
mod place;

use super::elf;
use super::error::{Error, Range};
use super::image::Image;
use super::payload::{self, Format};
use super::place::Piece;
use super::{Entry, Kernel, Options, Protocol};
use crate::memory::Layout;

pub use header::SetupHeader;

/// Where the image's code is entered in 64-bit mode, counted from its start; in 32-bit mode it is the start.
const ENTRY_64: u64 = 0x200;

/// What is wrong with a bzImage, apart from its payload.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The file ends within the setup header.
    #[error("truncated: its setup header needs bytes {bytes}, the file has {found:#x}")]
    HeaderTruncated {
        /// Where it is said to be.
        bytes: Range,
        /// The file's length.
        found: u64,
    },
    /// A field of the setup header says what cannot be.
    #[error("{name} in its setup header is {value:#x}: {why}")]
    Field {
        /// The field, as boot.rst calls it.
        name: &'static str,
        /// Its value.
        value: u64,
        /// What is wrong with that.
        why: String,
    },
    /// Its CRC-32 is not that of its bytes.
    #[error(
        "the image is damaged: the CRC-32 of its first {end:#x} bytes, which its last four are for, is {found:#x} \
         instead of 0xffffffff"
    )]
    Checksum {
        /// What was found, over the CRC as well.
        found: u32,
        /// Where the CRC, and with it the image, ends in the file.
        end: u64,
    },
    /// An entry of the ELF image was asked for.
    #[error("{why}, so that it can only be entered by its own code (--entry image)")]
    NoElf {
        /// Why there is no such image.
        why: String,
    },
}

/// Reads a bzImage: as the ELF image that it holds, or as its own code.
pub fn read<'a>(image: Image<'a>, options: &Options<'_>, layout: &Layout) -> Result<Kernel<'a>, Error> {
    let header = SetupHeader::read(&image)?;
    if options.entry == Entry::Image {
        checksum::check(&image, &header)?;
        return own_code(image, header, layout);
    }
    // Damage that unpacking finds is told better: with the place.
    let payload = unpack(&image, &header, layout)?;
    checksum::check(&image, &header)?;
    match payload {
        Payload::Elf { format, image } => {
            let kernel = Kernel::from_elf(image, options.entry)?;
            let initrd_end = header.initrd_end(kernel.protocol);
            Ok(Kernel { header: Some(header), is_linux: true, unpacked: Some(format), initrd_end, ..kernel })
        }
        Payload::Other { why } if options.entry == Entry::Auto => {
            log::info!("kernel {}: {why}; its own code is started", image.name());
            own_code(image, header, layout)
        }
        Payload::Other { why } => Err(image.refuse(Problem::NoElf { why }.into())),
    }
}

enum Payload<'a> {
    /// An ELF image that can be started here.
    Elf { format: Format, image: Image<'a> },
    /// Something else.
    Other { why: String },
}

/// Unpacks the payload, no larger than the guest's memory: the kernel could not do it in less either.
fn unpack<'a>(image: &Image<'a>, header: &SetupHeader, layout: &Layout) -> Result<Payload<'a>, Error> {
    let other = |why: String| Ok(Payload::Other { why });
    let Some(Range { start, size }) = header.payload() else {
        return other("its setup header names no payload".to_owned());
    };
    let mut magic = [0; 6];
    let magic = &mut magic[..size.min(6) as usize];
    image.read_at(start, magic)?;
    let Some(format) = Format::detect(magic) else {
        return other(format!(
            "its payload starts with {magic:02x?}, which is no format that lodger unpacks"
        ));
    };
    header.check_payload_length(layout.size()).map_err(|problem| image.refuse(problem.into()))?;
    let mut payload = Vec::new();
    if payload.try_reserve_exact(size as usize).is_err() {
        return Err(image.refuse(payload::Problem::NoMemory { format, size }.into()));
    }
    payload.resize(size as usize, 0);
    image.read_at(start, &mut payload)?;
    let unpacked = payload::unpack(format, payload, start, layout.size())
        .map_err(|problem| image.refuse(problem.into()))?;
    if !elf::is_bootable(&unpacked) {
        return other(format!("its {format} payload is no 64-bit ELF for x86"));
    }
    Ok(Payload::Elf { format, image: image.unpacked(unpacked) })
}

/// The image with its own code, which unpacks the kernel in the guest.
fn own_code<'a>(image: Image<'a>, mut header: SetupHeader, layout: &Layout) -> Result<Kernel<'a>, Error> {
    let in_long_mode = header.has_64_bit_entry();
    let (address, pieces) = place::pieces(&header, layout);
    let (protocol, which, entry) = match in_long_mode {
        true => (Protocol::Linux64, "64-bit", address.saturating_add(ENTRY_64)),
        false => (Protocol::Linux32, "32-bit", address),
    };
    if !pieces.iter().any(|piece: &Piece| piece.has_contents_at(entry)) {
        return Err(image.refuse(super::Problem::EntryOutside { which, entry }));
    }
    header.set_load_address(address as u32);
    let initrd_end = header.initrd_end(protocol);
    let kernel = Kernel::new(image, pieces, protocol, entry);
    Ok(Kernel { header: Some(header), is_linux: true, initrd_end, ..kernel })
}

#[cfg(test)]
mod mutation_test;
#[cfg(test)]
#[path = "bzimage_test.rs"]
mod tests;
