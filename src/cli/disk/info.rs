//! `lodger disk info`: what an image is.

use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;
use lodger::storage::tools::{Info, LayerInfo};
use lodger::storage::{Format, tools};

use super::output::{self, size};
use crate::cli::AnyError;

const HELP: &str = "\
JSON: {\"path\", \"format\", \"virtual-size\", \"file-size\", \"allocated\", \"cluster-size\", \"backing\", \"backing-format\",
\"snapshots\", \"chain\": [the same of each image behind it, the nearest first], \"problem\": why it cannot be opened, or
null}; sizes in bytes. Of an image that cannot be opened, \"format\" and \"virtual-size\" may be null.

Examples:
  lodger disk info vm1.qcow2
  lodger disk info vm1.qcow2 --json | jq '.\"virtual-size\"'

It may be in use meanwhile. Exit status: 0, or 1 if the image could not be opened.";

/// Say what an image is, and what lies behind it.
#[derive(Args)]
#[command(after_help = HELP)]
pub struct InfoArgs {
    /// The image
    file: PathBuf,
    /// Its format [default: what its content says]
    #[arg(long)]
    format: Option<Format>,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

pub fn info(arguments: &InfoArgs) -> Result<u8, AnyError> {
    let info = tools::info(&arguments.file, arguments.format)?;
    output::print(arguments.json, &info, in_words)?;
    Ok(u8::from(info.problem.is_some()))
}

fn in_words(info: &Info) -> String {
    let mut text = String::new();
    layer(&mut text, &info.image, "");
    for image in &info.chain {
        text += "behind it\n";
        layer(&mut text, image, "  ");
    }
    if !info.chain.is_empty() {
        text += &format!("chain         {}\n", output::chain(info.chain.len() + 1));
    }
    if let Some(problem) = &info.problem {
        text += &format!("problem       {problem}\n");
    }
    text
}

fn layer(text: &mut String, image: &LayerInfo, indent: &str) {
    let mut row = |name: &str, value: String| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{indent}{name:<13} {value}");
    };
    row("image", image.path.display().to_string());
    if let Some(format) = image.format {
        row("format", format.to_string());
    }
    if let Some(disk) = image.virtual_size {
        row("disk", format!("{} ({disk} bytes)", size(disk)));
    }
    row("takes", format!("{}, in a file of {}", size(image.allocated), size(image.file_size)));
    if let Some(cluster) = image.cluster_size {
        row("clusters of", size(cluster));
    }
    if image.snapshots > 0 {
        row("snapshots", image.snapshots.to_string());
    }
    if let Some(backing) = &image.backing {
        let format = image.backing_format.as_deref().unwrap_or("format not said");
        row("lies on", format!("{backing} ({format})"));
    }
}
