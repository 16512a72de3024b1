//! Ways to end the machine.

use crate::{port, println, ring0, serial};

/// A write here ends the process that runs this machine, with the written byte as its status.
const DEBUG_EXIT: u16 = 0xf4;
const KEYBOARD_COMMAND: u16 = 0x64;
const KEYBOARD_RESET: u8 = 0xfe;
/// ACPI's sleep control register, and what written there means: off, now.
const SLEEP_CONTROL: u16 = 0x600;
const SLEEP_OFF: u8 = 5 << 2 | 1 << 5;

/// The status when the guest itself failed.
pub const STATUS_GUEST_FAULT: u8 = 99;

/// Ends the machine with a status.
pub fn exit(status: u8) -> ! {
    serial::flush();
    port::write8(DEBUG_EXIT, status);
    println!("no debug-exit port here; halted");
    ring0::halt()
}

/// Switches the machine off.
pub fn off() -> ! {
    serial::flush();
    port::write8(SLEEP_CONTROL, SLEEP_OFF);
    println!("there is no sleep register here; halted");
    ring0::halt()
}

/// Resets the machine.
pub fn reset() -> ! {
    serial::flush();
    port::write8(KEYBOARD_COMMAND, KEYBOARD_RESET);
    println!("the keyboard controller does not reset this machine; halted");
    ring0::halt()
}
