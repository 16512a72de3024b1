//! Unpacking what a bzImage carries: the kernel proper, packed by one of the programs that Linux's build offers.
//!
//! Everything here works on bytes and gives bytes: guest memory is not touched before all of it has been
//! unpacked and found to be whole. How much is unpacked is known beforehand, because Linux's build appends the
//! size (gzip has it at the same place by itself): [`unpack`] refuses a size that no guest could hold, makes no
//! more than that, and refuses what turns out to be less. A decoder's own tables and windows grow with what it
//! has made, never with what a header claims.
//!
//! gzip, xz, bzip2 and zstd find damage by a checksum. LZMA and LZ4 as Linux uses them have none: damage that
//! leaves the structure and the size alone goes unnoticed here, and is left to the checksum of the whole image, which
//! `bzimage` looks at next.
//!
//! `bzimage` uses it. The decoders themselves come from other crates; the framing of xz and LZ4 is ours.

mod lz4;
mod lzma;
mod output;
mod streams;
mod xz;

use std::fmt;

use crate::memory::human;

use output::{Output, Stop};

/// How a payload is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// gzip.
    Gzip,
    /// bzip2.
    Bzip2,
    /// LZMA in its first container (`.lzma`).
    Lzma,
    /// LZMA2 in an xz container, with the filter for x86 code or without.
    Xz,
    /// LZ4 in its legacy container.
    Lz4,
    /// Zstandard.
    Zstd,
    /// Not packed: an ELF image.
    Plain,
}

/// What each format starts with.
const MAGICS: [(&[u8], Format); 8] = [
    (&[0x1f, 0x8b], Format::Gzip),
    // The number that gzip had at first, which decoders accept.
    (&[0x1f, 0x9e], Format::Gzip),
    (b"BZh", Format::Bzip2),
    // LZMA has none. These are the options that everybody uses, and the end of a dictionary size.
    (&[0x5d, 0, 0], Format::Lzma),
    (b"\xfd7zXZ\0", Format::Xz),
    (&lz4::MAGIC.to_le_bytes(), Format::Lz4),
    (&[0x28, 0xb5, 0x2f, 0xfd], Format::Zstd),
    (super::elf::MAGIC, Format::Plain),
];

/// How long the size is that follows the packed bytes.
const SIZE_FIELD: usize = 4;

impl Format {
    /// How a payload that starts with `head` is packed, if that is known. The first six bytes decide.
    pub fn detect(head: &[u8]) -> Option<Self> {
        MAGICS.iter().find(|(magic, _)| head.starts_with(magic)).map(|(_, format)| *format)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Bzip2 => "bzip2",
            Self::Lzma => "LZMA",
            Self::Xz => "xz",
            Self::Lz4 => "LZ4",
            Self::Zstd => "zstd",
            Self::Plain => "plain",
        })
    }
}

/// Why a payload cannot be unpacked. `at` counts from the start of the file.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// It is so short that it cannot end with its unpacked size.
    #[error("its {format} payload has only {length} bytes")]
    TooShort {
        /// How it is packed.
        format: Format,
        /// Its length.
        length: usize,
    },
    /// It unpacks to more than the guest could hold.
    #[error(
        "its {format} payload says that it unpacks to {announced} bytes, the guest has {} of memory; if that is \
         not damage, give the guest more (--memory)", human(*.most)
    )]
    TooLarge {
        /// How it is packed.
        format: Format,
        /// What its last bytes announce.
        announced: u64,
        /// How much memory the guest has.
        most: u64,
    },
    /// This process cannot get the memory for it.
    #[error("cannot unpack its {format} payload: this process gets no memory for {size} bytes")]
    NoMemory {
        /// How it is packed.
        format: Format,
        /// How much was to be had.
        size: u64,
    },
    /// The decoder does not understand it.
    #[error("its {format} payload is damaged near byte {at:#x} of the file: {why}")]
    Damaged {
        /// How it is packed.
        format: Format,
        /// How far the decoder came.
        at: u64,
        /// What the decoder says.
        why: String,
    },
    /// There is more in it than its last bytes announce.
    #[error(
        "its {format} payload is damaged: it unpacks to more than the {announced} bytes that its last four bytes \
         announce, which are reached at byte {at:#x} of the file"
    )]
    Longer {
        /// How it is packed.
        format: Format,
        /// What its last bytes announce.
        announced: u64,
        /// How far the decoder came.
        at: u64,
    },
    /// There is less in it than its last bytes announce.
    #[error(
        "its {format} payload is damaged: it ends at byte {at:#x} of the file and unpacks to {found} bytes, its \
         last four bytes announce {announced}"
    )]
    Shorter {
        /// How it is packed.
        format: Format,
        /// What its last bytes announce.
        announced: u64,
        /// What it holds.
        found: u64,
        /// Where it ends.
        at: u64,
    },
}

/// Unpacks `payload`, which lies at `start` in its file, if that makes at most `most` bytes.
pub fn unpack(format: Format, payload: Vec<u8>, start: u64, most: u64) -> Result<Vec<u8>, Problem> {
    if format == Format::Plain {
        return Ok(payload);
    }
    let Some((_, size)) = payload.split_last_chunk::<SIZE_FIELD>() else {
        return Err(Problem::TooShort { format, length: payload.len() });
    };
    let announced = u64::from(u32::from_le_bytes(*size));
    if announced > most {
        return Err(Problem::TooLarge { format, announced, most });
    }
    let no_memory = Problem::NoMemory { format, size: announced };
    let Some(mut output) = usize::try_from(announced).ok().and_then(Output::new) else {
        return Err(no_memory);
    };
    // What is appended to the others is part of a gzip file.
    let packed = match format {
        Format::Gzip => &payload[..],
        _ => &payload[..payload.len() - SIZE_FIELD],
    };
    let (at, result) = decode(format, packed, &mut output);
    let at = start + at as u64;
    match result {
        Ok(()) if output.is_complete() => Ok(output.into_bytes()),
        Ok(()) => Err(Problem::Shorter { format, announced, found: output.made() as u64, at }),
        Err(Stop::Full) => Err(Problem::Longer { format, announced, at }),
        Err(Stop::Damaged(why)) => Err(Problem::Damaged { format, at, why }),
    }
}

/// Lets the decoder for `format` fill `output`; says how far in `packed` it came.
fn decode(format: Format, packed: &[u8], output: &mut Output) -> (usize, Result<(), Stop>) {
    match format {
        Format::Gzip => streams::gzip(packed, output),
        Format::Bzip2 => streams::bzip2(packed, output),
        Format::Zstd => streams::zstd(packed, output),
        Format::Lzma => lzma::unpack(packed, output),
        Format::Xz => xz::unpack(packed, output),
        Format::Lz4 => lz4::unpack(packed, output),
        Format::Plain => (0, Ok(())),
    }
}

#[cfg(test)]
mod damage_test;
#[cfg(test)]
#[path = "payload_test.rs"]
mod tests;
