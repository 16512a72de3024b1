//! The xz container: a header, blocks of LZMA2 data with a check behind each, and an index nobody needs here.
//!
//! Tukaani's "The .xz File Format", version 1.2.1. Linux is packed with the filter for x86 code and CRC-32;
//! CRC-64 is what `xz` chooses by itself. The index and the footer behind the blocks say where to find what has
//! been found already, so they are not read.

use flate2::Crc;
use lzma_rust2::{Action, FilterConfig, Lzma2Stream, Status};

use super::output::{Output, Stop};

const MAGIC: &[u8] = b"\xfd7zXZ\0";
/// Magic number, two bytes of flags, their CRC-32.
const STREAM_HEADER: usize = 12;

/// Names of filters, chapter 5.3.
const FILTER_X86: u64 = 0x04;
const FILTER_LZMA2: u64 = 0x21;

/// Flags of a block, chapter 3.1.2.
const HAS_PACKED_SIZE: u8 = 0x40;
const HAS_UNPACKED_SIZE: u8 = 0x80;
const RESERVED: u8 = 0x3c;

/// What follows each block's data.
#[derive(Debug, Clone, Copy)]
enum Check {
    None,
    Crc32,
    Crc64,
}

/// How a block is packed.
#[derive(Debug)]
struct Block {
    dictionary: u32,
    /// Where the filter for x86 code starts to count, if there is one.
    filter: Option<u32>,
    unpacked: Option<u64>,
}

/// Unpacks all blocks; says how far it came.
pub fn unpack(packed: &[u8], output: &mut Output) -> (usize, Result<(), Stop>) {
    let mut cursor = Cursor { bytes: packed, at: 0 };
    let result = stream(&mut cursor, output);
    (cursor.at, result)
}

fn stream(cursor: &mut Cursor<'_>, output: &mut Output) -> Result<(), Stop> {
    let check = stream_header(cursor.take(STREAM_HEADER)?)?;
    // A block's header starts with its length in words; the index starts with a zero.
    while let Some(&words) = cursor.bytes.get(cursor.at)
        && words != 0
    {
        let header = cursor.take((usize::from(words) + 1) * 4)?;
        let block = block_header(header)?;
        let (start, unpacked_from) = (cursor.at, output.made());
        block.unpack(cursor, output)?;
        let length = cursor.at - start;
        cursor.take(length.next_multiple_of(4) - length)?;
        check.verify(cursor, output.since(unpacked_from))?;
    }
    Ok(())
}

fn stream_header(header: &[u8]) -> Result<Check, Stop> {
    let flags = &header[MAGIC.len()..STREAM_HEADER - 4];
    if crc32(flags) != word(&header[STREAM_HEADER - 4..]) {
        return Err(Stop::damaged("the checksum of its header does not match"));
    }
    match *flags {
        [0, 0] => Ok(Check::None),
        [0, 1] => Ok(Check::Crc32),
        [0, 4] => Ok(Check::Crc64),
        [0, kind] => Err(Stop::Damaged(format!("it has a checksum of kind {kind}, which is not supported"))),
        _ => Err(Stop::damaged("its header has flags that are not supported")),
    }
}

fn block_header(header: &[u8]) -> Result<Block, Stop> {
    let (fields, sum) = header.split_at(header.len() - 4);
    if crc32(fields) != word(sum) {
        return Err(Stop::damaged("the checksum of a block's header does not match"));
    }
    let flags = fields[1];
    if flags & RESERVED != 0 {
        return Err(Stop::damaged("a block has flags that are not supported"));
    }
    let mut cursor = Cursor { bytes: fields, at: 2 };
    if flags & HAS_PACKED_SIZE != 0 {
        cursor.number()?;
    }
    let unpacked = if flags & HAS_UNPACKED_SIZE != 0 { Some(cursor.number()?) } else { None };
    let mut filter = None;
    // The last one is the packer.
    for _ in 0..flags & 3 {
        let (id, properties) = cursor.filter()?;
        filter = match (id, properties) {
            (FILTER_X86, []) if filter.is_none() => Some(0),
            (FILTER_X86, &[a, b, c, d]) if filter.is_none() => Some(u32::from_le_bytes([a, b, c, d])),
            _ => return Err(unsupported(id)),
        };
    }
    match cursor.filter()? {
        (FILTER_LZMA2, &[size]) => Ok(Block { dictionary: dictionary_size(size)?, filter, unpacked }),
        (id, _) => Err(unsupported(id)),
    }
}

