//! A disk whose every read is compared with the hashes that are kept beside its image.
//!
//! A block is read and hashed as a whole each time that something of it is wanted, however little. The block device
//! uses it for disks that are only read, qcow2 images for what lies behind them.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use vm_memory::{Bytes, VolatileSlice};

use super::tools::{BLOCK_SIZE, BlockHashes, hash};
use super::{Direction, Disk, Error, Flush, Place, Storage, check_range, vectors};

/// How many blocks that differ are told of: a guest may read them for ever.
const MOST_TOLD: u32 = 16;

/// A disk with the hashes of its blocks.
#[derive(Debug)]
pub struct Verified {
    disk: Disk,
    hashes: BlockHashes,
    /// How often a block was not what was hashed.
    differed: AtomicU32,
}

impl Verified {
    /// Takes a disk that is open for reading only. Its hashes have to be there, and to be those of its present state.
    pub fn new(disk: Disk) -> Result<Self, Error> {
        let path = disk.path();
        if !disk.read_only() {
            return Err(Error::refused(path, "what can be written cannot be verified", "open it read-only"));
        }
        match BlockHashes::load(path)? {
            Some(hashes) if hashes.are_current(&disk) => {
                Ok(Self { hashes, disk, differed: AtomicU32::new(0) })
            }
            Some(_) => Err(Error::refused(
                path,
                "it, or an image behind it, has changed since it was hashed, or is a copy",
                "`lodger disk hash --verify` makes its hashes count again if its content is still the same, `lodger disk \
                 hash` makes new ones",
            )),
            None => Err(Error::refused(
                path,
                "there are no hashes to verify it by",
                "make them with `lodger disk hash`",
            )),
        }
    }

    /// The disk that is verified.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Reads the range, which is within the disk, and gives it to `take` piece by piece. Nothing of a block is given
    /// away before all of it is known to be right.
    pub(super) fn each_piece(
        &self,
        offset: u64,
        len: u64,
        mut take: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let end = offset + len;
        let mut buffer = Vec::new();
        let mut at = offset;
        while at < end {
            let index = at / BLOCK_SIZE;
            let start = index * BLOCK_SIZE;
            buffer.resize(BLOCK_SIZE.min(self.size() - start) as usize, 0);
            self.disk.read(start, &[VolatileSlice::from(&mut buffer[..])])?;
            if self.hashes.block(index as usize) != Some(&hash(&buffer)) {
                return Err(self.differs(start));
            }
            let next = end.min(start + buffer.len() as u64);
            take(&buffer[(at - start) as usize..(next - start) as usize])?;
            at = next;
        }
        Ok(())
    }

    fn differs(&self, start: u64) -> io::Error {
        let what =
            format!("the block at {start:#x} of {} is not what was hashed", self.disk.path().display());
        match self.differed.fetch_add(1, Ordering::Relaxed) + 1 {
            ..MOST_TOLD => log::warn!("{what}: the guest gets an error"),
            MOST_TOLD => log::warn!("{what}: the guest gets an error; no more is told of such blocks"),
            _ => {}
        }
        io::Error::new(io::ErrorKind::InvalidData, what)
    }
}

impl Storage for Verified {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn read(&self, offset: u64, to: &[VolatileSlice<'_>]) -> io::Result<()> {
        let len = vectors::total(to).unwrap_or(u64::MAX);
        check_range(offset, len, self.size())?;
        let mut slices = to.iter().filter(|slice| !slice.is_empty());
        let (mut slice, mut done) = (slices.next(), 0);
        self.each_piece(offset, len, |mut piece| {
            while let Some(to) = slice.filter(|_| !piece.is_empty()) {
                let (now, later) = piece.split_at(piece.len().min(to.len() - done));
                to.write_slice(now, done).map_err(io::Error::other)?;
                (piece, done) = (later, done + now.len());
                if done == to.len() {
                    (slice, done) = (slices.next(), 0);
                }
            }
            Ok(())
        })
    }

    fn write(&self, offset: u64, from: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.disk.write(offset, from)
    }

    fn begin_flush(&self) -> io::Result<Flush<'_>> {
        self.disk.begin_flush()
    }

    /// Only what goes through here is looked at.
    fn place(&self, _: Direction, _: u64, _: &[VolatileSlice<'_>]) -> Option<Place<'_>> {
        None
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.disk.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.disk.write_zeroes(offset, len, unmap)
    }

    fn read_only(&self) -> bool {
        true
    }
}

#[cfg(test)]
#[path = "verified_test.rs"]
mod tests;
