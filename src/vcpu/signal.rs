//! The signal that fetches a vCPU's thread out of the guest.
//!
//! It does nothing but interrupt the system call; what is wanted stands at the [gate](super::gate).

use std::mem::MaybeUninit;
use std::sync::Once;
use std::thread::JoinHandle;
use std::{os::unix::thread::JoinHandleExt, ptr};

extern "C" fn interrupt_only(_: libc::c_int) {}

fn number() -> libc::c_int {
    libc::SIGRTMIN()
}

/// Installs the empty handler, once per process.
pub(super) fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // SAFETY: all zeroes is a valid `sigaction`; the handler does nothing, so it may run at any time.
        // Without SA_RESTART the interrupted call returns. The kernel refuses only invalid signal numbers.
        unsafe {
            let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
            action.sa_sigaction = interrupt_only as *const () as libc::sighandler_t;
            libc::sigaction(number(), &action, ptr::null_mut());
        }
    });
}

/// Lets the calling thread receive this module's signal, whatever mask it inherited.
pub(super) fn unblock() {
    // SAFETY: the set is initialised by `sigemptyset` before it is used.
    unsafe {
        let mut set = MaybeUninit::uninit();
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), number());
        libc::pthread_sigmask(libc::SIG_UNBLOCK, set.as_ptr(), ptr::null_mut());
    }
}

/// Interrupts the system call in which `thread` is, if any.
pub(super) fn send<T>(thread: &JoinHandle<T>) {
    // SAFETY: a thread that has not been joined keeps its id valid, and the handle proves that it was not.
    unsafe { libc::pthread_kill(thread.as_pthread_t(), number()) };
}

/// A thread, for those who do not hold its handle.
#[derive(Debug, Clone, Copy)]
pub(super) struct ThreadId(libc::pid_t);

impl ThreadId {
    /// The calling thread.
    pub(super) fn current() -> Self {
        // SAFETY: asks for a number.
        Self(unsafe { libc::gettid() })
    }

    /// Interrupts the system call in which the thread is, if any. It must not have ended: its number may be
    /// another one's by then, which would be interrupted without need.
    pub(super) fn interrupt(self) {
        // SAFETY: the signal's handler does nothing, and goes to a thread of this process or to none.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), self.0, number()) };
    }
}
