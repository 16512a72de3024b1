//! What a snapshot says of disks, and what a machine that goes on is to have in their place.

use std::ffi::OsStr;
use std::fs::File;
use std::iter;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::super::{Changes, DiskSource, DiskSpec, disk_name};
use super::attached::{absolute, is_same};
use super::{DiskMode, DisksError};
use crate::memory::human;
use crate::saved::Saved;
use crate::snapshot::{self, DISKS, Snapshot, checksum, is_disk_name};
use crate::storage::{self, Disk, DiskOptions, Format, Identity, Layer, Storage, tools};

/// The disks of a machine, as a snapshot keeps them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedDisks {
    disks: Vec<SavedDisk>,
}

impl Saved for SavedDisks {
    const NAME: &'static str = DISKS;
    /// 1 had no checksums of the images that are in the snapshot.
    const VERSION: u16 = 2;
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SavedDisk {
    /// What it was called in messages.
    name: String,
    serial: String,
    size: u64,
    read_only: bool,
    mode: DiskMode,
    /// The image first, and then what lies behind each.
    pub images: Vec<SavedImage>,
    /// Where the machine went on, if that stays when it ends.
    went_on_in: Option<Vec<u8>>,
}

/// A file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SavedImage {
    place: Place,
    qcow2: bool,
    len: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Place {
    /// In the snapshot's directory, under this name. The checksum is made when the machine need not wait for it any
    /// more, and is zeroes until then.
    Inside { name: String, checksum: [u8; 32] },
    /// Elsewhere, under this full name.
    Outside { path: Vec<u8>, modified: (i64, i64), device: u64, inode: u64 },
}

/// What there is to say of a disk that was kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct DiskLook {
    /// How it was kept.
    pub mode: DiskMode,
    /// How large the disk is.
    pub size: u64,
    /// Whether its guest only reads it.
    pub read_only: bool,
    /// What it consists of, the image first; without a directory above what is in that of the snapshot.
    pub images: Vec<PathBuf>,
    /// The overlay that the machine went on in, if that is a file that stays.
    pub went_on_in: Option<PathBuf>,
}

/// What is to be different from how disks are reopened by default. Disks are known by their number, from 0 on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reopening {
    /// Where images are that are not where they were.
    pub replaced: Vec<(usize, PathBuf)>,
    /// The overlays that hold what the guest writes to a disk, in place of one that goes away with the machine. They
    /// are made, or are as they were made: what was written to one before does not go with the snapshot's memory.
    pub overlays: Vec<(usize, PathBuf)>,
    /// Whether disks that were kept by reference are written to again. This uses the snapshot up.
    pub write_references: bool,
    /// Whether images that are in the snapshot are read, and compared with their checksums.
    pub compare: bool,
}

impl SavedDisks {
    pub(super) fn new(disks: Vec<SavedDisk>) -> Self {
        Self { disks }
    }

    /// What a snapshot says of its disks, if it says anything: it need not, for those who take care of them otherwise.
    pub fn of(snapshot: &Snapshot) -> Result<Option<Self>, snapshot::Error> {
        snapshot.section(DISKS)
    }

    /// What there is to say of each.
    pub fn look(&self) -> Vec<DiskLook> {
        let path = |bytes: &Vec<u8>| PathBuf::from(OsStr::from_bytes(bytes));
        let image = |image: &SavedImage| match &image.place {
            Place::Inside { name, .. } => Path::new(DISKS).join(name),
            Place::Outside { path: bytes, .. } => path(bytes),
        };
        let look = |disk: &SavedDisk| DiskLook {
            mode: disk.mode,
            size: disk.size,
            read_only: disk.read_only,
            images: disk.images.iter().map(image).collect(),
            went_on_in: disk.went_on_in.as_ref().map(path),
        };
        self.disks.iter().map(look).collect()
    }

    /// Notes what is in the images that are in the snapshot, which is being written in `draft`: nobody writes to them any
    /// more.
    pub(in crate::vm) fn add_checksums(&mut self, draft: &Path) -> Result<(), snapshot::Error> {
        for image in self.disks.iter_mut().flat_map(|disk| &mut disk.images) {
            if let Place::Inside { name, checksum } = &mut image.place {
                let path = draft.join(DISKS).join(name);
                let made = File::open(&path).and_then(|file| checksum::of_file(&file));
                *checksum = made.map_err(snapshot::Error::io("read", &path))?;
            }
        }
        Ok(())
    }

