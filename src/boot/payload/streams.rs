//! The formats that other crates read whole: gzip, bzip2 and zstd.

use std::io::Read;

use bzip2::bufread::BzDecoder;
use flate2::bufread::GzDecoder;
use ruzstd::decoding::errors::FrameDecoderError;
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use super::output::{Output, Stop};

/// Unpacks gzip; says how far it came.
pub fn gzip(packed: &[u8], output: &mut Output) -> (usize, Result<(), Stop>) {
    let mut decoder = GzDecoder::new(packed);
    let result = output.read_from(|room| Ok(decoder.read(room)?));
    (packed.len() - decoder.get_ref().len(), result)
}

/// Unpacks bzip2; says how far it came.
pub fn bzip2(packed: &[u8], output: &mut Output) -> (usize, Result<(), Stop>) {
    let mut decoder = BzDecoder::new(packed);
    let result = output.read_from(|room| Ok(decoder.read(room)?));
    (packed.len() - decoder.get_ref().len(), result)
}

/// Magic number, descriptor, window, dictionary and content size: what a frame's header has at most.
const ZSTD_HEADER: usize = 4 + 1 + 1 + 4 + 8;
const ZSTD_DESCRIPTOR: usize = 4;
const ZSTD_WINDOW: usize = 5;
const ZSTD_SINGLE_SEGMENT: u8 = 1 << 5;
/// What a block holds at most; a smaller window would make it less.
const ZSTD_BLOCK: u64 = 128 << 10;

/// Unpacks zstd, one frame; says how far it came.
pub fn zstd(packed: &[u8], output: &mut Output) -> (usize, Result<(), Stop>) {
    let mut decoder = FrameDecoder::new();
    let mut rest = packed;
    let result = zstd_frame(&mut decoder, &mut rest, output);
    (packed.len() - rest.len(), result)
}

fn zstd_frame(decoder: &mut FrameDecoder, rest: &mut &[u8], output: &mut Output) -> Result<(), Stop> {
    start_frame(decoder, rest, output.left()).map_err(Stop::damaged)?;
    output.read_from(|room| {
        loop {
            let count = decoder.read(room)?;
            if count > 0 {
                return Ok(count);
            }
            if decoder.is_finished() {
                return check_sum(decoder).map(|()| 0);
            }
            // An error leaves `rest` where the block starts.
            let mut ahead = *rest;
            decoder
                .decode_blocks(&mut ahead, BlockDecodingStrategy::UptoBlocks(1))
                .map_err(|error| Stop::Damaged(format!("in the block that starts here, {error}")))?;
            *rest = ahead;
        }
    })
}

/// Reads the frame's header.
///
/// The decoder gives nothing away before it has more than the window that the header asks for, and Linux is
/// packed with a window of 128 MiB, whatever its size. No window larger than the content is of use, and one
/// that is not larger lets damage be found when it has made too much, not after another 128 MiB.
fn start_frame(
    decoder: &mut FrameDecoder,
    rest: &mut &[u8],
    content: usize,
) -> Result<(), FrameDecoderError> {
    let mut header = [0; ZSTD_HEADER];
    let length = rest.len().min(ZSTD_HEADER);
    header[..length].copy_from_slice(&rest[..length]);
    let mut most = (content as u64).max(ZSTD_BLOCK);
    if header[ZSTD_DESCRIPTOR] & ZSTD_SINGLE_SEGMENT == 0 {
        // Five bits of exponent, counted from 10, before three that say how far to go towards the next one.
        most = most.next_power_of_two();
        let exponent = most.ilog2() as u8 - 10;
        header[ZSTD_WINDOW] = header[ZSTD_WINDOW].min(exponent << 3);
    }
    decoder.set_max_window_size(most);
    let mut left = &header[..length];
    let read = decoder.reset(&mut left);
    *rest = &rest[length - left.len()..];
    read
}

fn check_sum(decoder: &FrameDecoder) -> Result<(), Stop> {
    match decoder.get_checksum_from_data() {
        Some(stored) if decoder.get_calculated_checksum() != Some(stored) => {
            Err(Stop::damaged("its checksum does not match"))
        }
        _ => Ok(()),
    }
}
