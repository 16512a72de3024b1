//! The debug-exit port: a guest ends the process with a status of its own.
//!
//! Made for test guests, at the place where other machine emulators have theirs. It has no state.

use crate::bus::{Action, Claim, Device, Widths};

/// The port. A wider write counts with its lowest byte: the bus splits it, and the first byte ends the machine.
pub const CLAIM: Claim<u16> = Claim { name: "debug-exit", base: 0xf4, len: 1, widths: Widths::BYTE };

/// The debug-exit port.
#[derive(Debug, Clone, Copy, Default)]
pub struct DebugExit;

impl Device for DebugExit {
    /// All ones, as if nobody were there.
    fn read(&self, _offset: u64, _width: u8) -> u64 {
        0xff
    }

    fn write(&self, _offset: u64, _width: u8, value: u64) -> Action {
        Action::Exit(value as u8)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::bus::BusBuilder;
    use crate::hv::Direction;

    #[test]
    fn any_write_ends_the_machine_with_its_lowest_byte() {
        let mut builder = BusBuilder::new();
        builder.claim_ports(CLAIM, Arc::new(DebugExit)).unwrap();
        let bus = builder.build();
        for value in 0..=u8::MAX {
            assert_eq!(bus.port_access(0xf4, 1, Direction::Write, &mut [value]), Action::Exit(value));
        }
        assert_eq!(bus.port_access(0xf4, 4, Direction::Write, &mut [3, 1, 2, 4]), Action::Exit(3));
        let mut data = [0];
        assert_eq!(bus.port_access(0xf4, 1, Direction::Read, &mut data), Action::None);
        assert_eq!(data, [0xff]);
    }
}
