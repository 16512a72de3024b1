//! A raw disk that nobody called one: it was taken for raw because its content is no known format.
//!
//! What its guest writes into the first sector decides what the image is taken for the next time, and a header of
//! qcow2 can name any file of the host. So this sector never becomes one that would be recognised; whoever needs
//! such a disk says that it is raw.

use std::io;
use std::sync::Mutex;

use vm_memory::{Bytes, VolatileSlice};

use super::format::{Content, PROBED, recognise};
use super::{Direction, Flush, Place, RawFile, Storage, vectors};
use crate::threads::lock;

/// A raw image that stays recognisable as one.
#[derive(Debug)]
pub(super) struct AssumedRaw {
    raw: RawFile,
    /// Who changes the first sector: two halves of a header shall not slip in beside each other.
    first_sector: Mutex<()>,
}

impl AssumedRaw {
    pub fn new(raw: RawFile) -> Self {
        Self { raw, first_sector: Mutex::new(()) }
    }

    pub fn inner(&self) -> &RawFile {
        &self.raw
    }

    /// Writes a request that touches the first sector. The guest may change the memory meanwhile, so what is looked
    /// at is copied, and the copy is what is written.
    fn write_start(&self, offset: u64, from: &[VolatileSlice<'_>], len: u64) -> io::Result<()> {
        let _only_one = lock(&self.first_sector);
        let covered = len.min(PROBED as u64 - offset) as usize;
        let mut sector = vec![0; PROBED.min(self.raw.size() as usize)];
        self.raw.read(0, &[VolatileSlice::from(&mut sector[..])])?;
        let mut rest = Vec::with_capacity(from.len());
        let mut at = offset as usize;
        let end = at + covered;
        for slice in from {
            let count = slice.len().min(end - at);
            let read = |error| io::Error::other(format!("guest memory cannot be read: {error}"));
            slice.read_slice(&mut sector[at..at + count], 0).map_err(read)?;
            at += count;
            if count < slice.len() {
                rest.push(slice.offset(count).map_err(read)?);
            }
        }
        if recognise(&sector) != Content::Other {
            log::warn!(
                "a guest would turn its disk into an image of another format: the write fails; say format=raw to allow it"
            );
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "the first sector would make the image one of another format",
            ));
        }
        self.raw.write(offset, &[VolatileSlice::from(&mut sector[offset as usize..end])])?;
        self.raw.write(offset + covered as u64, &rest)
    }
}

impl Storage for AssumedRaw {
    fn size(&self) -> u64 {
        self.raw.size()
    }

    fn read(&self, offset: u64, to: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.raw.read(offset, to)
    }

    fn write(&self, offset: u64, from: &[VolatileSlice<'_>]) -> io::Result<()> {
        let len = vectors::total(from).unwrap_or(u64::MAX);
        // What is not allowed at all is told by the file below.
        let allowed = !self.raw.read_only() && offset.checked_add(len).is_some_and(|end| end <= self.size());
        if offset < PROBED as u64 && len > 0 && allowed {
            return self.write_start(offset, from, len);
        }
        self.raw.write(offset, from)
    }

    fn begin_flush(&self) -> io::Result<Flush<'_>> {
        self.raw.begin_flush()
    }

    fn place(&self, direction: Direction, offset: u64, slices: &[VolatileSlice<'_>]) -> Option<Place<'_>> {
        let looked_at = direction == Direction::Write && offset < PROBED as u64;
        if looked_at { None } else { self.raw.place(direction, offset, slices) }
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.raw.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.raw.write_zeroes(offset, len, unmap)
    }

    fn read_only(&self) -> bool {
        self.raw.read_only()
    }
}
