//! qcow2 images: reading and writing through `imago`, with what it lacks added around it.
//!
//! `imago` keeps L2 tables and reference counts in memory and writes them in an order that leaves at worst unused
//! clusters behind when the process dies; that this is true of L1 tables as well is seen to by [`Held`]. It trusts an
//! image's header, which [`Header`] therefore judges first.

mod check;
mod file;
mod header;
mod held;
mod refcounts;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::{PoisonError, RwLock};

use imago::format::PreallocateMode;
use imago::format::access::FormatAccess;
use imago::format::drivers::ShallowMapping;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::{DenyImplicitOpenGate, FormatCreateBuilder, FormatDriverBuilder};
use vm_memory::VolatileSlice;

use super::raw::RawFile;
use super::{Direction, Extent, Flush, Place, Storage, Verified, check_range, check_writable, vectors};

pub(super) use check::check;
pub use check::{CheckReport, Repair};
pub(super) use file::ImageFile;
pub(super) use header::{Backing, Header, read_up_to};
pub(super) use held::Held;

/// An image with all that lies behind it.
pub(super) type Access = FormatAccess<ImageFile>;

/// How many slices make one request of `imago`, which copies their list.
const AT_ONCE: usize = 512;

/// Opens a raw file as something that can lie behind a qcow2 image.
pub(super) fn raw_layer(file: RawFile) -> io::Result<Access> {
    let raw = imago::raw::Raw::builder(ImageFile::new(file)).open(DenyImplicitOpenGate::default())?;
    Ok(FormatAccess::new(raw))
}

/// Opens a disk that is verified as something that can lie behind a qcow2 image.
pub(super) fn verified_layer(disk: Verified) -> io::Result<Access> {
    let raw = imago::raw::Raw::builder(ImageFile::verified(disk)).open(DenyImplicitOpenGate::default())?;
    Ok(FormatAccess::new(raw))
}

/// Opens a qcow2 image whose header was judged, on what lies behind it.
pub(super) fn qcow2_layer(
    file: RawFile,
    writable: bool,
    backing: Option<Access>,
    held: &Held,
) -> io::Result<Access> {
    let image = imago::qcow2::Qcow2::builder(ImageFile::holding(file, held.clone()))
        .write(writable)
        .backing(backing)
        .data_file(None)
        .open(DenyImplicitOpenGate::default())?;
    Ok(FormatAccess::new(image))
}

/// Makes an empty image in an empty file.
pub(super) fn create(file: RawFile, size: u64, backing: Option<&Backing>) -> io::Result<()> {
    let mut builder = imago::qcow2::Qcow2::<ImageFile>::create_builder(ImageFile::new(file)).size(size);
    if let Some(Backing { name, format }) = backing {
        builder = builder.backing(name.clone(), format.clone().unwrap_or_else(|| "raw".to_owned()));
    }
    builder.create()
}

/// The slices that have bytes, in `kept` if they are not all. `imago` panics at lists that have slices and no bytes,
/// and a guest may send such.
fn without_empty<'a, 'm>(
    slices: &'a [VolatileSlice<'m>],
    kept: &'a mut Vec<VolatileSlice<'m>>,
) -> &'a [VolatileSlice<'m>] {
    if slices.iter().all(|slice| !slice.is_empty()) {
        return slices;
    }
    kept.extend(slices.iter().filter(|slice| !slice.is_empty()).cloned());
    kept
}

/// A qcow2 image as a disk.
#[derive(Debug)]
pub(super) struct Qcow2Disk {
    held: Held,
    /// Discards want nobody to rely on where a cluster is, so they have it for themselves.
    image: RwLock<Access>,
    /// The image's file once more: `imago` flushes its tables, this one the host's cache.
    file: std::fs::File,
    size: u64,
    read_only: bool,
}

impl Qcow2Disk {
    pub fn new(image: Access, file: std::fs::File, held: Held, read_only: bool) -> Self {
        let size = image.size();
        Self { held, image: RwLock::new(image), file, size, read_only }
    }

    /// The image's own file.
    pub fn file(&self) -> &std::fs::File {
        &self.file
    }

    /// Has all tables written that are in memory only.
    fn flush_tables(&self) -> io::Result<()> {
        self.held.flush(&self.file, || self.shared().flush())
    }

    fn shared(&self) -> std::sync::RwLockReadGuard<'_, Access> {
        self.image.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn exclusive(&self) -> std::sync::RwLockWriteGuard<'_, Access> {
        self.image.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, offset: u64, slices: &[VolatileSlice<'_>]) -> io::Result<()> {
        check_range(offset, vectors::total(slices).unwrap_or(u64::MAX), self.size)
    }

