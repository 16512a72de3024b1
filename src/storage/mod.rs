//! What disks are made of: files that hold the bytes a guest believes to be on a disk.
//!
//! A device sees a [`Storage`] and nothing of files or formats; [`Disk`] is the one that is made of an image. What
//! `lodger disk` does to images is here, too. Relies on no other room; the block device and `lodger disk`
//! rely on it.

mod assumed;
mod cached;
mod disk;
mod error;
mod format;
mod lock;
mod place;
mod qcow2;
mod raw;
mod ring;
#[cfg(test)]
pub(crate) mod testing;
pub mod tools;
mod vectors;
mod verified;

use std::io;

use vm_memory::VolatileSlice;

pub use cached::Cached;
pub use disk::{DEEPEST, Disk, DiskOptions, Identity, Layer, Locking};
pub use error::Error;
pub use format::{Format, UnknownFormat};
pub use place::{Direction, Flush, Place};
pub use qcow2::{CheckReport, Repair};
pub use raw::RawFile;
pub use ring::{Full, Ring};
pub use verified::Verified;

/// What an image holds of a range of its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Bytes.
    Data,
    /// Nothing, and that means zeroes.
    Zero,
    /// Nothing: what lies behind the image shows, or zeroes if nothing does.
    Absent,
}

/// The bytes of a disk. Calls block, and several threads may call at once; what overlapping requests that are
/// under way together do to each other is as undefined as on a real disk.
///
/// Every request does all of what it is asked or fails; after a failure any part of it may have been done. One
/// that reaches past the end fails and does nothing.
pub trait Storage: Send + Sync {
    /// How many bytes there are. A block device tells its guest of the whole sectors among them.
    fn size(&self) -> u64;

    /// Reads from `offset` on into all of `to`.
    fn read(&self, offset: u64, to: &[VolatileSlice<'_>]) -> io::Result<()>;

    /// Writes all of `from` from `offset` on.
    fn write(&self, offset: u64, from: &[VolatileSlice<'_>]) -> io::Result<()>;

    /// Returns when everything written before survives the host's loss of power.
    fn flush(&self) -> io::Result<()> {
        self.begin_flush()?.finish()
    }

    /// The same but for what the host's kernel does; that may be left to it, and waited for elsewhere.
    fn begin_flush(&self) -> io::Result<Flush<'_>>;

    /// Where the bytes of a request are, if they are in one piece in one file, and moving them there is all there is
    /// to do. Without an answer, only [`read`](Self::read) and [`write`](Self::write) know what to do.
    fn place(&self, direction: Direction, offset: u64, slices: &[VolatileSlice<'_>]) -> Option<Place<'_>>;

    /// The range is no longer needed. What is read from it afterwards is zeroes or what was there before.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;

    /// The range reads as zeroes afterwards; with `unmap` it may also give its space back.
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()>;

    /// Whether every write would fail.
    fn read_only(&self) -> bool;
}

/// Fails unless the range lies within `size`.
fn check_range(offset: u64, len: u64, size: u64) -> io::Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{len} bytes at {offset} reach past the end of a disk of {size} bytes"),
        )),
    }
}

/// Fails if the disk may not be written.
fn check_writable(read_only: bool) -> io::Result<()> {
    match read_only {
        false => Ok(()),
        true => Err(io::Error::new(io::ErrorKind::PermissionDenied, "the disk is read-only")),
    }
}
