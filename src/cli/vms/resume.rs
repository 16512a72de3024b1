//! `lodger resume`: a paused guest runs on.

use clap::Args;
use serde_json::json;

use super::Which;
use crate::cli::AnyError;
use crate::cli::disk::output;

/// Let a paused VM's guest run on
#[derive(Args)]
pub struct ResumeArgs {
    #[command(flatten)]
    which: Which,
    /// Print in which state it is then as JSON: {"state"}
    #[arg(long)]
    json: bool,
}

pub fn resume(arguments: &ResumeArgs) -> Result<u8, AnyError> {
    let answer = arguments.which.connect()?.call_patiently("resume", json!({}))?;
    output::print(arguments.json, &answer, |_| String::new())?;
    Ok(0)
}
