//! Event descriptors: how threads, devices and the hypervisor wake each other.

use std::io;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// One that nobody inherits and that nobody waits for by reading it.
pub(crate) fn create() -> io::Result<EventFd> {
    EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)
}

/// Sets `event`, unless it is set.
pub(crate) fn signal(event: &EventFd) {
    // Fails only if the counter is full, and then the event is set already.
    let _: io::Result<()> = event.write(1);
}
