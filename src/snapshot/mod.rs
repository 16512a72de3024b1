//! Snapshots as files: a directory that holds the state of a machine, whatever that machine is.
//!
//! It is a directory with a file `state`, which begins with a plain [header](Info) that says what the rest is, and a
//! file `memory`, which can be mapped. Every byte of both is described in `docs/snapshot-format.md`. It may have a
//! directory `disks` with images, which others write.
//!
//! A [`Draft`] is written beside the place where it is to be, and takes that place in one step when it is whole and on
//! the disk: whoever looks there finds the older snapshot or the new one, whenever the host may crash. A [`Snapshot`]
//! is read: all that is believed of `state` has been checked, first the header's checksum and then that of each
//! section. `memory` has a checksum for each MiB, which only [`Snapshot::check`] looks at: a machine starts without
//! reading its memory, and would wait for all of it otherwise. What a start does make sure of is that `memory` is as
//! long as it should be, and belongs to this `state`. Those who put images into `disks` keep checksums of them, too.
//!
//! A snapshot can be a diff: its memory has only the pages that changed since another snapshot was taken, which it
//! names. That one is told by its random number, so that no other can stand in for it unnoticed.
//!
//! Nothing here knows what is in a section; `vm/` does. Relies on `saved`.

mod chain;
mod changes;
pub(crate) mod checksum;
mod draft;
mod error;
mod header;
mod memory;
mod place;
mod read;
mod section;
#[cfg(test)]
pub(crate) mod testing;

pub(crate) use chain::is_built_on;
pub use chain::{Layer, MOST_LAYERS, Unused};
pub use changes::MemoryChanges;
pub use checksum::{CHUNK, PAGE};
pub use draft::{Draft, is_disk_name};
pub use error::Error;
pub use header::{Entry, Info, NEWEST_FORMAT, id_in_hex};
pub use memory::MemoryHashes;
pub(crate) use place::resolved;
pub use place::{around, place_for};
pub use read::Snapshot;
pub use section::{Section, Sections};

/// The file that holds everything but the memory.
pub const STATE: &str = "state";
/// The file that holds the memory.
pub const MEMORY: &str = "memory";
/// The directory with the disks that are kept in the snapshot itself, if there are any, and the section that tells of
/// all disks.
pub const DISKS: &str = "disks";
