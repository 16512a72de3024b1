//! Why a snapshot cannot be written or read.

use std::io;
use std::path::{Path, PathBuf};

use super::{NEWEST_FORMAT, Unused};
use crate::saved;

/// Why a snapshot cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused something.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was being done, as in "open".
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The directory has no file `state`, or is none.
    #[error("there is no snapshot in {}: {}", path.display(), match is_directory {
        true => "it has no file `state`",
        false => "there is no such directory",
    })]
    NoSnapshot {
        /// The directory.
        path: PathBuf,
        /// Whether it is there.
        is_directory: bool,
    },
    /// A file that is no state at all.
    #[error("{} is not the state of a snapshot: {reason}", path.display())]
    NoState {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A newer program wrote it.
    #[error(
        "{} has version {found} of the snapshot format, and this program reads up to version {NEWEST_FORMAT}: use the \
         program that wrote it, or a newer one",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// It is of another kind of machine.
    #[error("{} is of a machine with another architecture (ELF number {found}); this is x86-64 (62)", path.display())]
    Architecture {
        /// The file.
        path: PathBuf,
        /// The architecture, by ELF's numbers.
        found: u32,
    },
    /// The file is shorter or longer than it says.
    #[error("{} has {found} bytes, and should have {expected}: it was cut short or added to", path.display())]
    Length {
        /// The file.
        path: PathBuf,
        /// How long it should be.
        expected: u64,
        /// How long it is.
        found: u64,
    },
    /// A checksum is wrong, or what it covers makes no sense.
    #[error("{} is damaged: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The memory is that of another snapshot.
    #[error("{} does not belong to the state beside it, but to another snapshot", path.display())]
    OtherMemory {
        /// The file.
        path: PathBuf,
    },
    /// What a diff builds on cannot be used.
    #[error(
        "{} holds only what changed since the snapshot {}, which cannot be used: {source}; if that is somewhere else by now, \
         say where (--base DIR){unused}",
        path.display(),
        base.display()
    )]
    Base {
        /// The diff.
        path: PathBuf,
        /// Where the snapshot is said to be.
        base: PathBuf,
        /// Why it cannot be used.
        source: Box<Error>,
        /// Places that were named, and are not those of what was looked for.
        unused: Unused,
    },
    /// In the place of what a diff builds on is something else.
    #[error(
        "{} is another snapshot than the one that {} builds on: it was replaced, or is not in its place; if the right one is \
         somewhere else, say where (--base DIR){unused}",
        base.display(),
        path.display()
    )]
    OtherBase {
        /// The diff.
        path: PathBuf,
        /// What is there.
        base: PathBuf,
        /// Places that were named, and are not those of what was looked for.
        unused: Unused,
    },
    /// Diffs upon diffs, and no end.
    #[error("{} builds on more than {} other snapshots: take a full one", path.display(), super::MOST_LAYERS - 1)]
    TooManyLayers {
        /// The diff.
        path: PathBuf,
    },
    /// Something is not there that has to be.
    #[error("the snapshot has no section {name:?}")]
    Missing {
        /// The section's name.
        name: String,
    },
    /// Something is there that nothing here knows.
    #[error("the snapshot has a section {name:?} (of kind {kind:?}), which this machine has no use for")]
    Unknown {
        /// The section's name.
        name: String,
        /// What it is the state of.
        kind: String,
    },
    /// A section cannot be decoded.
    #[error("the section {name:?} cannot be used: {source}")]
    Section {
        /// The section's name.
        name: String,
        /// What is wrong with it.
        source: saved::Error,
    },
    /// A snapshot cannot hold this.
    #[error("this does not fit into a snapshot: {0}")]
    Unfit(String),
    /// Somebody else is at it.
    #[error("another snapshot is being written to {}: wait for it, or choose another directory", path.display())]
    Busy {
        /// The place of the snapshot.
        path: PathBuf,
    },
    /// There is something else in that place.
    #[error(
        "{} is there and is no snapshot, so it is not replaced: choose another directory, or remove it",
        path.display()
    )]
    Occupied {
        /// The place of the snapshot.
        path: PathBuf,
    },
    /// It would be in another one.
    #[error(
        "{} is inside of the snapshot {}, which would not be one any more: choose a directory outside of it",
        path.display(),
        snapshot.display()
    )]
    Inside {
        /// The place of the snapshot.
        path: PathBuf,
        /// The snapshot that is there.
        snapshot: PathBuf,
    },
    /// There is nothing that it could be in.
    #[error("{} is not there, so no snapshot can be written to it: make it first", path.display())]
    NoDirectory {
        /// The directory above the place of the snapshot.
        path: PathBuf,
    },
    /// The file system cannot exchange two directories.
    #[error(
        "the file system of {} cannot replace a snapshot in one step: choose a directory that is not there yet",
        path.display()
    )]
    NoExchange {
        /// The place of the snapshot.
        path: PathBuf,
    },
}

impl Error {
    /// For `map_err`: says what was being done to which file.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }

    pub(super) fn damaged(path: &Path, what: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), what: what.into() }
    }
}
