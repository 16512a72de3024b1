//! Who owns which port and which guest-physical address.
//!
//! The vCPU loop hands every port and memory-mapped access to [`Bus`]; devices only ever see accesses that lie
//! wholly inside the range they claimed and have a width they declared, so widths and bounds are checked in
//! this room and nowhere else. Relies on `hv/` for [`Direction`] only; `devices/` implement [`Device`], `vcpu/`
//! calls [`Bus`], `vm/` puts it together with [`BusBuilder`].
//!
//! A [`Bus`] never changes once it is built: all vCPU threads share it and none of them takes a lock in it.

mod claim;
mod space;
#[cfg(test)]
pub(crate) mod testing;

pub use claim::{Claim, Error, Widths};
pub use space::UnownedAccesses;

use std::sync::Arc;

use crate::hv::Direction;
use space::{Space, SpaceBuilder};

/// A device's answer to a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Go on.
    None,
    /// The guest asked for a reset of the machine.
    Reset,
    /// The guest asked for the power to be switched off.
    PowerOff,
    /// The guest told that its kernel panicked.
    Panicked,
    /// The guest wants the process to end with this status.
    Exit(u8),
}

/// Something that answers accesses to ports or addresses.
///
/// Called by vCPU threads, several at once where there are several; what it protects and how is the device's
/// own business. It must not block for longer than a bounded moment. The bus does not check alignment.
pub trait Device: Send + Sync {
    /// The value of `width` bytes at `offset` from the start of the device's range.
    fn read(&self, offset: u64, width: u8) -> u64;

    /// Takes `value`, of `width` bytes, at `offset` from the start of the device's range.
    fn write(&self, offset: u64, width: u8, value: u64) -> Action;

    /// Takes many values for the same `offset`, as `rep outs` gives them: `bytes` holds a whole number of
    /// little-endian elements of `width` bytes.
    ///
    /// Ends at the first element whose answer is not [`Action::None`]. A device that can take a run at once
    /// (output to a console, say) replaces this.
    fn write_run(&self, offset: u64, width: u8, bytes: &[u8]) -> Action {
        for element in bytes.chunks_exact(usize::from(width).max(1)) {
            let action = self.write(offset, width, space::gather(element));
            if action != Action::None {
                return action;
            }
        }
        Action::None
    }
}

/// Collects the claims of a machine's devices.
#[derive(Default)]
pub struct BusBuilder {
    ports: SpaceBuilder,
    memory: SpaceBuilder,
}

impl BusBuilder {
    /// A bus that nobody has claimed anything of.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives a range of ports to `device`.
    pub fn claim_ports(&mut self, claim: Claim<u16>, device: Arc<dyn Device>) -> Result<(), Error> {
        self.ports.claim("ports", claim.widen(), u64::from(u16::MAX), device)
    }

    /// Gives a range of guest-physical addresses to `device`.
    pub fn claim_memory(&mut self, claim: Claim<u64>, device: Arc<dyn Device>) -> Result<(), Error> {
        self.memory.claim("addresses", claim, u64::MAX, device)
    }

    /// The finished bus.
    pub fn build(self) -> Bus {
        Bus { ports: self.ports.build(), memory: self.memory.build() }
    }
}

/// The ports and addresses of a machine, each with its owner.
///
/// An access of a width that the owner did not declare, or that reaches beyond the owner's range, is split
/// into bytes, and each goes to the owner of its own address, as an ISA bus does it. Bytes that nobody takes
/// read as all ones; writing them does nothing.
#[derive(Debug)]
pub struct Bus {
    ports: Space,
    memory: Space,
}

impl Bus {
    /// Serves an access to a port: `data` holds one element of `width` bytes, or many (`rep ins`, `rep outs`).
    ///
    /// Ends at the first write that is answered with something other than [`Action::None`].
    pub fn port_access(&self, port: u16, width: u8, direction: Direction, data: &mut [u8]) -> Action {
        self.ports.access(u64::from(port), usize::from(width), direction, data)
    }

    /// Serves an access of `data.len()` bytes to a guest-physical address.
    pub fn memory_access(&self, address: u64, direction: Direction, data: &mut [u8]) -> Action {
        self.memory.access(address, data.len(), direction, data)
    }

    /// The name of the device that owns `port`.
    pub fn owner_of_port(&self, port: u16) -> Option<&'static str> {
        self.ports.owner(u64::from(port))
    }

    /// The name of the device that owns a guest-physical address.
    pub fn owner_of_address(&self, address: u64) -> Option<&'static str> {
        self.memory.owner(address)
    }

    /// What the guest accessed although nobody owns it.
    pub fn unowned(&self) -> Unowned {
        Unowned { ports: self.ports.unowned(), memory: self.memory.unowned() }
    }
}

/// What a guest accessed although nobody owns it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Unowned {
    /// Among the ports.
    pub ports: UnownedAccesses,
    /// Among the guest-physical addresses.
    pub memory: UnownedAccesses,
}
