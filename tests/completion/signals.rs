//! Signals of instructions that are executed in this process: whoever has such a case handles its own, on a stack that
//! the instruction does not have, and leaves the others to whoever handled them before.

use std::ptr;
use std::sync::OnceLock;

use libc::{c_int, c_void, siginfo_t};

const SIGNALS: [c_int; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP];
const STACK_SIZE: usize = 64 << 10;

type Handler = extern "C" fn(c_int, *mut siginfo_t, *mut c_void);

/// What handled the signals before: the test harness, the product, or another test.
pub struct Handlers(OnceLock<[libc::sigaction; SIGNALS.len()]>);

impl Handlers {
    pub const fn new() -> Self {
        Self(OnceLock::new())
    }

    /// Has signals handled by `handler`, from now on. Nobody else begins to handle any meanwhile.
    pub fn catch(&self, handler: Handler) {
        if self.0.get().is_some() {
            return;
        }
        // SAFETY: all zeroes are a valid action; the handler is one for three arguments, as the flag says.
        unsafe {
            let mut before: [libc::sigaction; SIGNALS.len()] = std::mem::zeroed();
            for (signal, before) in SIGNALS.iter().zip(&mut before) {
                assert_eq!(libc::sigaction(*signal, ptr::null(), before), 0);
            }
            // From the next line on, signals of other threads come here, too.
            self.0.get_or_init(|| before);
            for signal in SIGNALS {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = handler as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                assert_eq!(libc::sigaction(signal, &action, ptr::null_mut()), 0);
            }
        }
    }

    /// Leaves a signal of other code to whoever had it before.
    ///
    /// # Safety
    ///
    /// The arguments are what the kernel passed to a handler.
    pub unsafe fn hand_on(&self, signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
        let nth = SIGNALS.iter().position(|other| *other == signal);
        let action = self.0.get().zip(nth).map(|(before, nth)| before[nth]);
        // SAFETY: the action is one that the kernel accepted before; a handler is called as its flags say.
        unsafe {
            match action {
                Some(action)
                    if action.sa_sigaction > libc::SIG_IGN && action.sa_flags & libc::SA_SIGINFO != 0 =>
                {
                    let handler: Handler = std::mem::transmute(action.sa_sigaction);
                    handler(signal, info, context);
                }
                _ => {
                    libc::signal(signal, libc::SIG_DFL);
                }
            }
        }
    }
}

/// This thread's stack for signals, as long as it lives.
pub struct AlternateStack(*mut c_void);

impl AlternateStack {
    pub fn new() -> Self {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, which becomes this thread's stack for signals.
        unsafe {
            let at = libc::mmap(ptr::null_mut(), STACK_SIZE, protection, flags, -1, 0);
            assert_ne!(at, libc::MAP_FAILED);
            let stack = libc::stack_t { ss_sp: at, ss_flags: 0, ss_size: STACK_SIZE };
            assert_eq!(libc::sigaltstack(&stack, ptr::null_mut()), 0);
            Self(at)
        }
    }
}

impl Drop for AlternateStack {
    fn drop(&mut self) {
        let off = libc::stack_t { ss_sp: ptr::null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
        // SAFETY: mapped by this object, and nothing is executed on it now.
        unsafe {
            libc::sigaltstack(&off, ptr::null_mut());
            libc::munmap(self.0, STACK_SIZE);
        }
    }
}
