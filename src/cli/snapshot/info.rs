//! `lodger snapshot info`: what a snapshot is, what is in it, and what it needs.

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use clap::Args;
use lodger::hv::kvm::Kvm;
use lodger::snapshot::{Info, PAGE, Snapshot, id_in_hex};
use lodger::vm::description::Description;
use lodger::vm::{DiskLook, SavedDescription, SavedDisks, SavedMachine, disk_name, offered_flags};
use serde_json::{Value, json};

use super::BaseArgs;
use crate::cli::AnyError;
use crate::cli::disk::output::{self, size};

const HELP: &str = "\
The memory is not looked at, only the state, and of a diff what it builds on.

JSON: {\"path\", \"format\", \"id\", \"created\" (seconds since 1970), \"program\", \"state-size\", \"memory-size\", \"machine\":
null, if it is of no machine, or {\"processors\", \"cpu-flags\": the features that they have, \"cpu-flags-missing-here\": those of
them that this host lacks, or null if it cannot be asked}, \"description\": null or that of the VM, with the keys of vm.toml,
\"base\": null or {\"path\", \"id\", \"changed-size\": of the memory that changed since, \"problem\": why it cannot be used, or
null}, \"disks\": null, if it does not say, or [{\"mode\", \"size\", \"read-only\", \"images\", \"went-on-in\"}], \"sections\":
[{\"name\", \"kind\", \"version\", \"size\"}]}; sizes in bytes.

Examples:
  lodger snapshot info shell.snapshot
  lodger snapshot info shell.snapshot --json | jq -r '.sections[].name'";

/// Say what a snapshot is, what is in it, and what it needs.
#[derive(Args)]
#[command(after_help = HELP)]
pub struct InfoArgs {
    /// The snapshot
    directory: PathBuf,
    #[command(flatten)]
    bases: BaseArgs,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

pub fn info(arguments: &InfoArgs) -> Result<u8, AnyError> {
    let snapshot = arguments.bases.open(&arguments.directory)?;
    let base = Base::of(&snapshot)?;
    let directory = snapshot.directory();
    let path = directory.canonicalize().as_deref().unwrap_or(directory).display().to_string();
    let disks = SavedDisks::of(&snapshot)?.map(|disks| disks.look());
    let contents = Contents { base, disks, machine: About::of(&snapshot), described: described(&snapshot) };
    let value = in_json(&path, snapshot.info(), &contents);
    output::print(arguments.json, &value, |_| in_words(&path, snapshot.info(), &contents))?;
    Ok(0)
}

/// What is in it.
#[derive(Default)]
struct Contents {
    base: Option<Base>,
    disks: Option<Vec<DiskLook>>,
    machine: Option<About>,
    /// As in a configuration file.
    described: Option<String>,
}

/// What its machine needs of a host.
struct About {
    processors: usize,
    flags: Vec<&'static str>,
    /// What this host lacks of them, if it can be asked.
    missing: Option<Vec<&'static str>>,
}

impl About {
    /// Nothing if it is of no machine, or of one that this program does not understand.
    fn of(snapshot: &Snapshot) -> Option<Self> {
        let saved = SavedMachine::from_sections(snapshot.sections().ok()?).ok()?;
        let flags = saved.cpu_flags();
        let offered = Kvm::open().ok().and_then(|kvm| offered_flags(&kvm).ok());
        let lacks = |offered: Vec<_>| flags.iter().copied().filter(|flag| !offered.contains(flag)).collect();
        Some(Self { processors: saved.processors(), missing: offered.map(lacks), flags })
    }

    fn needs(&self) -> String {
        let here = match self.missing.as_deref() {
            None => "KVM cannot be asked here whether it has them".to_owned(),
            Some([]) => "this host has them all".to_owned(),
            Some(missing) => format!("this host lacks {}", missing.join(", ")),
        };
        format!("x86-64 with {} processor features (--json lists them): {here}", self.flags.len())
    }
}

fn described(snapshot: &Snapshot) -> Option<String> {
    SavedDescription::of(snapshot).ok().flatten().map(|SavedDescription { text }| text)
}

/// What a diff builds on.
struct Base {
    path: String,
    id: [u8; 16],
    changed: u64,
    problem: Option<String>,
}

impl Base {
    fn of(snapshot: &Snapshot) -> Result<Option<Self>, AnyError> {
        let Some(changes) = snapshot.changes()? else { return Ok(None) };
        let path = snapshot.base(&changes);
        Ok(Some(Self {
            path: fs::canonicalize(&path).unwrap_or(path).display().to_string(),
            id: changes.base_id(),
            changed: changes.pages() * PAGE,
            problem: snapshot.layers().err().map(|error| error.to_string()),
        }))
    }
}

fn in_json(path: &str, info: &Info, contents: &Contents) -> Value {
    let Contents { base, disks, machine, described } = contents;
    let tree = described.as_deref().and_then(|text| Description::from_toml(text).ok()?.to_tree().ok());
    let section = |entry: &lodger::snapshot::Entry| json!({"name": entry.name, "kind": entry.kind, "version": entry.version, "size": entry.size});
    json!({
        "path": path,
        "format": info.format,
        "id": info.id_in_hex(),
        "created": info.created,
        "program": info.program,
        "state-size": info.state_size,
        "memory-size": info.memory_size,
        "machine": machine.as_ref().map(|About { processors, flags, missing }| {
            json!({"processors": processors, "cpu-flags": flags, "cpu-flags-missing-here": missing})
        }),
        "description": tree,
        "base": base.as_ref().map(|Base { path, id: base_id, changed, problem }| {
            json!({"path": path, "id": id_in_hex(base_id), "changed-size": changed, "problem": problem})
        }),
        "disks": disks,
        "sections": info.sections.iter().map(section).collect::<Vec<_>>(),
    })
}

fn in_words(path: &str, info: &Info, contents: &Contents) -> String {
    let Contents { base, disks, machine, described } = contents;
    let mut text = String::new();
    let mut row = |name: &str, value: String| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{name:<13} {value}");
    };
    row("snapshot", path.to_owned());
    row("format", info.format.to_string());
    row("id", info.id_in_hex());
    row("written", format!("{} by {}", moment(info.created), info.program));
    row("memory", size(info.memory_size));
    row("state", size(info.state_size));
    if let Some(machine) = machine {
        row("processors", machine.processors.to_string());
        row("needs", machine.needs());
    }
    if let Some(Base { path, id: base_id, changed, problem }) = base {
        row("changed", size(*changed));
        row("since", format!("{path} (id {})", id_in_hex(base_id)));
        if let Some(problem) = problem {
            row("problem", problem.clone());
        }
    }
    for (number, DiskLook { mode, size: bytes, images, .. }) in disks.iter().flatten().enumerate() {
        let shown: Vec<_> = images.iter().map(|image| image.display().to_string()).collect();
        let shown = shown.join(", on ");
        row("disk", format!("{}, {}, by {mode}: {shown}", disk_name(number), size(*bytes)));
        if images.len() > 1 {
            row("chain", output::chain(images.len()));
        }
    }
    for line in described.iter().flat_map(|text| text.lines()).filter(|line| !line.is_empty()) {
        row("described", line.to_owned());
    }
    for entry in &info.sections {
        let value = format!("{:<20} {:<10} version {}", entry.name, size(entry.size), entry.version);
        row("section", value);
    }
    text
}

/// A moment as people write it, in universal time.
fn moment(seconds: u64) -> String {
    let Ok(seconds) = libc::time_t::try_from(seconds) else { return format!("{seconds} s after 1970") };
    // SAFETY: plain data, of which all zeroes are a value.
    let mut time: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both are valid for the call.
    if unsafe { libc::gmtime_r(&raw const seconds, &raw mut time) }.is_null() {
        return format!("{seconds} s after 1970");
    }
    let year = i64::from(time.tm_year) + 1900;
    let (month, day, hour, minute, second) =
        (time.tm_mon + 1, time.tm_mday, time.tm_hour, time.tm_min, time.tm_sec);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use lodger::vm::DiskMode;

    use super::*;

    #[test]
    fn a_diff_names_what_it_builds_on_and_what_is_wrong_with_that() {
        let info = Info {
            format: 1,
            id: [1; 16],
            created: 0,
            program: "lodger 9".to_owned(),
            state_size: 4096,
            memory_size: 1 << 20,
            sections: Vec::new(),
        };
        let base = Base {
            path: "diff/../full".to_owned(),
            id: [0xab; 16],
            changed: 8192,
            problem: Some("it is gone".to_owned()),
        };
        let disk = DiskLook {
            mode: DiskMode::Overlay,
            size: 64 << 20,
            read_only: false,
            images: vec!["/a/top.qcow2".into(), "/a/base.raw".into()],
            went_on_in: Some("/a/next.qcow2".into()),
        };
        let machine = |missing| Some(About { processors: 2, flags: vec!["fpu", "sse"], missing });
        let mut contents = Contents {
            base: Some(base),
            disks: Some(vec![disk]),
            machine: machine(Some(vec!["sse"])),
            described: Some("memory = \"64M\"\n\n[kernel]\npath = \"/vmlinux\"\n".to_owned()),
        };
        let words = in_words("diff", &info, &contents);
        for line in [
            "processors    2",
            "needs         x86-64 with 2 processor features (--json lists them): this host lacks sse",
            "described     [kernel]",
        ] {
            assert!(words.lines().any(|found| found == line), "{words}");
        }
        let since = format!("since         diff/../full (id {})", "ab".repeat(16));
        for line in ["changed       8 KiB", &since, "problem       it is gone"] {
            assert!(words.lines().any(|found| found == line), "{words}");
        }
        let json = in_json("diff", &info, &contents);
        assert_eq!(json["description"]["kernel"]["path"], "/vmlinux");
        assert_eq!(json["machine"]["cpu-flags-missing-here"], json!(["sse"]));
        contents.machine = machine(Some(vec![]));
        assert!(in_words("diff", &info, &contents).contains("this host has them all"));
        contents.machine = machine(None);
        assert!(in_words("diff", &info, &contents).contains("cannot be asked"));
        assert_eq!(json["base"]["changed-size"], 8192);
        assert_eq!(json["base"]["problem"], "it is gone");
        assert!(words.contains("vda, 64 MiB, by overlay: /a/top.qcow2, on /a/base.raw"), "{words}");
        assert!(
            words.contains("\nchain         2 images, and 64 are the most; `lodger disk convert`"),
            "{words}"
        );
        assert_eq!(json["disks"][0]["went-on-in"], "/a/next.qcow2");
        let nothing = Contents::default();
        assert!(in_json("full", &info, &nothing)["base"].is_null());
        assert!(!in_words("full", &info, &nothing).contains("since"));
    }

    #[test]
    fn moments_are_written_as_dates() {
        assert_eq!(moment(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(moment(1_709_210_096), "2024-02-29 12:34:56 UTC");
        assert!(moment(u64::MAX).ends_with("after 1970"));
        assert!(moment(i64::MAX as u64).ends_with("after 1970"));
    }
}
