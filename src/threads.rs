//! What threads of this program have in common: which signals are theirs.
//!
//! `vcpu/` and `console/` start their threads through it; it relies on nothing.

use std::mem::MaybeUninit;
use std::ptr;

/// Signals that a thread brings upon itself: nobody else can take them.
pub(crate) const FAULTS: [libc::c_int; 7] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT, libc::SIGTRAP, libc::SIGSYS];

/// Calls `spawn` so that the threads it starts take no signals that are sent to the process: those are for
/// others, from a new thread's first moment on. Faults cannot be left to others, and a background job whose user
/// set `tostop` shall stop where it prints.
pub(crate) fn without_signals<T>(spawn: impl FnOnce() -> T) -> T {
    let mut before = MaybeUninit::uninit();
    // SAFETY: the new set is initialised by `sigfillset`, the old one by the kernel. The mask is this thread's.
    unsafe {
        let mut blocked = MaybeUninit::uninit();
        libc::sigfillset(blocked.as_mut_ptr());
        for signal in FAULTS.into_iter().chain([libc::SIGTTOU]) {
            libc::sigdelset(blocked.as_mut_ptr(), signal);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, blocked.as_ptr(), before.as_mut_ptr());
    }
    let spawned = spawn();
    // SAFETY: as above; with valid arguments neither call fails.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut()) };
    spawned
}
