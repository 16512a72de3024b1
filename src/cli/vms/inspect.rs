//! `lodger inspect`: all that a machine can tell of itself.

use clap::Args;
use lodger::vm::{Found, disk_name};
use serde_json::{Map, Value, json};

use super::Which;
use super::left::{self, ago, duration};
use crate::cli::AnyError;
use crate::cli::disk::output::{self, size};

/// What is a list of the guest's disks.
const DISKS: [&str; 2] = ["disk", "disks"];
/// How many fields a line may have.
const SHORT: usize = 5;

/// Show what a VM is and does: configuration, processors, devices, memory, threads
#[derive(Args)]
pub struct InspectArgs {
    #[command(flatten)]
    which: Which,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

pub fn inspect(arguments: &InspectArgs) -> Result<u8, AnyError> {
    let tree = match arguments.which.connect() {
        Ok(mut client) => client.call("inspect", json!({}))?,
        Err(error) => what_is_left(&left::instead(error, arguments.which.name())?),
    };
    output::print(arguments.json, &tree, |tree| {
        let mut text = String::new();
        branch(&mut text, tree, 0);
        text
    })?;
    Ok(0)
}

/// The tree of a machine that is no longer there.
fn what_is_left(found: &Found) -> Value {
    let Found { name, path, pid, alive: _, ended } = found;
    json!({
        "name": name.as_str(),
        "pid": pid,
        "state": if ended.is_some() { "ended" } else { "dead" },
        "directory": path,
        "ended": ended,
        "messages": found.messages(),
    })
}

/// What is measured in bytes.
const BYTES: [&str; 8] = ["memory", "guest", "resident", "peak", "target", "actual", "inflated", "reported"];
/// What is measured in seconds.
const SECONDS: [&str; 2] = ["seconds", "uptime"];

/// A tree as indented lines; what is not there is left out.
fn branch(text: &mut String, tree: &Value, depth: usize) {
    let Some(fields) = tree.as_object() else { return };
    for (name, value) in in_order(fields) {
        match value {
            Value::Object(_) => {
                line(text, depth, name);
                branch(text, value, depth + 1);
            }
            Value::Array(items) => list(text, name, items, depth),
            Value::String(said) if said.contains('\n') => {
                line(text, depth, name);
                said.lines().for_each(|said| line(text, depth + 1, said));
            }
            _ if name == "unix-ms" => line(text, depth, &format!("when: {}", leaf(name, value))),
            _ => line(text, depth, &format!("{name}: {}", leaf(name, value))),
        }
    }
}

fn line(text: &mut String, depth: usize, said: &str) {
    *text += &format!("{}{said}\n", "  ".repeat(depth));
}

/// What there is, by what it is called first. Of what has names, these are told in place of numbers.
fn in_order(fields: &Map<String, Value>) -> Vec<(&str, &Value)> {
    let named = |name: &str| fields.contains_key(&format!("{}-names", name.trim_end_matches('s')));
    let there = fields.iter().filter(|(name, value)| !is_nothing(value) && !named(name));
    let mut fields: Vec<_> = there.map(|(name, value)| (name.as_str(), value)).collect();
    fields.sort_by_key(|(name, _)| (*name != "name", *name != "id"));
    fields
}

fn is_nothing(value: &Value) -> bool {
    value.is_null() || value.as_str() == Some("") || value.as_array().is_some_and(Vec::is_empty)
}

fn list(text: &mut String, name: &str, items: &[Value], depth: usize) {
    if items.iter().all(|item| !item.is_object()) {
        let items: Vec<_> = items.iter().map(|item| leaf(name, item)).collect();
        let name = name.strip_suffix("-names").map_or(name.to_owned(), |name| format!("{name}s"));
        return line(text, depth, &format!("{name}: {}", items.join(", ")));
    }
    line(text, depth, name);
    for (number, item) in items.iter().enumerate() {
        let Some(fields) = item.as_object() else { continue };
        let mut fields = in_order(fields);
        let called = match fields.first() {
            Some(("name" | "id", _)) => leaf("", fields.remove(0).1),
            _ if DISKS.contains(&name) => disk_name(number),
            _ => (number + 1).to_string(),
        };
        let is_short = !fields.iter().any(|(_, value)| value.is_array() || value.is_object());
        if is_short && fields.len() < SHORT {
            let fields: Vec<_> = fields.iter().map(|(name, value)| in_short(name, value)).collect();
            line(text, depth + 1, &format!("{called}: {}", fields.join(", ")));
        } else {
            line(text, depth + 1, &called);
            let fields: Map<_, _> =
                fields.into_iter().map(|(name, value)| (name.to_owned(), value.clone())).collect();
            branch(text, &Value::Object(fields), depth + 2);
        }
    }
}

/// A field as one of several in a line.
fn in_short(name: &str, value: &Value) -> String {
    match value {
        Value::Bool(true) => name.to_owned(),
        Value::Bool(false) => format!("not {name}"),
        _ if name == "count" || SECONDS.contains(&name) => leaf(name, value),
        _ => format!("{name} {}", leaf(name, value)),
    }
}

/// A value for people.
fn leaf(name: &str, value: &Value) -> String {
    if let Some(bytes) = value.as_u64().filter(|_| BYTES.contains(&name)) {
        return size(bytes);
    }
    match value.as_f64() {
        Some(seconds) if SECONDS.contains(&name) => duration(seconds),
        Some(milliseconds) if name == "unix-ms" => format!("{} ago", ago(milliseconds as u64)),
        _ => value.as_str().map_or_else(|| value.to_string(), str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_lines_with_what_is_there() {
        let tree = json!({
            "name": "web", "kernel": null, "numbers": [1, 2], "none": [], "uptime": 75.3,
            "balloon": { "actual": 1_572_864 },
            "memory": { "guest": 268_435_456 },
            "messages": "one\n  two\n",
            "processors": [{ "id": 0, "exits": [{ "name": "pio-read", "count": 5 }], "seconds": 0.00732, "emulated": 0 }],
            "threads": [{ "id": 1, "name": "vcpu0", "seconds": 5.2e-6 }],
            "devices": [{
                "name": "blk", "features": 512, "feature-names": ["flush"],
                "queues": [{ "size": 4, "ready": false }],
            }],
            "disks": [{ "path": "/a", "behind": [], "forgotten": true }],
        });
        let mut text = String::new();
        branch(&mut text, &tree, 0);
        let expected = "\
name: web
balloon
  actual: 1.5 MiB
devices
  blk
    features: flush
    queues
      1: not ready, size 4
disks
  vda: forgotten, path /a
memory
  guest: 256 MiB
messages
  one
    two
numbers: 1, 2
processors
  0
    emulated: 0
    exits
      pio-read: 5
    seconds: 7.3 ms
threads
  vcpu0: id 1, 5.2 us
uptime: 75.3 s
";
        assert_eq!(text, expected);
    }
}
