//! Moving what an overlay holds into the image behind it.

use std::path::{Path, PathBuf};

use super::new_file::NewFile;
use super::{CHUNK, Progress, create, read, resize, write};
use crate::storage::{Disk, DiskOptions, Error, Extent, Format, Locking, Storage};

/// What a commit did.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Commit {
    /// The image that has got the overlay's changes.
    pub backing: PathBuf,
    /// How many bytes were copied.
    pub copied: u64,
    /// How many bytes became zeroes without being copied.
    pub zeroed: u64,
    /// Whether the overlay is empty now.
    pub emptied: bool,
}

/// Writes what the overlay holds into the image behind it, and leaves the overlay empty unless `keep`.
///
/// Interrupted, it leaves an image behind the overlay that has some of the changes; through the overlay, everything
/// reads as before, and another commit goes on. Other overlays of that image would show a mixture: see to it that
/// there are none.
pub fn commit(
    path: &Path,
    format: Option<Format>,
    keep: bool,
    progress: Progress<'_>,
) -> Result<Commit, Error> {
    let options = DiskOptions { format, locking: Locking::Image, ..DiskOptions::default() };
    let overlay = Disk::open(path, &options)?;
    let Some(below) = overlay.layers().get(1).cloned() else {
        return Err(Error::refused(path, "nothing lies behind it", "only an overlay can be committed"));
    };
    // The overlay's own description of it still says how large it was.
    let base_options = DiskOptions { format: Some(below.format), ..DiskOptions::default() };
    if overlay.size() > below.size {
        resize(&below.path, Some(below.format), overlay.size(), false)?;
    }
    let base = Disk::open(&below.path, &base_options)?;
    let mut done = Commit { backing: below.path.clone(), copied: 0, zeroed: 0, emptied: !keep };
    copy(&overlay, &base, &mut done, progress)?;
    base.flush().map_err(Error::io("write", &below.path))?;
    if !keep {
        empty(path, &overlay)?;
    }
    Ok(done)
}

fn copy(overlay: &Disk, base: &Disk, done: &mut Commit, progress: Progress<'_>) -> Result<(), Error> {
    let size = overlay.size();
    let mut buffer = vec![0; CHUNK];
    let mut offset = 0;
    while offset < size {
        progress(offset, size);
        let found = overlay.extent(offset, size - offset);
        let (extent, len) = found.map_err(Error::io("read", overlay.path()))?;
        let len = match extent {
            Extent::Absent => len,
            Extent::Zero => {
                let zeroed = base.write_zeroes(offset, len, true);
                zeroed.map_err(Error::io("write", base.path()))?;
                done.zeroed += len;
                len
            }
            Extent::Data => {
                let count = len.min(CHUNK as u64);
                let bytes = &mut buffer[..count as usize];
                read(overlay, offset, bytes)?;
                write(base, base.path(), offset, bytes)?;
                done.copied += count;
                count
            }
        };
        offset += len;
    }
    progress(size, size);
    Ok(())
}

/// Puts an empty overlay in the place of this one, which is open and locked.
fn empty(path: &Path, overlay: &Disk) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt;
    let backing = overlay.layers()[0].header.as_ref().and_then(|header| header.backing.clone());
    let new = NewFile::replacing(path)?;
    let mode = std::fs::metadata(path).map_err(Error::io("read", path))?.permissions().mode() & 0o777;
    let permissions = std::fs::Permissions::from_mode(mode);
    new.file()?.set_permissions(permissions).map_err(Error::io("create", path))?;
    create::prepare(&new, path, Format::Qcow2, overlay.size(), backing.as_ref())?;
    new.finish(true, true)
}
