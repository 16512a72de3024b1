//! The file `memory`: the guest's memory, page by page as it is, and a last page that says to which state it belongs.
//!
//! Pages of zeroes are holes. The checksum of each [`CHUNK`] covers the others, each with its place before it, so that it
//! costs nothing where nothing is.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Error;
use crate::saved::Saved;
use crate::sparse::{data_ranges, is_zero};

/// The unit in which memory is written.
pub const PAGE: u64 = 4096;
/// The unit in which memory has checksums.
pub const CHUNK: u64 = 1 << 20;

const MAGIC: [u8; 8] = *b"LODGMEM\0";
/// Of a chunk that is nothing but zeroes.
const NO_PAGES: [u8; 32] = [0; 32];

/// The section in which they are.
pub(super) const MEMORY_HASHES: &str = "memory-hashes";

/// The checksums of a memory file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryHashes {
    chunks: Vec<[u8; 32]>,
}

impl Saved for MemoryHashes {
    const NAME: &'static str = MEMORY_HASHES;
    const VERSION: u16 = 1;
}

/// The page at the end.
pub(super) fn last_page(id: [u8; 16]) -> [u8; PAGE as usize] {
    let mut page = [0; PAGE as usize];
    page[..8].copy_from_slice(&MAGIC);
    page[8..24].copy_from_slice(&id);
    page
}

/// A memory file that is being written, and its checksums.
pub(super) struct Writer {
    file: File,
    size: u64,
    hashes: Hashes,
}

impl Writer {
    pub fn new(file: File, size: u64) -> io::Result<Self> {
        file.set_len(size + PAGE)?;
        Ok(Self { file, size, hashes: Hashes::new(size) })
    }

    /// Writes pages, none of them a page of zeroes, which begin behind all that were written before.
    pub fn put(&mut self, offset: u64, pages: &[u8]) -> io::Result<()> {
        let end = offset.checked_add(pages.len() as u64);
        let whole = offset.is_multiple_of(PAGE) && (pages.len() as u64).is_multiple_of(PAGE);
        if !whole || offset < self.hashes.end || end.is_none_or(|end| end > self.size) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "these are no pages that can follow"));
        }
        self.file.write_all_at(pages, offset)?;
        for (place, page) in (offset..).step_by(PAGE as usize).zip(pages.chunks_exact(PAGE as usize)) {
            self.hashes.add(place, page);
        }
        Ok(())
    }

    /// Ends it with the page that says what it belongs to, and has it written to the disk.
    pub fn finish(self, id: [u8; 16]) -> io::Result<MemoryHashes> {
        self.file.write_all_at(&last_page(id), self.size)?;
        self.file.sync_all()?;
        Ok(self.hashes.finish())
    }
}

/// Checksums in the making, of pages that come in ascending order.
struct Hashes {
    chunks: Vec<[u8; 32]>,
    /// The chunk that the last page was in, and its checksum so far.
    current: Option<(usize, blake3::Hasher)>,
    /// Where the last page ended.
    end: u64,
}

impl Hashes {
    fn new(size: u64) -> Self {
        let chunks = vec![NO_PAGES; usize::try_from(size.div_ceil(CHUNK)).unwrap_or(0)];
        Self { chunks, current: None, end: 0 }
    }

    fn add(&mut self, offset: u64, page: &[u8]) {
        let chunk = (offset / CHUNK) as usize;
        if self.current.as_ref().is_none_or(|(current, _)| *current != chunk) {
            self.close();
            self.current = Some((chunk, blake3::Hasher::new()));
        }
        if let Some((_, hasher)) = &mut self.current {
            hasher.update(&offset.to_le_bytes()).update(page);
        }
        self.end = offset + PAGE;
    }

    fn close(&mut self) {
        if let Some((chunk, hasher)) = self.current.take()
            && let Some(slot) = self.chunks.get_mut(chunk)
        {
            *slot = hasher.finalize().into();
        }
    }

    fn finish(mut self) -> MemoryHashes {
        self.close();
        MemoryHashes { chunks: self.chunks }
    }
}

/// Reads all of a memory file that is not a hole; an error tells which chunk is not what was written.
pub(super) fn check(file: &File, path: &Path, size: u64, expected: &MemoryHashes) -> Result<(), Error> {
    let mut found = Hashes::new(size);
    let mut buffer = vec![0; CHUNK as usize];
    data_ranges(file, 0, size, |start, end| {
        let mut at = start - start % PAGE;
        let end = end.next_multiple_of(PAGE).min(size);
        while at < end {
            let bytes = &mut buffer[..CHUNK.min(end - at) as usize];
            file.read_exact_at(bytes, at)?;
            for page in bytes.chunks_exact(PAGE as usize) {
                if at >= found.end && !is_zero(page) {
                    found.add(at, page);
                }
                at += PAGE;
            }
        }
        Ok(())
    })
    .map_err(Error::io("read", path))?;
    let found = found.finish();
    let differs = |(one, other): (&[u8; 32], &[u8; 32])| one != other;
    if found.chunks.len() != expected.chunks.len() {
        return Err(Error::damaged(path, "there is another number of checksums than it needs"));
    }
    match found.chunks.iter().zip(&expected.chunks).position(differs) {
        None => Ok(()),
        Some(chunk) => Err(Error::damaged(
            path,
            format!("the MiB at {:#x} is not what was written", chunk as u64 * CHUNK),
        )),
    }
}
