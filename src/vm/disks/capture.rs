//! Keeping the disks of a machine that rests.
//!
//! First everything is prepared that can fail: copies, links, fresh overlays. Only then the devices exchange what they
//! store in, one after the other. What was prepared in vain is removed; what is in the snapshot's directory goes with
//! the draft.
//!
//! An image of the user's is frozen where it is, and the overlay lies beside it, as it has to outlive the machine. The
//! machine's own images go away with it: they get a second name in the snapshot's directory. All of a chain's do, so
//! that no snapshot needs another one.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::super::directory::Files;
use super::super::machine::Machine;
use super::super::{DiskSource, Error, disk_name};
use super::attached::{Attached, Opened, own_name};
use super::saved::{SavedDisk, SavedDisks, SavedImage};
use super::{DiskMode, DisksError};
use crate::hv::Vm;
use crate::snapshot::DISKS;
use crate::storage::{self, Disk, Format, Identity, Storage, tools};
use crate::threads::lock;

/// Stands between the name of an image and what its overlay was made for.
const AFTER: &str = ".after-";
/// How many names are tried for an overlay beside a user's image.
const MOST_NAMES: u32 = 1000;

/// What came of a machine's disks.
#[derive(Debug)]
pub struct KeptDisks {
    /// What the snapshot says of them.
    pub saved: SavedDisks,
    /// How many bytes were copied, while the machine rested, that could have stayed where they were: with the disks in
    /// overlays, and the snapshot on the file system of the machine's own images.
    pub copied: u64,
}

impl<V: Vm> Machine<V> {
    /// Keeps the disks in the snapshot that is being written in `draft_dir`, all in the same way or, if none is said,
    /// each in [that which fits it](DiskMode::default_for). What is only read is always kept by reference. The machine
    /// has to be paused; `stops` says that it will not go on.
    ///
    /// Disks that are kept by overlay are in that from now on, whatever becomes of the snapshot.
    pub fn capture_disks(
        &self,
        mode: impl Into<Option<DiskMode>>,
        draft_dir: &Path,
        stops: bool,
    ) -> Result<KeptDisks, Error> {
        self.check_at_rest()?;
        let mode = mode.into();
        let _turn = lock(&self.keeping);
        // Copies may take long, and whoever looks at the machine does not wait for them.
        let images = lock(&self.images).clone();
        let capture = Capture::new(draft_dir, &self.files, stops)?;
        let images_now = images.iter().enumerate();
        let modes = images_now.map(|(number, image)| capture.choose(number, image, mode));
        let modes = modes.collect::<Result<Vec<_>, _>>()?;
        let (mut saved, mut switches, mut copied) = (Vec::new(), Vec::new(), 0);
        for ((number, image), mode) in images.iter().enumerate().zip(modes) {
            let Kept { disk, switch, copied: bytes } = capture.keep(number, image, mode)?;
            saved.push(disk);
            switches.push(switch);
            copied += bytes;
        }
        self.carry_out(switches)?;
        Ok(KeptDisks { saved: SavedDisks::new(saved), copied })
    }

    fn carry_out(&self, switches: Vec<Option<Switch>>) -> Result<(), DisksError> {
        for (number, switch) in switches.into_iter().enumerate() {
            let Some(switch) = switch else { continue };
            let mut images = lock(&self.images);
            if let (Some(image), Some(disk)) = (images.get_mut(number), self.disks.get(number)) {
                let name = image.name(number);
                let storage = Arc::clone(&switch.overlay) as Arc<dyn Storage>;
                let exchanged = disk.exchange_storage(&storage);
                exchanged.map_err(|source| DisksError::Exchange { disk: name, source })?;
                switch.carry_out(image);
            }
        }
        Ok(())
    }
}

impl Attached {
    /// What it is called in messages.
    pub fn name(&self, number: usize) -> String {
        match self.spec.source {
            DiskSource::Ephemeral { .. } => format!("{} (ephemeral)", disk_name(number)),
            DiskSource::Image { ref path, .. } => format!("{} ({})", disk_name(number), path.display()),
        }
    }