    /// What the image itself has at `offset`, and for how many of the next `len` bytes.
    pub fn extent(&self, offset: u64, len: u64) -> io::Result<(Extent, u64)> {
        let image = self.shared();
        let (mapping, len) = image.get_shallow_mapping(offset, len)?;
        let extent = match mapping {
            ShallowMapping::Zero { explicit: true, .. } => Extent::Zero,
            ShallowMapping::Zero { .. } | ShallowMapping::Indirect { .. } => Extent::Absent,
            ShallowMapping::Eof { .. } => return Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Extent::Data,
        };
        Ok((extent, len.max(1)))
    }

    /// Whether the range is known to read as zeroes, and for how many bytes what was said is true.
    pub fn reads_as_zero(&self, offset: u64, len: u64) -> io::Result<(bool, u64)> {
        let image = self.shared();
        let (mapping, len) = image.get_mapping(offset, len)?;
        Ok((matches!(mapping, imago::Mapping::Zero { .. }), len.max(1)))
    }

    /// Changes the size of the disk. With `hide`, what is new is marked as zeroes, so that nothing of a larger image
    /// behind this one shows; without that it takes no entries at all.
    pub fn resize(self, size: u64, hide: bool) -> io::Result<()> {
        let mode = if hide { PreallocateMode::Zero } else { PreallocateMode::None };
        self.flush_tables()?;
        self.held.let_go();
        self.exclusive().resize(size, mode)?;
        self.flush_tables()?;
        self.file.sync_data()
    }

    fn zero_slowly(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut zeroes = vec![0; 64 << 10];
        let step = zeroes.len() as u64;
        for at in (offset..offset + len).step_by(zeroes.len()) {
            let count = step.min(offset + len - at) as usize;
            self.write(at, &[VolatileSlice::from(&mut zeroes[..count])])?;
        }
        Ok(())
    }
}

impl Drop for Qcow2Disk {
    fn drop(&mut self) {
        if !self.read_only
            && let Err(error) = self.flush_tables()
        {
            log::error!("what was not flushed of a qcow2 image is lost: {error}");
        }
    }
}

impl Storage for Qcow2Disk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, mut offset: u64, to: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.check(offset, to)?;
        let image = self.shared();
        let mut kept = Vec::new();
        for slices in without_empty(to, &mut kept).chunks(AT_ONCE) {
            // The guard keeps the memory mapped during the call.
            let (vector, _guard) = IoVectorMut::from_volatile_slice(slices);
            let len = vector.len();
            image.readv(vector, offset)?;
            offset += len;
        }
        Ok(())
    }

    fn write(&self, mut offset: u64, from: &[VolatileSlice<'_>]) -> io::Result<()> {
        check_writable(self.read_only)?;
        self.check(offset, from)?;
        let image = self.shared();
        let mut kept = Vec::new();
        for slices in without_empty(from, &mut kept).chunks(AT_ONCE) {
            let (vector, _guard) = IoVector::from_volatile_slice(slices);
            let len = vector.len();
            image.writev(vector, offset)?;
            offset += len;
        }
        Ok(())
    }

    fn begin_flush(&self) -> io::Result<Flush<'_>> {
        if self.read_only {
            return Ok(Flush::Done);
        }
        self.flush_tables()?;
        Ok(Flush::File(self.file.as_fd()))
    }

    /// Reads only: a write may have to make a cluster first, and must not happen to one that is being given up.
    fn place(&self, direction: Direction, offset: u64, slices: &[VolatileSlice<'_>]) -> Option<Place<'_>> {
        let len = vectors::total(slices).filter(|&len| len > 0)?;
        if direction == Direction::Write || check_range(offset, len, self.size).is_err() {
            return None;
        }
        let image = self.shared();
        match image.get_mapping(offset, len) {
            Ok((imago::Mapping::Raw { storage, offset, .. }, known)) if known == len => {
                let Place { file, offset, direct } = storage.place(offset, slices)?;
                // SAFETY: the files of an image stay open as long as the image.
                let file = unsafe { BorrowedFd::borrow_raw(file.as_raw_fd()) };
                Some(Place { file, offset, direct })
            }
            _ => None,
        }
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        check_writable(self.read_only)?;
        check_range(offset, len, self.size)?;
        match self.exclusive().discard_to_any(offset, len) {
            // Version 2 cannot say "zeroes here"; a discard is a hint.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
            other => other,
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        check_writable(self.read_only)?;
        check_range(offset, len, self.size)?;
        let result = if unmap {
            self.exclusive().discard_to_zero(offset, len)
        } else {
            self.shared().write_zeroes(offset, len)
        };
        match result {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => self.zero_slowly(offset, len),
            other => other,
        }
    }

    fn read_only(&self) -> bool {
        self.read_only
    }
}
