//! Checksums of files with holes: of the guest's memory, and of disks that are kept in the snapshot.
//!
//! The checksum of each [`CHUNK`] covers the pages that are not all zeroes, and says which they are. So it costs nothing
//! where nothing is, and a copy without holes has the same.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::sparse::{data_ranges, runs};

/// The unit in which memory is written.
pub const PAGE: u64 = 4096;
/// The unit in which memory has checksums.
pub const CHUNK: u64 = 1 << 20;

/// That of a whole file. Chunks of zeroes have no part in it, and neither has its length.
pub(crate) fn of_file(file: &File) -> io::Result<[u8; 32]> {
    let mut hasher = blake3::Hasher::new();
    of_chunks(file, file.metadata()?.len(), |number, checksum| {
        hasher.update(&number.to_le_bytes()).update(&checksum);
    })?;
    Ok(hasher.finalize().into())
}

/// Calls `each` with the number and the checksum of every chunk that is not all zeroes, in ascending order.
pub(super) fn of_chunks(file: &File, size: u64, each: impl FnMut(u64, [u8; 32])) -> io::Result<()> {
    let mut chunks = Chunks { each, current: None };
    let mut buffer = vec![0; CHUNK as usize];
    let mut done = 0;
    data_ranges(file, 0, size, |start, end| {
        let end = end.next_multiple_of(PAGE).min(size);
        // Ranges need not begin and end with pages.
        done = done.max(start - start % PAGE);
        while done < end {
            let length = (CHUNK - done % CHUNK).min(end - done);
            let bytes = &mut buffer[..length as usize];
            file.read_exact_at(bytes, done)?;
            chunks.add(done, bytes);
            done += length;
        }
        Ok(())
    })?;
    chunks.close();
    Ok(())
}

/// Checksums in the making.
struct Chunks<F> {
    each: F,
    current: Option<Current>,
}

/// The chunk that the last pages were in.
struct Current {
    number: u64,
    hasher: blake3::Hasher,
    /// A bit for each page that is not zero.
    pages: [u8; (CHUNK / PAGE / 8) as usize],
}

impl<F: FnMut(u64, [u8; 32])> Chunks<F> {
    /// Adds pages of one chunk, behind all that were added before.
    fn add(&mut self, offset: u64, bytes: &[u8]) {
        const PAGE_BYTES: usize = PAGE as usize;
        let first = (offset % CHUNK / PAGE) as usize;
        for (_, run) in runs(bytes, PAGE_BYTES).filter(|(zero, _)| !zero) {
            let current = self.chunk(offset / CHUNK);
            for page in first + run.start / PAGE_BYTES..first + run.end.div_ceil(PAGE_BYTES) {
                current.pages[page / 8] |= 1 << (page % 8);
            }
            // As much as there is at once: that is many times as fast as page by page.
            current.hasher.update(&bytes[run]);
        }
    }

    fn chunk(&mut self, number: u64) -> &mut Current {
        if self.current.as_ref().is_some_and(|current| current.number != number) {
            self.close();
        }
        let fresh = || Current { number, hasher: blake3::Hasher::new(), pages: Default::default() };
        self.current.get_or_insert_with(fresh)
    }

    fn close(&mut self) {
        if let Some(Current { number, mut hasher, pages }) = self.current.take() {
            (self.each)(number, hasher.update(&pages).finalize().into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::testing::Scratch;

    #[test]
    fn a_file_has_the_same_with_and_without_holes_and_another_for_every_bit() {
        const LEN: u64 = 3 * CHUNK + 512;
        let scratch = Scratch::new();
        let create = |name: &str| {
            File::options().read(true).write(true).create_new(true).open(scratch.path(name)).unwrap()
        };
        let (sparse, full) = (create("sparse"), create("full"));
        sparse.set_len(LEN).unwrap();
        full.write_all_at(&vec![0; LEN as usize], 0).unwrap();
        let mut before = of_file(&sparse).unwrap();
        assert_eq!(of_file(&full).unwrap(), before);
        for at in [CHUNK + 1, CHUNK + 5 * PAGE, 3 * CHUNK, LEN - 1, 0] {
            sparse.write_all_at(&[1], at).unwrap();
            let now = of_file(&sparse).unwrap();
            assert_ne!(now, before, "{at}");
            full.write_all_at(&[1], at).unwrap();
            assert_eq!(of_file(&full).unwrap(), now, "{at}");
            before = now;
        }
        // What is somewhere else is something else.
        full.write_all_at(&[0], CHUNK + 5 * PAGE).unwrap();
        full.write_all_at(&[1], CHUNK + 6 * PAGE).unwrap();
        assert_ne!(of_file(&full).unwrap(), before);
    }

    #[test]
    fn a_large_hole_costs_nothing() {
        let scratch = Scratch::new();
        let file =
            File::options().read(true).write(true).create_new(true).open(scratch.path("hole")).unwrap();
        file.set_len(1 << 40).unwrap();
        file.write_all_at(&[1], 1 << 39).unwrap();
        let mut chunks = Vec::new();
        of_chunks(&file, 1 << 40, |number, _| chunks.push(number)).unwrap();
        assert_eq!(chunks, [1 << 19]);
    }
}
