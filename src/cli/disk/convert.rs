//! `lodger disk convert`: copies of their own, in another format.

use std::path::{Path, PathBuf};

use clap::Args;
use lodger::storage::{Disk, DiskOptions, Format, tools};

use super::output::{self, Progress};
use crate::cli::AnyError;

const HELP: &str = "\
The copy holds all that a guest would see, also what lies behind an overlay; zeroes take no space in it. It has its name
when it is complete: however convert is interrupted, nothing half-made is left.

Examples:
  lodger disk convert vm1.qcow2 vm1.raw
  lodger disk convert cloud.img template.qcow2 --force
  lodger disk convert old.img new.qcow2 --from raw         old.img is raw, whatever its content looks like";

/// Copy a disk to an image of its own, in another format.
#[derive(Args)]
#[command(after_help = HELP)]
pub struct ConvertArgs {
    /// The image to copy
    source: PathBuf,
    /// The image to make
    target: PathBuf,
    /// The format of the source [default: what its content says]
    #[arg(long, value_name = "FORMAT")]
    from: Option<Format>,
    /// The format of the copy [default: qcow2 for names that end in .qcow2, else raw]
    #[arg(long)]
    format: Option<Format>,
    /// Replace an image that is there
    #[arg(long)]
    force: bool,
    /// Print what was made as JSON, as `info` does
    #[arg(long)]
    json: bool,
}

pub fn convert(arguments: &ConvertArgs) -> Result<u8, AnyError> {
    let ConvertArgs { source, target, from, format, force, json } = arguments;
    let options = DiskOptions { read_only: true, format: *from, ..DiskOptions::default() };
    let disk = Disk::open(source, &options)?;
    let format = format.unwrap_or_else(|| format_by_name(target));
    let mut progress = Progress::new(*json);
    tools::convert(&disk, target, format, *force, &mut progress.report())?;
    drop(progress);
    output::print_image(*json, target, format)?;
    Ok(0)
}

/// The format that a new image's name suggests.
pub fn format_by_name(path: &Path) -> Format {
    match path.extension() {
        Some(extension) if extension.eq_ignore_ascii_case("qcow2") => Format::Qcow2,
        _ => Format::Raw,
    }
}
