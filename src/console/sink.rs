//! A descriptor that console output is written to, whatever its kind and mode.
//!
//! Descriptors that were inherited may be shared with other processes, so their `O_NONBLOCK` is left as it is
//! and both modes work here.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use super::log::Rotation;

/// A descriptor of this process, or one that it was started with.
#[derive(Debug)]
pub(super) enum Handle {
    /// Standard input or output: stays open.
    Inherited(BorrowedFd<'static>),
    /// Opened here, closed with this value.
    Owned(OwnedFd),
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Inherited(fd) => fd.as_fd(),
            Self::Owned(fd) => fd.as_fd(),
        }
    }
}

/// Where the writer writes.
#[derive(Debug)]
pub(super) struct Sink {
    handle: Handle,
    interrupted: AtomicBool,
    /// Ends a wait for room. Made when a non-blocking descriptor is full for the first time, which most never
    /// are.
    waker: OnceLock<EventFd>,
    /// If it is a log.
    rotation: OnceLock<Rotation>,
}

impl Sink {
    pub fn new(handle: Handle) -> Self {
        Self {
            handle,
            interrupted: AtomicBool::new(false),
            waker: OnceLock::new(),
            rotation: OnceLock::new(),
        }
    }

    /// Has all that is written from now on go to a log in `directory`. Nothing may have been written before.
    pub fn begin_log(&self, directory: &Path) -> io::Result<()> {
        let rotation = Rotation::begin(self.handle.as_fd(), directory)?;
        self.rotation.get_or_init(|| rotation);
        Ok(())
    }

    /// Takes note of what was written.
    fn written(&self, count: usize) -> usize {
        if let Some(rotation) = self.rotation.get() {
            rotation.count(self.handle.as_fd(), count);
        }
        count
    }

    pub fn is_terminal(&self) -> bool {
        // SAFETY: asks about a descriptor and touches no memory of ours.
        unsafe { libc::isatty(self.handle.as_fd().as_raw_fd()) == 1 }
    }

    /// The descriptor, if it is the end of a pipe or a socket.
    pub fn pipe(&self) -> Option<BorrowedFd<'_>> {
        let fd = self.handle.as_fd();
        let mut status = MaybeUninit::<libc::stat>::uninit();
        // SAFETY: the kernel fills in the structure, or fails.
        let kind = unsafe {
            (libc::fstat(fd.as_raw_fd(), status.as_mut_ptr()) == 0).then(|| status.assume_init().st_mode)
        };
        matches!(kind? & libc::S_IFMT, libc::S_IFIFO | libc::S_IFSOCK).then_some(fd)
    }

    /// Writes some of `bytes`, waiting for room as long as it takes; `Ok(0)` only after
    /// [`interrupt`](Self::interrupt).
    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut waited = false;
        loop {
            match write(self.handle.as_fd(), bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // A terminal that has room for one character is "writable", and still refuses a newline
                    // that it would print as two: do not turn in circles then.
                    if waited {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    if self.wait_for_room()? {
                        return Ok(0);
                    }
                    waited = true;
                }
                other => return other.map(|count| self.written(count)),
            }
        }
    }

    /// Writes some of `bytes` if there is room at this moment; `Ok(0)` if not.
    ///
    /// A pipe that is reported writable has room for at least `PIPE_BUF` (4096) bytes, a terminal for one.
    pub fn write_now(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut entries = [poll_entry(&self.handle.as_fd(), libc::POLLOUT)];
        if poll(&mut entries, 0)? == 0 {
            return Ok(0);
        }
        match write(self.handle.as_fd(), bytes) {
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {
                Ok(0)
            }
            other => other.map(|count| self.written(count)),
        }
    }

    /// Makes a present or future wait for room on a non-blocking descriptor return. A thread inside a blocking
    /// `write` stays there: nothing but the reader or the end of the process frees it.
    pub fn interrupt(&self) {
        self.interrupted.store(true, Ordering::SeqCst);
        if let Some(waker) = self.waker.get() {
            // Fails only when the counter is at its maximum, and then the wait returns too.
            let _ = waker.write(1);
        }
    }

    /// Returns whether the wait was interrupted.
    fn wait_for_room(&self) -> io::Result<bool> {
        let waker = match self.waker.get() {
            Some(waker) => waker,
            None => {
                let waker = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
                self.waker.get_or_init(|| waker)
            }
        };
        // After the waker is there for `interrupt` to see: one of the two notices the other.
        if self.interrupted.load(Ordering::SeqCst) {
            return Ok(true);
        }
        let mut entries = [poll_entry(&self.handle.as_fd(), libc::POLLOUT), poll_entry(waker, libc::POLLIN)];
        match poll(&mut entries, -1) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(self.interrupted.load(Ordering::SeqCst)),
        }
    }
}

pub(super) fn poll_entry(fd: &impl AsRawFd, events: i16) -> libc::pollfd {
    libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 }
}

/// How many of `entries` are ready within `timeout` milliseconds (-1: wait for ever).
pub(super) fn poll(entries: &mut [libc::pollfd], timeout: i32) -> io::Result<usize> {
    // SAFETY: pointer and length describe one slice.
    let ready = unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, timeout) };
    usize::try_from(ready).map_err(|_| io::Error::last_os_error())
}

pub(super) fn write(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: pointer and length describe one slice.
    let written = unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}

pub(super) fn read(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: pointer and length describe one slice that may be overwritten.
    let read = unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}
