//! Where a request's bytes are in a file, for those who do not want to wait for them here.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the disk.
    Read,
    /// To the disk.
    Write,
}

/// A file in which all bytes of a request lie in one piece.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The file, opened as this request needs it.
    pub file: BorrowedFd<'a>,
    /// Where they begin.
    pub offset: u64,
    /// Whether the page cache is passed by, so that a request always waits for the disk.
    pub direct: bool,
}

/// What is left to do for a flush.
#[derive(Debug)]
pub enum Flush<'a> {
    /// Nothing.
    Done,
    /// The host's cache of this file has to reach its disk.
    File(BorrowedFd<'a>),
}

impl Flush<'_> {
    /// Does it, and waits.
    pub fn finish(self) -> io::Result<()> {
        let Self::File(file) = self else { return Ok(()) };
        loop {
            // SAFETY: a call about a descriptor that is open.
            if unsafe { libc::fdatasync(file.as_raw_fd()) } == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}
