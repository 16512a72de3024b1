//! `lodger disk check`: whether an image is sound.

use std::path::PathBuf;

use clap::Args;
use lodger::storage::{CheckReport, Repair, tools};

use super::output::{self, Progress};
use crate::cli::AnyError;

const HELP: &str = "\
Leaks are clusters that are kept for nothing, as after a process was killed: they cost space and no data. Corruptions
endanger data. --repair puts reference counts and the flags that go with them right, and makes new counts where there is
no place for some (but in images with bitmaps). What points nowhere stays as it is, and `convert` saves the rest; an image
whose header or L1 table is not all there is only saved by a backup.

JSON: {\"corruptions\", \"leaks\", \"repaired\", \"problems\": [in words], \"allocated-clusters\", \"total-clusters\",
\"compressed-clusters\", \"repair\"}. Exit status: 0 if no data is in danger, else 1.

Examples:
  lodger disk check vm1.qcow2
  lodger disk check vm1.qcow2 --repair";

/// Find out whether a qcow2 image is sound, and repair it.
#[derive(Args)]
#[command(after_help = HELP)]
pub struct CheckArgs {
    /// The image
    file: PathBuf,
    /// Put right what can be
    #[arg(long)]
    repair: bool,
    /// Print what was found as JSON
    #[arg(long)]
    json: bool,
}

pub fn check(arguments: &CheckArgs) -> Result<u8, AnyError> {
    let repair = if arguments.repair { Repair::Yes } else { Repair::No };
    let mut progress = Progress::new(arguments.json);
    let report = tools::check(&arguments.file, repair, &mut progress.report())?;
    drop(progress);
    output::print(arguments.json, &report, |report| in_words(&arguments.file.display().to_string(), report))?;
    Ok(u8::from(report.is_corrupt()))
}

fn in_words(name: &str, report: &CheckReport) -> String {
    let mut text = String::new();
    for problem in &report.problems {
        text += &format!("{problem}\n");
    }
    let untold = report.corruptions - report.problems.len() as u64;
    if untold > 0 {
        text += &format!("and {untold} more\n");
    }
    text += &match (report.corruptions, report.leaks) {
        (0, 0) => format!("{name} is sound"),
        (0, leaks) => format!("{name} is sound; {leaks} clusters are kept for nothing (--repair frees them)"),
        (corruptions, leaks) => format!("{name} is damaged: {corruptions} corruptions, {leaks} leaks"),
    };
    if report.repaired > 0 {
        text += &format!("; {} repaired", report.repaired);
    }
    text += &format!("\n{} of {} clusters hold data", report.allocated_clusters, report.total_clusters);
    text
}
