//! The parts of a machine, each from the value that describes it: a compact text as its flag takes it, or a table.
//!
//! Relies on the types of `vm/` for what texts mean; [`super`] puts the parts together.

use std::path::PathBuf;

use super::reading::{Form, Named, Problem, Section, Value, Written};
use crate::boot::{Entry, Flat};
use crate::console::{self, Place};
use crate::memory::Options;
use crate::size;
use crate::vm::config;
use crate::vm::console::check_name;
use crate::vm::{BalloonSpec, ConsoleSpec, CpusSpec, DiskSpec, MemorySpec, PortSpec};
use crate::x86::model::CpuModel;

/// What a word is, for those who wrote something else.
pub(super) const WORD: &str = "a word in quotes";
const NUMBER: &str = "a whole number";
const SIZE: &str = "a size, as in \"512M\"";

pub(super) fn memory(value: Value<'_>) -> Result<MemorySpec, Problem> {
    let named = value.named.clone();
    const WANTED: &str = "a size, as in \"512M\", or a table, as in { size = \"512M\", prefault = true }";
    match value.written(WANTED)? {
        Written::Compact(text) => text.parse().map_err(|error| named.wrong(error)),
        Written::Table(mut table) => {
            let size = table.with("size", memory_size)?;
            let mut switch = |key| Ok(table.with(key, Value::switch)?.unwrap_or_default());
            let options = Options {
                hugepages: switch("hugepages")?,
                hugetlb: switch("hugetlb")?,
                prefault: switch("prefault")?,
                mergeable: switch("mergeable")?,
            };
            table.finish()?;
            let size = size.unwrap_or(MemorySpec::default().size);
            MemorySpec { size, options }.checked().map_err(|error| named.wrong(error))
        }
    }
}

fn memory_size(value: Value<'_>) -> Result<u64, Problem> {
    let named = value.named.clone();
    config::memory_size(&value.compact(SIZE)?).map_err(|error| named.wrong(error))
}

fn size(value: Value<'_>) -> Result<u64, Problem> {
    let named = value.named.clone();
    size::parse(&value.compact(SIZE)?).map_err(|error| named.wrong(error))
}

pub(super) fn cpus(value: Value<'_>) -> Result<CpusSpec, Problem> {
    let named = value.named.clone();
    const WANTED: &str =
        "a number, a text, as in \"8,threads=2\", or a table, as in { count = 8, threads = 2 }";
    match value.written(WANTED)? {
        Written::Compact(text) => text.parse().map_err(|error| named.wrong(error)),
        Written::Table(mut table) => {
            let mut number = |key| table.with(key, |value| value.parsed::<u32>(NUMBER));
            let (count, levels) =
                (number("count")?, [number("sockets")?, number("cores")?, number("threads")?]);
            table.finish()?;
            CpusSpec::arranged(count, levels).map_err(|error| named.wrong(error))
        }
    }
}

pub(super) fn cpu(value: Value<'_>) -> Result<CpuModel, Problem> {
    let named = value.named.clone();
    const WANTED: &str =
        "a text, as in \"baseline,+aes\", or a table, as in { model = \"baseline\", flags = [\"+aes\"] }";
    let text = match value.written(WANTED)? {
        Written::Compact(text) => text,
        Written::Table(mut table) => {
            let model = table.with("model", Value::text)?;
            let flags = table.with("flags", Value::texts)?.unwrap_or_default();
            table.finish()?;
            let model = model.unwrap_or_else(|| CpuModel::default().to_string());
            [model].into_iter().chain(flags).collect::<Vec<_>>().join(",")
        }
    };
    text.parse().map_err(|error| named.wrong(error))
}

/// What is booted, and how.
#[derive(Default)]
pub(super) struct Booted {
    pub path: Option<PathBuf>,
    pub entry: Entry,
    pub flat: Option<Flat>,
    pub cmdline: Option<String>,
    pub append: Vec<String>,
    pub initrds: Vec<PathBuf>,
}

