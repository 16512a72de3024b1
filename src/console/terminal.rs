//! The user's terminal: raw while the guest has it, as it was before when it is given back.
//!
//! Raw means raw in both directions. Output processing is off too (QEMU and kvmtool leave it on): a serial
//! line carries what the guest sends, and full-screen programs in the guest count on a line feed that only
//! goes down. Whoever else prints on the terminal meanwhile ends lines with CR LF, see [`terminal_is_raw`].
//!
//! The terminal is given back when the console is closed, at exit, at a panic ([`install_panic_hook`]) and at
//! a fatal signal. It is touched only while this process is in the foreground, so that a background job
//! neither stops (`SIGTTOU`, `SIGTTIN`) nor changes the terminal under its user's shell.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Once, OnceLock};
use std::{io, mem, panic, ptr};

use crate::threads::{self, FAULTS};

use super::pty::modes;

/// A terminal with the modes it had before it became raw.
struct Original {
    fd: RawFd,
    modes: libc::termios,
}

/// The terminal that is raw now, if one is. What it points to is never freed, since a signal handler may be
/// reading it at any moment.
static RAW: AtomicPtr<Original> = AtomicPtr::new(ptr::null_mut());

/// A terminal that input is read from.
pub(super) struct Terminal {
    fd: RawFd,
    original: Option<&'static Original>,
}

impl Terminal {
    /// The terminal behind `fd`, which has to stay open as long as this value; nothing if it is none.
    pub fn behind(fd: RawFd) -> Option<Self> {
        modes(&fd).is_ok().then_some(Self { fd, original: None })
    }

    /// How many columns and rows it has, if it knows.
    pub fn size(&self) -> Option<(u16, u16)> {
        // SAFETY: a structure of integers, for which all zeroes are a value.
        let mut size: libc::winsize = unsafe { mem::zeroed() };
        // SAFETY: the kernel fills in the structure.
        let asked = unsafe { libc::ioctl(self.fd, libc::TIOCGWINSZ, &raw mut size) };
        (asked == 0 && size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
    }

    /// Whether reading from and changing the terminal is this process's right at the moment.
    pub fn is_ours(&self) -> bool {
        in_foreground(self.fd)
    }

    /// Makes the terminal raw. `AlreadyExists`: another console of this process has one.
    pub fn make_raw(&mut self) -> io::Result<()> {
        let original = match self.original {
            Some(original) => original,
            None => {
                let original = Box::leak(Box::new(Original { fd: self.fd, modes: modes(&self.fd)? }));
                self.original.insert(original)
            }
        };
        let mine = ptr::from_ref(original).cast_mut();
        match RAW.compare_exchange(ptr::null_mut(), mine, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => {}
            Err(now) if now == mine => {}
            Err(_) => {
                // Its modes were another's raw ones.
                self.original = None;
                return Err(io::ErrorKind::AlreadyExists.into());
            }
        }
        restore_whatever_happens();
        let mut raw = original.modes;
        // SAFETY: a valid structure of modes.
        unsafe { libc::cfmakeraw(&mut raw) };
        // SAFETY: reads the structure during the call.
        match unsafe { libc::tcsetattr(self.fd, libc::TCSANOW, &raw) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn owns_the_raw_one(&self) -> bool {
        self.original.is_some_and(|original| ptr::eq(RAW.load(Ordering::Acquire), original))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if self.owns_the_raw_one() {
            restore_terminal();
        }
    }
}

/// Whether a terminal is raw now, so that lines shown on it have to end with CR LF.
pub fn terminal_is_raw() -> bool {
    !RAW.load(Ordering::Relaxed).is_null()
}

/// Gives the user's terminal back as it was before. May be called at any time, from any thread and from
/// signal handlers; without a raw terminal it does nothing.
pub fn restore_terminal() {
    let raw = RAW.swap(ptr::null_mut(), Ordering::AcqRel);
    // SAFETY: what was stored there is never freed.
    let Some(original) = (unsafe { raw.as_ref() }) else { return };
    // In the background it is the shell's, which has set it as it wants it.
    if in_foreground(original.fd) {
        without_stopping(|| {
            // SAFETY: reads the structure during the call; safe in signal handlers.
            unsafe { libc::tcsetattr(original.fd, libc::TCSANOW, &original.modes) };
        });
    }
}

/// Makes every panic give the terminal back before it is reported.
pub fn install_panic_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            restore_terminal();
            previous(panic);
        }));
    });
}

