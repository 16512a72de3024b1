//! `lodger inspect`: all that a machine can tell of itself.

use std::fmt::Write;

use clap::Args;
use lodger::vm::Found;
use serde_json::{Map, Value, json};

use super::{Which, left};
use crate::cli::AnyError;
use crate::cli::disk::output;

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
        "messages": left::messages(found),
    })
}

/// A tree as indented lines; what is not there is left out.
fn branch(text: &mut String, tree: &Value, depth: usize) {
    let Some(fields) = tree.as_object() else { return };
    for (name, value) in in_order(fields) {
        let indent = "  ".repeat(depth);
        // Writing to a string does not fail.
        let _ = match value {
            Value::Null => Ok(()),
            Value::Object(_) => {
                let begun = writeln!(text, "{indent}{name}");
                branch(text, value, depth + 1);
                begun
            }
            Value::Array(items) => list(text, name, items, depth),
            _ => writeln!(text, "{indent}{name}: {}", leaf(value)),
        };
    }
}

/// By what it is called first.
fn in_order(fields: &Map<String, Value>) -> Vec<(&String, &Value)> {
    let mut fields: Vec<_> = fields.iter().collect();
    fields.sort_by_key(|(name, _)| (*name != "name", *name != "id"));
    fields
}

fn list(text: &mut String, name: &str, items: &[Value], depth: usize) -> std::fmt::Result {
    let indent = "  ".repeat(depth);
    if items.is_empty() {
        return Ok(());
    }
    if items.iter().all(|item| !item.is_object()) {
        let items: Vec<_> = items.iter().map(leaf).collect();
        return writeln!(text, "{indent}{name}: {}", items.join(", "));
    }
    writeln!(text, "{indent}{name}")?;
    for item in items {
        let Some(fields) = item.as_object() else { continue };
        if fields.values().any(|value| value.is_array() || value.is_object()) {
            writeln!(text, "{indent}  -")?;
            branch(text, item, depth + 2);
        } else {
            let fields = in_order(fields).into_iter().filter(|(_, value)| !value.is_null());
            let fields: Vec<_> = fields.map(|(name, value)| format!("{name} {}", leaf(value))).collect();
            writeln!(text, "{indent}  - {}", fields.join(", "))?;
        }
    }
    Ok(())
}

fn leaf(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_lines_with_what_is_there() {
        let tree = json!({
            "name": "web", "kernel": null, "numbers": [1, 2], "none": [],
            "memory": { "guest": 5 },
            "threads": [{ "id": 1, "name": "vcpu0", "seconds": null }],
            "devices": [{ "name": "blk", "queues": [{ "size": 4 }] }],
        });
        let mut text = String::new();
        branch(&mut text, &tree, 0);
        let mut lines: Vec<_> = text.lines().collect();
        lines.sort_unstable();
        let mut expected = vec![
            "name: web",
            "numbers: 1, 2",
            "memory",
            "  guest: 5",
            "threads",
            "  - name vcpu0, id 1",
            "devices",
            "  -",
            "    name: blk",
            "    queues",
            "      - size 4",
        ];
        expected.sort_unstable();
        assert_eq!(lines, expected);
    }
}
