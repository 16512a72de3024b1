//! The CRC-32 at the end of a bzImage, by which damage is found that unpacking does not notice: LZ4 and LZMA as
//! Linux uses them have no checksum of their own.
//!
//! Since boot protocol 2.08 the image ends with what makes the CRC-32 of all its bytes, without the final
//! inversion, zero (Documentation/arch/x86/boot.rst, "The Image Checksum"); with that inversion it is
//! [`INTACT`]. Two kinds of images are whole all the same:
//! - Linux 6.16 and later leave four zeros in its place.
//! - Whoever signs an image for UEFI, as distributions do, writes into the PE header which it has for firmware
//!   (Microsoft's "PE Format": the field CheckSum and the directory entry "Certificate Table"), and leaves the
//!   CRC as it was. It is right again once those fields are zero, as they were before. A tool that changes more
//!   cannot be told from damage: such an image is given the benefit of the doubt.

use std::ops::Range;

use crate::boot::error::Error;
use crate::boot::image::Image;

use super::{Problem, SetupHeader};

/// The CRC-32 of an image with its own CRC at the end.
const INTACT: u32 = 0xffff_ffff;
/// How long the CRC is.
const FIELD: u64 = 4;
/// How much is read at once.
const AT_ONCE: usize = 256 << 10;

/// Where a DOS program, which an image for UEFI pretends to be, says where its PE header is.
const PE_OFFSET_AT: usize = 0x3c;
/// Where the optional header starts, from the PE header's signature on.
const OPTIONAL: usize = 24;
const MAGIC_PE32: u16 = 0x10b;
const MAGIC_PE32_PLUS: u16 = 0x20b;
/// From the optional header on.
const CHECKSUM: usize = 64;
/// The number of the certificate table among the directory entries.
const CERTIFICATES: usize = 4;
const DIRECTORY_SIZE: usize = 8;
/// How much of a file is looked at for these headers; Linux has them within its first 512 bytes.
const HEADERS: usize = 4096;

/// Refuses an image whose CRC is there and wrong. Others than Linux use this format, too, and know no CRC: an image
/// without a payload is not looked at.
pub fn check(image: &Image<'_>, header: &SetupHeader) -> Result<(), Error> {
    if header.payload().is_none() {
        return Ok(());
    }
    let code = header.code();
    let end = code.start + code.size;
    let mut field = [0; FIELD as usize];
    let field_at = end - FIELD;
    image.read_at(field_at, &mut field)?;
    if field == [0; FIELD as usize] {
        return Ok(());
    }
    let found = crc(image, end, &[])?;
    if found == INTACT {
        return Ok(());
    }
    let mut head = vec![0; HEADERS.min(end as usize)];
    image.read_at(0, &mut head)?;
    match signed_fields(&head) {
        Some(fields) if crc(image, end, &fields)? == INTACT => Ok(()),
        Some(_) => {
            log::info!(
                "kernel {}: its CRC-32 does not match its contents, which may be the work of the tool that signed it",
                image.name()
            );
            Ok(())
        }
        None => Err(image.refuse(Problem::Checksum { found, end }.into())),
    }
}

/// The CRC-32 of the first `end` bytes, with those at `zeroed` taken for zero.
fn crc(image: &Image<'_>, end: u64, zeroed: &[Range<usize>]) -> Result<u32, Error> {
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = vec![0; AT_ONCE.min(end as usize)];
    for start in (0..end).step_by(AT_ONCE) {
        let length = (end - start).min(AT_ONCE as u64) as usize;
        let part = &mut buffer[..length];
        image.read_at(start, part)?;
        if start == 0 {
            for range in zeroed {
                if let Some(field) = part.get_mut(range.clone()) {
                    field.fill(0);
                }
            }
        }
        hasher.update(part);
    }
    Ok(hasher.finalize())
}

/// What signing writes into the PE header, if the image is signed.
fn signed_fields(head: &[u8]) -> Option<[Range<usize>; 2]> {
    let bytes_at = |at: usize, length: usize| head.get(at..at.checked_add(length)?);
    let word = |at| bytes_at(at, 2).and_then(|bytes| bytes.try_into().ok()).map(u16::from_le_bytes);
    let double = |at| bytes_at(at, 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
    if !head.starts_with(b"MZ") {
        return None;
    }
    let pe = double(PE_OFFSET_AT)? as usize;
    if bytes_at(pe, 4)? != b"PE\0\0" {
        return None;
    }
    let optional = pe + OPTIONAL;
    let count_at = match word(optional)? {
        MAGIC_PE32 => optional + 92,
        MAGIC_PE32_PLUS => optional + 108,
        _ => return None,
    };
    let entry = count_at + 4 + CERTIFICATES * DIRECTORY_SIZE;
    if double(count_at)? as usize <= CERTIFICATES || bytes_at(entry, DIRECTORY_SIZE)? == [0; DIRECTORY_SIZE] {
        return None;
    }
    let checksum = optional + CHECKSUM;
    Some([checksum..checksum + 4, entry..entry + DIRECTORY_SIZE])
}

#[cfg(test)]
#[path = "checksum_test.rs"]
mod tests;
