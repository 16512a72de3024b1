//! The image of a disk, as a machine has it open.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::super::directory::{Files, ROOM, named_room};
use super::super::machine::Machine;
use super::super::{Changes, DiskSource, DiskSpec, Error};
use crate::hv::Vm;
use crate::storage::{self, Disk, DiskOptions, Format, Storage, Verified, tools};
use crate::threads::lock;

/// A disk's image, and what the machine has to know of it besides.
#[derive(Clone)]
pub(in crate::vm) struct Attached {
    pub opened: Opened,
    pub spec: DiskSpec,
    /// How many of its images, from the first on, are the machine's own and go away with it.
    pub own: usize,
}

#[derive(Clone)]
pub(in crate::vm) enum Opened {
    Plain(Arc<Disk>),
    Verified(Arc<Verified>),
}

/// Where a disk's bytes are at the moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct DiskImage {
    /// The file that is written to; none if the disk has no file with a name.
    pub path: Option<PathBuf>,
    /// What it is.
    pub format: Format,
    /// Whether it goes away with the machine.
    pub forgotten: bool,
    /// What lies behind it, the nearest first.
    pub behind: Vec<PathBuf>,
}

impl Attached {
    fn new(opened: Opened, spec: &DiskSpec, own: usize) -> Self {
        Self { opened, spec: spec.clone(), own }
    }

    pub fn disk(&self) -> &Disk {
        match &self.opened {
            Opened::Plain(disk) => disk,
            Opened::Verified(disk) => disk.disk(),
        }
    }

    pub fn storage(&self) -> Arc<dyn Storage> {
        match &self.opened {
            Opened::Plain(disk) => Arc::clone(disk) as _,
            Opened::Verified(disk) => Arc::clone(disk) as _,
        }
    }

    /// Whether its first image has no name.
    pub fn is_nameless(&self) -> bool {
        matches!(self.spec.source, DiskSource::Ephemeral { .. }) && self.own == 1
    }

    /// What describes it as it is now: a snapshot may have had it go on in an overlay. What is forgotten with the machine
    /// is described as it was.
    pub fn spec_now(&self) -> DiskSpec {
        let mut spec = self.spec.clone();
        if let (DiskSource::Image { path, format, changes, .. }, [first, behind, ..]) =
            (&mut spec.source, self.disk().layers())
        {
            let written = match changes {
                Changes::Image => &*path,
                Changes::Overlay(overlay) => overlay,
                Changes::Forgotten => return spec,
            };
            if !is_same(written, &first.path) {
                (*path, *format) = (behind.path.clone(), format.and(Some(behind.format)));
                *changes = Changes::Overlay(first.path.clone());
            }
        }
        spec
    }

    pub fn look(&self) -> DiskImage {
        let mut paths = self.disk().layers().iter().map(|layer| absolute(&layer.path));
        let first = paths.next();
        DiskImage {
            path: first.filter(|_| !self.is_nameless()),
            format: self.disk().format(),
            forgotten: self.own > 0,
            behind: paths.collect(),
        }
    }
}

impl<V: Vm> Machine<V> {
    /// Its disks, as they are described now.
    pub fn disk_specs(&self) -> Vec<DiskSpec> {
        lock(&self.images).iter().map(Attached::spec_now).collect()
    }
}

/// Where a file is, wherever somebody else is who is told that.
pub(super) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Whether two paths lead to one file: one path does, even if nothing is there any more.
pub(super) fn is_same(one: &Path, other: &Path) -> bool {
    one == other || matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

/// Opens the disk that the guest finds as the one of this number.
pub(in crate::vm) fn open(spec: &DiskSpec, number: usize, files: &Files) -> Result<Attached, Error> {
    let options = |format| DiskOptions {
        read_only: spec.read_only,
        direct: spec.direct,
        format,
        ..DiskOptions::default()
    };
    let attached = |disk, own| Attached::new(Opened::Plain(Arc::new(disk)), spec, own);
    let (path, format, changes, verify) = match &spec.source {
        DiskSource::Ephemeral { size } => {
            return Ok(attached(Disk::ephemeral(&roomy(), *size, &options(None))?, 1));
        }
        DiskSource::Image { path, format, changes, verify } => (path, *format, changes, *verify),
    };
    let of_overlay = DiskOptions { verify_backing: verify, ..options(Some(Format::Qcow2)) };
    match changes {
        Changes::Image => {
            let opened = Disk::open(path, &options(format))?;
            if verify {
                let opened = Opened::Verified(Arc::new(Verified::new(opened)?));
                return Ok(Attached::new(opened, spec, 0));
            }
            Ok(attached(opened, 0))
        }
        Changes::Overlay(overlay) => {
            if !overlay.exists() {
                tools::create_overlay(overlay, path, format, None, false)?;
            }
            let opened = Disk::open(overlay, &of_overlay)?;
            check_backing(&opened, overlay, path)?;
            Ok(attached(opened, 0))
        }
        Changes::Forgotten => {
            let overlay = files.large(&own_name(number, 0, Format::Qcow2))?;
            tools::create_overlay(&overlay, path, format, None, false)?;
            Ok(attached(Disk::open(&overlay, &of_overlay)?, 1))
        }
    }
}

/// What the images are called that are a machine's own, in its directory as well as in that of a snapshot: they name
/// each other without a directory, and so find each other in both.
pub(super) fn own_name(number: usize, index: usize, format: Format) -> String {
    match index {
        0 => format!("disk{number}.{format}"),
        _ => format!("disk{number}.{index}.{format}"),
    }
}

/// Where a disk without a name is: where there is room, as for overlays that are forgotten.
fn roomy() -> PathBuf {
    named_room().unwrap_or_else(|| if Path::new(ROOM).is_dir() { ROOM.into() } else { "/tmp".into() })
}

/// Fails if an overlay that was there already is one of something else.
fn check_backing(disk: &Disk, overlay: &Path, base: &Path) -> Result<(), storage::Error> {
    if disk.layers().get(1).is_some_and(|layer| is_same(&layer.path, base)) {
        return Ok(());
    }
    let source = io::Error::other(format!("it is no overlay of {}", base.display()));
    Err(storage::Error::Io { action: "use the overlay", path: overlay.to_owned(), source })
}
