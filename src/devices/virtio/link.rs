//! How a device gets heard when something happens that no driver asked for.

use std::sync::Arc;

use crate::event;
use vmm_sys_util::eventfd::EventFd;

use super::Interrupt;

/// A device's way to its driver and to its own threads, for calls from any thread.
#[derive(Debug, Clone)]
pub struct Link {
    interrupt: Arc<Interrupt>,
    doorbells: Vec<Arc<EventFd>>,
}

impl Link {
    pub(super) fn new(interrupt: Arc<Interrupt>, doorbells: &[Arc<EventFd>]) -> Self {
        Self { interrupt, doorbells: doorbells.to_vec() }
    }

    /// Tells the driver that the configuration has changed. Only for devices that have been started.
    pub fn configuration_changed(&self) {
        self.interrupt.configuration_changed();
    }

    /// Has this queue be served as if the driver had rung; when the device rests, that waits.
    pub fn wake(&self, queue: u16) {
        if let Some(doorbell) = self.doorbell(queue) {
            event::signal(doorbell);
        }
    }

    /// What [`wake`](Self::wake) signals, for those that can signal an event and no more.
    pub fn doorbell(&self, queue: u16) -> Option<&EventFd> {
        self.doorbells.get(usize::from(queue)).map(|doorbell| &**doorbell)
    }
}
