//! A virtual machine as a whole: its description, how it is built, run, paused, stopped, and how it ended.
//!
//! [`Config`] describes a machine, [`Machine::new`] puts it together out of the rooms below, [`Outcome`] says how it
//! ended. A [`driver`] takes requests for it from several sides. The command line, the control socket and library users
//! rely on this room.

mod balloon;
mod build;
mod capture;
mod clock;
mod config;
mod console;
mod cpus;
pub mod description;
mod devices;
mod directory;
mod disk;
mod disks;
pub mod driver;
mod ear;
mod end;
pub mod inspect;
mod machine;
mod outcome;
mod outputs;
mod processors;
mod rate;
mod restore;
mod saved;
mod timeline;
mod virtio;
mod watch;
mod wire;

use std::io;
use std::path::PathBuf;

use crate::console::{LineError, Output, Shown};
use crate::devices::virtio::balloon::TooLarge;
use crate::devices::virtio::console::MOST_PORTS;
use crate::devices::{ByteSink, generation_id};
use crate::x86::model::NotOffered;
use crate::x86::topology::TopologyError;
use crate::{boot, bus, hv, memory, snapshot, storage};
pub use balloon::{BalloonSpec, BalloonSpecError};
pub use capture::{CannotCapture, Capture, Drafted, Progress};
pub use clock::{Clock, ClockError, stored_for};
pub use config::{Completion, CompletionError, Config, Kernel, MemorySpec, MemorySpecError};
pub use console::{ConsoleSpec, ConsoleSpecError, PortSpec, PortSpecError};
pub use cpus::{CpusSpec, CpusSpecError};
pub use devices::Devices;
pub use directory::{DirectoryError, Ended, Found, MESSAGES, Name, NameError, clear, find, list};
pub use disk::{Changes, DiskSource, DiskSpec, DiskSpecError, disk_name};
pub use disks::{
    DiskImage, DiskLook, DiskMode, DisksError, KeptDisks, Reopening, SavedDisks, UnknownDiskMode,
};
pub use ear::Ear;
pub use machine::Machine;
pub use outcome::Outcome;
pub use processors::offered_flags;
pub use rate::RateError;
pub use restore::CannotRestore;
pub use saved::{CannotSave, SavedDescription, SavedMachine};
pub use timeline::Timeline;
pub use watch::INTERVAL as LOOK_INTERVAL;

/// Why a machine cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No machine has such processors.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// This host's processors lack a feature.
    #[error(transparent)]
    Features(#[from] NotOffered),
    /// The hypervisor refused something.
    #[error(transparent)]
    Hypervisor(#[from] hv::Error),
    /// The memory cannot be had.
    #[error(transparent)]
    Memory(#[from] memory::Error),
    /// The guest cannot be loaded.
    #[error(transparent)]
    Boot(#[from] boot::Error),
    /// Two devices claim one place.
    #[error(transparent)]
    Bus(#[from] bus::Error),
    /// An image cannot be used.
    #[error(transparent)]
    Disk(#[from] storage::Error),
    /// Its disks cannot be kept in a snapshot, or not be found again.
    #[error(transparent)]
    Disks(#[from] DisksError),
    /// There is no place for what the machine keeps in files.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The guest cannot give so much back.
    #[error(transparent)]
    Balloon(#[from] TooLarge),
    /// A port leads nowhere.
    #[error("the port {name}: {source}")]
    Port {
        /// What the port is called.
        name: String,
        /// Why.
        source: LineError,
    },
    /// What is there would be lost.
    #[error("{output} cannot write to {}, which is {used_as} of this VM: choose another file", path.display())]
    OutputToUsed {
        /// What writes, as in "the console".
        output: String,
        /// The file.
        path: PathBuf,
        /// What it is already, as in "a disk".
        used_as: String,
    },
    /// The snapshot would be lost, and those that were restored from it would die.
    #[error(
        "{output} cannot write to {}, which is in the snapshot {}: choose another file",
        path.display(), snapshot.display()
    )]
    OutputToSnapshot {
        /// What writes, as in "the console".
        output: String,
        /// The file.
        path: PathBuf,
        /// Where the snapshot is.
        snapshot: PathBuf,
    },
    /// The guest could not tell them apart.
    #[error("two ports are called {0}: give each a name of its own")]
    PortTwice(String),
    /// No console has so many.
    #[error("{asked} ports are too many, a machine has at most {MOST_PORTS}")]
    TooManyPorts {
        /// How many were asked for.
        asked: usize,
    },
    /// It is in no state that can be saved.
    #[error(transparent)]
    Save(#[from] CannotSave),
    /// Such a snapshot cannot be taken of it.
    #[error(transparent)]
    Capture(#[from] CannotCapture),
    /// A snapshot cannot be written or read.
    #[error(transparent)]
    Snapshot(#[from] snapshot::Error),
    /// It cannot go on as what was saved.
    #[error(transparent)]
    Restore(#[from] CannotRestore),
    /// The guest cannot be told that it is another machine now.
    #[error(transparent)]
    Generation(#[from] generation_id::Error),
    /// There are not so many interrupts.
    #[error("{asked} virtio devices are too many, a machine has interrupts for {most}")]
    TooManyDevices {
        /// How many were asked for.
        asked: usize,
        /// How many there can be.
        most: usize,
    },
    /// The operating system has no event descriptor left.
    #[error("cannot create an event descriptor: {0}")]
    Event(io::Error),
    /// The operating system has no thread left.
    #[error("cannot start the profiler's thread: {0}")]
    Profiler(io::Error),
    /// The operating system has no thread left.
    #[error("cannot start the thread that drives the guest: {0}")]
    Driver(io::Error),
}

/// The console's queue and those who listen besides.
impl ByteSink for Shown {
    fn push(&self, bytes: &[u8]) {
        self.output.push(bytes);
        self.audience.push(bytes);
    }

    fn release_waiters(&self, released: bool) {
        self.output.release_waiters(released);
    }
}

/// The console's queue is what the serial port prints into.
impl ByteSink for Output {
    fn push(&self, bytes: &[u8]) {
        Self::push(self, bytes);
    }

    fn release_waiters(&self, released: bool) {
        Self::release_waiters(self, released);
    }
}
