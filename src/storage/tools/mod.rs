//! What is done to images while no guest runs on them, or while it rests.
//!
//! A new image appears under its name when it is complete, or not at all. What changes an image in place is done in
//! an order that can be interrupted anywhere and repeated.

mod blocks;
mod commit;
mod convert;
mod create;
mod info;
mod keep;
mod new_file;
mod rebase;
mod resize;
mod sync;

use std::path::Path;

use vm_memory::VolatileSlice;

use super::disk::{Identity, open_file};
use super::{Disk, Error, Storage};

pub(in crate::storage) use blocks::hash;
pub use blocks::{BLOCK_SIZE, BlockHashes, Difference};
pub use commit::{Commit, commit};
pub use convert::convert;
pub use create::{create, create_overlay};
pub use info::{Info, LayerInfo, info};
pub use keep::{copy_raw, holds_nothing, link_or_copy, overlay_in_use};
pub use rebase::{NewBacking, Rebase, rebase};
pub use resize::{Resize, resize};
pub use sync::{Sync, Synced, sync};

/// Is told how much of how much is done.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// How much is read and written at once.
const CHUNK: usize = 1 << 20;

/// Reads from a disk into a buffer.
fn read(disk: &Disk, offset: u64, to: &mut [u8]) -> Result<(), Error> {
    disk.read(offset, &[VolatileSlice::from(to)]).map_err(Error::io("read", disk.path()))
}

/// Reads from a disk that goes on with zeroes past its end.
fn read_padded(disk: &Disk, offset: u64, to: &mut [u8]) -> Result<(), Error> {
    let there = disk.size().saturating_sub(offset).min(to.len() as u64) as usize;
    let (start, rest) = to.split_at_mut(there);
    rest.fill(0);
    if start.is_empty() { Ok(()) } else { read(disk, offset, start) }
}

/// Writes a buffer to a disk, which is at `path`.
fn write(disk: &dyn Storage, path: &Path, offset: u64, from: &mut [u8]) -> Result<(), Error> {
    disk.write(offset, &[VolatileSlice::from(from)]).map_err(Error::io("write", path))
}

/// Fails if what is to be written is what is read, or lies behind it.
fn check_apart(read: &Disk, written: &Path) -> Result<(), Error> {
    let Ok(there) =
        open_file(written, true).and_then(|file| Identity::of(&file).map_err(Error::io("open", written)))
    else {
        return Ok(());
    };
    let what = match read.layers().iter().position(|layer| layer.identity.is_same_file(&there)) {
        None => return Ok(()),
        Some(0) => "what is to be read and what is to be written are the same",
        Some(_) => "what is to be read lies on it",
    };
    Err(Error::refused(written, what, "choose another name"))
}

/// Checks a qcow2 image, and repairs what can be.
pub fn check(
    path: &Path,
    repair: super::Repair,
    progress: Progress<'_>,
) -> Result<super::CheckReport, Error> {
    let read_only = repair == super::Repair::No;
    let file = super::disk::open_file(path, read_only)?;
    super::lock::lock(&file, path, !read_only)?;
    if super::disk::recognised(&file, path)? == super::Format::Raw {
        return Err(Error::refused(
            path,
            "a raw image has no tables that could be wrong",
            "check it in its guest",
        ));
    }
    super::qcow2::check(&file, path, repair, progress)
}

#[cfg(test)]
#[path = "tools_test.rs"]
mod tests;
