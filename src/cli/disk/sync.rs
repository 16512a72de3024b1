//! `lodger disk sync`: one disk made equal to another.

use std::path::PathBuf;

use clap::Args;
use lodger::storage::Format;
use lodger::storage::tools::{self, Sync};

use super::output::{self, Progress, size};
use crate::cli::AnyError;

const HELP: &str = "\
Both sides' hashes are kept beside the images, so that the next sync of unchanged images reads nothing. Every block is
compared with its hash when it is read. If sync is interrupted, another one moves the rest.

JSON: {\"size\", \"moved\", \"cut\", \"created\", \"verified\"}, in bytes.

Examples:
  lodger disk sync vm1.qcow2 /backup/vm1.raw
  lodger disk sync vm1.raw /backup/vm1.raw --verify";

/// Make one disk equal to another by moving only what differs.
#[derive(Args)]
#[command(after_help = HELP)]
pub struct SyncArgs {
    /// The image to take from
    source: PathBuf,
    /// The image to make equal; it is made if it is not there
    target: PathBuf,
    /// The format of the source [default: what its content says]
    #[arg(long, value_name = "FORMAT")]
    from: Option<Format>,
    /// The format of the target [default: what its content says, or that of the source if it has to be made]
    #[arg(long)]
    format: Option<Format>,
    /// Hash both sides anew, and read again and compare what was written
    #[arg(long)]
    verify: bool,
    /// Let a target that is larger lose its end
    #[arg(long)]
    shrink: bool,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
}

pub fn sync(arguments: &SyncArgs) -> Result<u8, AnyError> {
    let how = Sync {
        source_format: arguments.from,
        target_format: arguments.format,
        verify: arguments.verify,
        shrink: arguments.shrink,
    };
    let mut progress = Progress::new(arguments.json);
    let done = tools::sync(&arguments.source, &arguments.target, how, &mut progress.report())?;
    drop(progress);
    output::print(arguments.json, &done, |done| {
        let verified = if done.verified { ", verified" } else { "" };
        let cut = match done.cut {
            0 => String::new(),
            bytes => format!(", cut {} off its end", size(bytes)),
        };
        format!(
            "moved {} of {} to {}{cut}{verified}",
            size(done.moved),
            size(done.size),
            arguments.target.display()
        )
    })?;
    Ok(0)
}
