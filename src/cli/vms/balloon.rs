//! `lodger balloon`: how much memory a guest shall do without.

use clap::Args;
use lodger::memory::human;
use lodger::size;
use serde_json::json;

use super::Which;
use crate::cli::AnyError;
use crate::cli::disk::output;

const HELP: &str =
    "JSON: {\"target\": what the guest is asked to do without, \"actual\": what it does without}, in bytes.";

/// Ask a VM's guest to do without so much memory, or say how much that is
#[derive(Args)]
#[command(after_help = HELP)]
pub struct BalloonArgs {
    #[command(flatten)]
    which: Which,
    /// How much: a size, as in 64M
    #[arg(value_parser = size::parse)]
    target: Option<u64>,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

pub fn balloon(arguments: &BalloonArgs) -> Result<u8, AnyError> {
    let params = arguments.target.map_or(json!({}), |target| json!({ "target": target }));
    let answer = arguments.which.connect()?.call("balloon", params)?;
    output::print(arguments.json, &answer, |answer| {
        let bytes = |field: &str| human(answer[field].as_u64().unwrap_or(0));
        format!("the guest is asked to do without {}, and does without {}", bytes("target"), bytes("actual"))
    })?;
    Ok(0)
}
