//! Locks on bytes of a file that belong to whoever has it open (`F_OFD_SETLK`): they hold between programs, and go with
//! the file's last descriptor, however its process ends.
//!
//! Relies on nothing; `storage` locks images with them, `vm` the directories of running machines.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

/// What QEMU and this program lock of an image that they use.
pub(crate) const IMAGE: Range<i64> = 100..300;

/// What others may have besides a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Locks of this kind.
    Shared,
    /// None.
    Exclusive,
}

/// Locks a range, in place of what this descriptor has locked of it; `Ok(false)` if somebody else has what contradicts
/// it.
pub(crate) fn try_lock(file: &File, kind: Kind, range: Range<i64>) -> io::Result<bool> {
    match control(file, libc::F_OFD_SETLK, &mut request(kind.number(), range)) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        other => other.map(|()| true),
    }
}

/// What somebody else has locked, if that would contradict such a lock.
pub(crate) fn conflict(file: &File, kind: Kind, range: Range<i64>) -> io::Result<Option<Range<i64>>> {
    let mut request = request(kind.number(), range);
    control(file, libc::F_OFD_GETLK, &mut request)?;
    let found = i32::from(request.l_type) != libc::F_UNLCK;
    Ok(found.then(|| request.l_start..request.l_start.saturating_add(request.l_len)))
}

/// Gives up what is locked of a range.
pub(crate) fn unlock(file: &File, range: Range<i64>) -> io::Result<()> {
    control(file, libc::F_OFD_SETLK, &mut request(libc::F_UNLCK, range))
}

/// What a holder is called in messages.
pub(crate) fn process(id: u32) -> String {
    let command = fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
    match command.trim_end() {
        "" => format!("process {id}"),
        command => format!("process {id} ({command})"),
    }
}

impl Kind {
    fn number(self) -> libc::c_int {
        match self {
            Self::Shared => libc::F_RDLCK,
            Self::Exclusive => libc::F_WRLCK,
        }
    }
}

fn request(kind: libc::c_int, range: Range<i64>) -> libc::flock {
    libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: range.start,
        l_len: range.end - range.start,
        // Has to be zero for locks of open files.
        l_pid: 0,
    }
}

fn control(file: &File, command: libc::c_int, request: &mut libc::flock) -> io::Result<()> {
    loop {
        // SAFETY: the descriptor is open, and the kernel reads and writes the structure that we own.
        if unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut *request) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
