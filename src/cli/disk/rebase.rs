//! `lodger disk rebase`: another image behind an overlay.

use std::path::PathBuf;

use clap::Args;
use lodger::storage::Format;
use lodger::storage::tools::{self, NewBacking};

use super::output::{self, Progress, size};
use crate::cli::AnyError;

const HELP: &str = "\
A guest sees the same afterwards: what the old and the new image have different is copied into the overlay. If rebase is
interrupted, the overlay still lies on the old image.

JSON: {\"backing\": what it lies on, as its header says it, or null, \"copied\": in bytes}.

Examples:
  lodger disk rebase vm1.qcow2 --backing template-2.qcow2
  lodger disk rebase vm1.qcow2 --none                      it holds everything itself then
  lodger disk rebase vm1.qcow2 --backing moved/template.qcow2 --backing-format qcow2 --unsafe";

/// Put an overlay onto another image, or onto none.
#[derive(Args)]
#[command(after_help = HELP)]
pub struct RebaseArgs {
    /// The overlay, a qcow2 image
    file: PathBuf,
    /// The image to lie on
    #[arg(long, value_name = "BASE", required_unless_present = "none", conflicts_with = "none")]
    backing: Option<PathBuf>,
    /// The format of BASE [default: what its content says]
    #[arg(long, value_name = "FORMAT", requires = "backing")]
    backing_format: Option<Format>,
    /// Lie on nothing
    #[arg(long)]
    none: bool,
    /// Only change the name, without comparing: the image was moved, or its format was not known
    #[arg(long = "unsafe")]
    only_name: bool,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
}

pub fn rebase(arguments: &RebaseArgs) -> Result<u8, AnyError> {
    let backing = arguments.backing.as_deref();
    let backing = backing.map(|path| NewBacking { path, format: arguments.backing_format });
    let mut progress = Progress::new(arguments.json);
    let done = tools::rebase(&arguments.file, backing, arguments.only_name, &mut progress.report())?;
    drop(progress);
    output::print(arguments.json, &done, |done| {
        let behind = done.backing.as_deref().unwrap_or("nothing");
        format!("{} lies on {behind}; took {} over", arguments.file.display(), size(done.copied))
    })?;
    Ok(0)
}
