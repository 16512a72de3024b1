//! Other sizes.

use std::path::Path;

use crate::storage::disk::{open_file, recognised};
use crate::storage::{Disk, DiskOptions, Error, Format, Storage, lock};

/// What a resize did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Resize {
    /// How large the disk was.
    pub old_size: u64,
    /// How large it is.
    pub new_size: u64,
}

/// Gives the disk another size. What is new reads as zeroes; a smaller size loses what is beyond it, and has to be
/// allowed by `shrink`.
pub fn resize(path: &Path, format: Option<Format>, new_size: u64, shrink: bool) -> Result<Resize, Error> {
    let format = match format {
        Some(format) => format,
        None => recognised(&open_file(path, true)?, path)?,
    };
    if new_size > i64::MAX as u64 || (format == Format::Qcow2 && new_size > 1 << 51) {
        return Err(Error::refused(path, format!("{new_size} bytes are too many"), "choose a smaller size"));
    }
    if format == Format::Raw {
        return resize_raw(path, new_size, shrink);
    }
    let disk = Disk::open(path, &DiskOptions { format: Some(format), ..DiskOptions::default() })?;
    let old_size = disk.size();
    check_shrink(path, old_size, new_size, shrink)?;
    if disk.layers()[0].header.as_ref().is_some_and(|header| header.snapshots > 0) {
        return Err(Error::refused(
            path,
            "it has snapshots inside, which have sizes of their own",
            "take them out with `qemu-img snapshot -d`",
        ));
    }
    // Where the image behind is larger, the new part must not show it.
    let hide = disk.layers().get(1).is_some_and(|below| below.size > old_size);
    if let Some(image) = disk.into_qcow2() {
        image.resize(new_size, hide).map_err(Error::io("resize", path))?;
    }
    Ok(Resize { old_size, new_size })
}

fn resize_raw(path: &Path, new_size: u64, shrink: bool) -> Result<Resize, Error> {
    let file = open_file(path, false)?;
    lock::lock(&file, path, true)?;
    let metadata = file.metadata().map_err(Error::io("read", path))?;
    if !metadata.is_file() {
        return Err(Error::refused(path, "it is a device", "devices have the size they have"));
    }
    check_shrink(path, metadata.len(), new_size, shrink)?;
    file.set_len(new_size).and_then(|()| file.sync_all()).map_err(Error::io("resize", path))?;
    Ok(Resize { old_size: metadata.len(), new_size })
}

fn check_shrink(path: &Path, old: u64, new: u64, shrink: bool) -> Result<(), Error> {
    if new < old && !shrink {
        return Err(Error::refused(
            path,
            format!("its disk has {old} bytes, and what is beyond {new} would be lost"),
            "make the guest's file system smaller first, then say --shrink",
        ));
    }
    Ok(())
}
