//! The host processor's exceptions while it executes a guest's instruction.
//!
//! They arrive as signals. The handler acts only if the thread was on its own code page; everything else goes to
//! whoever handled the signal before: the terminal's, and the standard library's that knows an overflowed
//! stack.

use std::cell::Cell;
use std::mem;
use std::sync::{Once, OnceLock};

use super::switch::{Frame, leave};
use crate::threads;

const PAGE: usize = 4096;
const SIGNALS: [libc::c_int; 4] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE];

thread_local! {
    /// This thread's code page; 0 if it has none. Without a destructor it can be read in a signal handler.
    static CODE: Cell<usize> = const { Cell::new(0) };
}

/// Tells where this thread's code page is, or that it is gone.
pub(super) fn set_code_page(address: usize) {
    CODE.set(address);
}

/// What was to happen at [`SIGNALS`] before.
static PREVIOUS: OnceLock<[libc::sigaction; SIGNALS.len()]> = OnceLock::new();

/// Catches what this thread's instructions may raise, from now on.
pub(super) fn catch() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        threads::recover_with(recover);
        // SAFETY: for a structure of integers and an optional function all zeroes are a value.
        let mut previous: [libc::sigaction; SIGNALS.len()] = unsafe { mem::zeroed() };
        for (signal, action) in SIGNALS.iter().zip(&mut previous) {
            // SAFETY: only asks; the kernel fills in the structure.
            unsafe { libc::sigaction(*signal, std::ptr::null(), action) };
        }
        let _ = PREVIOUS.set(previous);
        let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = on_fault;
        // SAFETY: as above; the mask is initialised by `sigemptyset`.
        let mut action: libc::sigaction = unsafe { mem::zeroed() };
        action.sa_sigaction = handler as libc::sighandler_t;
        // The standard library gives each of its threads an alternate stack: a stack may be what overflowed.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        for signal in SIGNALS {
            // SAFETY: the handler calls only what is safe in one, and the structure is complete.
            unsafe {
                libc::sigemptyset(&mut action.sa_mask);
                libc::sigaction(signal, &action, std::ptr::null_mut());
            }
        }
    });
}

extern "C" fn on_fault(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    if !recover(info, context) {
        let previous = PREVIOUS.get().zip(SIGNALS.iter().position(|caught| *caught == signal));
        // SAFETY: the kernel passes a valid structure.
        let info = unsafe { &*info };
        threads::hand_on(signal, info, previous.map(|(previous, index)| &previous[index]));
    }
}

/// Ends the guest's instruction if it is what faulted: execution goes on at [`leave`], and the frame says why.
fn recover(info: *const libc::siginfo_t, context: *mut libc::c_void) -> bool {
    let code = CODE.get();
    // SAFETY: the kernel passes valid structures to a handler that asked for them.
    let (sent, registers) = unsafe {
        let context: *mut libc::ucontext_t = context.cast();
        ((*info).si_code <= 0, &mut (*context).uc_mcontext.gregs)
    };
    let instruction = registers[libc::REG_RIP as usize] as usize;
    if sent || code == 0 || !(code..code + PAGE).contains(&instruction) {
        return false;
    }
    // All exceptions of computation. Machine checks and debug traps are nothing that a guest may see.
    let trap = match registers[libc::REG_TRAPNO as usize] {
        trap @ (0 | 6 | 13 | 14 | 16 | 17 | 19) => trap as u8,
        _ => return false,
    };
    // SAFETY: while the thread is on its code page the frame's address is on the top of its stack, and nobody
    // else uses the frame.
    unsafe {
        let frame = *(registers[libc::REG_RSP as usize] as *const *mut Frame);
        (*frame).trap = Some(trap);
        (*frame).address = registers[libc::REG_CR2 as usize] as u64;
    }
    registers[libc::REG_RIP as usize] = leave as *const () as i64;
    true
}

#[cfg(test)]
#[path = "recovery_test.rs"]
mod tests;
