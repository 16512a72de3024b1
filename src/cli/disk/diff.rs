//! `lodger disk diff`: where two disks differ.

use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;
use lodger::storage::tools::{BlockHashes, Difference};
use lodger::storage::{Disk, DiskOptions, Format};
use serde::Serialize;

use super::output::{self, Progress, size};
use crate::cli::AnyError;

const HELP: &str = "\
Blocks of 64 KiB are compared by their hashes, which are taken from FILE.blocks where `disk hash` has kept them.

JSON: {\"equal\", \"sizes\": [A, B], \"bytes\", \"differences\": [{\"offset\", \"len\"}]}.
Exit status: 0 if the disks are equal, 1 if not.

Example:
  lodger disk diff vm1.qcow2 vm1-yesterday.raw";

/// Say where two disks differ.
#[derive(Args)]
#[command(after_help = HELP)]
pub struct DiffArgs {
    /// An image
    a: PathBuf,
    /// Another one
    b: PathBuf,
    /// The format of A [default: what its content says]
    #[arg(long, value_name = "FORMAT")]
    a_format: Option<Format>,
    /// The format of B [default: what its content says]
    #[arg(long, value_name = "FORMAT")]
    b_format: Option<Format>,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Compared {
    equal: bool,
    sizes: [u64; 2],
    bytes: u64,
    differences: Vec<Difference>,
}

pub fn diff(arguments: &DiffArgs) -> Result<u8, AnyError> {
    let mut progress = Progress::new(arguments.json);
    let mut hashes = |path: &PathBuf, format| -> Result<BlockHashes, AnyError> {
        let disk = Disk::open(path, &DiskOptions { read_only: true, format, ..DiskOptions::default() })?;
        Ok(BlockHashes::current(&disk, &mut progress.report())?)
    };
    let a = hashes(&arguments.a, arguments.a_format)?;
    let b = hashes(&arguments.b, arguments.b_format)?;
    drop(progress);
    let differences = a.differences(&b);
    let sizes = [a.size(), b.size()];
    let result = Compared {
        equal: differences.is_empty() && sizes[0] == sizes[1],
        sizes,
        bytes: differences.iter().map(|difference| difference.len).sum(),
        differences,
    };
    output::print(arguments.json, &result, in_words)?;
    Ok(u8::from(!result.equal))
}

fn in_words(result: &Compared) -> String {
    if result.equal {
        return "the disks are equal".to_owned();
    }
    let mut text = String::new();
    for Difference { offset, len } in &result.differences {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{offset:#014x}  {}", size(*len));
    }
    let [a, b] = result.sizes;
    if a != b {
        let _ = writeln!(text, "one disk has {}, the other {}", size(a), size(b));
    }
    text + &format!("{} differ", size(result.bytes))
}
