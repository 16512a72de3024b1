//! A snapshot that is being written.
//!
//! It is made in a directory of its own beside its place, `.NAME.new`, which is locked while somebody writes there.
//! When it is whole and on the disk, it is given its name, or exchanges names with the older snapshot, which is removed
//! then. What a crash leaves behind is removed by whoever writes to that place next.

use std::ffi::CString;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::header::MAGIC;
use super::memory::{MEMORY_HASHES, Writer};
use super::place::{check_outside, place_for};
use super::{DISKS, Error, Info, MEMORY, STATE, Section};
use crate::random;

/// The files that a snapshot consists of, and that are removed with it. It may have a directory `disks` besides.
const FILES: [&str; 2] = [STATE, MEMORY];

/// A snapshot that is being written, and vanishes unless it is finished.
pub struct Draft {
    place: PathBuf,
    room: Room,
    memory: Writer,
    memory_size: u64,
    id: [u8; 16],
}

impl Draft {
    /// Begins a snapshot that is to be in `place`, of a machine with `memory_size` bytes of memory. A snapshot that is
    /// there already stays valid until this one is [finished](Self::finish).
    pub fn begin(place: &Path, memory_size: u64) -> Result<Self, Error> {
        let place = place_for(place)?;
        check_outside(&place)?;
        check_place(&place)?;
        let room = Room::beside(&place)?;
        let path = room.path.join(MEMORY);
        let memory = create(&path).and_then(|file| Writer::new(file, memory_size));
        let memory = memory.map_err(Error::io("create", &path))?;
        let mut id = [0; 16];
        random::fill(&mut id).map_err(Error::io("find random numbers for", &place))?;
        Ok(Self { place, room, memory, memory_size, id })
    }

    /// Where it is written meanwhile. Whoever keeps disks in the snapshot makes the directory `disks` there, with files
    /// whose names [fit](is_disk_name); whatever else is in it stays behind, and is in the way of the next.
    pub fn directory(&self) -> &Path {
        &self.room.path
    }

    /// Where it is to be.
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// The random number that will tell it from all other snapshots.
    pub fn id(&self) -> [u8; 16] {
        self.id
    }

    /// Writes pages of the memory, in the place of what was written there before. Pages that are not written are
    /// zeroes.
    pub fn put(&mut self, offset: u64, pages: &[u8]) -> Result<(), Error> {
        self.memory.put(offset, pages).map_err(Error::io("write", &self.room.path.join(MEMORY)))
    }

    /// Forgets what was written of the memory.
    pub fn restart_memory(&mut self) -> Result<(), Error> {
        self.memory.restart().map_err(Error::io("write", &self.room.path.join(MEMORY)))
    }

    /// Waits until what was written of the memory is on the disk. What is written later waits for that much less.
    pub fn flush(&self) -> Result<(), Error> {
        self.memory.flush().map_err(Error::io("write", &self.room.path.join(MEMORY)))
    }

    /// Writes the state, waits until all is on the disk, and puts the snapshot in its place. The machine may have gone
    /// on meanwhile.
    pub fn finish(self, mut sections: Vec<Section>) -> Result<Info, Error> {
        let Self { place, mut room, memory, memory_size, id } = self;
        let hashes = memory.finish(id).map_err(Error::io("write", &room.path.join(MEMORY)))?;
        sections.push(Section::of(MEMORY_HASHES, &hashes));
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let info = Info::of(&sections, id, created, memory_size)?;
        let path = room.path.join(STATE);
        write_state(&path, &info, &sections).map_err(Error::io("write", &path))?;
        sync_disks(&room.path.join(DISKS))?;
        room.directory.sync_all().map_err(Error::io("write", &room.path))?;
        room.put_in(&place)?;
        Ok(info)
    }
}

/// A directory for what is not finished yet. What is in it when it is dropped is removed.
struct Room {
    path: PathBuf,
    /// Locked as long as this is open.
    directory: File,
    /// The older snapshot, locked too, once it is here.
    _older: Option<File>,
    /// What is here is somebody else's by now.
    gone: bool,
}

impl Room {
    fn beside(place: &Path) -> Result<Self, Error> {
        let path = beside(place)?;
        match DirBuilder::new().mode(0o700).create(&path) {
            // Somebody is writing there, or a crash left it.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => result.map_err(Error::io("create", &path))?,
        }
        let busy = || Error::Busy { path: place.to_owned() };
        let directory = lock(&path).map_err(Error::io("lock", &path))?.ok_or_else(busy)?;
        // Between being opened and being locked it may have become a snapshot, or have been removed.
        let same = fs::symlink_metadata(&path).and_then(|now| Ok(now.ino() == directory.metadata()?.ino()));
        if !same.unwrap_or(false) {
            return Err(busy());
        }
        remove_files(&path).map_err(Error::io("empty", &path))?;
        Ok(Self { path, directory, _older: None, gone: false })
    }

