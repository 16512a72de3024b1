//! Where a user's running machines have their directories.
//!
//! In `/tmp` anybody could have made such a directory before, to look into it or to lead us elsewhere. So what is there
//! is looked at before it is used: it has to be a directory, ours, and nobody else's to enter. Who cannot write to what
//! is around it cannot exchange it afterwards, and in a sticky directory only its owner can, and the owner of what is
//! around it, which has to be ours or root's.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::{Error, user};

/// The user who may do anything anyway.
const ROOT: u32 = 0;

/// Where there is room for what grows as large as a disk, unless the user [names](named_room) another place: `/tmp` is
/// often in memory.
pub(in crate::vm) const ROOM: &str = "/var/tmp";

/// A directory that holds those of machines.
#[derive(Debug)]
pub(super) struct Root(PathBuf);

impl Root {
    /// The one in which running machines are found: `$XDG_RUNTIME_DIR/lodger`, or `/tmp/lodger-UID`.
    pub fn of_machines() -> Result<Self, Error> {
        let path = runtime_directory().map(|runtime| runtime.join("lodger"));
        Self::at(path.unwrap_or_else(|| Path::new("/tmp").join(own_name())))
    }

    /// One on a disk, if there is a place for it: `lodger-UID` in `$TMPDIR` or `/var/tmp`.
    pub fn on_disk() -> Result<Option<Self>, Error> {
        let place = room();
        if place.is_dir() { Self::at(place.join(own_name())).map(Some) } else { Ok(None) }
    }

    /// The same if it is there.
    pub fn found_on_disk() -> Result<Option<Self>, Error> {
        let path = room().join(own_name());
        if path.is_dir() { Self::at(path).map(Some) } else { Ok(None) }
    }

    /// Makes it if it is not there, and looks whether it can be relied on.
    pub fn at(path: PathBuf) -> Result<Self, Error> {
        make(&path)?;
        if let Some(around) = path.parent()
            && let Ok(status) = fs::metadata(around)
            && let Some(who) = who_may_replace(&status)
        {
            let what = format!("{who} may replace it, by way of {}", around.display());
            return Err(Error::Unsafe {
                path,
                what,
                advice: "set XDG_RUNTIME_DIR to a directory of your own",
            });
        }
        Ok(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

/// Who else may exchange what is in a directory.
fn who_may_replace(around: &fs::Metadata) -> Option<String> {
    if ![user(), ROOT].contains(&around.uid()) {
        return Some(format!("user {}", around.uid()));
    }
    let (others_write, sticky) = (around.mode() & 0o022 != 0, around.mode() & 0o1000 != 0);
    (others_write && !sticky).then(|| "others".to_owned())
}

/// Makes a directory that is ours alone, or finds that it is one.
pub(super) fn make(path: &Path) -> Result<(), Error> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(Error::io("make", path)(error)),
        _ => check(path),
    }
}

fn check(path: &Path) -> Result<(), Error> {
    let status = fs::symlink_metadata(path).map_err(Error::io("look at", path))?;
    let elsewhere = "set XDG_RUNTIME_DIR to a directory of your own";
    let (what, advice) = if status.is_symlink() {
        ("it is a symbolic link, which may lead anywhere".to_owned(), "remove it")
    } else if !status.is_dir() {
        ("it is no directory".to_owned(), "remove it")
    } else if status.uid() != user() {
        (format!("it belongs to user {}, who may have made it to look into it", status.uid()), elsewhere)
    } else if status.mode() & 0o077 != 0 {
        (format!("others may enter it, by its mode {:o}", status.mode() & 0o7777), "give it the mode 700")
    } else {
        return Ok(());
    };
    Err(Error::Unsafe { path: path.to_owned(), what, advice })
}

/// What the session has for such things. It may be another user's, as after `su`, or be gone.
fn runtime_directory() -> Option<PathBuf> {
    let path = variable("XDG_RUNTIME_DIR")?;
    let ours =
        |status: &fs::Metadata| status.is_dir() && status.uid() == user() && status.mode() & 0o022 == 0;
    match fs::metadata(&path) {
        Ok(status) if ours(&status) => Some(path),
        _ => {
            log::info!("{}, which XDG_RUNTIME_DIR names, is not our own, so /tmp is used", path.display());
            None
        }
    }
}

/// A path, if there is one that does not depend on where we are.
fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute())
}

/// Where the user wants large files to be.
pub(in crate::vm) fn named_room() -> Option<PathBuf> {
    variable("TMPDIR")
}

fn room() -> PathBuf {
    named_room().unwrap_or_else(|| PathBuf::from(ROOM))
}

fn own_name() -> String {
    format!("lodger-{}", user())
}
