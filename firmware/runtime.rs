//! What compiled Rust expects to find around it: memory functions and a place for panics to go.

use core::arch::asm;
use core::panic::PanicInfo;

use crate::{power, println};

#[panic_handler]
fn panicked(info: &PanicInfo) -> ! {
    println!("the guest failed: {info}");
    power::exit(power::STATUS_GUEST_FAULT)
}

/// Named by precompiled code; never called, since nothing unwinds here.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, size: usize) -> *mut u8 {
    // SAFETY: reads and writes exactly what the caller vouches for. The direction flag is clear by the ABI.
    unsafe {
        asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") size => _,
            options(nostack, preserves_flags));
    }
    to
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, size: usize) -> *mut u8 {
    if (to.addr()).wrapping_sub(from.addr()) >= size {
        // SAFETY: going upwards overwrites nothing that is still to be read.
        return unsafe { memcpy(to, from, size) };
    }
    // SAFETY: as for `memcpy`, going downwards from the last byte; there is one, or the branch above was taken.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rdi") to.wrapping_add(size).wrapping_sub(1) => _,
            inout("rsi") from.wrapping_add(size).wrapping_sub(1) => _, inout("rcx") size => _, options(nostack));
    }
    to
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, size: usize) -> *mut u8 {
    // SAFETY: writes exactly what the caller vouches for.
    unsafe {
        asm!("rep stosb", inout("rdi") to => _, in("al") value as u8, inout("rcx") size => _,
            options(nostack, preserves_flags));
    }
    to
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, size: usize) -> i32 {
    let mut at = 0;
    while at < size {
        // SAFETY: inside of both ranges; volatile, so that the loop does not become a call of this function.
        let (l, r) = unsafe { (left.add(at).read_volatile(), right.add(at).read_volatile()) };
        if l != r {
            return i32::from(l) - i32::from(r);
        }
        at += 1;
    }
    0
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, size: usize) -> i32 {
    // SAFETY: the same contract.
    unsafe { memcmp(left, right, size) }
}
