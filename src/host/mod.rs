//! What this host can do for a guest, found out by asking and by trying.
//!
//! [`examine`] asks KVM for its capabilities, runs a few bytes of machine code in guests of 1 MiB, and reads
//! what the kernel tells about memory, devices and confinement. It returns plain data and prints nothing; the
//! command `lodger doctor` shows it. Uses the seam `hv/` and `vcpu/` to run the guests; nothing relies on it
//! but the command line. Each part gathers facts first and then judges them in functions without side
//! effects, so that hosts that are not at hand can be tested.

mod device;
mod isolation;
mod kvm;
mod memory;
mod network;
mod probe;
mod processor;

use std::io::ErrorKind;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// What was found, row by row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Report {
    /// Whether everything is there that a guest cannot do without.
    pub can_run: bool,
    /// The findings; those of one area stand together.
    pub rows: Vec<Row>,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Row {
    /// What it has to do with.
    pub area: Area,
    /// What was looked at.
    pub name: String,
    /// How it was found.
    pub verdict: Verdict,
    /// What was found.
    pub detail: String,
    /// What can be done about it, where something can.
    pub advice: Option<String>,
    /// Whether no guest can run without it.
    pub required: bool,
}

/// What a row has to do with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Area {
    /// The device node and its limits.
    Kvm,
    /// KVM's capabilities.
    Capability,
    /// Whether guest code runs at all.
    Guest,
    /// What guest code can do on this KVM: an ordinary one does all of it.
    Instruction,
    /// The host's processor and kernel.
    Processor,
    /// Host memory.
    Memory,
    /// Host networking.
    Network,
    /// Host disk input and output.
    Storage,
    /// What confines the process that runs a guest.
    Isolation,
}

/// How a thing was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It is there and as it should be.
    Ok,
    /// It is not there, but this program does it in its place.
    Covered,
    /// It is there, but not all of it, or not as it should be.
    Limited,
    /// It is not there.
    Missing,
    /// It could not be looked at, or there was no reason to.
    NotExamined,
}

impl Row {
    fn new(area: Area, name: &str, verdict: Verdict, detail: impl Into<String>) -> Self {
        Self { area, name: name.to_owned(), verdict, detail: detail.into(), advice: None, required: false }
    }

    fn advise(self, advice: impl Into<String>) -> Self {
        Self { advice: Some(advice.into()), ..self }
    }

    fn required(self) -> Self {
        Self { required: true, ..self }
    }

    /// Whether this row alone keeps every guest from running.
    pub fn prevents_guests(&self) -> bool {
        self.required && self.verdict != Verdict::Ok
    }
}

impl Report {
    fn new(mut rows: Vec<Row>) -> Self {
        // Stable: within an area the order of the examination stays.
        rows.sort_by_key(|row| row.area);
        Self { can_run: !rows.iter().any(Row::prevents_guests), rows }
    }
}

/// Examines this host. Takes a fraction of a second, two seconds at the very most.
pub fn examine() -> Report {
    examine_with(Path::new(crate::hv::kvm::DEVICE))
}

/// Examines this host, with KVM's device node at `node`.
pub fn examine_with(node: &Path) -> Report {
    let (opened, mut rows) = kvm::examine(node);
    rows.extend(probe::examine(opened.as_ref()));
    // What may only not be opened is there all the same.
    let forbidden = || device::try_open(node).is_err_and(|error| error.kind() == ErrorKind::PermissionDenied);
    rows.extend(processor::examine(opened.is_some() || forbidden()));
    rows.extend(memory::examine());
    rows.extend(network::examine());
    rows.extend(isolation::examine());
    Report::new(rows)
}

#[cfg(test)]
#[path = "host_test.rs"]
mod tests;
