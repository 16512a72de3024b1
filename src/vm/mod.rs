//! A virtual machine as a whole: its description, how it is built, run, paused, stopped, and how it ended.
//!
//! [`Config`] describes a machine, [`Machine::new`] puts it together out of the rooms below, [`Outcome`] says
//! how it ended. The command line and library users rely on this room.

mod config;
mod machine;
mod outcome;
mod timeline;

use std::io;

use crate::console::Output;
use crate::devices::ByteSink;
use crate::{boot, bus, hv, memory};
pub use config::{Config, Kernel, MemorySpec, MemorySpecError};
pub use machine::{Devices, Machine};
pub use outcome::Outcome;
pub use timeline::Timeline;

/// Why a machine cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A machine without processors.
    #[error("a machine needs at least one processor")]
    NoCpus,
    /// More processors than can be told apart.
    #[error("{asked} processors were asked for, but a machine can have at most 255")]
    TooManyCpus {
        /// How many were asked for.
        asked: u32,
    },
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
    /// The operating system has no event descriptor left.
    #[error("cannot create an event descriptor: {0}")]
    Event(io::Error),
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