pub(super) fn kernel(value: Value<'_>) -> Result<Booted, Problem> {
    let named = value.named.clone();
    const WANTED: &str = "a path, or a table, as in [kernel] with path, initrd, cmdline";
    let mut table = match value.written(WANTED)? {
        Written::Compact(path) if path.is_empty() => return Err(named.wrong("an empty path leads nowhere")),
        Written::Compact(path) => return Ok(Booted { path: Some(path.into()), ..Booted::default() }),
        Written::Table(table) => table,
    };
    let booted = Booted {
        path: table.with("path", Value::path)?,
        entry: table.with("entry", |value| value.parsed(WORD))?.unwrap_or_default(),
        flat: table.with("flat", flat)?,
        cmdline: table.with("cmdline", Value::text)?,
        append: table.with("append", Value::texts)?.unwrap_or_default(),
        initrds: all(table.take("initrd"), Value::path)?,
    };
    table.finish()?;
    match booted {
        Booted { path: None, flat: Some(_), .. } => {
            Err(named.wrong("`flat` says how `path` is loaded, and there is none"))
        }
        booted => Ok(booted),
    }
}

fn flat(value: Value<'_>) -> Result<Flat, Problem> {
    let named = value.named.clone();
    const WANTED: &str =
        "a text, as in \"0x7c00,real\", or a table, as in { address = 0x7c00, mode = \"real\" }";
    let text = match value.written(WANTED)? {
        Written::Compact(text) => text,
        Written::Table(mut table) => {
            let default = Flat::default();
            let address = table.with("address", |value| value.compact(NUMBER))?;
            let mode = table.with("mode", Value::text)?;
            table.finish()?;
            let address = address.unwrap_or_else(|| default.address.to_string());
            format!("{address},{}", mode.as_deref().unwrap_or("long"))
        }
    };
    text.parse().map_err(|error| named.wrong(error))
}

pub(super) fn balloon(value: Value<'_>) -> Result<Option<BalloonSpec>, Problem> {
    let named = value.named.clone();
    match value
        .form("a size, as in \"64M\", true, or a table, as in { size = \"64M\", reporting = false }")?
    {
        Form::Compact(text) => text.parse().map(Some).map_err(|error| named.wrong(error)),
        Form::Switch(set) => Ok(set.then(BalloonSpec::default)),
        Form::Table(mut table) => {
            let default = BalloonSpec::default();
            let target = table.with("size", size)?.unwrap_or(default.target);
            let reporting = table.with("reporting", Value::switch)?.unwrap_or(default.reporting);
            table.finish()?;
            Ok(Some(BalloonSpec { target, reporting }))
        }
    }
}

pub(super) fn console(value: Value<'_>) -> Result<ConsoleSpec, Problem> {
    let named = value.named.clone();
    const WANTED: &str =
        "a text, as in \"virtio,pty\", or a table, as in { virtio = true, file = \"console.log\" }";
    match value.written(WANTED)? {
        Written::Compact(text) => text.parse().map_err(|error| named.wrong(error)),
        Written::Table(mut table) => {
            let virtio = table.with("virtio", Value::switch)?.unwrap_or_default();
            let place = table.with("place", |value| value.parsed(WORD))?;
            let file = table.with("file", Value::path)?;
            table.finish()?;
            let place = match (place, file) {
                (Some(_), Some(_)) => return Err(named.wrong("`place` and `file` exclude each other")),
                (None, Some(path)) => console::Spec::File(path),
                (place, None) => place.unwrap_or_default(),
            };
            Ok(ConsoleSpec { virtio, place })
        }
    }
}

pub(super) fn disk(value: Value<'_>) -> Result<DiskSpec, Problem> {
    let named = value.named.clone();
    const WANTED: &str = "a text, as in \"disk.img,ro\", or a table, as in [[disk]] with path";
    match value.written(WANTED)? {
        Written::Compact(text) => text.parse().map_err(|error| named.wrong(error)),
        Written::Table(table) => disk_table(&named, table),
    }
}