    /// Looks at all images as a restore does, and reads those that are in the snapshot in `snapshot_dir`, to compare
    /// them with their checksums.
    pub fn check(&self, snapshot_dir: &Path, reopening: &Reopening) -> Result<(), DisksError> {
        let directory = snapshot::resolved(snapshot_dir);
        self.disks.iter().enumerate().try_for_each(|(number, disk)| {
            let replaced = find(&reopening.replaced, number);
            disk.check_images(&Search { number, directory: &directory, replaced: replaced.as_deref() }, true)
        })
    }

    /// The disks that a machine is to have which goes on from the snapshot in `snapshot_dir`, and which is `described`
    /// with these. All images are looked at: one that is missing, in use by somebody who writes, or not what it was is
    /// an error that names it.
    pub fn specs(
        &self,
        snapshot_dir: &Path,
        described: &[DiskSpec],
        reopening: &Reopening,
    ) -> Result<Vec<DiskSpec>, DisksError> {
        let (saved, asked) = (self.disks.len(), described.len());
        if saved != asked {
            return Err(DisksError::Count { saved, asked });
        }
        let named = reopening.replaced.iter().chain(&reopening.overlays).map(|&(number, _)| number);
        if let Some(number) = named.into_iter().find(|&number| number >= saved) {
            return Err(DisksError::NoSuchDisk { number, disks: saved });
        }
        let directory = snapshot::resolved(snapshot_dir);
        let disks = self.disks.iter().zip(described).enumerate();
        disks
            .map(|(number, (disk, described))| {
                disk.check_description(described)?;
                let replaced = find(&reopening.replaced, number);
                let search = Search { number, directory: &directory, replaced: replaced.as_deref() };
                disk.check_images(&search, reopening.compare)?;
                let overlay = find(&reopening.overlays, number);
                if reopening.write_references && overlay.is_none() {
                    disk.check_written(number, described)?;
                }
                disk.spec(&directory, described, replaced, overlay, reopening.write_references)
            })
            .collect()
    }
}

/// Where the images of a disk are to be.
struct Search<'a> {
    /// Which disk it is.
    number: usize,
    /// Where the snapshot is.
    directory: &'a Path,
    /// Where the user says that the first one is.
    replaced: Option<&'a Path>,
}

/// What is said last of a disk.
fn find(list: &[(usize, PathBuf)], number: usize) -> Option<PathBuf> {
    list.iter().rev().find(|(of, _)| *of == number).map(|(_, path)| path.clone())
}

impl SavedDisk {
    pub fn of(spec: &DiskSpec, size: u64, mode: DiskMode, name: String) -> Self {
        Self {
            name,
            serial: spec.serial().to_owned(),
            size,
            read_only: spec.read_only,
            mode,
            images: Vec::new(),
            went_on_in: None,
        }
    }

    pub fn goes_on_in(&mut self, path: &Path) {
        self.went_on_in = Some(path.as_os_str().as_bytes().to_vec());
    }

    /// Fails if the guest would see another disk.
    fn check_description(&self, described: &DiskSpec) -> Result<(), DisksError> {
        let differs = |saved: String, asked: String| {
            Err(DisksError::Described { disk: self.name.clone(), saved, asked })
        };
        let ways =
            |read_only| if read_only { "one that is only read (ro)" } else { "one that can be written to" };
        if self.serial != described.serial() {
            let serial = |serial: &str| format!("one with the serial number {serial:?}");
            return differs(serial(&self.serial), serial(described.serial()));
        }
        if self.read_only != described.read_only {
            return differs(ways(self.read_only).to_owned(), ways(described.read_only).to_owned());
        }
        match described.source {
            DiskSource::Ephemeral { size } if size != self.size => {
                differs(format!("one of {}", human(self.size)), format!("one of {}", human(size)))
            }
            _ => Ok(()),
        }
    }

    fn first(&self) -> Result<&SavedImage, DisksError> {
        self.images.first().ok_or(DisksError::Inconsistent("a disk has no image"))
    }

