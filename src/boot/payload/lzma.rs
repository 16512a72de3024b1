//! LZMA in its first container: options, dictionary size and unpacked size, then the stream.

use lzma_rust2::{Action, LzmaStream, Status};

use super::output::{Output, Stop};

/// One byte of options, four of dictionary size, eight of unpacked size.
const HEADER: usize = 1 + 4 + 8;

/// Unpacks all of it; says how far it came.
pub fn unpack(packed: &[u8], output: &mut Output) -> (usize, Result<(), Stop>) {
    if packed.len() < HEADER {
        return (packed.len(), Err(Stop::damaged("it ends within its header")));
    }
    // Its dictionary grows with what it unpacks, so the size in the header needs no limit.
    let mut stream = LzmaStream::new_mem_limit(u32::MAX, None);
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
    (stream.total_in() as usize, result)
}