/// Its options are those of the flag, and are taken as that takes them.
fn disk_table(named: &Named, mut table: Section<'_>) -> Result<DiskSpec, Problem> {
    let path = table.with("path", Value::path)?;
    let mut options = Vec::new();
    if let Some(value) = table.take("ephemeral") {
        options.push((value.named.clone(), format!("size={}", value.compact(SIZE)?)));
    }
    let is_ephemeral = !options.is_empty();
    for key in ["ro", "direct", "verify"] {
        let Some(value) = table.take(key) else { continue };
        let named = value.named.clone();
        if value.switch()? {
            options.push((named, key.to_owned()));
        }
    }
    if let Some(value) = table.take("overlay") {
        let named = value.named.clone();
        match value.form("a path, or true for one that is forgotten")? {
            Form::Compact(path) => options.push((named, format!("overlay={path}"))),
            Form::Switch(true) => options.push((named, "overlay".to_owned())),
            Form::Switch(false) => {}
            Form::Table(_) => return Err(named.is_not("a table", "a path, or true")),
        }
    }
    for (key, wanted) in [("format", WORD), ("queues", NUMBER), ("serial", WORD)] {
        if let Some(value) = table.take(key) {
            options.push((value.named.clone(), format!("{key}={}", value.compact(wanted)?)));
        }
    }
    for key in ["bps", "iops"] {
        if let Some(value) = table.take(key) {
            options.push((value.named.clone(), format!("{key}={}", rate(value)?)));
        }
    }
    table.finish()?;
    let mut disk = match (path, is_ephemeral) {
        (Some(path), false) => DiskSpec::new(path),
        (None, true) => DiskSpec::ephemeral(),
        (Some(_), true) => {
            return Err(named.wrong("`path` and `ephemeral` exclude each other: a disk has a file or none"));
        }
        (None, false) => {
            return Err(named.wrong(
                "a disk has the `path` of an image, or no file and a size, as in ephemeral = \"1G\"",
            ));
        }
    };
    for (named, option) in &options {
        disk.option(option).map_err(|error| named.wrong(error))?;
    }
    disk.checked().map_err(|error| named.wrong(error))
}

/// A limit, as its flag takes it.
fn rate(value: Value<'_>) -> Result<String, Problem> {
    const WANTED: &str = "a text, as in \"20M+100M\", or a table, as in { rate = \"20M\", burst = \"100M\" }";
    let named = value.named.clone();
    match value.written(WANTED)? {
        Written::Compact(text) => Ok(text),
        Written::Table(mut table) => {
            let rate = table.with("rate", |value| value.compact("so much a second"))?;
            let burst = table.with("burst", |value| value.compact("so much at once"))?;
            table.finish()?;
            let rate = rate.ok_or_else(|| named.wrong("a limit has a `rate`, so much a second"))?;
            Ok(burst.map_or_else(|| rate.clone(), |burst| format!("{rate}+{burst}")))
        }
    }
}

pub(super) fn port(value: Value<'_>) -> Result<PortSpec, Problem> {
    let named = value.named.clone();
    const WANTED: &str = "a text, as in \"agent,pty\", or a table, as in [[port]] with name and socket";
    let mut table = match value.written(WANTED)? {
        Written::Compact(text) => return text.parse().map_err(|error| named.wrong(error)),
        Written::Table(table) => table,
    };
    let name = table.with("name", Value::text)?;
    let socket = table.with("socket", Value::path)?.map(Place::Socket);
    let file = table.with("file", Value::path)?.map(Place::File);
    let pty = table.with("pty", Value::switch)?.unwrap_or_default().then_some(Place::Pty);
    table.finish()?;
    let name = name.ok_or_else(|| named.wrong("a port has a `name`, by which the guest finds it"))?;
    check_name(&name).map_err(|error| named.wrong(error))?;
    let mut places = socket.into_iter().chain(file).chain(pty);
    match (places.next(), places.next()) {
        (Some(place), None) => Ok(PortSpec { name, place }),
        _ => Err(named.wrong("a port leads to one place: socket = \"PATH\", file = \"PATH\" or pty = true")),
    }
}

/// All of a list.
pub(super) fn all<'t, T>(
    list: Option<Value<'t>>,
    read: impl Fn(Value<'t>) -> Result<T, Problem>,
) -> Result<Vec<T>, Problem> {
    list.map_or_else(Vec::new, Value::list).into_iter().map(read).collect()
}
