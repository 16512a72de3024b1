//! `lodger disk create`: empty images, and overlays of others.

use std::path::PathBuf;

use clap::Args;
use lodger::storage::{Format, tools};

use super::output;
use super::size::parse_whole;
use crate::cli::AnyError;

const HELP: &str = "\
Examples:
  lodger disk create data.raw --size 10G
  lodger disk create data.qcow2 --size 10G                 the format follows from the name
  lodger disk create vm1.qcow2 --backing template.qcow2    as large as the template; a few hundred KB
  lodger disk create vm2.qcow2 --backing template.raw --size 20G";

/// Make an empty image, or an overlay on another.
#[derive(Args)]
#[command(after_help = HELP)]
pub struct CreateArgs {
    /// The image to make
    file: PathBuf,
    /// How large the disk is, as in 20G or 1.5T; without it an overlay is as large as what it lies on
    #[arg(long, value_parser = parse_whole, required_unless_present = "backing")]
    size: Option<u64>,
    /// raw or qcow2 [default: qcow2 for overlays and names that end in .qcow2, else raw]
    #[arg(long)]
    format: Option<Format>,
    /// The image to lie on: it is only read, and shows wherever the new one was not written
    #[arg(long, value_name = "BASE")]
    backing: Option<PathBuf>,
    /// The format of BASE [default: what its content says]
    #[arg(long, value_name = "FORMAT", requires = "backing")]
    backing_format: Option<Format>,
    /// Replace an image that is there
    #[arg(long)]
    force: bool,
    /// Print what was made as JSON, as `info` does
    #[arg(long)]
    json: bool,
}

pub fn create(arguments: &CreateArgs) -> Result<u8, AnyError> {
    let CreateArgs { file, size, format, backing, backing_format, force, json } = arguments;
    let made = match (backing, size) {
        (Some(_), _) if *format == Some(Format::Raw) => {
            return Err("a raw image holds a whole disk and cannot lie on another: leave --format out".into());
        }
        (Some(backing), size) => {
            tools::create_overlay(file, backing, *backing_format, *size, *force)?;
            Format::Qcow2
        }
        (None, size) => {
            let size = size.ok_or("how large shall the disk be? Say --size")?;
            let format = format.unwrap_or_else(|| super::convert::format_by_name(file));
            tools::create(file, format, size, *force)?;
            format
        }
    };
    output::print_image(*json, file, made)?;
    Ok(0)
}
