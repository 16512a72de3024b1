//! Event descriptors: how threads, devices and the hypervisor wake each other, and how they wait for several of them.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

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

/// The descriptor of `event`, for those who wait for several things at once.
pub(crate) fn descriptor(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: it is open as long as `event` lives, which the result borrows.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

/// Waits until one of them is readable or hung up, or the time is over; which are. Those that are none are passed over.
pub(crate) fn readable<const N: usize>(
    descriptors: [Option<BorrowedFd<'_>>; N],
    limit: Option<Duration>,
) -> io::Result<[bool; N]> {
    let mut entries = descriptors.map(|fd| libc::pollfd {
        fd: fd.map_or(-1, |fd| fd.as_raw_fd()),
        events: libc::POLLIN,
        revents: 0,
    });
    let limit =
        limit.map_or(-1, |limit| libc::c_int::try_from(limit.as_millis()).unwrap_or(libc::c_int::MAX));
    // SAFETY: an array of initialised entries.
    if unsafe { libc::poll(entries.as_mut_ptr(), N as libc::nfds_t, limit) } < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::Interrupted { Ok([false; N]) } else { Err(error) };
    }
    Ok(entries.map(|entry| entry.revents != 0))
}
