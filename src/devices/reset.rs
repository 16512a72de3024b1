//! The reset control register that chipsets have had at port 0xcf9 since the PIIX3.
//!
//! A guest writes how hard the reset is to be (bits 1 and 3), then the same with bit 2, whose rise resets the machine
//! (Intel 82371SB datasheet, "RC - Reset Control Register"). Here every reset ends the machine, so that they are all
//! alike. Linux writes to it for `reboot=p`; the code where a PC's firmware starts (`boot::map::RESET_CODE`) does for
//! everybody who jumps there.
//!
//! The port lies among those of PCI's configuration mechanism, which has a register of four bytes at 0xcf8: it is
//! [`pci`](super::pci) that answers there and passes this byte on.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::bus::{Action, Device};

/// The port.
pub const PORT: u16 = 0xcf9;
/// What resets the machine at once, as hard as can be.
pub const HARD: u8 = CPU | SYSTEM;

/// Resets more than the processor.
const SYSTEM: u8 = 1 << 1;
/// Its rise resets.
const CPU: u8 = 1 << 2;
/// Has the power off for a moment, too.
const FULL: u8 = 1 << 3;

/// The register. What it holds is how the next reset shall be, which makes no difference here; no snapshot keeps it, as
/// a guest that resets itself writes it first.
#[derive(Debug, Default)]
pub struct Reset {
    kind: AtomicU8,
}

impl Device for Reset {
    fn read(&self, _offset: u64, _width: u8) -> u64 {
        self.kind.load(Ordering::Relaxed).into()
    }

    fn write(&self, _offset: u64, _width: u8, value: u64) -> Action {
        let value = value as u8;
        self.kind.store(value & (SYSTEM | FULL), Ordering::Relaxed);
        // Bit 2 is never kept: setting it is its rise.
        if value & CPU != 0 { Action::Reset } else { Action::None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_sets_bit_2_resets() {
        for value in 0..=0xff {
            let expected = if value & 4 != 0 { Action::Reset } else { Action::None };
            assert_eq!(Reset::default().write(0, 1, value), expected, "{value:#x}");
        }
    }

    #[test]
    fn the_kind_of_reset_reads_back() {
        let reset = Reset::default();
        assert_eq!(reset.read(0, 1), 0);
        reset.write(0, 1, 0xfb);
        assert_eq!(reset.read(0, 1), 0x0a);
        reset.write(0, 1, 0);
        assert_eq!(reset.read(0, 1), 0);
    }
}
