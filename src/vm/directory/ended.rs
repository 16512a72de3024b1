//! What stays of a machine that has ended while nobody watched: who it was, how it ended, and the last of what it printed
//! and said.
//!
//! It stays in the machine's directory, which nobody has locked then, as it is with those of the dead; the file `ended`
//! tells them apart. The next machine of that name takes its place, somebody [clears it away](super::clear), or it is
//! one of so many that it is forgotten.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::{MESSAGES, PID, begin_removal, clear_dead, read_small};
use crate::console::{LOG, OLDER_LOG, shorten_log};

/// The file that tells how it was.
pub(super) const ENDED: &str = "ended";
/// The same while it is written.
const DRAFT: &str = "ended.new";
/// How many stay.
pub(super) const MOST: usize = 32;
/// How much stays of what a console has printed.
const LOG_BOUND: u64 = 64 << 10;
/// How long a reason may be. A fatal report has some KiB.
const REASON_BOUND: usize = 16 << 10;
/// The longest file that is read.
const RECORD_BOUND: u64 = 256 << 10;

/// How a machine has ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Ended {
    /// When, in milliseconds since 1970.
    pub unix_ms: u64,
    /// The exit status of its process.
    pub status: u8,
    /// Why, with registers and all if the guest could not go on.
    pub reason: String,
    /// For how many seconds it was there.
    #[serde(default)]
    pub uptime: Option<f64>,
    /// How many processors it had.
    pub cpus: usize,
    /// How much memory, in bytes.
    pub memory: u64,
}

impl Ended {
    /// Why, in a line.
    pub fn in_short(&self) -> &str {
        self.reason.lines().next().unwrap_or_default()
    }

    fn bounded(mut self) -> Self {
        let bound = (0..=REASON_BOUND).rev().find(|&at| self.reason.is_char_boundary(at));
        self.reason.truncate(bound.unwrap_or(0));
        self
    }
}

/// Leaves in a directory what stays, in place of all else. `pid` is locked, and its lock is given up then by its owner.
pub(super) fn leave(path: &Path, pid: &File, ended: Ended) -> io::Result<()> {
    begin_removal(path, pid)?;
    super::empty(path, &[PID, LOG, OLDER_LOG, MESSAGES])?;
    shorten_log(path, LOG_BOUND)?;
    // With this it is no dead one's any longer, for whoever looks into it.
    let text = serde_json::to_string(&ended.bounded())?;
    let draft = path.join(DRAFT);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    options.open(&draft)?.write_all(text.as_bytes())?;
    fs::rename(draft, path.join(ENDED))?;
    forget_the_oldest(path.parent().unwrap_or(path));
    Ok(())
}

/// How the machine has ended whose directory this is, if it has left that.
pub(super) fn read(path: &Path) -> Option<Ended> {
    serde_json::from_slice(&read_small(&path.join(ENDED), RECORD_BOUND).ok()?).ok()
}

/// Whether a machine has left there how it ended. What cannot be read tells nobody anything.
pub(super) fn is_left(path: &Path) -> bool {
    read(path).is_some()
}

fn when(path: &Path) -> Option<SystemTime> {
    fs::symlink_metadata(path.join(ENDED)).ok()?.modified().ok()
}

/// Has no more stay than are allowed to.
pub(super) fn forget_the_oldest(root: &Path) {
    let Ok(entries) = fs::read_dir(root) else { return };
    let paths = entries.flatten().map(|entry| entry.path());
    let mut left: Vec<(SystemTime, PathBuf)> = paths.filter_map(|path| Some((when(&path)?, path))).collect();
    left.sort();
    let too_many = left.len().saturating_sub(MOST);
    for (time, path) in left.drain(..too_many) {
        // Another machine of the name may have left something newer meanwhile.
        clear_dead(&path, |path| when(path) == Some(time));
    }
}