fn in_foreground(fd: RawFd) -> bool {
    // SAFETY: both only ask.
    let (group, own) = unsafe { (libc::tcgetpgrp(fd), libc::getpgrp()) };
    // Only the terminal of one's own session has job control: others fail here (ENOTTY), as one does that has
    // hung up (EIO).
    group == own || group < 0
}

/// Runs `change` with `SIGTTOU` blocked, should this process lose the foreground just now.
fn without_stopping(change: impl FnOnce()) {
    // SAFETY: sets of integers, initialised before use; the mask changed is this thread's.
    unsafe {
        let mut stop: libc::sigset_t = mem::zeroed();
        let mut before: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&mut stop);
        libc::sigaddset(&mut stop, libc::SIGTTOU);
        libc::pthread_sigmask(libc::SIG_BLOCK, &stop, &mut before);
        change();
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, ptr::null_mut());
    }
}

fn restore_whatever_happens() {
    extern "C" fn at_exit() {
        restore_terminal();
    }
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the function may be called at any time.
        unsafe { libc::atexit(at_exit) };
        catch_fatal_signals();
    });
}

/// What was to happen at [`FAULTS`] before they were caught here.
static PREVIOUS: OnceLock<[libc::sigaction; FAULTS.len()]> = OnceLock::new();

/// Makes fatal signals give the terminal back, and `SIGBUS` explain itself; the process then dies of the
/// signal as it would have. Called on its own when a terminal becomes raw.
pub fn catch_fatal_signals() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: for a structure of integers and an optional function all zeroes are a value.
        let mut previous: [libc::sigaction; FAULTS.len()] = unsafe { mem::zeroed() };
        for (signal, action) in FAULTS.iter().zip(&mut previous) {
            // SAFETY: only asks; the kernel fills in the structure.
            unsafe { libc::sigaction(*signal, ptr::null(), action) };
        }
        let _ = PREVIOUS.set(previous);
        let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = on_fatal_signal;
        // SAFETY: as above; the mask is initialised by `sigemptyset`.
        let mut action: libc::sigaction = unsafe { mem::zeroed() };
        action.sa_sigaction = handler as libc::sighandler_t;
        // The standard library gives each of its threads an alternate stack: a stack may be what overflowed.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        for signal in FAULTS {
            // SAFETY: the handler calls only what is safe in one, and the structure is complete.
            unsafe {
                libc::sigemptyset(&mut action.sa_mask);
                libc::sigaction(signal, &action, ptr::null_mut());
            }
        }
    });
}

const BUS_ERROR: &str = "lodger: bus error: the host could not provide a page of memory \
    (no huge pages left, a memory failure, or a mapped file that was cut short)\n";

extern "C" fn on_fatal_signal(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    if threads::recovered(info, context) {
        return;
    }
    restore_terminal();
    // SAFETY: the kernel passes a valid structure.
    let info = unsafe { &*info };
    if signal == libc::SIGBUS && info.si_code > 0 {
        // SAFETY: writes a constant.
        unsafe { libc::write(libc::STDERR_FILENO, BUS_ERROR.as_ptr().cast(), BUS_ERROR.len()) };
    }
    let previous = PREVIOUS.get().zip(FAULTS.iter().position(|fatal| *fatal == signal));
    threads::hand_on(signal, info, previous.map(|(previous, index)| &previous[index]));
}

#[cfg(test)]
#[path = "terminal_test.rs"]
pub(super) mod tests;
