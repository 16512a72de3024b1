//! New images: empty ones, and overlays of others.

use std::fs;
use std::path::Path;

use super::check_apart;
use super::new_file::NewFile;
use crate::storage::disk::{Disk, DiskOptions, Locking};
use crate::storage::qcow2::{self, Backing};
use crate::storage::{Error, Format, RawFile, Storage};

/// The largest disk: as far as a file goes.
const MOST: u64 = i64::MAX as u64;

/// Makes an image of a disk that reads as zeroes.
pub fn create(path: &Path, format: Format, size: u64, replace: bool) -> Result<(), Error> {
    let new = NewFile::create(path, replace)?;
    prepare(&new, path, format, size, None)?;
    new.finish(replace, false)
}

/// Makes a qcow2 image that shows `backing` until it is written to. Without `size` it is as large as that; without
/// `backing_format` that file's content says what it is, under the same rules as when a disk is opened.
///
/// The image is not made to survive the host's loss of power: there is nothing in it, and the first flush of whoever
/// uses it does that.
pub fn create_overlay(
    path: &Path,
    backing: &Path,
    backing_format: Option<Format>,
    size: Option<u64>,
    replace: bool,
) -> Result<(), Error> {
    let options = DiskOptions {
        read_only: true,
        format: backing_format,
        locking: Locking::Chain,
        ..DiskOptions::default()
    };
    let base = Disk::open(backing, &options)?;
    check_apart(&base, path)?;
    let backing = Backing { name: name_from(path, backing)?, format: Some(base.format().to_string()) };
    let new = NewFile::create(path, replace)?;
    prepare(&new, path, Format::Qcow2, size.unwrap_or(base.size()), Some(&backing))?;
    new.finish(replace, false)
}

/// Writes what an empty image consists of.
pub(super) fn prepare(
    new: &NewFile,
    path: &Path,
    format: Format,
    size: u64,
    backing: Option<&Backing>,
) -> Result<(), Error> {
    if size > MOST {
        return Err(Error::refused(path, format!("no disk has {size} bytes"), "choose a smaller size"));
    }
    let file = new.file()?;
    let create = Error::io("create", path);
    match format {
        Format::Raw => file.set_len(size).map_err(create),
        Format::Qcow2 => {
            // An L1 table of 32 MiB, with clusters of 64 KiB.
            if size > 1 << 51 {
                return Err(Error::refused(
                    path,
                    format!("a qcow2 image cannot hold a disk of {size} bytes"),
                    "2 PiB is the most; choose a smaller size, or --format raw",
                ));
            }
            RawFile::new(file, false).and_then(|file| qcow2::create(file, size, backing)).map_err(create)
        }
    }
}

/// How the overlay at `path` calls its backing file: relative if that is in its directory or below, so that both can
/// be moved together, otherwise by its full name.
pub(super) fn name_from(path: &Path, backing: &Path) -> Result<String, Error> {
    let full = fs::canonicalize(backing).map_err(Error::io("find", backing))?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let dir = fs::canonicalize(dir).map_err(Error::io("find", dir))?;
    let name = full.strip_prefix(&dir).unwrap_or(&full);
    let name = match name.to_str() {
        // What is before a colon would be taken for a protocol.
        Some(name) if name.contains(':') => full.to_str(),
        other => other,
    };
    let name = name.filter(|name| name.len() <= 1023);
    name.map(str::to_owned).ok_or_else(|| {
        Error::refused(backing, "its name is too long for an overlay, or no UTF-8", "give it another name")
    })
}