    /// Gives what is here its place.
    fn put_in(&mut self, place: &Path) -> Result<(), Error> {
        let failed = |source| Error::Io { action: "write", path: place.to_owned(), source };
        if place.exists() {
            check_place(place)?;
            // So that nobody begins to write into it while it is being removed.
            let older = lock(place).map_err(Error::io("lock", place))?;
            let older = older.ok_or_else(|| Error::Busy { path: place.to_owned() })?;
            rename(&self.path, place, libc::RENAME_EXCHANGE).map_err(|source| {
                match source.raw_os_error() {
                    Some(libc::EINVAL | libc::ENOSYS) => Error::NoExchange { path: place.to_owned() },
                    _ => failed(source),
                }
            })?;
            self._older = Some(older);
        } else {
            match rename(&self.path, place, libc::RENAME_NOREPLACE) {
                // Some file systems know no such rename; then what came there meanwhile is a directory that is not
                // empty, which is never replaced, or an empty one.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)) => {
                    fs::rename(&self.path, place).map_err(failed)?;
                }
                result => result.map_err(failed)?,
            }
            self.gone = true;
        }
        let parent = place.parent().unwrap_or(place);
        File::open(parent).and_then(|parent| parent.sync_all()).map_err(Error::io("write", parent))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if self.gone {
            return;
        }
        let removed = remove_files(&self.path).and_then(|()| fs::remove_dir(&self.path));
        if let Err(error) = removed {
            log::warn!("{} could not be removed: {error}", self.path.display());
        }
    }
}

/// Where a snapshot is made that is to be in `place`.
fn beside(place: &Path) -> Result<PathBuf, Error> {
    let no_name = || io::Error::new(io::ErrorKind::InvalidInput, "it ends with no name for a directory");
    let name = place.file_name().ok_or_else(no_name).map_err(Error::io("write a snapshot to", place))?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(".new");
    Ok(place.with_file_name(hidden))
}

/// Fails if there is something in that place that is no snapshot and not an empty directory.
fn check_place(place: &Path) -> Result<(), Error> {
    let occupied = || Error::Occupied { path: place.to_owned() };
    let status = match fs::symlink_metadata(place) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        status => status.map_err(Error::io("look at", place))?,
    };
    if !status.is_dir() {
        return Err(occupied());
    }
    let mut empty = true;
    for entry in fs::read_dir(place).map_err(Error::io("look at", place))? {
        let entry = entry.map_err(Error::io("look at", place))?;
        let known = FILES.iter().any(|file| entry.file_name() == *file)
            || entry.file_name() == DISKS
                && holds_disks(&entry.path()).map_err(Error::io("look at", place))?;
        if !known {
            return Err(occupied());
        }
        empty = false;
    }
    if empty || is_state(&place.join(STATE)) { Ok(()) } else { Err(occupied()) }
}

/// Whether an image in a snapshot can have this name: `0.raw` is the copy of disk 0, `disk0.qcow2` and `disk0.1.qcow2`
/// were images of a machine's own.
pub fn is_disk_name(name: &str) -> bool {
    let Some((numbers, "raw" | "qcow2")) = name.rsplit_once('.') else { return false };
    let numbers = numbers.strip_prefix("disk").unwrap_or(numbers);
    let is_number =
        |text: &str| (1..=4).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    match numbers.split_once('.') {
        Some((disk, index)) => is_number(disk) && is_number(index),
        None => is_number(numbers),
    }
}

/// Whether it is a directory with images and nothing else.
fn holds_disks(path: &Path) -> io::Result<bool> {
    if !fs::symlink_metadata(path)?.is_dir() {
        return Ok(false);
    }
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if !entry.file_type()?.is_file() || !entry.file_name().to_str().is_some_and(is_disk_name) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Waits until what is in the directory is on the disk, if there is such a directory.
fn sync_disks(path: &Path) -> Result<(), Error> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(Error::io("read", path))?,
    };
    for entry in entries {
        let path = entry.map_err(Error::io("read", path))?.path();
        File::open(&path).and_then(|file| file.sync_all()).map_err(Error::io("write", &path))?;
    }
    File::open(path).and_then(|directory| directory.sync_all()).map_err(Error::io("write", path))
}

/// Whether a file is the state of a snapshot, of whichever version, whole or not.
pub(super) fn is_state(path: &Path) -> bool {
    use std::os::unix::fs::FileExt;
    let mut found = [0; MAGIC.len()];
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    file.and_then(|file| file.read_exact_at(&mut found, 0)).is_ok() && found == MAGIC
}

/// Opens and locks a directory; nothing if somebody else has locked it.
fn lock(path: &Path) -> io::Result<Option<File>> {
    let directory =
        OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).open(path)?;
    match directory.try_lock() {
        Ok(()) => Ok(Some(directory)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// What is in a snapshot is for its owner only: the guest's secrets are in its memory.
fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

fn write_state(path: &Path, info: &Info, sections: &[Section]) -> io::Result<()> {
    let mut file = io::BufWriter::new(create(path)?);
    file.write_all(&info.encode())?;
    sections.iter().try_for_each(|section| file.write_all(&section.bytes))?;
    file.into_inner()?.sync_all()
}

/// Removes what snapshots consist of, as far as it is there.
fn remove_files(directory: &Path) -> io::Result<()> {
    remove_disks(&directory.join(DISKS))?;
    FILES.iter().try_for_each(|file| match fs::remove_file(directory.join(file)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    })
}

/// Removes the images of a snapshot and their directory. What is no image is in the way.
fn remove_disks(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Ok(status) if status.is_dir() => {}
        // It is in the way.
        status => return status.map(drop),
    }
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(is_disk_name) {
            fs::remove_file(entry.path())?;
        }
    }
    fs::remove_dir(path)
}

fn rename(from: &Path, to: &Path, flags: libc::c_uint) -> io::Result<()> {
    let path = |path: &Path| CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other);
    let (from, to) = (path(from)?, path(to)?);
    let here = libc::AT_FDCWD;
    // SAFETY: two strings with an end.
    match unsafe { libc::renameat2(here, from.as_ptr(), here, to.as_ptr(), flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
#[path = "draft_test.rs"]
mod tests;