    fn is_block_device(&self) -> bool {
        self.disk().file().metadata().is_ok_and(|status| status.file_type().is_block_device())
    }

    fn verifies(&self) -> bool {
        matches!(self.spec.source, DiskSource::Image { verify: true, .. })
    }
}

/// A fresh overlay that a disk is to go on in. Removed unless that happens.
struct Switch {
    overlay: Arc<Disk>,
    own: usize,
    done: bool,
}

impl Switch {
    /// The device stores in the overlay already.
    fn carry_out(mut self, image: &mut Attached) {
        self.done = true;
        let older = std::mem::replace(&mut image.opened, Opened::Plain(Arc::clone(&self.overlay)));
        image.own = self.own;
        if let Opened::Plain(disk) = &older {
            // Nobody can lock it for writing in between: it stays locked for reading until the overlay has done so.
            disk.share();
        }
        if let Err(error) = self.overlay.lock_behind() {
            log::warn!("others may write to what a disk lies on: {error}");
        }
        log::info!("a disk goes on in {}", self.overlay.path().display());
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        if !self.done
            && let Err(error) = fs::remove_file(self.overlay.path())
        {
            log::warn!("{} could not be removed: {error}", self.overlay.path().display());
        }
    }
}

/// A disk that was kept.
struct Kept {
    disk: SavedDisk,
    switch: Option<Switch>,
    /// How many bytes could have [stayed](KeptDisks::copied) where they are.
    copied: u64,
}

/// A snapshot as far as disks are concerned.
struct Capture<'a> {
    /// Where what is in the snapshot is written.
    directory: PathBuf,
    /// Where the snapshot will be.
    place: PathBuf,
    /// What it is called, as a part of other names.
    label: String,
    files: &'a Files,
    stops: bool,
}

impl<'a> Capture<'a> {
    fn new(draft: &Path, files: &'a Files, stops: bool) -> Result<Self, Error> {
        let draft = fs::canonicalize(draft).map_err(storage::Error::io("find", draft))?;
        let name = draft.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let label = name.strip_prefix('.').and_then(|name| name.strip_suffix(".new")).unwrap_or(&name);
        Ok(Self {
            directory: draft.join(DISKS),
            place: draft.with_file_name(label),
            label: label.to_owned(),
            files,
            stops,
        })
    }

    /// How the disk is kept, if it can be kept so.
    fn choose(
        &self,
        number: usize,
        image: &Attached,
        asked: Option<DiskMode>,
    ) -> Result<DiskMode, DisksError> {
        let default = DiskMode::default_for(&image.spec, self.stops);
        let (own, on_device) = (image.own > 0, image.is_block_device());
        let mode = match asked {
            // Nobody writes to it, whatever is asked.
            _ if image.spec.read_only => default,
            Some(mode) => mode,
            // Nobody could tell later whether it was written to.
            None if on_device => DiskMode::Copy,
            None => default,
        };
        let refused = |why, advice| Err(DisksError::Mode { disk: image.name(number), mode, why, advice });
        match mode {
            DiskMode::Reference if image.spec.read_only => {}
            DiskMode::Reference if own => {
                return refused("it goes away with the VM", "keep it by copy or by overlay");
            }
            DiskMode::Reference if !self.stops => {
                return refused(
                    "the VM goes on writing to it",
                    "end the VM with its snapshot (--stop), or keep the disk by copy or by overlay",
                );
            }
            DiskMode::Reference | DiskMode::Overlay if on_device => {
                return refused(
                    "it is a block device, which does not tell later whether it was written to",
                    "keep it by copy",
                );
            }
            DiskMode::Overlay if image.verifies() => {
                return refused(
                    "what lies behind it is verified, which works for the nearest image only",
                    "keep it by copy",
                );
            }
            DiskMode::Copy | DiskMode::Overlay | DiskMode::Reference => {}
        }
        Ok(mode)
    }

