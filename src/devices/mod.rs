//! The devices that a guest sees.
//!
//! A device answers accesses ([`bus::Device`](crate::bus::Device)) and raises interrupts through a handle it
//! was given ([`InterruptLine`]); it knows neither KVM nor the virtual machine it is part of. Next to each
//! stands the [`Claim`](crate::bus::Claim) with which `vm/` puts it on the bus, and what a snapshot keeps of it.

pub mod cmos;
mod collected;
pub mod debug_exit;
pub mod generation_id;
pub mod i8042;
pub mod pci;
pub mod post;
pub mod power_button;
pub mod pvpanic;
pub mod reset;
pub mod serial;
pub mod sleep;
#[cfg(test)]
mod testing;
pub mod virtio;

use crate::saved;

pub use collected::{CAPACITY as COLLECTED_CAPACITY, Collected};

/// A wire into the guest's interrupt controller.
pub trait InterruptLine: Send + Sync {
    /// Raises or lowers the wire.
    fn set(&self, high: bool);

    /// Raises and lowers it: one edge, as ISA devices give.
    fn pulse(&self) {
        self.set(true);
        self.set(false);
    }
}

/// Where a device's output goes.
pub trait ByteSink: Send + Sync {
    /// Takes all of `bytes`, in order, before anything that is pushed later.
    ///
    /// Called by vCPU threads: it may wait for a bounded moment, never for ever.
    fn push(&self, bytes: &[u8]);

    /// While `released`, a push that has to wait for its reader waits no longer: the processors are being
    /// brought to rest. A sink that never waits has nothing to do.
    fn release_waiters(&self, released: bool) {
        let _ = released;
    }
}

/// Why a device cannot be given the state that was saved.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// No device of this kind was ever in that state.
    #[error("the saved state of the device {device} is not one it can be in: {reason}")]
    Inconsistent {
        /// The device.
        device: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// It cannot even be read.
    #[error(transparent)]
    Saved(#[from] saved::Error),
}
