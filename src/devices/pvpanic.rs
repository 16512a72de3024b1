//! The port at which a guest tells that its kernel panicked: QEMU's pvpanic, for which Linux has a driver.
//!
//! A read tells which events the machine understands, a write reports them (QEMU, docs/specs/pvpanic.rst). A
//! panic ends the machine. A guest that loads a crash kernel says so and goes on: it wants to write its dump. The
//! port has no state.

use crate::bus::{Action, Claim, Device, Widths};

/// The port.
pub const CLAIM: Claim<u16> = Claim { name: "pvpanic", base: 0x505, len: 1, widths: Widths::BYTE };

/// The guest's kernel panicked, and does nothing about it.
const PANICKED: u8 = 1 << 0;
/// The guest's kernel panicked, and starts another one that deals with it.
const CRASH_LOADED: u8 = 1 << 1;

/// The panic port.
#[derive(Debug, Clone, Copy, Default)]
pub struct PvPanic;

impl Device for PvPanic {
    fn read(&self, _offset: u64, _width: u8) -> u64 {
        (PANICKED | CRASH_LOADED).into()
    }

    fn write(&self, _offset: u64, _width: u8, value: u64) -> Action {
        if value as u8 & PANICKED != 0 { Action::Panicked } else { Action::None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_ends_the_machine_and_a_crash_kernel_does_not() {
        assert_eq!(PvPanic.read(0, 1), 3);
        for value in 0..=0xff {
            let expected = if value & 1 == 1 { Action::Panicked } else { Action::None };
            assert_eq!(PvPanic.write(0, 1, value), expected, "{value:#x}");
        }
    }
}
