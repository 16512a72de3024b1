//! A file as `imago` wants it.
//!
//! Not `imago`'s own: that one takes a lock that stops all other requests while it waits for the disk, and finds
//! out how direct I/O must be aligned by writing. This one uses direct I/O for requests that are aligned and the
//! page cache for the others, as [`RawFile`] does. What lies behind an image can also be a whole disk whose blocks are
//! verified: whatever is read of it comes through here, also what `imago` copies into the image above.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::PreallocateMode;
use imago::storage::drivers::CommonStorageHelper;

use vm_memory::VolatileSlice;

use super::held::Held;
use crate::storage::raw::{self, RawFile};
use crate::storage::{Place, Storage, Verified, vectors};

/// How many vectors one system call takes.
const MOST_VECTORS: usize = 1024;

/// The file of a qcow2 image, or of a raw one behind it.
#[derive(Debug)]
pub(in crate::storage) struct ImageFile {
    content: Content,
    /// What goes into the file later than `imago` thinks.
    held: Held,
    helper: CommonStorageHelper,
}

#[derive(Debug)]
enum Content {
    File(RawFile),
    /// Of the image above, this is read and nothing else.
    Verified(Box<Verified>),
}

impl ImageFile {
    pub fn new(file: RawFile) -> Self {
        Self::holding(file, Held::nothing())
    }

    /// A file of which some writes are held back.
    pub fn holding(file: RawFile, held: Held) -> Self {
        Self { content: Content::File(file), held, helper: CommonStorageHelper::default() }
    }

    pub fn verified(disk: Verified) -> Self {
        let content = Content::Verified(Box::new(disk));
        Self { content, held: Held::nothing(), helper: CommonStorageHelper::default() }
    }

    fn raw(&self) -> io::Result<&RawFile> {
        match &self.content {
            Content::File(file) => Ok(file),
            Content::Verified(_) => Err(io::ErrorKind::ReadOnlyFilesystem.into()),
        }
    }

    /// The descriptor for a request of these vectors.
    fn descriptor(file: &RawFile, offset: u64, vectors: &[libc::iovec]) -> i32 {
        let is_aligned = |memory, length| {
            vectors.iter().all(|vector| {
                (vector.iov_base as usize).is_multiple_of(memory) && vector.iov_len.is_multiple_of(length)
            })
        };
        file.place_of(offset, is_aligned).file.as_raw_fd()
    }

    /// The place of a request for bytes that are known to be in this file, perhaps behind its end; none if they have to
    /// be verified.
    pub fn place(&self, offset: u64, slices: &[VolatileSlice<'_>]) -> Option<Place<'_>> {
        let file = self.raw().ok()?;
        Some(file.place_of(offset, |memory, length| vectors::aligned(slices, memory, length)))
    }

    fn file(&self) -> io::Result<&File> {
        self.raw().map(RawFile::file)
    }

    fn zero(&self, offset: u64, len: u64, mode: i32) -> io::Result<()> {
        match self.raw()?.allocate(mode, offset, len)? {
            true => Ok(()),
            false => self.raw()?.write_zero_bytes(offset, len),
        }
    }
}

impl fmt::Display for ImageFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("file")
    }
}

/// Repeats a call that a signal interrupted.
fn repeat(mut call: impl FnMut() -> isize) -> io::Result<u64> {
    loop {
        let moved = call();
        if moved >= 0 {
            return Ok(moved as u64);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

fn position(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Past the end there are zeroes, as in a file.
fn read_verified(disk: &Verified, to: IoVectorMut<'_>, offset: u64) -> io::Result<()> {
    let there = disk.size().saturating_sub(offset).min(to.len());
    let (to, mut rest) = to.split_at(there);
    rest.fill(0);
    let mut to = Some(to);
    disk.each_piece(offset, there, |piece| {
        if let Some(all) = to.take() {
            let (mut now, later) = all.split_at(piece.len() as u64);
            now.copy_from_slice(piece);
            to = Some(later);
        }
        Ok(())
    })
}

impl imago::Storage for ImageFile {
    fn size(&self) -> io::Result<u64> {
        match &self.content {
            Content::File(file) => raw::size_of(file.file()),
            Content::Verified(disk) => Ok(disk.size()),
        }
    }

    unsafe fn pure_readv(&self, mut to: IoVectorMut<'_>, mut offset: u64) -> io::Result<()> {
        let file = match &self.content {
            Content::File(file) => file,
            Content::Verified(disk) => return read_verified(disk, to, offset),
        };
        while !to.is_empty() {
            // SAFETY: the description is used only while `to` is borrowed.
            let vectors = unsafe { to.as_iovec() };
            let vectors = &vectors[..vectors.len().min(MOST_VECTORS)];
            let (fd, position) = (Self::descriptor(file, offset, vectors), position(offset)?);
            // SAFETY: the vectors describe memory that `to` borrows for writing.
            let moved =
                repeat(|| unsafe { libc::preadv(fd, vectors.as_ptr(), vectors.len() as i32, position) })?;
            if moved == 0 {
                // The last cluster of an image need not be there to its end.
                to.fill(0);
                return Ok(());
            }
            to = to.split_tail_at(moved);
            offset = offset.saturating_add(moved);
        }
        Ok(())
    }

    unsafe fn pure_writev(&self, mut from: IoVector<'_>, mut offset: u64) -> io::Result<()> {
        let file = self.raw()?;
        if self.held.take(&from, offset) {
            return Ok(());
        }
        while !from.is_empty() {
            // SAFETY: the description is used only while `from` is borrowed.
            let vectors = unsafe { from.as_iovec() };
            let vectors = &vectors[..vectors.len().min(MOST_VECTORS)];
            let (fd, position) = (Self::descriptor(file, offset, vectors), position(offset)?);
            // SAFETY: the kernel only reads the memory, which `from` borrows.
            let moved =
                repeat(|| unsafe { libc::pwritev(fd, vectors.as_ptr(), vectors.len() as i32, position) })?;
            if moved == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            from = from.split_tail_at(moved);
            offset = offset.saturating_add(moved);
        }
        Ok(())
    }

    unsafe fn pure_write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        let end = offset.checked_add(len).ok_or(io::ErrorKind::InvalidInput)?;
        // A hole changes no length: give the file its own first.
        if end > self.size()? {
            // SAFETY: changes a file of ours and no memory.
            let result = unsafe { libc::fallocate(self.file()?.as_raw_fd(), 0, position(end - 1)?, 1) };
            if result != 0 {
                return self.raw()?.write_zero_bytes(offset, len);
            }
        }
        self.zero(offset, len, libc::FALLOC_FL_PUNCH_HOLE)
    }

    unsafe fn pure_write_allocated_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        self.raw()?.write_zero_bytes(offset, len)
    }

    unsafe fn pure_discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.raw()?.allocate(libc::FALLOC_FL_PUNCH_HOLE, offset, len).map(drop)
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.file()?.sync_data()
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.helper
    }

    fn resize(&self, size: u64, mode: PreallocateMode) -> io::Result<()> {
        match mode {
            PreallocateMode::None | PreallocateMode::Zero => self.file()?.set_len(size),
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}
