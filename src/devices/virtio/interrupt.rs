//! How a device tells its driver that something happened.

use std::sync::atomic::{AtomicU32, Ordering};

use vmm_sys_util::eventfd::EventFd;

use crate::event;

/// Buffers were used.
const USED: u32 = 1 << 0;
/// The configuration, or the device's status, has changed.
const CONFIGURATION: u32 = 1 << 1;

/// A device's interrupt, and why it was raised.
#[derive(Debug)]
pub struct Interrupt {
    reasons: AtomicU32,
    /// How often the configuration has changed.
    generation: AtomicU32,
    event: EventFd,
}

impl Interrupt {
    /// Raised by signalling `event`.
    pub fn new(event: EventFd) -> Self {
        Self { reasons: AtomicU32::new(0), generation: AtomicU32::new(0), event }
    }

    /// What is signalled.
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// Buffers were used.
    pub fn used(&self) {
        self.raise(USED);
    }

    /// The configuration or the status has changed.
    pub fn configuration_changed(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.raise(CONFIGURATION);
    }

    /// A number that is another one after each change of the configuration.
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::SeqCst)
    }

    fn raise(&self, reason: u32) {
        self.reasons.fetch_or(reason, Ordering::SeqCst);
        event::signal(&self.event);
    }

    /// What has happened and was not acknowledged.
    pub fn reasons(&self) -> u32 {
        self.reasons.load(Ordering::SeqCst)
    }

    /// The driver has seen these.
    pub fn acknowledge(&self, reasons: u32) {
        self.reasons.fetch_and(!reasons, Ordering::SeqCst);
    }

    /// Puts back what had happened when the state was saved.
    pub(super) fn restore(&self, reasons: u32, generation: u32) {
        self.generation.store(generation, Ordering::SeqCst);
        self.reasons.store(reasons & (USED | CONFIGURATION), Ordering::SeqCst);
        if self.reasons() != 0 {
            event::signal(&self.event);
        }
    }
}
