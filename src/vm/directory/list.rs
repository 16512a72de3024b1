//! Which machines there are: those that run, those that have ended and left how, and the dead whose directories nobody has
//! cleared away yet.

use std::fs;
use std::path::PathBuf;

use super::root::Root;
use super::{CHANGED, Ended, Error, MESSAGES, Name, ended, open_pid, owner, read_small};
use crate::file_lock::{self, Kind};

/// More than a process keeps of what it says.
const MOST_MESSAGES: u64 = 256 << 10;

/// A machine's directory.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// What the machine is called.
    pub name: Name,
    /// Where its directory is.
    pub path: PathBuf,
    /// The process that runs it, or ran it.
    pub pid: Option<u32>,
    /// Whether that process lives.
    pub alive: bool,
    /// How it has ended, if it has and left that. Of those that were killed nobody knows.
    pub ended: Option<Ended>,
}

impl Found {
    /// What its process said, a fatal report included, if it said that here: one with a terminal says it there.
    pub fn messages(&self) -> String {
        let bytes = read_small(&self.path.join(MESSAGES), MOST_MESSAGES).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// All machines of this user, by name.
pub fn list() -> Result<Vec<Found>, Error> {
    let root = Root::of_machines()?;
    let entries = fs::read_dir(root.path()).map_err(Error::io("list", root.path()))?;
    let names = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut found: Vec<_> = names.filter_map(|name| look(&root, name)).collect();
    found.sort_by(|one, other| one.name.as_str().cmp(other.name.as_str()));
    Ok(found)
}

/// The machine of this name, if there is one.
pub fn find(name: &Name) -> Result<Option<Found>, Error> {
    Ok(look(&Root::of_machines()?, name.clone()))
}

/// What is not a machine's is nothing, whatever it is.
pub(super) fn look(root: &Root, name: Name) -> Option<Found> {
    let path = root.path().join(name.as_str());
    let file = open_pid(&path, false).ok()?;
    let pid = owner(&file);
    // Its owner has locked a part of it, and may be dying with that.
    let is_locked = file_lock::conflict(&file, Kind::Exclusive, CHANGED).ok()?.is_some();
    let alive = is_locked && !pid.is_some_and(file_lock::is_dying);
    let ended = if alive { None } else { ended::read(&path) };
    Some(Found { name, path, pid, alive, ended })
}
