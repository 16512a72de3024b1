//! Copies of disks in another format, or without what lies behind them.

use std::path::Path;

use super::new_file::NewFile;
use super::{CHUNK, Progress, create, read, write};
use crate::sparse::runs;
use crate::storage::qcow2::{self, Held, Qcow2Disk};
use crate::storage::{Disk, Error, Format, RawFile, Storage};

/// Copies what a guest sees on `source` to a new image of its own. What is zero takes no space there.
pub fn convert(
    source: &Disk,
    path: &Path,
    format: Format,
    replace: bool,
    progress: Progress<'_>,
) -> Result<(), Error> {
    super::check_apart(source, path)?;
    let new = NewFile::create(path, replace)?;
    create::prepare(&new, path, format, source.size(), None)?;
    let file = RawFile::new(new.file()?, false).map_err(Error::io("create", path))?;
    match format {
        Format::Raw => {
            copy(source, &file, path, 4096, progress)?;
        }
        Format::Qcow2 => {
            // Nobody sees the file before it is whole.
            let held = Held::nothing();
            let image = qcow2::qcow2_layer(file, true, None, &held).map_err(Error::io("create", path))?;
            let target = Qcow2Disk::new(image, new.file()?, held, false);
            copy(source, &target, path, 64 << 10, progress)?;
            target.flush().map_err(Error::io("write", path))?;
        }
    }
    new.finish(replace, true)
}

/// Copies all that is not zero, in pieces of `granule` bytes, to a disk that reads as zeroes. Returns how many bytes it
/// wrote.
pub(super) fn copy(
    source: &Disk,
    target: &dyn Storage,
    path: &Path,
    granule: usize,
    progress: Progress<'_>,
) -> Result<u64, Error> {
    let size = source.size();
    let mut buffer = vec![0; CHUNK];
    let (mut offset, mut written) = (0, 0);
    while offset < size {
        progress(offset, size);
        let found = source.reads_as_zero(offset, size - offset);
        let (zero, len) = found.map_err(Error::io("read", source.path()))?;
        if zero {
            offset += len;
            continue;
        }
        // Whole granules from the start of the disk on, whatever the extents are.
        let to_boundary = CHUNK as u64 - offset % CHUNK as u64;
        let count = len.min(to_boundary).min(size - offset) as usize;
        let bytes = &mut buffer[..count];
        read(source, offset, bytes)?;
        written += copy_runs(bytes, offset, target, path, granule)?;
        offset += count as u64;
    }
    progress(size, size);
    Ok(written)
}

/// Writes those pieces that have something else than zeroes, neighbours together.
fn copy_runs(
    bytes: &mut [u8],
    offset: u64,
    target: &dyn Storage,
    path: &Path,
    granule: usize,
) -> Result<u64, Error> {
    let data: Vec<_> = runs(bytes, granule).filter_map(|(zero, run)| (!zero).then_some(run)).collect();
    let mut written = 0;
    for run in data {
        written += run.len() as u64;
        write(target, path, offset + run.start as u64, &mut bytes[run])?;
    }
    Ok(written)
}
