//! `lodger snapshot`: looking at snapshots; one file per subcommand.

mod check;
mod info;

use std::path::Path;

use clap::{Args, Subcommand};
use lodger::snapshot::{Error, Snapshot};

use super::AnyError;

const HELP: &str = "\
Examples:
  lodger snapshot info shell.snapshot
  lodger snapshot check /backup/shell.snapshot

A snapshot is a directory with the state of a machine and its memory; docs/snapshot-format.md describes both.";

/// What to do with which snapshot.
#[derive(Args)]
#[command(after_help = HELP)]
pub struct SnapshotArgs {
    #[command(subcommand)]
    command: SnapshotCommand,
}

#[derive(Subcommand)]
enum SnapshotCommand {
    /// Say what a snapshot is, and what is in it
    Info(info::InfoArgs),
    /// Compare all of a snapshot with its checksums, the memory too
    Check(check::CheckArgs),
}

/// Does it.
pub fn snapshot(arguments: &SnapshotArgs) -> Result<u8, AnyError> {
    match &arguments.command {
        SnapshotCommand::Info(arguments) => info::info(arguments),
        SnapshotCommand::Check(arguments) => check::check(arguments),
    }
}

/// Opens a snapshot; what it builds on may be somewhere else than it was.
fn open(directory: &Path, base: Option<&Path>) -> Result<Snapshot, Error> {
    let snapshot = Snapshot::open(directory)?;
    Ok(match base {
        Some(base) => snapshot.with_base(base),
        None => snapshot,
    })
}
