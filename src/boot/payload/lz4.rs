//! LZ4 in its legacy container: a magic number, then blocks, each with its packed length before it.
//!
//! Written by `lz4 -l`; described in lz4's `lz4_Frame_format.md`, "Legacy frame". There is neither a checksum
//! nor an end mark.

use super::output::{Output, Stop};

/// What a container starts with. Containers may follow each other.
pub const MAGIC: u32 = 0x184c_2102;
/// What a block holds, except that the last one may hold less.
const BLOCK: usize = 8 << 20;

/// Unpacks all blocks; says how far it came.
pub fn unpack(packed: &[u8], output: &mut Output) -> (usize, Result<(), Stop>) {
    let mut rest = packed;
    let result = blocks(&mut rest, output);
    (packed.len() - rest.len(), result)
}

fn blocks(rest: &mut &[u8], output: &mut Output) -> Result<(), Stop> {
    while let Some((length, behind)) = rest.split_first_chunk() {
        let length = u32::from_le_bytes(*length);
        if length == MAGIC {
            *rest = behind;
            continue;
        }
        let Some((block, behind)) = behind.split_at_checked(length as usize) else {
            return Err(Stop::Damaged(format!("a block of {length} bytes reaches beyond its end")));
        };
        if output.left() == 0 {
            return Err(Stop::Full);
        }
        output
            .append(BLOCK, |room| lz4_flex::block::decompress_into(block, room))
            .map_err(|error| Stop::Damaged(format!("in the block that starts here, {error}")))?;
        *rest = behind;
    }
    match rest.len() {
        0 => Ok(()),
        few => Err(Stop::Damaged(format!("{few} bytes are too few for another block"))),
    }
}
