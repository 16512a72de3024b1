//! Ports. Everything here works in ring 3, because entry.s lets ring 3 use all of them.

use core::arch::asm;

/// Reads a byte.
pub fn read8(port: u16) -> u8 {
    let value;
    // SAFETY: reading a port touches no memory of ours; what a device does on it is what the caller wants.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Reads two bytes at once.
pub fn read16(port: u16) -> u16 {
    let value;
    // SAFETY: as for `read8`.
    unsafe { asm!("in ax, dx", in("dx") port, out("ax") value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Reads four bytes at once.
pub fn read32(port: u16) -> u32 {
    let value;
    // SAFETY: as for `read8`.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Writes a byte.
pub fn write8(port: u16, value: u8) {
    // SAFETY: no device of this machine writes to memory because of a port.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags)) };
}

/// Writes two bytes at once.
pub fn write16(port: u16, value: u16) {
    // SAFETY: as for `write8`.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack, preserves_flags)) };
}

/// Writes four bytes at once.
pub fn write32(port: u16, value: u32) {
    // SAFETY: as for `write8`.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack, preserves_flags)) };
}

/// Writes all bytes to one port with a single instruction, which hypervisors may take as a whole.
pub fn write_run(port: u16, bytes: &[u8]) {
    // SAFETY: the instruction reads exactly `bytes`.
    unsafe {
        asm!("rep outsb", in("dx") port, inout("rsi") bytes.as_ptr() => _, inout("rcx") bytes.len() => _,
            options(readonly, nostack, preserves_flags));
    }
}
