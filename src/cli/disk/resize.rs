//! `lodger disk resize`: other sizes.

use std::path::PathBuf;

use clap::Args;
use lodger::storage::{Format, tools};

use super::output;
use super::size::Size;
use crate::cli::AnyError;

const HELP: &str = "\
The guest's file system has to grow by itself afterwards (resize2fs, xfs_growfs).

JSON: {\"old-size\", \"new-size\"}, in bytes.

Examples:
  lodger disk resize vm1.qcow2 20G
  lodger disk resize vm1.qcow2 +5G";

/// Give a disk another size.
#[derive(Args)]
#[command(after_help = HELP)]
pub struct ResizeArgs {
    /// The image
    file: PathBuf,
    /// The new size, as in 20G, or with a + how much more than now
    size: Size,
    /// Its format [default: what its content says]
    #[arg(long)]
    format: Option<Format>,
    /// Let a smaller size lose what is beyond it
    #[arg(long)]
    shrink: bool,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
}

pub fn resize(arguments: &ResizeArgs) -> Result<u8, AnyError> {
    let ResizeArgs { file, size, format, shrink, json } = arguments;
    let size = match *size {
        Size::Bytes(size) => size,
        Size::More(more) => {
            let info = tools::info(file, *format)?;
            let now = info.image.virtual_size.ok_or_else(|| info.problem.unwrap_or_default())?;
            now.checked_add(more).ok_or_else(|| format!("{}: no disk is so large", file.display()))?
        }
    };
    let done = tools::resize(file, *format, size, *shrink)?;
    output::print(*json, &done, |done| {
        format!(
            "{}: {} instead of {}",
            file.display(),
            output::size(done.new_size),
            output::size(done.old_size)
        )
    })?;
    Ok(0)
}
