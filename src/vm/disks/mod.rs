//! What becomes of a machine's disks in a snapshot, and where they are when it is restored.
//!
//! A disk is kept in one of three [ways](DiskMode). Whichever it is, one rule holds: a restored machine never writes to
//! anything that the snapshot needs. It gets fresh overlays, which go away with it unless it is asked for others, also
//! on disks that were kept by reference: a second restore would find those changed otherwise. Who has stopped a machine
//! to go on once, and no more than once, asks for its disks to be [written to](Reopening::write_references) again; then
//! the snapshot is used up, and the next restore says so. For the same reason an overlay that is to be kept is a fresh
//! one: what was written to it after the snapshot is nothing that the guest remembers.
//!
//! Files that are not in the snapshot's directory are known by their length and by when they were written to last. A
//! difference is refused by name before anything runs. That it is another file with the same (another inode or file
//! system, as after a move) is only warned about. Where the user says that an image is now elsewhere, another time is
//! only warned about too, as copying sets it; another length is refused even then. Files in the snapshot's directory
//! are known by their length alone: their times are those of the last copy of the directory. Contents are not compared:
//! a start would have to read them all. Those in the snapshot's directory have checksums for [who
//! asks](SavedDisks::check).
//!
//! Relies on `storage` and on the block device, which exchanges what it stores in while it rests.

mod attached;
mod capture;
mod saved;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Changes, DiskSource, DiskSpec, disk_name};
use crate::devices::virtio::blk::CannotExchange;
use crate::storage;
pub use attached::DiskImage;
pub(super) use attached::{Attached, open};
pub use capture::KeptDisks;
pub use saved::{DiskLook, Reopening, SavedDisks};

/// How a snapshot keeps a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskMode {
    /// Its content is copied into the snapshot's directory.
    Copy,
    /// Its image stays as it is from now on, and the machine goes on in a fresh overlay.
    Overlay,
    /// The snapshot names it, and nobody writes to it any more.
    Reference,
}

impl DiskMode {
    /// How a disk is kept if nobody says how; `stops` if the machine ends with the snapshot. What is only read is
    /// named, as are a user's own files if nobody is going to write to them; all else is copied.
    pub fn default_for(disk: &DiskSpec, stops: bool) -> Self {
        match &disk.source {
            DiskSource::Ephemeral { .. } => Self::Copy,
            DiskSource::Image { .. } if disk.read_only => Self::Reference,
            DiskSource::Image { changes: Changes::Forgotten, .. } => Self::Copy,
            DiskSource::Image { .. } if stops => Self::Reference,
            DiskSource::Image { .. } => Self::Copy,
        }
    }
}

impl fmt::Display for DiskMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Copy => "copy",
            Self::Overlay => "overlay",
            Self::Reference => "reference",
        })
    }
}

/// A word that is no way to keep a disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no way to keep a disk: there are copy, overlay and reference")]
pub struct UnknownDiskMode(String);

impl FromStr for DiskMode {
    type Err = UnknownDiskMode;

    fn from_str(text: &str) -> Result<Self, UnknownDiskMode> {
        match text {
            "copy" => Ok(Self::Copy),
            "overlay" => Ok(Self::Overlay),
            "reference" => Ok(Self::Reference),
            _ => Err(UnknownDiskMode(text.to_owned())),
        }
    }
}

/// Why disks cannot be kept in a snapshot, or be found again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DisksError {
    /// Not this disk in this way.
    #[error("{disk} cannot be kept by {mode}: {why}; {advice}")]
    Mode {
        /// Which disk.
        disk: String,
        /// How it was to be kept.
        mode: DiskMode,
        /// Why not.
        why: &'static str,
        /// What to do instead.
        advice: &'static str,
    },
    /// The snapshot would take away what it needs.
    #[error(
        "{disk} lies on {}, which is in the snapshot that this one is to replace: write this one to another directory, or \
         keep the disk by copy",
        image.display()
    )]
    Replaced {
        /// Which disk.
        disk: String,
        /// What it lies on.
        image: PathBuf,
    },
    /// Something cannot be done with an image.
    #[error("{disk}: {source}")]
    Image {
        /// Which disk.
        disk: String,
        /// What is wrong.
        source: storage::Error,
    },
    /// The device does not rest.
    #[error("{disk} cannot go on in an overlay: {source}")]
    Exchange {
        /// Which disk.
        disk: String,
        /// Why.
        source: CannotExchange,
    },
    /// The machine that is to be restored is described with other disks.
    #[error("the snapshot is of a machine with {saved} disks, and this one is to have {asked}")]
    Count {
        /// What was saved.
        saved: usize,
        /// What the description says.
        asked: usize,
    },
    /// The guest would find another disk.
    #[error("{disk} was {saved} when the snapshot was taken, and is to be {asked}: describe it as it was")]
    Described {
        /// Which disk.
        disk: String,
        /// What was saved.
        saved: String,
        /// What the description says.
        asked: String,
    },
    /// An image is gone.
    #[error(
        "{disk}: {} is not there; put it back, or say where it is by now (--disk {name}=FILE)",
        image.display()
    )]
    Missing {
        /// Which disk.
        disk: String,
        /// What its guest calls it.
        name: String,
        /// The image.
        image: PathBuf,
    },
    /// One behind it is gone, of which only the one above it knows where it is.
    #[error("{disk}: {}, which lies behind it, is not there; put it back", image.display())]
    MissingBehind {
        /// Which disk.
        disk: String,
        /// The image.
        image: PathBuf,
    },
    /// What the guest changes would be lost, which is not what was asked for.
    #[error(
        "{disk} was kept by {mode}, and what the snapshot has of it stays as it is, also with --write-disks: keep what the \
         guest changes with --overlay {name}=FILE"
    )]
    NotWritten {
        /// Which disk.
        disk: String,
        /// How it was kept.
        mode: DiskMode,
        /// What its guest calls it.
        name: String,
    },
    /// It is not what it was.
    #[error("{disk}: {what}; {advice}")]
    Changed {
        /// Which disk.
        disk: String,
        /// With which file, and what is different.
        what: String,
        /// What to do.
        advice: String,
    },
    /// What the guest writes cannot go there.
    #[error("the changes of {disk} cannot be kept in {}: {what}", overlay.display())]
    Overlay {
        /// Which disk.
        disk: String,
        /// The overlay.
        overlay: PathBuf,
        /// Why not, and what to do.
        what: String,
    },
    /// Something was said of a disk that there is not.
    #[error("the snapshot has no disk {}: {}", disk_name(*.number), match disks {
        0 => "it has none at all".to_owned(),
        disks => format!("the last is {}", disk_name(disks - 1)),
    })]
    NoSuchDisk {
        /// The number.
        number: usize,
        /// How many there are.
        disks: usize,
    },
    /// The snapshot's section makes no sense.
    #[error("the snapshot contradicts itself: {0}")]
    Inconsistent(&'static str),
}

impl DisksError {
    fn image(disk: &str) -> impl FnOnce(storage::Error) -> Self {
        let disk = disk.to_owned();
        move |source| Self::Image { disk, source }
    }
}

#[cfg(test)]
#[path = "disks_test.rs"]
mod tests;
