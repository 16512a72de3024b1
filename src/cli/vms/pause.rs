//! `lodger pause`: a guest stands still.

use clap::Args;
use serde_json::json;

use super::Which;
use crate::cli::AnyError;

/// Have a VM's guest stand still, between two instructions, with no request of it under way
#[derive(Args)]
pub struct PauseArgs {
    #[command(flatten)]
    which: Which,
}

pub fn pause(arguments: &PauseArgs) -> Result<u8, AnyError> {
    arguments.which.connect()?.call_patiently("pause", json!({}))?;
    Ok(0)
}
