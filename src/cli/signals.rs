//! Signals that end or continue the process, turned into something that can be waited for.
//!
//! From when the guest is ready to run they are blocked and read from a signalfd by the thread that runs the
//! command, so that the terminal is restored and the guest's output written before the process ends. The
//! machine's threads, which are older, take no signals anyway.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

/// Every signal that would end the process without being a fault of its own.
const ENDING: [libc::c_int; 13] = [
    libc::SIGTERM,
    libc::SIGINT,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGXCPU,
    libc::SIGIO,
    libc::SIGPWR,
    libc::SIGSTKFLT,
];

/// A signal that matters to a running guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// The process shall end.
    End(libc::c_int),
    /// The process goes on after it was stopped by job control.
    Continue,
    /// The terminal has another size.
    Resized,
}

/// The signals, from now on delivered here only.
pub struct Signals {
    fd: OwnedFd,
}

/// A file that may not grow any more is an error of that file, and no reason to die.
pub fn outlive_file_limits() {
    // SAFETY: ignoring a signal runs no code.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

impl Signals {
    /// Blocks the signals in this thread and those that it starts from now on.
    pub fn block() -> io::Result<Self> {
        let mut set = MaybeUninit::uninit();
        // SAFETY: `sigemptyset` initialises the set before anything reads it.
        let set = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            let mut set = set.assume_init();
            for signal in ENDING.into_iter().filter(|&signal| !is_ignored(signal)) {
                libc::sigaddset(&raw mut set, signal);
            }
            libc::sigaddset(&raw mut set, libc::SIGCONT);
            libc::sigaddset(&raw mut set, libc::SIGWINCH);
            set
        };
        // SAFETY: the set is initialised; the old mask is not wanted.
        let blocked = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) };
        if blocked != 0 {
            return Err(io::Error::from_raw_os_error(blocked));
        }
        // SAFETY: as above; the flags are valid.
        let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a fresh descriptor that nobody else owns.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// The next signal that has arrived, if any.
    pub fn next(&self) -> Option<Signal> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
        let size = size_of_val(&info);
        // SAFETY: the kernel writes at most `size` bytes; the record is used only if it wrote all of them.
        let number = unsafe {
            let read = libc::read(self.fd.as_raw_fd(), info.as_mut_ptr().cast(), size);
            (read == size as isize).then(|| info.assume_init().ssi_signo)
        };
        match number? as libc::c_int {
            libc::SIGCONT => Some(Signal::Continue),
            libc::SIGWINCH => Some(Signal::Resized),
            other => Some(Signal::End(other)),
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whether whoever started us wants this signal ignored, as `nohup` does with SIGHUP.
fn is_ignored(signal: libc::c_int) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: the kernel fills in the current action of a valid signal.
    unsafe {
        libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}
