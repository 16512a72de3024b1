//! ACPI's sleep registers, by which a guest switches the power off.
//!
//! Hardware-reduced ACPI has two of them instead of the power-management ports of PCs: the guest writes the sleep
//! type and "now" to the control register (ACPI 6.5, section 4.8.3.7). They have no state: the only sleep that is
//! offered, off, ends the machine, and nothing ever wakes up from it.

use crate::bus::{Action, Claim, Device, Widths};

/// The sleep control register.
pub const CONTROL_PORT: u16 = 0x600;
/// The sleep status register.
pub const STATUS_PORT: u16 = 0x601;
/// The sleep type that means off, which the tables tell the guest.
pub const TYPE_OFF: u8 = 5;

/// Both ports.
pub const CLAIM: Claim<u16> = Claim { name: "acpi-sleep", base: CONTROL_PORT, len: 2, widths: Widths::BYTE };

const CONTROL_OFFSET: u64 = 0;
const CONTROL_TYPE_SHIFT: u8 = 2;
const CONTROL_TYPE_MASK: u8 = 7;
const CONTROL_ENABLE: u8 = 1 << 5;

/// The sleep registers.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sleep;

impl Device for Sleep {
    /// Zero: the enable bit reads as such, and no wake-up has happened.
    fn read(&self, _offset: u64, _width: u8) -> u64 {
        0
    }

    fn write(&self, offset: u64, _width: u8, value: u64) -> Action {
        let value = value as u8;
        let sleep_type = value >> CONTROL_TYPE_SHIFT & CONTROL_TYPE_MASK;
        if offset == CONTROL_OFFSET && value & CONTROL_ENABLE != 0 && sleep_type == TYPE_OFF {
            return Action::PowerOff;
        }
        Action::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_type_for_off_together_with_now_switches_off() {
        for value in 0..=0xff_u8 {
            let off = value & 0x3c == 0x34;
            let expected = if off { Action::PowerOff } else { Action::None };
            assert_eq!(Sleep.write(0, 1, value.into()), expected, "{value:#x}");
        }
    }

    #[test]
    fn the_status_register_takes_everything_and_says_nothing() {
        for value in 0..=0xff {
            assert_eq!(Sleep.write(1, 1, value), Action::None);
        }
        assert_eq!((Sleep.read(0, 1), Sleep.read(1, 1)), (0, 0));
    }
}