    fn keep(&self, number: usize, image: &Attached, mode: DiskMode) -> Result<Kept, Error> {
        let name = image.name(number);
        let failed = || DisksError::image(&name);
        let disk = image.disk();
        disk.flush().map_err(storage::Error::io("flush", disk.path())).map_err(failed())?;
        let mut saved = SavedDisk::of(&image.spec, disk.size(), mode, name.clone());
        let (mut switch, mut copied) = (None, 0);
        match mode {
            DiskMode::Copy => {
                let file = format!("{number}.raw");
                let bytes = tools::copy_raw(disk, &self.make_directory()?.join(&file)).map_err(failed())?;
                if !image.is_block_device() && !image.verifies() {
                    copied = bytes;
                }
                saved.images.push(SavedImage::inside(file, Format::Raw, disk.size()));
            }
            DiskMode::Reference => saved.images = self.outside(number, image, 0)?,
            DiskMode::Overlay if image.own > 0 => {
                let (images, fresh, bytes) = self.freeze_own(number, image)?;
                (saved.images, switch, copied) = (images, Some(fresh), bytes);
            }
            DiskMode::Overlay => {
                // Before anything lies on it: it is as it will stay.
                saved.images = self.outside(number, image, 0)?;
                if !self.stops {
                    let fresh = self.overlay_beside(image).map_err(failed())?;
                    saved.goes_on_in(fresh.overlay.path());
                    switch = Some(fresh);
                }
            }
        }
        Ok(Kept { disk: saved, switch, copied })
    }

    /// What the images are, from the one of this index on, which are nobody's but the user's.
    fn outside(&self, number: usize, image: &Attached, from: usize) -> Result<Vec<SavedImage>, DisksError> {
        let name = image.name(number);
        let mut images = Vec::new();
        for layer in image.disk().layers().iter().skip(from) {
            let path = fs::canonicalize(&layer.path);
            let path =
                path.map_err(storage::Error::io("find", &layer.path)).map_err(DisksError::image(&name))?;
            if path.starts_with(&self.place) {
                return Err(DisksError::Replaced { disk: name, image: path });
            }
            let look = || File::open(&path).and_then(|file| Identity::of(&file));
            let failed = || storage::Error::io("look at", &path);
            let mut found = look().map_err(failed()).map_err(DisksError::image(&name))?;
            if self.stops && is_recent(&found) {
                std::thread::sleep(STEP);
                found = look().map_err(failed()).map_err(DisksError::image(&name))?;
            }
            if !found.is_same_file(layer.identity()) {
                return Err(DisksError::Changed {
                    disk: name,
                    what: format!("{} is not the file any more that the VM has open", path.display()),
                    advice: "give that its name back, or keep the disk by copy".to_owned(),
                });
            }
            images.push(SavedImage::outside(&path, layer.format, &found));
        }
        Ok(images)
    }

    /// Gives the machine's own images of a disk a name in the snapshot, and makes a further one; with how many bytes had
    /// to be copied for that.
    fn freeze_own(&self, number: usize, image: &Attached) -> Result<(Vec<SavedImage>, Switch, u64), Error> {
        let name = image.name(number);
        let failed = || DisksError::image(&name);
        let directory = self.make_directory()?;
        let disk = image.disk();
        let (mut images, mut copied) = (Vec::new(), 0);
        let mut top = PathBuf::new();
        for (layer, above) in disk.layers().iter().take(image.own).zip(0..) {
            let file = own_name(number, image.own - 1 - above, layer.format);
            let open = match above {
                0 => disk.file().try_clone(),
                _ => File::open(&layer.path),
            };
            let open = open.map_err(storage::Error::io("open", &layer.path)).map_err(failed())?;
            if above == 0 {
                top = layer.path.clone();
                if image.is_nameless() {
                    top = self.files.large(&file)?;
                    copied += match tools::link_or_copy(&open, &top) {
                        // From a snapshot that came to nothing: it is this file, or a copy of what it was then.
                        Err(storage::Error::Io { source, .. })
                            if source.kind() == io::ErrorKind::AlreadyExists =>
                        {
                            fs::remove_file(&top)
                                .map_err(storage::Error::io("remove", &top))
                                .map_err(failed())?;
                            tools::link_or_copy(&open, &top).map_err(failed())?
                        }
                        linked => linked.map_err(failed())?,
                    };
                }
            }
            let kept = directory.join(&file);
            copied += tools::link_or_copy(&open, &kept).map_err(failed())?;
            let len = fs::metadata(&kept)
                .and_then(|status| {
                    fs::set_permissions(&kept, fs::Permissions::from_mode(0o600))?;
                    Ok(status.len())
                })
                .map_err(storage::Error::io("look at", &kept))
                .map_err(failed())?;
            images.push(SavedImage::inside(file, layer.format, len));
        }
        images.extend(self.outside(number, image, image.own)?);
        let path = self.files.large(&own_name(number, image.own, Format::Qcow2))?;
        let overlay = tools::overlay_in_use(disk, &top, &path, image.spec.direct, false).map_err(failed())?;
        Ok((images, Switch { overlay: Arc::new(overlay), own: image.own + 1, done: false }, copied))
    }

