//! What threads of this program have in common: which signals are theirs, what happens at a fault, how much time they
//! used, and how they lock what they share.
//!
//! `vcpu/` and `console/` start their threads through it; `console/` and `x86/complete/` catch faults with it. It
//! relies on nothing.

use std::mem::{self, MaybeUninit};
use std::os::unix::thread::JoinHandleExt;
use std::ptr;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

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

/// Ends what has faulted and returns true, or does nothing and returns false. Called in signal handlers.
pub(crate) type Recovery = fn(*const libc::siginfo_t, *mut libc::c_void) -> bool;

static RECOVERY: OnceLock<Recovery> = OnceLock::new();

/// Has `recovery` asked about every fault before it counts as one that ends the process.
pub(crate) fn recover_with(recovery: Recovery) {
    let _ = RECOVERY.set(recovery);
}

/// Whether the fault was an expected one, and is dealt with.
pub(crate) fn recovered(info: *const libc::siginfo_t, context: *mut libc::c_void) -> bool {
    RECOVERY.get().is_some_and(|recovery| recovery(info, context))
}

/// The end of a handler of [`FAULTS`]: the signal goes to whoever handled it before, which is the standard library
/// for an overflowed stack, or else ends the process.
pub(crate) fn hand_on(signal: libc::c_int, info: &libc::siginfo_t, previous: Option<&libc::sigaction>) {
    // A fault happens again when the handler returns. A signal that was sent does not come back by itself.
    let is_fault = info.si_code > 0 && !(signal == libc::SIGBUS && info.si_code == libc::BUS_MCEERR_AO);
    // SAFETY: for a structure of integers and an optional function all zeroes are a value: SIG_DFL.
    let default: libc::sigaction = unsafe { mem::zeroed() };
    let action = previous.filter(|_| is_fault).unwrap_or(&default);
    // SAFETY: both calls are safe in signal handlers. The signal is blocked until this one returns.
    unsafe {
        libc::sigaction(signal, action, ptr::null_mut());
        if !is_fault {
            libc::raise(signal);
        }
    }
}

/// How much processor time `thread` has used so far.
pub(crate) fn time_used<T>(thread: &JoinHandle<T>) -> Option<Duration> {
    let mut clock = 0;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a thread that has not been joined keeps its id valid, and the handle proves that it was not. Both
    // results are written to variables of their types.
    let result = unsafe {
        match libc::pthread_getcpuclockid(thread.as_pthread_t(), &raw mut clock) {
            0 => libc::clock_gettime(clock, &raw mut time),
            // The thread has ended.
            _ => -1,
        }
    };
    (result == 0).then(|| Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32))
}

/// Locks what threads share. That another one panicked while it held the lock does not make it unusable: what is shared
/// here is right after each of its changes.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
