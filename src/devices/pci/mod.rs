//! PCI: one bus, its configuration space, and the host bridge that is its first function.
//!
//! Configuration mechanism #1 (PCI Local Bus Specification 3.0, section 3.2.2.3.2): a guest writes to the port 0xcf8
//! which register of which function it means, four bytes at once, and reaches the register at 0xcfc. Nothing is plugged
//! in yet; the bus is there because kernels look for it, and complain if there is none. A device that joins it is a
//! [`Function`].
//!
//! The ACPI tables do not tell of it: Linux then looks through no bus, which costs nothing, and is content. Without
//! ACPI it looks through this one.
//!
//! Whatever is not there reads as all ones, and writing it does nothing. The byte at 0xcf9, between the bytes of the
//! address, is the [reset register](super::reset), as in every chipset since the PIIX3.

mod host_bridge;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use serde::{Deserialize, Serialize};

pub use host_bridge::HostBridge;

use super::reset::{self, Reset};
use crate::bus::{Action, Claim, Device, Widths};
use crate::saved::Saved;

const NAME: &str = "pci";
const ADDRESS_CLAIM: Claim<u16> =
    Claim { name: NAME, base: 0xcf8, len: 4, widths: Widths::BYTE.and(Widths::LONG) };
const DATA_CLAIM: Claim<u16> =
    Claim { name: NAME, base: 0xcfc, len: 4, widths: Widths::BYTE.and(Widths::WORD).and(Widths::LONG) };
/// Where the reset register lies among the bytes of the address.
const RESET_OFFSET: u64 = (reset::PORT - ADDRESS_CLAIM.base) as u64;

/// The data port reaches configuration space only while this bit of the address is set.
const ENABLE: u32 = 1 << 31;
/// What else of the address is kept: bus, device and function, register. The others read as zero.
const ADDRESS: u32 = 0x00ff_fffc;
const NOBODY: u32 = u32::MAX;

/// Which function of the bus: its device and its number in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place(u8);

impl Place {
    /// The host bridge's: 00.0.
    pub const FIRST: Self = Self(0);

    /// Function `function` (0 to 7) of the device `device` (0 to 31).
    pub const fn new(device: u8, function: u8) -> Option<Self> {
        if device < 32 && function < 8 { Some(Self(device << 3 | function)) } else { None }
    }
}

/// A function's configuration space: 64 registers of four bytes.
pub trait Function: Send + Sync {
    /// The register at `offset`, a multiple of four.
    fn read(&self, offset: u8) -> u32;

    /// Takes the bytes of `value` that are ones in `mask` into the register at `offset`.
    fn write(&self, offset: u8, value: u32, mask: u32);
}

/// The bus and its configuration space.
pub struct Pci {
    /// What was last written to the address port.
    address: AtomicU32,
    /// Ascending.
    functions: Box<[(Place, Arc<dyn Function>)]>,
}

impl Pci {
    /// A bus with these functions; of several at one place, guests see the first.
    pub fn new(functions: impl IntoIterator<Item = (Place, Arc<dyn Function>)>) -> Self {
        let mut functions: Vec<_> = functions.into_iter().collect();
        functions.sort_by_key(|(place, _)| *place);
        functions.dedup_by_key(|(place, _)| *place);
        Self { address: AtomicU32::new(0), functions: functions.into() }
    }

    /// The ports to put on the bus, with `reset` among them.
    pub fn ports(self: &Arc<Self>, reset: Reset) -> [(Claim<u16>, Arc<dyn Device>); 2] {
        let address = AddressPort { pci: Arc::clone(self), reset };
        [(ADDRESS_CLAIM, Arc::new(address)), (DATA_CLAIM, Arc::new(DataPort(Arc::clone(self))))]
    }

    /// What a snapshot keeps of it; functions save themselves.
    pub fn save(&self) -> SavedPci {
        let Self { address, functions: _ } = self;
        SavedPci { address: address.load(Relaxed) }
    }

    /// Puts back what [`Pci::save`] read.
    pub fn restore(&self, saved: &SavedPci) {
        let SavedPci { address } = *saved;
        self.select(address);
    }

    fn select(&self, address: u32) {
        self.address.store(address & (ENABLE | ADDRESS), Relaxed);
    }

    /// The function that is addressed, if it is there, and the register.
    fn selected(&self) -> Option<(&dyn Function, u8)> {
        let address = self.address.load(Relaxed);
        let [register, place, bus, _] = address.to_le_bytes();
        if address & ENABLE == 0 || bus != 0 {
            return None;
        }
        let index = self.functions.binary_search_by_key(&Place(place), |(place, _)| *place).ok()?;
        Some((&*self.functions[index].1, register))
    }
}

/// Port 0xcf8: the address, only by four bytes; and a byte that is not its own.
struct AddressPort {
    pci: Arc<Pci>,
    reset: Reset,
}

impl Device for AddressPort {
    fn read(&self, offset: u64, width: u8) -> u64 {
        match (offset, width) {
            (0, 4) => self.pci.address.load(Relaxed).into(),
            (RESET_OFFSET, 1) => self.reset.read(0, 1),
            _ => NOBODY.into(),
        }
    }

    fn write(&self, offset: u64, width: u8, value: u64) -> Action {
        match (offset, width) {
            (0, 4) => self.pci.select(value as u32),
            (RESET_OFFSET, 1) => return self.reset.write(0, 1, value),
            _ => {}
        }
        Action::None
    }
}

/// Ports 0xcfc to 0xcff: the register that is addressed.
struct DataPort(Arc<Pci>);

impl Device for DataPort {
    fn read(&self, offset: u64, width: u8) -> u64 {
        let value = self.0.selected().map_or(NOBODY, |(function, register)| function.read(register));
        u64::from(value >> shift(offset)) & ones(width)
    }

    fn write(&self, offset: u64, width: u8, value: u64) -> Action {
        if let Some((function, register)) = self.0.selected() {
            // Four bytes at most, which the bus makes sure of.
            let [value, mask] = [value, ones(width)].map(|bits| (bits << shift(offset)) as u32);
            function.write(register, value, mask);
        }
        Action::None
    }
}

/// How many bits lie before `offset` within a register.
fn shift(offset: u64) -> u64 {
    8 * (offset & 3)
}

/// The bits of so many bytes.
fn ones(width: u8) -> u64 {
    u64::MAX >> (64 - 8 * u32::from(width.clamp(1, 4)))
}

/// The bus as a snapshot keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedPci {
    address: u32,
}

impl Saved for SavedPci {
    const NAME: &'static str = "pci";
    const VERSION: u16 = 1;
}

#[cfg(test)]
#[path = "pci_test.rs"]
mod tests;