    /// Makes an overlay of a user's image, beside it and named after the snapshot.
    fn overlay_beside(&self, image: &Attached) -> Result<Switch, storage::Error> {
        let disk = image.disk();
        let base = fs::canonicalize(disk.path()).map_err(storage::Error::io("find", disk.path()))?;
        for attempt in 1..=MOST_NAMES {
            let name = name_beside(&base, &self.label, attempt);
            let path = base.with_file_name(name);
            match tools::overlay_in_use(disk, &base, &path, image.spec.direct, true) {
                Err(storage::Error::Io { source, .. })
                    if source.kind() == io::ErrorKind::AlreadyExists && attempt < MOST_NAMES => {}
                overlay => {
                    return Ok(Switch { overlay: Arc::new(overlay?), own: 0, done: false });
                }
            }
        }
        Err(storage::Error::io("create an overlay beside", &base)(io::ErrorKind::AlreadyExists.into()))
    }

    fn make_directory(&self) -> Result<&Path, storage::Error> {
        match DirBuilder::new().mode(0o700).create(&self.directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(storage::Error::io("create", &self.directory)(error))
            }
            _ => Ok(&self.directory),
        }
    }
}

/// What an overlay of the image at `base` is called. That of an overlay which got such a name itself is not longer than
/// that, and none is too long for a file system.
fn name_beside(base: &Path, label: &str, attempt: u32) -> String {
    const LONGEST: usize = 100;
    let name = base.file_name().unwrap_or_default().to_string_lossy();
    let first = name.strip_suffix(".qcow2").and_then(|name| name.split_once(AFTER)).map(|(first, _)| first);
    let [name, label] =
        [first.unwrap_or(&name), label].map(|text| &text[..text.floor_char_boundary(LONGEST)]);
    match attempt {
        1 => format!("{name}{AFTER}{label}.qcow2"),
        _ => format!("{name}{AFTER}{label}-{attempt}.qcow2"),
    }
}

/// The clock of file systems moves in steps of some milliseconds. Who writes to a file within the same step as somebody
/// did before would not be noticed later.
const STEP: Duration = Duration::from_millis(20);

fn is_recent(found: &Identity) -> bool {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (seconds, nanoseconds) = found.changed;
    let changed = Duration::new(seconds.max(0) as u64, nanoseconds.clamp(0, 999_999_999) as u32);
    now.saturating_sub(changed) < STEP
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlays_of_overlays_have_names_as_short_as_the_first() {
        let name = |base: &str, label: &str, attempt| name_beside(Path::new(base), label, attempt);
        assert_eq!(name("/a/disk.img", "one", 1), "disk.img.after-one.qcow2");
        assert_eq!(name("/a/disk.img", "one", 3), "disk.img.after-one-3.qcow2");
        assert_eq!(name("/a/disk.img.after-one.qcow2", "two", 1), "disk.img.after-two.qcow2");
        assert_eq!(name("/a/disk.img.after-one", "two", 1), "disk.img.after-one.after-two.qcow2");
        assert!(name(&"\u{e9}".repeat(120), &"x".repeat(250), 1000).len() < 255);
    }
}
