//! `lodger events`: what happens to a machine.

use std::io::{self, Write};

use clap::Args;
use serde_json::{Value, json};

use super::{Which, text};
use crate::cli::AnyError;

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
        match writeln!(output, "{line}").and_then(|()| output.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(0),
            other => other.map_err(|error| format!("cannot print events: {error}"))?,
        }
        next = client.receive()?;
    }
    Ok(0)
}

fn in_words(event: &Value) -> String {
    match event["event"].as_str() {
        Some("state") => {
            let end = event["end"]["reason"].as_str().map(|reason| format!(": {reason}")).unwrap_or_default();
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
