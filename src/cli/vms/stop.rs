//! `lodger stop` and `lodger kill`: a machine ends.

use clap::Args;
use serde_json::{Value, json};

use super::{Which, text, until_gone};
use crate::cli::AnyError;
use crate::cli::disk::output;
use crate::cli::say::say;

/// The status of a machine that was killed.
const KILLED: u64 = 137;

const HELP: &str = "\
The guest is asked by its power button (ACPI). Linux switches itself off then, if something there listens to the button, as
systemd does, or acpid; the embedded guest does so at its prompt. A guest that does not listen is killed when its time is over.

Exit status: 0 when the VM has ended, in whatever way.";

/// Ask a VM's guest to end, and kill the VM if it has not ended in time
#[derive(Args)]
#[command(after_help = HELP)]
pub struct StopArgs {
    #[command(flatten)]
    which: Which,
    /// How many seconds the guest has to end
    #[arg(long, short, value_name = "SECONDS", default_value_t = 30.0, value_parser = seconds)]
    timeout: f64,
    /// Print how it ended as JSON: {"status", "reason"}, as `lodger wait` does
    #[arg(long)]
    json: bool,
}

/// End a VM at once, as pulling the plug does
#[derive(Args)]
pub struct KillArgs {
    #[command(flatten)]
    which: Which,
    /// Print how it ended as JSON: {"status", "reason"}, as `lodger wait` does
    #[arg(long)]
    json: bool,
}

pub fn stop(arguments: &StopArgs) -> Result<u8, AnyError> {
    let milliseconds = (arguments.timeout * 1000.0) as u64;
    let ending = end(&arguments.which, "stop", json!({ "timeout-ms": milliseconds }))?;
    if ending["status"] == KILLED && !arguments.json {
        say!("lodger: {}: {}", arguments.which.name(), text(&ending, "reason"));
    }
    output::print(arguments.json, &ending, |_| String::new())?;
    Ok(0)
}

pub fn kill(arguments: &KillArgs) -> Result<u8, AnyError> {
    let ending = end(&arguments.which, "kill", json!({}))?;
    output::print(arguments.json, &ending, |_| String::new())?;
    Ok(0)
}

/// Has a machine end, and waits until its name is free again.
fn end(which: &Which, method: &str, params: Value) -> Result<Value, AnyError> {
    let mut client = which.connect()?;
    let ending = client.end(method, params)?;
    until_gone(client)?;
    Ok(ending)
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.0..=1e9).contains(&seconds) => Ok(seconds),
        _ => Err("write a number of seconds, as in 30 or 0.5".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_numbers_of_seconds() {
        assert_eq!((seconds("0"), seconds("0.5"), seconds("30")), (Ok(0.0), Ok(0.5), Ok(30.0)));
        for text in ["", "-1", "1m", "nan", "inf", "1e10"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