    /// Looks at all images that the disk consists of, and `reads` those that have checksums.
    fn check_images(&self, search: &Search<'_>, reads: bool) -> Result<(), DisksError> {
        let first = self.first()?;
        let path = match search.replaced {
            Some(path) => path.to_owned(),
            None => first.path(search.directory)?,
        };
        self.check_all_there(search, &path)?;
        let options = DiskOptions { read_only: true, format: Some(first.format()), ..DiskOptions::default() };
        let disk = Disk::open(&path, &options).map_err(DisksError::image(&self.name))?;
        if disk.size() != self.size {
            let what = format!(
                "{} holds a disk of {} bytes, and held {} when the snapshot was taken",
                path.display(),
                disk.size(),
                self.size
            );
            return Err(self.changed(what, search));
        }
        let (found, expected) = (disk.layers().len(), self.images.len());
        if found != expected {
            let what = format!(
                "{} and what lies behind it are {found} images, and were {expected} when the snapshot was taken",
                path.display()
            );
            return Err(self.changed(what, search));
        }
        for (layer, image) in disk.layers().iter().zip(&self.images) {
            let moved = search.replaced.is_some();
            image.check(layer, moved).map_err(|what| self.changed(what, search))?;
            if reads && !image.holds_what_was_written(layer).map_err(DisksError::image(&self.name))? {
                return Err(self.changed(format!("{} is not what was written", layer.path.display()), search));
            }
        }
        Ok(())
    }

    /// Fails if the image at `path` is not there, or one that lies behind it, unless that may be elsewhere, too.
    fn check_all_there(&self, search: &Search<'_>, path: &Path) -> Result<(), DisksError> {
        let behind = self.images.iter().skip(1).filter(|_| search.replaced.is_none());
        let behind = behind.map(|image| image.path(search.directory)).collect::<Result<Vec<_>, _>>()?;
        let disk = self.name.clone();
        match iter::once(path.to_owned()).chain(behind).find(|path| !path.try_exists().unwrap_or(true)) {
            None => Ok(()),
            Some(image) if image == path => {
                Err(DisksError::Missing { disk, name: disk_name(search.number), image })
            }
            Some(image) => Err(DisksError::MissingBehind { disk, image }),
        }
    }

    fn changed(&self, what: String, search: &Search<'_>) -> DisksError {
        let is_copy = self.mode == DiskMode::Copy || self.first().is_ok_and(SavedImage::is_inside);
        let damaged = if is_copy && search.replaced.is_none() { "the snapshot is damaged: " } else { "" };
        let advice = format!(
            "{damaged}bring it back to what it was, or say where a copy of that is (--disk {}=FILE)",
            disk_name(search.number)
        );
        DisksError::Changed { disk: self.name.clone(), what, advice }
    }

    /// Fails if there is an overlay already that was written to, or that shows something else than `base`. The guest
    /// remembers the disk as the snapshot has it.
    fn check_overlay(&self, overlay: &Path, base: &Path) -> Result<(), DisksError> {
        let refused = |what: String| self.no_overlay(overlay, what);
        let failed = |error: storage::Error| self.no_overlay(overlay, error.to_string());
        if !overlay.try_exists().map_err(|error| refused(error.to_string()))? {
            let directory = overlay.parent().filter(|directory| !directory.as_os_str().is_empty());
            return match directory.is_none_or(Path::is_dir) {
                true => Ok(()),
                false => Err(refused("its directory is not there; make that first".to_owned())),
            };
        }
        let options = DiskOptions { read_only: true, format: Some(Format::Qcow2), ..DiskOptions::default() };
        let disk = Disk::open(overlay, &options).map_err(failed)?;
        let lies_on_base = disk.layers().get(1).is_some_and(|layer| is_same(&layer.path, base));
        let what = if !lies_on_base || disk.size() != self.size {
            "it is no overlay of what the snapshot has"
        } else if !tools::holds_nothing(&disk).map_err(failed)? {
            "it was written to, and what is in it does not go with the snapshot's memory"
        } else {
            return Ok(());
        };
        Err(refused(format!("{what}; name a file that is not there yet, or remove this one")))
    }

    fn no_overlay(&self, overlay: &Path, what: String) -> DisksError {
        DisksError::Overlay { disk: self.name.clone(), overlay: overlay.to_owned(), what }
    }

    /// Fails if what its guest changes would be forgotten, and was not before.
    fn check_written(&self, number: usize, described: &DiskSpec) -> Result<(), DisksError> {
        let was_kept =
            matches!(&described.source, DiskSource::Image { changes, .. } if *changes != Changes::Forgotten);
        if self.mode == DiskMode::Reference || self.read_only || !was_kept {
            return Ok(());
        }
        Err(DisksError::NotWritten { disk: self.name.clone(), mode: self.mode, name: disk_name(number) })
    }

