//! `lodger ps`: which machines there are.

use std::time::Duration;

use clap::Args;
use lodger::control::{Client, Status};
use lodger::memory::human;
use lodger::vm::inspect::RestoredFrom;
use lodger::vm::{self, Ended, Found};
use serde::Serialize;

use super::left::{age, ago};
use crate::cli::AnyError;
use crate::cli::disk::output;

/// How long one that does not answer holds the list up.
const PATIENCE: Duration = Duration::from_secs(1);

const HELP: &str = "\
States: created, running, paused, stopping, stopped (its process ends just now), starting (no control socket yet),
silent (it does not answer), dead (its process was killed; `lodger rm` or the next start clears its directory away); with --all
also ended (it ran with --detach; of these the newest 32 are kept, until `lodger rm` or the next start of the same name).

JSON: an array of {\"name\", \"pid\", \"state\", \"cpus\", \"memory\": bytes, \"uptime\": seconds, \"restored-from\": the snapshot with which
it began, {\"directory\", \"id\"}, \"ended\": {\"unix-ms\", \"status\", \"reason\", \"uptime\", \"cpus\",
\"memory\"}, \"directory\"}; what is not known, or not so, is null.";

/// List this user's VMs
#[derive(Args)]
#[command(after_help = HELP)]
pub struct PsArgs {
    /// List those that have ended, too
    #[arg(long, short)]
    all: bool,
    /// Print them as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Row {
    name: String,
    pid: Option<u32>,
    state: String,
    cpus: Option<usize>,
    memory: Option<u64>,
    uptime: Option<f64>,
    #[serde(rename = "restored-from")]
    restored_from: Option<RestoredFrom>,
    ended: Option<Ended>,
    directory: String,
}

pub fn ps(arguments: &PsArgs) -> Result<u8, AnyError> {
    let rows = vm::list()?.into_iter().filter_map(row);
    let rows: Vec<_> = rows.filter(|row| arguments.all || row.ended.is_none()).collect();
    output::print(arguments.json, &rows, |rows| table(rows))?;
    Ok(0)
}

fn row(found: Found) -> Option<Row> {
    let mut row = Row {
        name: found.name.to_string(),
        pid: found.pid,
        state: "dead".to_owned(),
        cpus: None,
        memory: None,
        uptime: None,
        restored_from: None,
        ended: None,
        directory: found.path.display().to_string(),
    };
    if found.alive {
        match ask(&found) {
            Ok(Status { state, cpus, memory, uptime, restored_from, .. }) => {
                row.state = state;
                row.restored_from = restored_from;
                (row.cpus, row.memory, row.uptime) = (Some(cpus), Some(memory), uptime);
            }
            // It may have ended meanwhile.
            Err(_) => match vm::find(&found.name).ok()?? {
                Found { alive: false, ended, .. } => row.end(ended),
                Found { path, .. } if path.join(lodger::control::SOCKET).exists() => {
                    "silent".clone_into(&mut row.state);
                }
                _ => "starting".clone_into(&mut row.state),
            },
        }
    } else {
        row.end(found.ended);
    }
    Some(row)
}

impl Row {
    /// Tells how it has ended; of one that was killed nobody knows.
    fn end(&mut self, ended: Option<Ended>) {
        if let Some(Ended { cpus, memory, uptime, .. }) = ended {
            "ended".clone_into(&mut self.state);
            (self.cpus, self.memory, self.uptime) = (Some(cpus), Some(memory), uptime);
        }
        self.ended = ended;
    }
}

fn ask(found: &Found) -> Result<Status, AnyError> {
    let mut client = Client::connect_to(found.clone(), PATIENCE)?;
    Ok(serde_json::from_value(client.call("status", serde_json::json!({}))?)?)
}

fn table(rows: &[Row]) -> String {
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0).max(4);
    let mut text = format!(
        "{:<width$}  {:>8}  {:<8}  {:>4}  {:>8}  {:>8}{}\n",
        "NAME",
        "PID",
        "STATE",
        "CPUS",
        "MEMORY",
        "UP",
        match (rows.iter().any(|row| row.ended.is_some()), rows.iter().any(|row| row.restored_from.is_some()))
        {
            (false, false) => "",
            (true, false) => "  ENDED",
            (false, true) => "  RESTORED FROM",
            // Who has ended was restored no longer.
            (true, true) => "  ENDED, OR RESTORED FROM",
        }
    );
    for row in rows {
        let pid = row.pid.map_or("-".to_owned(), |pid| pid.to_string());
        let cpus = row.cpus.map_or("-".to_owned(), |cpus| cpus.to_string());
        let memory = row.memory.map_or("-".to_owned(), human);
        let up = row.uptime.map_or("-".to_owned(), age);
        let from = row.restored_from.as_ref().map(|from| format!("  {}", from.directory)).unwrap_or_default();
        let ended = row.ended.as_ref().map(how).unwrap_or_default();
        text += &format!(
            "{:<width$}  {pid:>8}  {:<8}  {cpus:>4}  {memory:>8}  {up:>8}{ended}{from}\n",
            row.name, row.state
        );
    }
    text
}

/// How one has ended.
fn how(ended: &Ended) -> String {
    format!("  {} ago, status {}", ago(ended.unix_ms), ended.status)
}