fn unsupported(filter: u64) -> Stop {
    Stop::Damaged(format!("a block is packed with filter {filter:#x} where that is not supported"))
}

/// Chapter 5.3.1: 2 or 3 times a power of two.
fn dictionary_size(code: u8) -> Result<u32, Stop> {
    match code {
        0..40 => Ok((2 | u32::from(code) & 1) << (code / 2 + 11)),
        40 => Ok(u32::MAX),
        _ => Err(Stop::damaged("a block's dictionary has an impossible size")),
    }
}

impl Block {
    fn unpack(&self, cursor: &mut Cursor<'_>, output: &mut Output) -> Result<(), Stop> {
        // Its dictionary grows with what it unpacks, so its size needs no limit.
        let mut stream = Lzma2Stream::new(self.dictionary);
        if let Some(start) = self.filter {
            stream.set_filters(&[FilterConfig::new_bcj_x86(start)])?;
        }
        let start = output.made();
        let packed = cursor.rest();
        let result = output.read_from(|room| {
            loop {
                let rest = packed.get(stream.total_in() as usize..).unwrap_or_default();
                let step = stream.process(rest, room, Action::Finish)?;
                match step.status {
                    _ if step.bytes_produced > 0 => return Ok(step.bytes_produced),
                    Status::StreamEnd => return Ok(0),
                    Status::Ok if step.bytes_consumed == 0 => return Err(Stop::damaged("it ends too early")),
                    Status::Ok => {}
                }
            }
        });
        cursor.at += stream.total_in() as usize;
        result?;
        let made = (output.made() - start) as u64;
        match self.unpacked {
            Some(size) if size != made => {
                Err(Stop::Damaged(format!("a block unpacks to {made} bytes where its header says {size}")))
            }
            _ => Ok(()),
        }
    }
}

impl Check {
    fn verify(self, cursor: &mut Cursor<'_>, unpacked: &[u8]) -> Result<(), Stop> {
        let start = cursor.at;
        let matches = match self {
            Self::None => true,
            Self::Crc32 => cursor.take(4)? == crc32(unpacked).to_le_bytes(),
            Self::Crc64 => cursor.take(8)? == crc64(unpacked).to_le_bytes(),
        };
        if matches {
            return Ok(());
        }
        cursor.at = start;
        Err(Stop::damaged("the checksum of a block does not match"))
    }
}

/// What is read from front to back.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn rest(&self) -> &'a [u8] {
        &self.bytes[self.at..]
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Stop> {
        let taken = self.rest().get(..length).ok_or_else(|| Stop::damaged("it ends too early"))?;
        self.at += length;
        Ok(taken)
    }

    /// Chapter 1.2: seven bits in each byte, the lowest first.
    fn number(&mut self) -> Result<u64, Stop> {
        let mut number = 0;
        for shift in (0..63).step_by(7) {
            let byte = self.take(1)?[0];
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Stop::damaged("a number in a block's header is too long"))
    }

    /// The name of a filter and its properties.
    fn filter(&mut self) -> Result<(u64, &'a [u8]), Stop> {
        let (id, length) = (self.number()?, self.number()?);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        Ok((id, self.take(length)?))
    }
}

fn word(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// The CRC of ECMA-182, lowest bit first.
fn crc64(bytes: &[u8]) -> u64 {
    const TABLE: [u64; 256] = crc64_table();
    !bytes.iter().fold(!0, |crc, byte| TABLE[usize::from(crc as u8 ^ byte)] ^ crc >> 8)
}

const fn crc64_table() -> [u64; 256] {
    const POLYNOMIAL: u64 = 0xc96c_5795_d787_0f42;
    let mut table = [0; 256];
    let mut index = 0;
    while index < table.len() {
        let mut crc = index as u64;
        let mut bit = 0;
        while bit < 8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { POLYNOMIAL } else { 0 };
            bit += 1;
        }
        table[index] = crc;
        index += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_sums_are_those_of_the_specification() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(crc64(b"123456789"), 0x995d_c9bb_df19_39fa);
    }

    #[test]
    fn dictionary_sizes_are_those_of_the_specification() {
        let size = |code| dictionary_size(code).unwrap();
        assert_eq!((size(0), size(1), size(2), size(30)), (4 << 10, 6 << 10, 8 << 10, 128 << 20));
        assert_eq!((size(39), size(40)), (3 << 30, u32::MAX));
        assert!(dictionary_size(41).is_err());
    }
}
