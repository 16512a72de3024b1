//! What a snapshot wants of images that a machine has open, and that nobody writes to at the moment: copies, further
//! names, and overlays on top of them.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::new_file::{self, NewFile};
use super::{convert, create};
use crate::storage::qcow2::Backing;
use crate::storage::{Disk, DiskOptions, Error, Extent, Format, Locking, RawFile, Storage};

/// Copies what a guest sees on `disk` to a new raw image, which is for its owner only. What is zero takes no space, and
/// a disk that is one raw file shares its bytes with the copy, where the file system can do that. Nothing is waited for
/// until it is on the host's disk. Returns how many bytes it wrote.
pub fn copy_raw(disk: &Disk, path: &Path) -> Result<u64, Error> {
    let failed = || Error::io("create", path);
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
    let file = file.map_err(failed())?;
    if let ([layer], Format::Raw) = (disk.layers(), disk.format())
        && layer.size == layer.identity().len
        && share(disk.file(), &file)
    {
        return Ok(0);
    }
    file.set_len(disk.size()).map_err(failed())?;
    let target = RawFile::new(file, false).map_err(failed())?;
    convert::copy(disk, &target, path, 4096, &mut |_, _| {})
}

/// Whether the file system has `to` share the bytes of `from`, until one of them is written to.
fn share(from: &File, to: &File) -> bool {
    // SAFETY: a call about two open files, which changes no memory.
    unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONE, from.as_raw_fd()) == 0 }
}

/// Gives a file one more name, which need not have had any; where that cannot be, because `to` is on another file
/// system, say, it is copied. Returns how many bytes that wrote.
pub fn link_or_copy(file: &File, to: &Path) -> Result<u64, Error> {
    match new_file::link(file, to) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            log::debug!("{} becomes a copy: {error}", to.display());
            let file = file.try_clone().map_err(Error::io("copy", to))?;
            copy_raw(&Disk::of_file(file, to)?, to)
        }
        result => result.map(|()| 0).map_err(Error::io("create", to)),
    }
}

/// Makes an overlay of a disk that is open, whose image is at `base`, and opens it in the place of that disk. What lies
/// behind it is not locked before [`Disk::lock_behind`]: the disk may have been opened for writing. With `durably` the
/// overlay and its name survive the host's loss of power.
///
/// All that the disk had in memory has to have been flushed. If this fails, there is no overlay.
pub fn overlay_in_use(
    disk: &Disk,
    base: &Path,
    path: &Path,
    direct: bool,
    durably: bool,
) -> Result<Disk, Error> {
    let backing = Backing { name: create::name_from(path, base)?, format: Some(disk.format().to_string()) };
    let new = NewFile::create(path, false)?;
    create::prepare(&new, path, Format::Qcow2, disk.size(), Some(&backing))?;
    new.finish(false, durably)?;
    let options = DiskOptions {
        format: Some(Format::Qcow2),
        direct,
        locking: Locking::ImageFirst,
        ..DiskOptions::default()
    };
    let opened =
        Disk::open(path, &options).and_then(|overlay| check_behind(&overlay, disk).map(|()| overlay));
    if opened.is_err() {
        let _: io::Result<()> = fs::remove_file(path);
    }
    opened
}

/// Whether an overlay is as it was made: nothing was written to it, or taken back.
pub fn holds_nothing(overlay: &Disk) -> Result<bool, Error> {
    if overlay.layers()[0].header.as_ref().is_none_or(|header| header.snapshots > 0) {
        return Ok(false);
    }
    let (size, mut offset) = (overlay.size(), 0);
    while offset < size {
        let found = overlay.extent(offset, size - offset);
        let (extent, len) = found.map_err(Error::io("read", overlay.path()))?;
        if extent != Extent::Absent || len == 0 {
            return Ok(false);
        }
        offset += len;
    }
    Ok(true)
}

/// Fails unless what lies behind the overlay are the files that the disk has open: their names may be others' by now.
fn check_behind(overlay: &Disk, disk: &Disk) -> Result<(), Error> {
    let mut behind = overlay.layers().iter().skip(1);
    for layer in disk.layers() {
        if !behind.next().is_some_and(|found| found.identity().is_same_file(layer.identity())) {
            return Err(Error::refused(
                &layer.path,
                "it is not the file any more that the machine has open",
                "give that its name back",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "keep_test.rs"]
mod tests;