    /// What the machine is to have, if all that it needs is there.
    fn spec(
        &self,
        directory: &Path,
        described: &DiskSpec,
        replaced: Option<PathBuf>,
        overlay: Option<PathBuf>,
        write_references: bool,
    ) -> Result<DiskSpec, DisksError> {
        let first = self.first()?;
        let path = match replaced {
            Some(path) => absolute(&path),
            None => first.path(directory)?,
        };
        let verified = matches!(described.source, DiskSource::Image { verify: true, .. });
        let image = |path, format: Format, changes, verify| DiskSource::Image {
            path,
            format: Some(format),
            changes,
            verify,
        };
        let written = write_references && self.mode == DiskMode::Reference && !self.read_only;
        let source = match overlay {
            Some(overlay) if self.read_only => {
                return Err(self.no_overlay(&overlay, "it is only read, so there are none".to_owned()));
            }
            Some(overlay) if written => {
                let what = "its image is written to itself (--write-disks); leave one of the two out";
                return Err(self.no_overlay(&overlay, what.to_owned()));
            }
            Some(overlay) => {
                self.check_overlay(&overlay, &path)?;
                image(path, first.format(), Changes::Overlay(overlay), false)
            }
            None if self.read_only => image(path, first.format(), Changes::Image, verified),
            None if !written => image(path, first.format(), Changes::Forgotten, false),
            None => match (verified, self.images.get(1)) {
                // What lies behind an overlay that was kept.
                (true, Some(base)) => {
                    let changes = Changes::Overlay(path);
                    image(base.path(directory)?, base.format(), changes, true)
                }
                _ => image(path, first.format(), Changes::Image, false),
            },
        };
        if verified && !matches!(source, DiskSource::Image { verify: true, .. }) {
            log::warn!(
                "what is read of {} is not verified any more: it lies behind an image without hashes",
                self.name
            );
        }
        Ok(DiskSpec { source, ..described.clone() })
    }
}

impl SavedImage {
    pub fn inside(name: String, format: Format, len: u64) -> Self {
        let place = Place::Inside { name, checksum: [0; 32] };
        Self { place, qcow2: format == Format::Qcow2, len }
    }

    pub fn outside(path: &Path, format: Format, found: &Identity) -> Self {
        let &Identity { device, inode, len, modified, changed: _, allocated: _ } = found;
        let path = path.as_os_str().as_bytes().to_vec();
        let place = Place::Outside { path, modified, device, inode };
        Self { place, qcow2: format == Format::Qcow2, len }
    }

    fn is_inside(&self) -> bool {
        matches!(self.place, Place::Inside { .. })
    }

    fn format(&self) -> Format {
        if self.qcow2 { Format::Qcow2 } else { Format::Raw }
    }

    fn path(&self, directory: &Path) -> Result<PathBuf, DisksError> {
        match &self.place {
            Place::Inside { name, .. } if is_disk_name(name) => Ok(directory.join(DISKS).join(name)),
            Place::Inside { .. } => Err(DisksError::Inconsistent("an image has a name that none has")),
            Place::Outside { path, .. } => Ok(PathBuf::from(OsStr::from_bytes(path))),
        }
    }

    /// Whether its content is that of which there is a checksum, if there is one.
    fn holds_what_was_written(&self, found: &Layer) -> Result<bool, storage::Error> {
        let Place::Inside { checksum, .. } = &self.place else { return Ok(true) };
        let made = File::open(&found.path).and_then(|file| {
            // The one that is locked and was looked at, and not one that has got its name since.
            let is_same = Identity::of(&file)?.is_same_file(found.identity());
            Ok(is_same && checksum::of_file(&file)? == *checksum)
        });
        made.map_err(storage::Error::io("read", &found.path))
    }

    /// Fails with what is different. An image that the user says to be elsewhere now, and what lies behind that, may
    /// have got another time there.
    fn check(&self, found: &Layer, moved: bool) -> Result<(), String> {
        let (path, now) = (found.path.display(), found.identity());
        if found.format != self.format() {
            return Err(format!("{path} is {} and was {}", found.format, self.format()));
        }
        if now.len != self.len {
            return Err(format!(
                "{path} has {} bytes, and had {} when the snapshot was taken",
                now.len, self.len
            ));
        }
        let &Place::Outside { modified, device, inode, .. } = &self.place else { return Ok(()) };
        // The very file that it was has no other time because it was copied.
        let moved = moved && (now.device, now.inode) != (device, inode);
        if now.modified != modified {
            let what = format!("{path} was written to since the snapshot was taken");
            if !moved {
                return Err(what);
            }
            log::warn!("{what}, or it is a copy that has another time: it is taken for what it was");
        } else if (now.device, now.inode) != (device, inode) {
            log::warn!(
                "{path} is another file than the one that the snapshot was taken of, with the same length and time"
            );
        }
        Ok(())
    }
}
