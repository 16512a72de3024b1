//! `lodger pause`: a guest stands still.

use clap::Args;
use serde_json::json;

use super::Which;
use crate::cli::AnyError;
use crate::cli::disk::output;

/// Have a VM's guest stand still, between two instructions, with no request of it under way
#[derive(Args)]
pub struct PauseArgs {
    #[command(flatten)]
    which: Which,
    /// Print in which state it is then as JSON: {"state"}
    #[arg(long)]
    json: bool,
}

pub fn pause(arguments: &PauseArgs) -> Result<u8, AnyError> {
    let answer = arguments.which.connect()?.call_patiently("pause", json!({}))?;
    output::print(arguments.json, &answer, |_| String::new())?;
    Ok(0)
}
