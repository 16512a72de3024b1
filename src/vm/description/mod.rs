//! Machines described in text: `vm.toml`, the same description that the flags of `lodger run` make.
//!
//! [`Description::from_toml`] reads what somebody wrote, says of what it does not understand where it stands and what
//! was perhaps meant, and [`Description::to_toml`] writes what is read as the same again. The command line and
//! snapshots rely on this.
//!
//! ```toml
//! name = "web"
//! memory = "512M"                    # or { size = "512M", hugepages = true, prefault = true }
//! cpus = 4                           # or "8,threads=2", or { count = 8, threads = 2 }
//! cpu = "baseline,+aes"              # or { model = "baseline", flags = ["+aes"] }
//! rng = true
//! balloon = "64M"                    # or true, or { size = "64M", reporting = false }
//! console = "virtio,pty"             # or { virtio = true, file = "console.log" }
//! completion = "auto"
//! clock = "host"                  # what it shows after a restore; or stopped
//!
//! [kernel]                           # without it, the embedded guest
//! path = "vmlinuz"
//! initrd = ["root.cpio", "more.cpio"]
//! cmdline = "console=hvc0"           # in place of the default
//! append = ["quiet"]                 # added to it
//! entry = "linux64"
//! # flat = "0x7c00,real"             # or { address = 0x7c00, mode = "real" }
//!
//! [[disk]]
//! path = "root.img"
//! format = "raw"
//! overlay = "changes.qcow2"          # or true: changes are forgotten
//! verify = true
//! direct = true                      # and ro = true
//! queues = 2
//! serial = "ROOT"
//! bps = "20M+100M"                   # or { rate = "20M", burst = "100M" }
//! iops = 500
//!
//! [[disk]]
//! ephemeral = "1G"
//!
//! [[port]]
//! name = "agent"
//! socket = "agent.sock"              # or file = "agent.log", or pty = true
//! ```
//!
//! Wherever a flag takes a compact text, so does its key: `disk = ["root.img,ro"]`.

mod depth;
mod error;
mod parts;
mod paths;
mod reading;
mod writing;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use toml::de::{DeTable, DeValue};

pub use self::error::{CannotDescribe, DescriptionError, ReadError, Reason, Unknown};
use self::reading::{Named, Problem, Section, Value};
use super::{Config, Kernel};
use crate::console;

/// No description is larger.
const LARGEST: u64 = 1 << 20;

/// A machine, and where its console is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Description {
    /// The machine.
    pub config: Config,
    /// Where its console is, be it the serial port or the virtio console.
    pub console: console::Spec,
}

impl Description {
    /// Reads a description. Its paths are left as they are.
    pub fn from_toml(text: &str) -> Result<Self, DescriptionError> {
        parse(text).map_err(|problem| problem.in_line_of(text.as_bytes()))
    }

    /// Reads a file. Relative paths in it are relative to the directory in which it is.
    pub fn read(path: &Path) -> Result<Self, ReadError> {
        let unreadable = |source| ReadError::Unreadable { path: path.to_owned(), source };
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(LARGEST + 1).read_to_end(&mut bytes))
            .map_err(unreadable)?;
        if bytes.len() as u64 > LARGEST {
            return Err(ReadError::TooLarge(path.to_owned()));
        }
        let description = match str::from_utf8(&bytes) {
            Ok(text) => Self::from_toml(text),
            Err(error) => {
                let problem = Problem { offset: error.valid_up_to(), reason: Reason::NotText };
                Err(problem.in_line_of(&bytes))
            }
        };
        let mut description =
            description.map_err(|source| ReadError::Wrong { path: path.to_owned(), source })?;
        description.resolve(path.parent().unwrap_or(Path::new("")));
        Ok(description)
    }

    /// Writes it down. What is written is read as the same again, or this fails.
    pub fn to_toml(&self) -> Result<String, CannotDescribe> {
        let text = writing::text(self)?;
        match Self::from_toml(&text) {
            Err(error) => Err(CannotDescribe::Impossible(error)),
            Ok(read) if read != *self => Err(CannotDescribe::Differs),
            Ok(_) => Ok(text),
        }
    }

    /// The same as a tree, for those who look at it: its keys and values are those of the text.
    pub fn to_tree(&self) -> Result<serde_json::Value, CannotDescribe> {
        let text = self.to_toml()?;
        let parsed = DeTable::parse(&text).map_err(|_| CannotDescribe::Differs)?;
        Ok(reading::tree(DeValue::Table(parsed.into_inner())))
    }
}

fn parse(text: &str) -> Result<Description, Problem> {
    depth::check(text)?;
    let parsed = DeTable::parse(text).map_err(|error| {
        let offset = error.span().map_or(0, |span| span.start);
        Problem { offset, reason: Reason::Syntax(error.message().replace('\n', "; ")) }
    })?;
    machine(Section::new(Named::file(), parsed.into_inner()))
}

fn machine(mut file: Section<'_>) -> Result<Description, Problem> {
    let booted = file.with("kernel", parts::kernel)?.unwrap_or_default();
    let console = file.with("console", parts::console)?.unwrap_or_default();
    let config = Config {
        name: file.with("name", |value| value.parsed(parts::WORD))?,
        memory: file.with("memory", parts::memory)?.unwrap_or_default(),
        cpus: file.with("cpus", parts::cpus)?.unwrap_or_default(),
        cpu: file.with("cpu", parts::cpu)?.unwrap_or_default(),
        kernel: booted.path.map_or(Kernel::Embedded, Kernel::File),
        entry: booted.entry,
        flat: booted.flat,
        cmdline: booted.cmdline,
        append: booted.append,
        initrds: booted.initrds,
        disks: parts::all(file.take("disk"), parts::disk)?,
        rng: file.with("rng", Value::switch)?.unwrap_or_default(),
        balloon: file.with("balloon", parts::balloon)?.flatten(),
        virtio_console: console.virtio,
        ports: parts::all(file.take("port"), parts::port)?,
        completion: file.with("completion", |value| value.parsed(parts::WORD))?.unwrap_or_default(),
        clock: file.with("clock", |value| value.parsed(parts::WORD))?.unwrap_or_default(),
    };
    file.finish()?;
    Ok(Description { config, console: console.place })
}

#[cfg(test)]
#[path = "description_test.rs"]
mod tests;
