//! `lodger snapshot`: taking snapshots and looking at them; one file for each.

mod check;
mod info;
mod take;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use lodger::snapshot::{Error, Snapshot};

use super::AnyError;

const HELP: &str = "\
The VM goes on as before, running or paused; --stop ends it. A snapshot that is interrupted, by whatever, leaves an older one in
that place as it was. Whoever interrupts this command does not interrupt the snapshot. `lodger restore DIR` goes on from it.
Disks are kept with it (--disks); a VM that is restored writes to none of them, but to overlays of its own.

A VM called info, check or help is reached by `lodger snapshot -- info DIR`.

JSON: {\"directory\", \"id\", \"size\": what it takes on the disk, \"memory-size\": what the guest has, \"disks\": [{\"mode\",
\"size\", \"read-only\", \"images\", \"went-on-in\": the overlay that the disk is from now on, or null}], \"copied\": how much of
disks was copied while the guest stood still, and would not have been with overlays in DIR on the file system of the VM's own
images, \"stopped-for-us\": how long it stood still, in microseconds, \"state\": what the VM does now}; sizes in bytes.

Examples:
  lodger snapshot web before-update
  lodger snapshot web /backup/web --stop
  lodger snapshot web hourly-2 --diff
  lodger snapshot info before-update
  lodger snapshot check /backup/web

A snapshot is a directory with the state of a machine and its memory; docs/snapshot-format.md describes both.";

/// What to do with which snapshot.
#[derive(Args)]
#[command(after_help = HELP, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct SnapshotArgs {
    #[command(subcommand)]
    command: Option<SnapshotCommand>,

    #[command(flatten)]
    take: Option<take::TakeArgs>,
}

#[derive(Subcommand)]
enum SnapshotCommand {
    /// Say what a snapshot is, and what is in it
    Info(info::InfoArgs),
    /// Compare all that is in a snapshot with its checksums, memory and disks too
    Check(check::CheckArgs),
}

/// Does it.
pub fn snapshot(arguments: &SnapshotArgs) -> Result<u8, AnyError> {
    match (&arguments.command, &arguments.take) {
        (Some(SnapshotCommand::Info(arguments)), _) => info::info(arguments),
        (Some(SnapshotCommand::Check(arguments)), _) => check::check(arguments),
        (None, Some(arguments)) => take::take(arguments),
        (None, None) => Err("name a VM and a directory, as in `lodger snapshot web before-update`".into()),
    }
}

/// Where the snapshots are that a diff builds on.
#[derive(Args)]
pub struct BaseArgs {
    /// Where a snapshot is that a diff builds on, if it is not where it was; may be given several times
    ///
    /// Whichever of those that are below each other it is: it is known by its id.
    #[arg(long, value_name = "DIR")]
    base: Vec<PathBuf>,
}

impl BaseArgs {
    /// Opens a snapshot that builds on them, or on those that are where they were.
    pub fn open(&self, directory: &Path) -> Result<Snapshot, AnyError> {
        match Snapshot::open(directory) {
            Err(error @ Error::NoSnapshot { .. }) => {
                Err(format!("{error}; `lodger snapshot NAME DIR` takes one").into())
            }
            opened => Ok(opened?.with_bases(&self.base)?),
        }
    }
}
