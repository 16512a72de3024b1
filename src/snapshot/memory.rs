//! The file `memory`: the guest's memory, page by page as it is, and a last page that says to which state it belongs.
//!
//! Pages of zeroes are holes. The [checksum] of each [`CHUNK`] covers the others.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{CHUNK, Error, PAGE, checksum};
use crate::saved::Saved;
use crate::sparse::runs;

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

/// A memory file that is being written.
pub(super) struct Writer {
    file: File,
    size: u64,
}

impl Writer {
    pub fn new(file: File, size: u64) -> io::Result<Self> {
        file.set_len(size + PAGE)?;
        Ok(Self { file, size })
    }

    /// Writes pages in the place of what was there before. Pages of zeroes become holes.
    pub fn put(&mut self, offset: u64, pages: &[u8]) -> io::Result<()> {
        let end = offset.checked_add(pages.len() as u64).filter(|&end| end <= self.size);
        let whole = offset.is_multiple_of(PAGE) && (pages.len() as u64).is_multiple_of(PAGE);
        if !whole || end.is_none() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "these are no pages of the memory"));
        }
        runs(pages, PAGE as usize).try_for_each(|(zero, run)| {
            let at = offset + run.start as u64;
            if zero { self.clear(at, run.len()) } else { self.file.write_all_at(&pages[run], at) }
        })
    }

    /// Makes a hole.
    fn clear(&mut self, offset: u64, length: usize) -> io::Result<()> {
        let (Ok(from), Ok(count)) = (libc::off_t::try_from(offset), libc::off_t::try_from(length)) else {
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        };
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: changes nothing but the file.
        if unsafe { libc::fallocate(self.file.as_raw_fd(), mode, from, count) } == 0 {
            return Ok(());
        }
        match io::Error::last_os_error() {
            // Where there are no holes, or none of this size, zeroes do.
            error if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                self.file.write_all_at(&vec![0; length], offset)
            }
            error => Err(error),
        }
    }

    /// Forgets all that was written.
    pub fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.set_len(self.size + PAGE)
    }

    /// Has what was written up to now written to the disk.
    pub fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Ends it with the page that says what it belongs to, and has it written to the disk. The checksums are made only
    /// now: the machine waits while its memory is written, and need not for them.
    pub fn finish(self, id: [u8; 16]) -> io::Result<MemoryHashes> {
        self.file.write_all_at(&last_page(id), self.size)?;
        let hashes = hashes(&self.file, self.size)?;
        self.file.sync_all()?;
        Ok(hashes)
    }
}

/// The checksums of what is in a memory file.
fn hashes(file: &File, size: u64) -> io::Result<MemoryHashes> {
    let mut chunks = vec![NO_PAGES; usize::try_from(size.div_ceil(CHUNK)).unwrap_or(0)];
    checksum::of_chunks(file, size, |number, checksum| {
        let slot = usize::try_from(number).ok().and_then(|number| chunks.get_mut(number));
        slot.into_iter().for_each(|slot| *slot = checksum);
    })?;
    Ok(MemoryHashes { chunks })
}

/// Reads all of a memory file that is not a hole; an error tells which chunk is not what was written.
pub(super) fn check(file: &File, path: &Path, size: u64, expected: &MemoryHashes) -> Result<(), Error> {
    let found = hashes(file, size).map_err(Error::io("read", path))?;
    if found.chunks.len() != expected.chunks.len() {
        return Err(Error::damaged(path, "there is another number of checksums than it needs"));
    }
    match found.chunks.iter().zip(&expected.chunks).position(|(found, expected)| found != expected) {
        None => Ok(()),
        Some(chunk) => {
            let at = chunk as u64 * CHUNK;
            Err(Error::damaged(path, format!("the MiB at {at:#x} is not what was written")))
        }
    }
}
