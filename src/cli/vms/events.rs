//! `lodger events`: what happens to a machine.

use std::io::{self, Write};

use clap::Args;
use serde_json::{Value, json};

use super::{Which, text};
use crate::cli::AnyError;
use crate::cli::say::shown;

const HELP: &str = "\
JSON, a line each: {\"event\": \"state\", \"number\", \"unix-ms\", \"from\", \"to\", \"by\": who wanted it, \"end\": {\"status\", \"reason\"} if it
has ended}, {\"event\": \"snapshot\", \"number\", \"unix-ms\", \"directory\", \"id\", \"stopped-for-us\"} when one has been taken, or
{\"event\": \"lost\", \"count\"} where some were not read in time. The first line is {\"state\": what the VM does}.";

/// Tell what happens to a VM, until it has ended
#[derive(Args)]
#[command(after_help = HELP)]
pub struct EventsArgs {
    #[command(flatten)]
    which: Which,
    /// Print each event as a line of JSON
    #[arg(long)]
    json: bool,
}

pub fn events(arguments: &EventsArgs) -> Result<u8, AnyError> {
    let mut client = arguments.which.connect()?;
    let state = client.call("events", json!({}))?;
    client.be_patient()?;
    let mut next = Some(state);
    while let Some(event) = next {
        let line = if arguments.json { event.to_string() } else { in_words(&event) };
        let mut output = io::stdout().lock();
        if !shown("events", writeln!(output, "{line}").and_then(|()| output.flush()))? {
            return Ok(0);
        }
        next = client.receive()?;
    }
    Ok(0)
}

fn in_words(event: &Value) -> String {
    match event["event"].as_str() {
        Some("state") => {
            // Of a fatal report the sentence; the rest is in JSON, and in what stays.
            let reason = event["end"]["reason"].as_str().and_then(|reason| reason.lines().next());
            let end = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
            let (from, to, by) = (text(event, "from"), text(event, "to"), text(event, "by"));
            format!("{from} -> {to}, by {by}{end}")
        }
        Some("snapshot") => {
            let (directory, id) = (text(event, "directory"), text(event, "id"));
            format!("snapshot {id} in {directory}, the guest stood still for {} us", event["stopped-for-us"])
        }
        Some("lost") => format!("{} events are lost", event["count"]),
        Some(_) => event.to_string(),
        None => text(event, "state").to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_line() {
        let mut event = json!({ "event": "state", "from": "running", "to": "stopped", "by": "guest" });
        assert_eq!(in_words(&event), "running -> stopped, by guest");
        event["end"] = json!({ "status": 101, "reason": "triple fault\n  rax 0\n" });
        assert_eq!(in_words(&event), "running -> stopped, by guest: triple fault");
    }
}
