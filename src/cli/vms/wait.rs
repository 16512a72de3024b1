//! `lodger wait`: until a machine has ended.

use clap::Args;
use serde_json::json;

use super::{Which, text, until_gone};
use crate::cli::AnyError;
use crate::cli::disk::output;

const HELP: &str = "\
JSON: {\"status\": the VM's exit status, \"reason\": why it ended}.

Exit status: that of the VM, as `lodger run --help` lists them; 1 also if its process was killed or there is no such VM.";

/// Wait until a VM has ended, and end with its exit status
#[derive(Args)]
#[command(after_help = HELP)]
pub struct WaitArgs {
    #[command(flatten)]
    which: Which,
    /// Print how it ended as JSON
    #[arg(long)]
    json: bool,
}

pub fn wait(arguments: &WaitArgs) -> Result<u8, AnyError> {
    let mut client = arguments.which.connect()?;
    let ending = client.call_patiently("wait", json!({}))?;
    until_gone(client)?;
    output::print(arguments.json, &ending, |ending| text(ending, "reason").to_owned())?;
    Ok(ending["status"].as_u64().and_then(|status| status.try_into().ok()).unwrap_or(1))
}
