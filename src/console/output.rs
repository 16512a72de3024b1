//! The way of console output from the guest's processors to a descriptor.
//!
//! Processors [`push`](Output::push) bytes into a bounded queue and go on; one thread, `console`, writes them.
//! Guests print byte by byte, so after each write the thread gathers before the next, for up to four milliseconds:
//! a burst costs one `write` for some hundred bytes, and a push that meets a gathering thread makes no system
//! call. The very first byte is written by whoever pushes it: it is what people wait for, and neither making
//! a thread (50 µs) nor waking one comes before it.
//!
//! A reader that does not read cannot hold the guest for ever: see [`push`](Output::push).

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::sink::Sink;
use super::writer::Shared;

/// Bytes that may wait for the writer before a push waits for room.
pub const SOFT_BOUND: usize = 64 << 10;
/// Bytes that may wait while [`release_waiters`](Output::release_waiters) keeps pushes from waiting.
pub const HARD_BOUND: usize = 128 << 10;

/// How patient the output is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timing {
    /// How long a push, and the end, wait for a reader that takes nothing at all.
    pub patience: Duration,
    /// How long bytes are gathered after the first write of a burst; doubled with every further one.
    pub first_gather: Duration,
    /// Where doubling ends.
    pub longest_gather: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            patience: Duration::from_secs(1),
            first_gather: Duration::from_micros(125),
            longest_gather: Duration::from_millis(4),
        }
    }
}

/// What has become of the bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes that the sink took.
    pub bytes_written: u64,
    /// Bytes that were given up.
    pub bytes_dropped: u64,
    /// Bytes of this program's own, notices and help, which are among the two above.
    pub bytes_of_ours: u64,
    /// `write` calls that the sink answered.
    pub writes: u64,
    /// How often a push had to wake the writer: the pushes that made a system call.
    pub wakes: u64,
}

/// Console output, shared by everything that prints.
#[derive(Debug)]
pub struct Output {
    first_byte: OnceLock<Instant>,
    /// Nothing if output is discarded.
    shared: Option<Arc<Shared>>,
}

impl Output {
    /// Output that goes nowhere.
    pub fn discard() -> Self {
        Self { first_byte: OnceLock::new(), shared: None }
    }

    pub(super) fn new(sink: Sink, timing: Timing) -> Self {
        Self { first_byte: OnceLock::new(), shared: Some(Arc::new(Shared::new(sink, timing))) }
    }

    /// Starts the writer's thread, if it is not there yet.
    ///
    /// The second push would do it, on the processor's own thread and with what that thread passes on (its
    /// CPUs, its priority, its system call filter). Best called once the processors run: before that it only
    /// delays them.
    pub fn start(&self) {
        if let Some(shared) = &self.shared {
            shared.start();
        }
    }

    /// Hands `bytes` to the writer.
    ///
    /// Waits for room while the queue is full ([`SOFT_BOUND`]) and the reader takes something. A reader that
    /// takes nothing for a second (pseudo-terminal: a tenth of that) is stuck: from then on bytes are dropped
    /// at once, until it takes something again; a line in the output then says how many are missing.
    pub fn push(&self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.first_byte.get_or_init(Instant::now);
        if let Some(shared) = &self.shared {
            shared.push(bytes);
        }
    }

    /// Has all of it go to a log in `directory`; nothing may have been pushed before.
    pub(super) fn begin_log(&self, directory: &Path) -> io::Result<()> {
        self.shared.as_ref().map_or(Ok(()), |shared| shared.begin_log(directory))
    }

    /// Whether a person may see it.
    pub(super) fn is_terminal(&self) -> bool {
        self.shared.as_ref().is_some_and(|shared| shared.is_terminal())
    }

    /// The pipe that it is written to, if it is one. Polled for no event at all, it tells when nobody can read
    /// any longer (`POLLERR`).
    pub fn pipe(&self) -> Option<BorrowedFd<'_>> {
        self.shared.as_ref()?.pipe()
    }

    /// Inserts a text of this program's own. Never waits: without room for it, it is left out.
    pub fn notify(&self, text: &str) {
        if let Some(shared) = &self.shared {
            shared.insert(text);
        }
    }

    /// While `released`, no push waits, and those that wait return at once, so that the processors' threads
    /// can be stopped. What finds no room goes beyond the soft bound, so pausing loses nothing: a stopping
    /// processor ends one exit, at most a few thousand bytes. Beyond [`HARD_BOUND`] bytes are dropped.
    pub fn release_waiters(&self, released: bool) {
        if let Some(shared) = &self.shared {
            shared.release_waiters(released);
        }
    }

    /// Whether all that was pushed has been written, or never will be.
    pub fn is_drained(&self) -> bool {
        self.shared.as_ref().is_none_or(|shared| shared.is_drained())
    }

    /// Writes all that was pushed before and ends the writer; whatever is pushed later is dropped.
    ///
    /// Waits for a slow reader, but not for one that takes nothing for a second: then what is left is
    /// dropped. Call it before the process ends; calling it again does no harm.
    pub fn finish(&self) {
        if let Some(shared) = &self.shared {
            shared.finish();
        }
    }

    /// Why output has ended before its time: the reader is gone, the disk is full, …
    pub fn failure(&self) -> Option<io::Error> {
        let errno = self.shared.as_ref()?.lock().failure?;
        Some(io::Error::from_raw_os_error(errno))
    }

    /// When the guest printed its first byte.
    pub fn first_byte_at(&self) -> Option<Instant> {
        self.first_byte.get().copied()
    }

    /// What has become of the bytes so far; all zero if output is discarded.
    pub fn counters(&self) -> Counters {
        self.shared.as_ref().map_or_else(Counters::default, |shared| shared.lock().counters)
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.finish();
    }
}

#[cfg(test)]
#[path = "output_test.rs"]
mod tests;
