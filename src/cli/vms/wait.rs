//! `lodger wait`: until a machine has ended.

use clap::Args;
use lodger::control::{Client, ClientError};
use serde_json::{Value, json};

use super::{Which, text, until_gone};
use crate::cli::AnyError;
use crate::cli::disk::output;
use crate::cli::say::say;

/// The status for a machine whose process was killed, as a shell shows it.
const KILLED: u8 = 128 + 9;
/// The status for a machine that there is not, as that of a shell's `wait`.
const UNKNOWN: u8 = 127;

/// How often it is asked again after it has hung up.
const MOST_TIMES: u32 = 3;

const HELP: &str = "\
JSON: {\"status\": the VM's exit status, \"reason\": why it ended}.

Exit status: that of the VM, as `lodger run --help` lists them, also if it ran with --detach and has ended already; 137 if its
process was killed; 127 if there is no such VM; 1 if it cannot be asked.";

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
    let ending = match until_ended(&arguments.which) {
        Ok(ending) => ending,
        Err(error) => {
            let status = match error.downcast_ref() {
                Some(ClientError::Ended { ended, .. }) => {
                    return told(arguments, &json!({ "status": ended.status, "reason": ended.reason }));
                }
                Some(ClientError::Dead(_)) => KILLED,
                Some(ClientError::Unknown(_)) => UNKNOWN,
                _ => return Err(error),
            };
            if arguments.json {
                return told(arguments, &json!({ "status": status, "reason": error.to_string() }));
            }
            say!("lodger: {error}");
            return Ok(status);
        }
    };
    told(arguments, &ending)
}

/// Asks it for its end. If it ends before it has answered, or is killed, the error tells what became of it.
fn until_ended(which: &Which) -> Result<Value, AnyError> {
    let (mut lost, mut times) = (None, 0);
    loop {
        let ask = |mut client: Client| Ok((client.call_patiently("wait", json!({}))?, client));
        match which.connect().and_then(ask) {
            Ok((ending, client)) => return until_gone(client).map(|()| ending),
            // One that ends may hang up on those who have just come, too.
            Err(error @ ClientError::Lost { .. }) if times < MOST_TIMES => {
                lost = Some(error);
                times += 1;
            }
            // It has gone without leaving how.
            Err(error @ ClientError::Unknown(_)) => return Err(lost.unwrap_or(error).into()),
            Err(error) => return Err(error.into()),
        }
    }
}

fn told(arguments: &WaitArgs, ending: &Value) -> Result<u8, AnyError> {
    output::print(arguments.json, ending, |ending| text(ending, "reason").to_owned())?;
    Ok(ending["status"].as_u64().and_then(|status| status.try_into().ok()).unwrap_or(1))
}
