//! A machine as text, with what differs from the default.
//!
//! Everything is taken apart by destructuring, so that nothing can be forgotten. Relies on nothing but the types.

use std::fmt::{self, Write};
use std::path::Path;

use super::Description;
use super::error::CannotDescribe;
use crate::boot::Entry;
use crate::console::{self, Place};
use crate::memory::{Options, human};
use crate::vm::disk::limit_texts;
use crate::vm::{
    BalloonSpec, Changes, Clock, Completion, Config, CpusSpec, DiskSource, DiskSpec, Kernel, MemorySpec,
    PortSpec,
};

/// The whole file. What stands in tables comes last, as the language demands.
pub(super) fn text(description: &Description) -> Result<String, CannotDescribe> {
    let Description { config, console } = description;
    let Config {
        name,
        memory,
        cpus,
        cpu,
        kernel,
        entry,
        flat,
        cmdline,
        append,
        initrds,
        disks,
        rng,
        balloon,
        virtio_console,
        ports,
        completion,
        clock,
    } = config;
    let mut file = Lines::default();
    if let Some(name) = name {
        file.line("name", quoted(name.as_str()));
    }
    file.line("memory", self::memory(*memory));
    file.line("cpus", self::cpus(*cpus));
    if !cpu.is_host() {
        file.line("cpu", quoted(&cpu.to_string()));
    }
    if *rng {
        file.line("rng", true);
    }
    if let Some(BalloonSpec { target, reporting }) = *balloon {
        file.line(
            "balloon",
            match reporting {
                true => quoted(&human(target)),
                false => format!("{{ size = {}, reporting = false }}", quoted(&human(target))),
            },
        );
    }
    if *virtio_console || *console != console::Spec::default() {
        file.line("console", self::console(*virtio_console, console)?);
    }
    if *completion != Completion::default() {
        file.line("completion", quoted(&completion.to_string()));
    }
    if *clock != Clock::default() {
        file.line("clock", quoted(&clock.to_string()));
    }
    let mut booted = Lines::default();
    match kernel {
        Kernel::Embedded => {}
        Kernel::File(file) => booted.line("path", path(file)?),
        Kernel::Bytes(_) => return Err(CannotDescribe::KernelInMemory),
    }
    if let [first, ..] = &initrds[..] {
        booted.line(
            "initrd",
            match initrds.len() {
                1 => path(first)?,
                _ => list(initrds.iter().map(|initrd| path(initrd)).collect::<Result<_, _>>()?),
            },
        );
    }
    if let Some(cmdline) = cmdline {
        booted.line("cmdline", quoted(cmdline));
    }
    if !append.is_empty() {
        booted.line("append", list(append.iter().map(|text| quoted(text)).collect()));
    }
    if *entry != Entry::default() {
        booted.line("entry", quoted(&entry.to_string()));
    }
    if let Some(flat) = flat {
        booted.line("flat", quoted(&flat.to_string()));
    }
    file.table("[kernel]", booted);
    for disk in disks {
        file.table("[[disk]]", self::disk(disk)?);
    }
    for port in ports {
        file.table("[[port]]", self::port(port)?);
    }
    Ok(file.0)
}

/// Lines of keys and values.
#[derive(Default)]
struct Lines(String);

impl Lines {
    fn line(&mut self, key: &str, value: impl fmt::Display) {
        // Writing to a text does not fail.
        let _: fmt::Result = writeln!(self.0, "{key} = {value}");
    }

    fn switch(&mut self, key: &str, set: bool) {
        if set {
            self.line(key, true);
        }
    }

    fn table(&mut self, head: &str, lines: Self) {
        if !lines.0.is_empty() {
            let _: fmt::Result = write!(self.0, "\n{head}\n{}", lines.0);
        }
    }
}

fn memory(MemorySpec { size, options }: MemorySpec) -> String {
    let Options { hugepages, hugetlb, prefault, mergeable } = options;
    let size = quoted(&human(size));
    let words =
        [(hugepages, "hugepages"), (hugetlb, "hugetlb"), (prefault, "prefault"), (mergeable, "mergeable")];
    let set: String =
        words.iter().filter(|(set, _)| *set).map(|(_, word)| format!(", {word} = true")).collect();
    if set.is_empty() { size } else { format!("{{ size = {size}{set} }}") }
}

fn cpus(cpus: CpusSpec) -> String {
    match cpus {
        CpusSpec { sockets: 1, cores, threads: 1 } => cores.to_string(),
        CpusSpec { sockets, cores, threads } => {
            format!("{{ sockets = {sockets}, cores = {cores}, threads = {threads} }}")
        }
    }
}

fn console(virtio: bool, place: &console::Spec) -> Result<String, CannotDescribe> {
    Ok(match (virtio, place) {
        (true, console::Spec::File(file)) => format!("{{ virtio = true, file = {} }}", path(file)?),
        (false, console::Spec::File(file)) => format!("{{ file = {} }}", path(file)?),
        (true, console::Spec::Stdio) => quoted("virtio"),
        (true, place) => quoted(&format!("virtio,{place}")),
        (false, place) => quoted(&place.to_string()),
    })
}

fn disk(disk: &DiskSpec) -> Result<Lines, CannotDescribe> {
    let DiskSpec { source, read_only, direct, queues, serial, limits } = disk;
    let mut lines = Lines::default();
    match source {
        DiskSource::Ephemeral { size } => lines.line("ephemeral", quoted(&human(*size))),
        DiskSource::Image { path: image, format, changes, verify } => {
            lines.line("path", path(image)?);
            if let Some(format) = format {
                lines.line("format", quoted(&format.to_string()));
            }
            match changes {
                Changes::Image => {}
                Changes::Forgotten => lines.line("overlay", true),
                Changes::Overlay(overlay) => lines.line("overlay", path(overlay)?),
            }
            lines.switch("verify", *verify);
        }
    }
    lines.switch("ro", *read_only);
    lines.switch("direct", *direct);
    if *queues != 1 {
        lines.line("queues", queues);
    }
    let [bytes, operations] = limit_texts(limits);
    if let Some(text) = bytes {
        lines.line("bps", quoted(&text));
    }
    if let Some(text) = operations {
        // Other readers of the language have no larger numbers.
        let is_number = text.parse::<i64>().is_ok();
        lines.line("iops", if is_number { text } else { quoted(&text) });
    }
    if let Some(serial) = serial {
        lines.line("serial", quoted(serial));
    }
    Ok(lines)
}

fn port(PortSpec { name, place }: &PortSpec) -> Result<Lines, CannotDescribe> {
    let mut lines = Lines::default();
    lines.line("name", quoted(name));
    match place {
        Place::Socket(socket) => lines.line("socket", path(socket)?),
        Place::Pty => lines.line("pty", true),
        Place::File(file) => lines.line("file", path(file)?),
    }
    Ok(lines)
}

fn path(path: &Path) -> Result<String, CannotDescribe> {
    path.to_str().map(quoted).ok_or_else(|| CannotDescribe::Path(path.to_owned()))
}

fn list(values: Vec<String>) -> String {
    format!("[{}]", values.join(", "))
}

/// A basic string of TOML. What would move a terminal's cursor is written as a number, and so is what the language
/// forbids.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            letter if letter.is_control() => {
                let _: fmt::Result = write!(quoted, "\\u{:04x}", u32::from(letter));
            }
            letter => quoted.push(letter),
        }
    }
    quoted.push('"');
    quoted
}
