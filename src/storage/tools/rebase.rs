//! Giving an overlay another image to lie on.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{Progress, create, read_padded, write};
use crate::storage::disk::{Identity, open_file};
use crate::storage::qcow2::{Backing, Header};
use crate::storage::{Disk, DiskOptions, Error, Extent, Format, Locking, Storage, lock};

/// What an overlay shall lie on.
#[derive(Debug, Clone, Copy)]
pub struct NewBacking<'a> {
    /// The image.
    pub path: &'a Path,
    /// Its format; its content decides if that is not said.
    pub format: Option<Format>,
}

/// What a rebase did.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Rebase {
    /// What lies behind the image now, as its header says it.
    pub backing: Option<String>,
    /// How many bytes it had to take over so that a guest sees what it saw before.
    pub copied: u64,
}

/// Puts an overlay onto another image, or onto none. What a guest sees stays the same: what the old and the new image
/// have different is copied into the overlay. With `only_name` nothing is compared and only the header changes, as
/// when the image has been moved.
///
/// Interrupted, it leaves an overlay that reads as before and is on the old image.
pub fn rebase(
    path: &Path,
    backing: Option<NewBacking<'_>>,
    only_name: bool,
    progress: Progress<'_>,
) -> Result<Rebase, Error> {
    let file = open_file(path, false)?;
    lock::lock(&file, path, true)?;
    let identity = Identity::of(&file).map_err(Error::io("open", path))?;
    Header::read(&file, path)?;
    let new = backing.map(|backing| open_backing(path, backing, &identity, only_name)).transpose()?;
    let copied = match only_name {
        true => 0,
        false => take_over(path, new.as_ref().and_then(|(_, disk)| disk.as_ref()), progress)?,
    };
    let backing = new.map(|(backing, _)| backing);
    write_header(&file, path, backing.as_ref())?;
    Ok(Rebase { backing: backing.map(|backing| backing.name), copied })
}

fn open_backing(
    path: &Path,
    backing: NewBacking<'_>,
    overlay: &Identity,
    only_name: bool,
) -> Result<(Backing, Option<Disk>), Error> {
    let options = DiskOptions { read_only: true, format: backing.format, ..DiskOptions::default() };
    // Only the name: the image need not be there yet, if the user knows its format.
    if let (true, Some(format), false) = (only_name, backing.format, backing.path.exists()) {
        let name = backing.path.to_str().map(str::to_owned);
        let name = name.ok_or_else(|| Error::refused(backing.path, "its name is no UTF-8", "rename it"))?;
        return Ok((Backing { name, format: Some(format.to_string()) }, None));
    }
    let same = open_file(backing.path, true)?;
    let same = Identity::of(&same).map_err(Error::io("open", backing.path))?.is_same_file(overlay);
    let disk = if same { None } else { Some(Disk::open(backing.path, &options)?) };
    let within = disk.iter().flat_map(Disk::layers).any(|layer| layer.identity.is_same_file(overlay));
    match disk {
        Some(disk) if !within => {
            let name = create::name_from(path, backing.path)?;
            Ok((Backing { name, format: Some(disk.format().to_string()) }, Some(disk)))
        }
        _ => Err(Error::refused(path, "it would lie on itself", "choose another backing file")),
    }
}

/// Copies into the overlay what it shows from behind and would not show any more.
fn take_over(path: &Path, new: Option<&Disk>, progress: Progress<'_>) -> Result<u64, Error> {
    // The image is locked already, and its old backing files are only read.
    let options =
        DiskOptions { format: Some(Format::Qcow2), locking: Locking::None, ..DiskOptions::default() };
    let overlay = Disk::open(path, &options)?;
    let size = overlay.size();
    let step = overlay.layers()[0].header.as_ref().map_or(64 << 10, Header::cluster_size);
    let (mut old_bytes, mut new_bytes) = (vec![0; step as usize], vec![0; step as usize]);
    let mut copied = 0;
    let mut offset = 0;
    while offset < size {
        progress(offset, size);
        let found = overlay.extent(offset, size - offset);
        let (extent, len) = found.map_err(Error::io("read", path))?;
        if extent != Extent::Absent {
            offset += len;
            continue;
        }
        let count = step - offset % step;
        let count = count.min(len).min(size - offset) as usize;
        let (old_bytes, new_bytes) = (&mut old_bytes[..count], &mut new_bytes[..count]);
        read_padded(&overlay, offset, old_bytes)?;
        match new {
            Some(new) => read_padded(new, offset, new_bytes)?,
            None => new_bytes.fill(0),
        }
        if old_bytes != new_bytes {
            write(&overlay, path, offset, old_bytes)?;
            copied += count as u64;
        }
        offset += count as u64;
    }
    overlay.flush().map_err(Error::io("write", path))?;
    progress(size, size);
    Ok(copied)
}

/// The one write that makes the change.
fn write_header(file: &File, path: &Path, backing: Option<&Backing>) -> Result<(), Error> {
    let header = Header::read(file, path)?;
    let bytes = header.encode_with_backing(backing);
    let bytes =
        bytes.map_err(|what| Error::refused(path, what, "put that file nearer, or name it shorter"))?;
    file.write_all_at(&bytes, 0).and_then(|()| file.sync_all()).map_err(Error::io("write", path))
}
