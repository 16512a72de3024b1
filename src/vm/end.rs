//! The moment at which a machine ends. Its processors tell it, and whoever waits for the machine learns it.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::OnceLock;
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use super::Outcome;
use crate::event;

/// How the machine ended, once it has.
pub(super) struct End {
    outcome: OnceLock<Outcome>,
    event: EventFd,
}

impl End {
    pub fn new() -> io::Result<Self> {
        Ok(Self { outcome: OnceLock::new(), event: event::create()? })
    }

    /// Keeps the first outcome: what other processors do afterwards is its consequence.
    pub fn set(&self, outcome: Outcome) {
        let _: Result<(), Outcome> = self.outcome.set(outcome);
        event::signal(&self.event);
    }

    pub fn outcome(&self) -> Option<&Outcome> {
        self.outcome.get()
    }

    /// Becomes readable at the end.
    pub fn event(&self) -> BorrowedFd<'_> {
        event::descriptor(&self.event)
    }

    /// Waits for the end, but not for longer than `limit`.
    pub fn wait(&self, limit: Duration) -> Option<&Outcome> {
        // Whatever ends the call, the outcome tells what to do.
        let _: io::Result<_> = event::readable([Some(self.event())], Some(limit));
        self.outcome()
    }
}
