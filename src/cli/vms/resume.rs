//! `lodger resume`: a paused guest runs on.

use clap::Args;
use serde_json::json;

use super::Which;
use crate::cli::AnyError;

/// Let a paused VM's guest run on
#[derive(Args)]
pub struct ResumeArgs {
    #[command(flatten)]
    which: Which,
}

pub fn resume(arguments: &ResumeArgs) -> Result<u8, AnyError> {
    arguments.which.connect()?.call_patiently("resume", json!({}))?;
    Ok(0)
}
