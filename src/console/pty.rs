//! A pseudo-terminal for other programs to attach to.

use std::ffi::{CStr, OsStr};
use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::{io, mem};

/// Both ends of a pseudo-terminal in raw mode.
#[derive(Debug)]
pub(super) struct Pty {
    /// Our end. Does not block: it belongs to nobody else, and nobody may be attached to the other one.
    pub master: OwnedFd,
    /// The users' end. As long as it is open, the terminal seems to have a user, and what was printed stays when one
    /// goes.
    pub slave: OwnedFd,
    /// What users attach to.
    pub path: PathBuf,
}

impl Pty {
    pub fn open() -> io::Result<Self> {
        let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC | libc::O_NONBLOCK;
        // SAFETY: makes a descriptor, touches no memory.
        let master = unsafe { libc::posix_openpt(flags) };
        check(master)?;
        // SAFETY: the descriptor was made a moment ago and is nobody else's.
        let master = unsafe { OwnedFd::from_raw_fd(master) };
        // SAFETY: both only change the kernel's state of the descriptor.
        unsafe {
            check(libc::grantpt(master.as_raw_fd()))?;
            check(libc::unlockpt(master.as_raw_fd()))?;
        }
        let path = slave_path(&master)?;
        let slave: OwnedFd =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(&path)?.into();
        let mut modes = modes(&slave)?;
        // SAFETY: a valid structure of modes.
        unsafe { libc::cfmakeraw(&mut modes) };
        // SAFETY: reads the structure during the call.
        check(unsafe { libc::tcsetattr(slave.as_raw_fd(), libc::TCSANOW, &modes) })?;
        Ok(Self { master, slave, path })
    }
}

/// The modes of the terminal `fd`.
pub(super) fn modes(fd: &impl AsRawFd) -> io::Result<libc::termios> {
    // SAFETY: a structure of integers, for which all zeroes are a value.
    let mut modes: libc::termios = unsafe { mem::zeroed() };
    // SAFETY: the kernel fills in the structure.
    check(unsafe { libc::tcgetattr(fd.as_raw_fd(), &mut modes) })?;
    Ok(modes)
}

fn slave_path(master: &OwnedFd) -> io::Result<PathBuf> {
    let mut name = [0_u8; 64];
    // SAFETY: pointer and length describe one array.
    let error = unsafe { libc::ptsname_r(master.as_raw_fd(), name.as_mut_ptr().cast(), name.len()) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    let name = CStr::from_bytes_until_nul(&name).map_err(|_| io::ErrorKind::InvalidData)?;
    Ok(OsStr::from_bytes(name.to_bytes()).into())
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
