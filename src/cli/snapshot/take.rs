//! `lodger snapshot NAME DIR`: a snapshot of a machine that another process runs.

use std::fmt::Write;
use std::path::{self, Path, PathBuf};
use std::time::Duration;

use clap::Args;
use lodger::control::Client;
use lodger::vm::{DiskMode, Name, disk_name};
use serde_json::{Value, json};

use crate::cli::AnyError;
use crate::cli::disk::output::{self, Progress};
use crate::cli::vms::{text, until_gone};

/// So much of disks takes a time that a guest notices.
const LONG: u64 = 64 << 20;

/// Which machine, and where to.
#[derive(Args)]
pub struct TakeArgs {
    /// What the VM is called; `lodger ps` lists them
    name: Name,
    /// Where the snapshot is to be: a directory that is not there yet, is empty, or holds an older snapshot, which it replaces
    directory: PathBuf,
    /// Keep only what changed since the last snapshot, or since the one that the VM was restored from
    ///
    /// That one is needed for as long as this one is, where it is by then: BASE says where it is now, if it was moved. Snapshots
    /// that build on each other are no chain for ever: after some dozens a full one is due.
    #[arg(long, value_name = "BASE", num_args = 0..=1, require_equals = true)]
    diff: Option<Option<PathBuf>>,
    /// What becomes of disks: copy, overlay or reference [default: what fits each]
    ///
    ///   copy       their content is copied, while the guest stands still: a second for some hundred MB
    ///   overlay    their images stay as they are from now on, and the VM goes on in overlays: milliseconds, if images of
    ///              the VM's own (overlay without a file, ephemeral) are on the file system of DIR, and are not copied
    ///   reference  the snapshot names their images, and nobody may write to them any more; for --stop
    /// By default what is only read is named, and with --stop a user's own images are as well; all else is copied.
    #[arg(long, value_name = "HOW", verbatim_doc_comment)]
    disks: Option<DiskMode>,
    /// End the VM with it: nothing runs behind the point at which the snapshot was taken
    #[arg(long)]
    stop: bool,
    /// Print what was taken as JSON
    #[arg(long)]
    json: bool,
}

/// Has it taken.
pub fn take(arguments: &TakeArgs) -> Result<u8, AnyError> {
    let TakeArgs { name, directory, diff, disks, stop, json } = arguments;
    let directory = absolute(directory)?;
    let diff = match diff {
        None => Value::Bool(false),
        Some(None) => Value::Bool(true),
        Some(Some(base)) => Value::String(absolute(base)?),
    };
    let mut client = Client::connect(name)?;
    let mut progress = Progress::new(*json);
    let mut report = progress.report();
    let params = json!({ "directory": directory, "diff": diff, "disks": disks, "stop": stop });
    let taken = client.call_watching("snapshot", params, &mut |step| {
        let number = |field: &str| step[field].as_u64().unwrap_or_default();
        report(number("done"), number("total"));
    });
    drop(report);
    drop(progress);
    let taken = taken?;
    if *stop {
        until_gone(client)?;
    }
    output::print(*json, &taken, |taken| in_words(name, taken))?;
    Ok(0)
}

/// The process that runs the machine may be elsewhere.
fn absolute(directory: &Path) -> Result<String, AnyError> {
    let absolute = path::absolute(directory)
        .map_err(|error| format!("{} is no place for a snapshot: {error}", directory.display()))?;
    let absolute = absolute.into_os_string().into_string();
    Ok(absolute.map_err(|_| "the path of a snapshot has to be valid UTF-8")?)
}

fn in_words(name: &Name, taken: &Value) -> String {
    let number = |field: &str| taken[field].as_u64().unwrap_or_default();
    let stood = Duration::from_micros(number("stopped-for-us")).as_secs_f64() * 1e3;
    let end = if taken["state"] == "stopped" { ", and has ended" } else { "" };
    let size = output::size(number("size"));
    let place = text(taken, "directory");
    // Writing to a string does not fail.
    let mut words =
        format!("snapshot of {name} in {place}: {size}; the guest stood still for {stood:.1} ms{end}");
    if number("copied") > LONG {
        let copied = output::size(number("copied"));
        let is_copied = |disk: &Value| disk["mode"] == "copy";
        let advice = match taken["disks"].as_array().is_some_and(|disks| disks.iter().any(is_copied)) {
            true => "with --disks overlay nothing is, if DIR is on the file system of the VM's own images",
            false => "nothing is if DIR is on the file system of the VM's own images",
        };
        let _ = write!(words, "\n{copied} of that are disks, which were copied meanwhile; {advice}");
    }
    for (number, disk) in taken["disks"].as_array().into_iter().flatten().enumerate() {
        if let Some(path) = disk["went-on-in"].as_str() {
            let _ = write!(words, "\n{} goes on in {path}", disk_name(number));
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_copies_of_disks_is_told_what_takes_less() {
        let name: Name = "web".parse().unwrap();
        let said_of = |mode: &str, copied: u64| {
            let disks = json!([{ "mode": mode, "went-on-in": null }, { "mode": "overlay", "went-on-in": "/a/b.qcow2" }]);
            in_words(&name, &json!({ "directory": "/k1", "size": 99, "copied": copied, "disks": disks }))
        };
        let said = |copied| said_of("copy", copied);
        let end = "\nvdb goes on in /a/b.qcow2";
        let hint = "\n100 MiB of that are disks, which were copied meanwhile; with --disks overlay nothing \
                    is, if DIR is on the file system of the VM's own images";
        assert!(said(64 << 20).ends_with(&format!("stood still for 0.0 ms{end}")), "{}", said(64 << 20));
        assert!(
            said(100 << 20).ends_with(&format!("stood still for 0.0 ms{hint}{end}")),
            "{}",
            said(100 << 20)
        );
        // Who did that already hears only of the place.
        let said = said_of("overlay", 100 << 20);
        assert!(said.contains("copied meanwhile; nothing is if DIR is on the file system"), "{said}");
    }
}
