//! `lodger disk hash`: what a disk holds, as hashes of its blocks.

use std::path::{Path, PathBuf};

use clap::Args;
use lodger::storage::tools::{BLOCK_SIZE, BlockHashes, Difference};
use lodger::storage::{Disk, DiskOptions, Format};
use serde::Serialize;

use super::output::{self, Progress, size};
use crate::cli::AnyError;

const HELP: &str = "\
What a guest sees is hashed (BLAKE3, blocks of 64 KiB), so a raw and a qcow2 image of the same disk have the same hash.
FILE.blocks keeps the hashes; as long as no image of the chain has changed, asking again reads nothing. `lodger run
--disk FILE,ro,verify` compares what a guest reads with them.

JSON: {\"hash\", \"size\", \"blocks\", \"block-size\", \"kept\": whether FILE.blocks is of the image as it is,
\"changed\": [{\"offset\", \"len\"}]}.
Exit status: 0; with --verify 1 if the disk is not what was hashed.

Examples:
  lodger disk hash template.qcow2
  lodger disk hash template.qcow2 --verify                 read it all, and compare with what was kept
  cp template.raw template.raw.blocks /srv && lodger disk hash /srv/template.raw --verify    now `verify` takes the copy";

/// Hash a disk block by block, and keep the hashes beside its image.
#[derive(Args)]
#[command(after_help = HELP)]
pub struct HashArgs {
    /// The image
    file: PathBuf,
    /// Its format [default: what its content says]
    #[arg(long)]
    format: Option<Format>,
    /// Read everything and compare it with the hashes that were kept; if it is the same, they are kept as those of the
    /// image as it is now, else they stay as they are
    #[arg(long)]
    verify: bool,
    /// Only print the hash, and keep nothing
    #[arg(long, conflicts_with = "verify")]
    no_keep: bool,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Hashed {
    hash: String,
    size: u64,
    blocks: usize,
    block_size: u64,
    kept: bool,
    changed: Vec<Difference>,
}

pub fn hash(arguments: &HashArgs) -> Result<u8, AnyError> {
    let HashArgs { file, format, verify, no_keep, json } = arguments;
    let options = DiskOptions { read_only: true, format: *format, ..DiskOptions::default() };
    let disk = Disk::open(file, &options)?;
    let mut progress = Progress::new(*json);
    let (hashes, changed, kept) = if *verify {
        let kept = BlockHashes::load(file)?;
        let kept =
            kept.ok_or_else(|| format!("{}: no hashes were kept; leave --verify out", file.display()))?;
        let hashes = BlockHashes::compute(&disk, &mut progress.report())?;
        let changed = hashes.differences(&kept);
        let current = changed.is_empty() && (kept.are_current(&disk) || count_again(&hashes, file));
        (hashes, changed, current)
    } else {
        let hashes = BlockHashes::current(&disk, &mut progress.report())?;
        if !no_keep {
            hashes.save(file)?;
        }
        (hashes, Vec::new(), !no_keep)
    };
    drop(progress);
    let result = Hashed {
        hash: hashes.whole(),
        size: hashes.size(),
        blocks: hashes.blocks(),
        block_size: BLOCK_SIZE,
        kept,
        changed,
    };
    output::print(*json, &result, |result| {
        let name = file.display();
        match result.changed.iter().map(|run| run.len).sum::<u64>() {
            0 => format!("{}  {name}", result.hash),
            bytes => format!("{name} is not what was hashed: {} differ", size(bytes)),
        }
    })?;
    Ok(u8::from(!result.changed.is_empty()))
}

/// Keeps hashes that were kept before, as those of the image in its present state; whether that went well. The answer is
/// the same without, as where the directory cannot be written.
fn count_again(hashes: &BlockHashes, file: &Path) -> bool {
    let saved = hashes.save(file);
    if let Err(error) = &saved {
        log::warn!("the image is what was hashed, but `run` will not know: {error}");
    }
    saved.is_ok()
}
