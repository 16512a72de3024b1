//! `lodger snapshot check`: whether a snapshot is what was written.

use std::path::PathBuf;

use clap::Args;
use lodger::vm::{Reopening, SavedDisks};
use serde_json::json;

use super::BaseArgs;
use crate::cli::AnyError;
use crate::cli::disk::output;

const HELP: &str = "\
A machine that goes on from a snapshot does not look at the checksums of its memory and disks: it would have to read all of them.
They are for those who have moved a snapshot, or do not trust a disk. Of a diff, the memory of all that it builds on is checked,
too.

Images of disks that are not in the snapshot have no checksums: they are looked at as a restore does it, which finds one that is
missing, has another length, or was written to since.

JSON: {\"path\", \"sound\", \"problem\": in words, or null, \"not-read\": [images that are not in the snapshot]}. Exit status: 0 if it
is sound, else 1.

Examples:
  lodger snapshot check shell.snapshot";

/// Compare all that is in a snapshot with its checksums, memory and disks too.
#[derive(Args)]
#[command(after_help = HELP)]
pub struct CheckArgs {
    /// The snapshot
    directory: PathBuf,
    #[command(flatten)]
    bases: BaseArgs,
    /// Print what was found as JSON
    #[arg(long)]
    json: bool,
}

pub fn check(arguments: &CheckArgs) -> Result<u8, AnyError> {
    let path = arguments.directory.display().to_string();
    let found = look(arguments);
    let (problem, images) = match found {
        Err(problem) if !arguments.json => return Err(problem),
        Err(problem) => (Some(problem.to_string()), Vec::new()),
        Ok(images) => (None, images),
    };
    let images: Vec<_> = images.iter().map(|image| image.display().to_string()).collect();
    let value = json!({"path": path, "sound": problem.is_none(), "problem": problem, "not-read": images});
    output::print(arguments.json, &value, |_| in_words(&path, &images))?;
    Ok(u8::from(problem.is_some()))
}

/// Reads all that has checksums; the images that have none.
fn look(arguments: &CheckArgs) -> Result<Vec<PathBuf>, AnyError> {
    let snapshot = arguments.bases.open(&arguments.directory)?;
    snapshot.check()?;
    let Some(disks) = SavedDisks::of(&snapshot)? else { return Ok(Vec::new()) };
    disks.check(snapshot.directory(), &Reopening::default())?;
    let images = disks.look().into_iter().flat_map(|disk| disk.images);
    Ok(images.filter(|image| image.is_absolute()).collect())
}

fn in_words(path: &str, images: &[String]) -> String {
    let mut text = format!("{path} is sound");
    for image in images {
        text += &format!("\n{image} is there and was not written to since; its content was not compared");
    }
    text
}
