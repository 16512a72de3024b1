//! `lodger disk commit`: what an overlay holds goes into the image behind it.

use std::path::PathBuf;

use clap::Args;
use lodger::storage::{Format, tools};

use super::output::{self, Progress, size};
use crate::cli::AnyError;

const HELP: &str = "\
The image behind is changed: other overlays on it would show a mixture of old and new. If commit is interrupted, the
overlay still shows everything, and another commit goes on.

JSON: {\"backing\": the image that was written, \"copied\", \"zeroed\": in bytes,
\"emptied\": whether the overlay is empty now}.

Example:
  lodger disk commit vm1.qcow2";

/// Write what an overlay holds into the image behind it.
#[derive(Args)]
#[command(after_help = HELP)]
pub struct CommitArgs {
    /// The overlay
    file: PathBuf,
    /// Its format [default: what its content says]
    #[arg(long)]
    format: Option<Format>,
    /// Leave the overlay as it is instead of emptying it
    #[arg(long)]
    keep: bool,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
}

pub fn commit(arguments: &CommitArgs) -> Result<u8, AnyError> {
    let mut progress = Progress::new(arguments.json);
    let done = tools::commit(&arguments.file, arguments.format, arguments.keep, &mut progress.report())?;
    drop(progress);
    output::print(arguments.json, &done, |done| {
        let emptied = if done.emptied { "; the overlay is empty now" } else { "" };
        format!(
            "copied {} to {}, zeroed {}{emptied}",
            size(done.copied),
            done.backing.display(),
            size(done.zeroed)
        )
    })?;
    Ok(0)
}
