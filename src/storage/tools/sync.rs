//! Making one disk equal to another by moving only the blocks that differ.

use std::path::Path;

use super::blocks::{BLOCK_SIZE, BlockHashes, hash};
use super::{CHUNK, Progress, check_apart, convert, read, resize, write};
use crate::storage::{Disk, DiskOptions, Error, Format, Storage};

/// How to sync.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sync {
    /// What the source is.
    pub source_format: Option<Format>,
    /// What the target is, or shall be if it is not there yet.
    pub target_format: Option<Format>,
    /// Whether the hashes are made anew on both sides, and what was written is read again and compared.
    pub verify: bool,
    /// Whether a target that is larger may lose its end.
    pub shrink: bool,
}

/// What a sync did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Synced {
    /// How large the disks are.
    pub size: u64,
    /// How many bytes were moved.
    pub moved: u64,
    /// How many bytes the target has lost at its end.
    pub cut: u64,
    /// Whether the target had to be made.
    pub created: bool,
    /// Whether what was written was read again and compared.
    pub verified: bool,
}

/// Makes the disk at `target` equal to the one at `source`, and keeps the hashes of both. Interrupted, it leaves a
/// target that has some of the blocks; another sync moves the rest.
pub fn sync(source: &Path, target: &Path, how: Sync, progress: Progress<'_>) -> Result<Synced, Error> {
    let options = DiskOptions { read_only: true, format: how.source_format, ..DiskOptions::default() };
    let from = Disk::open(source, &options)?;
    check_apart(&from, target)?;
    let wanted = hashes(&from, how.verify, progress)?;
    keep(&wanted, source);
    let created = !target.exists();
    let (mut moved, mut cut) = (from.size(), 0);
    if created {
        convert(&from, target, how.target_format.unwrap_or(from.format()), false, progress)?;
    } else {
        (moved, cut) = update(&from, &wanted, target, how, progress)?;
    }
    // The target as it is now: its hashes are known without reading it, unless that is what is wanted.
    let options = DiskOptions { read_only: true, format: how.target_format, ..DiskOptions::default() };
    let to = Disk::open(target, &options)?;
    let there = if how.verify { BlockHashes::compute(&to, progress)? } else { wanted.of(&to) };
    if how.verify
        && let Some(first) = wanted.differences(&there).first()
    {
        return Err(Error::refused(
            target,
            format!("what was written at {:#x} reads differently", first.offset),
            "the storage or the memory of the host is defective; do not rely on this copy",
        ));
    }
    keep(&there, target);
    Ok(Synced { size: from.size(), moved, cut, created, verified: how.verify })
}

fn hashes(disk: &Disk, anew: bool, progress: Progress<'_>) -> Result<BlockHashes, Error> {
    if anew { BlockHashes::compute(disk, progress) } else { BlockHashes::current(disk, progress) }
}

/// Hashes that cannot be kept, say because the directory is read-only, are made again the next time.
fn keep(hashes: &BlockHashes, image: &Path) {
    if let Err(error) = hashes.save(image) {
        log::info!("the hashes are not kept: {error}");
    }
}

/// How many bytes were moved, and cut off.
fn update(
    from: &Disk,
    wanted: &BlockHashes,
    target: &Path,
    how: Sync,
    progress: Progress<'_>,
) -> Result<(u64, u64), Error> {
    let options = DiskOptions { format: how.target_format, ..DiskOptions::default() };
    let mut to = Disk::open(target, &options)?;
    let cut = to.size().saturating_sub(from.size());
    if to.size() != from.size() {
        let format = to.format();
        drop(to);
        resize(target, Some(format), from.size(), how.shrink)?;
        to = Disk::open(target, &options)?;
    }
    let there = hashes(&to, how.verify, progress)?;
    let differences = wanted.differences(&there);
    let all: u64 = differences.iter().map(|difference| difference.len).sum();
    let mut moved = 0;
    let mut buffer = vec![0; CHUNK];
    for difference in differences {
        let end = difference.offset + difference.len;
        for offset in (difference.offset..end).step_by(CHUNK) {
            progress(moved, all);
            let bytes = &mut buffer[..(end - offset).min(CHUNK as u64) as usize];
            read(from, offset, bytes)?;
            let first = (offset / BLOCK_SIZE) as usize;
            let mut blocks = bytes.chunks(BLOCK_SIZE as usize).enumerate();
            if !blocks.all(|(index, block)| wanted.block(first + index) == Some(&hash(block))) {
                return Err(Error::refused(
                    from.path(),
                    format!("what is read at {offset:#x} is not what was hashed"),
                    "say --verify to hash it anew; if that repeats, its storage is defective",
                ));
            }
            write(&to, target, offset, bytes)?;
            moved += bytes.len() as u64;
        }
    }
    to.flush().map_err(Error::io("write", target))?;
    progress(all, all);
    Ok((moved, cut))
}
