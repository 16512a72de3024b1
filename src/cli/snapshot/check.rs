//! `lodger snapshot check`: whether a snapshot is what was written.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use crate::cli::AnyError;
use crate::cli::disk::output;

const HELP: &str = "\
A machine that goes on from a snapshot does not look at the checksums of its memory: it would have to read all of it. They
are for those who have moved a snapshot, or do not trust a disk. Of a diff, all that it builds on is checked, too.

JSON: {\"path\", \"sound\", \"problem\": in words, or null}. Exit status: 0 if it is sound, else 1.

Examples:
  lodger snapshot check shell.snapshot";

/// Compare all of a snapshot with its checksums, the memory too.
#[derive(Args)]
#[command(after_help = HELP)]
pub struct CheckArgs {
    /// The snapshot
    directory: PathBuf,
    /// Where the snapshot is that a diff builds on, if it is not where it was
    #[arg(long, value_name = "DIR")]
    base: Option<PathBuf>,
    /// Print what was found as JSON
    #[arg(long)]
    json: bool,
}

pub fn check(arguments: &CheckArgs) -> Result<u8, AnyError> {
    let path = arguments.directory.display().to_string();
    let base = arguments.base.as_deref();
    let problem = super::open(&arguments.directory, base).and_then(|snapshot| snapshot.check()).err();
    let problem = match problem {
        Some(problem) if !arguments.json => return Err(problem.into()),
        problem => problem.map(|problem| problem.to_string()),
    };
    let value = json!({"path": path, "sound": problem.is_none(), "problem": problem});
    output::print(arguments.json, &value, |_| format!("{path} is sound"))?;
    Ok(u8::from(problem.is_some()))
}
