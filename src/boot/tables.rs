//! The tables that describe the machine, at their places in the first MiB; and what is left of a firmware's code: a
//! jump to its start resets the machine.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::platform::{Platform, ResetPort};
use super::{Error, acpi, map, mp};
use crate::memory::{GuestMemory, Region};

/// ACPI and MP tables, known to fit.
#[derive(Debug)]
pub struct Tables {
    acpi: acpi::Tables,
    mp: Vec<u8>,
    reset_code: [u8; RESET_CODE_SIZE],
}

const RESET_CODE_SIZE: usize = 9;

/// Code for real mode that writes what resets the machine to its port.
fn reset_code(reset: ResetPort) -> [u8; RESET_CODE_SIZE] {
    let [low, high] = reset.port.to_le_bytes();
    #[rustfmt::skip]
    let code = [
        0xba, low, high,    // mov dx, port
        0xb0, reset.value,  // mov al, value
        0xee,               // out dx, al
        0xf4,               // hlt
        0xeb, 0xfd,         // jmp to the hlt
    ];
    code
}

impl Tables {
    /// Makes the tables for `platform`.
    pub fn make(platform: &Platform<'_>) -> Result<Self, Error> {
        let acpi = acpi::tables(platform, map::ACPI_TABLES);
        let size = acpi.bytes.len() as u64;
        if size > map::ACPI_ROOM {
            return Err(Error::AcpiTooLarge { size, room: map::ACPI_ROOM });
        }
        Ok(Self { acpi, mp: mp::table(platform), reset_code: reset_code(platform.reset_code) })
    }

    /// Where ACPI's root pointer and tables lie; the root pointer comes first.
    pub fn acpi(&self) -> Region {
        Region { start: self.acpi.start, size: self.acpi.bytes.len() as u64 }
    }

    /// Everything that is written, and the id of which ACPI tells.
    pub fn regions(&self) -> [Region; 5] {
        [
            Region { start: map::GENERATION_ID, size: map::GENERATION_ID_SIZE },
            self.acpi(),
            Region { start: map::MP_TABLE, size: self.mp.len() as u64 },
            Region { start: map::MP_POINTER, size: size_of_val(&mp::floating_pointer(0)) as u64 },
            Region { start: map::RESET_CODE, size: RESET_CODE_SIZE as u64 },
        ]
    }

    /// Writes them.
    pub fn write(&self, memory: &GuestMemory) -> Result<(), GuestMemoryError> {
        let memory = memory.mapped();
        memory.write_slice(&self.acpi.bytes, GuestAddress(self.acpi.start))?;
        memory.write_slice(&self.mp, GuestAddress(map::MP_TABLE))?;
        memory.write_slice(&self.reset_code, GuestAddress(map::RESET_CODE))?;
        memory.write_slice(&mp::floating_pointer(map::MP_TABLE as u32), GuestAddress(map::MP_POINTER))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::platform::{VirtioMmio, platform};

    fn devices(count: u32) -> Vec<VirtioMmio> {
        let device = |number| VirtioMmio { base: number * 0x1000, size: 0x1000, interrupt: 5 };
        (0..count).map(device).collect()
    }

    #[test]
    fn the_largest_machine_fits_its_rooms() {
        let virtio = devices(500);
        let tables = Tables::make(&platform(255, &virtio)).unwrap();
        let mut regions = tables.regions();
        regions.sort_by_key(|region| region.start);
        assert!(regions.is_sorted_by(|low, high| low.end() <= high.start), "{regions:x?}");
        assert!(regions[0].start == map::EXTENDED_BIOS_DATA && regions[4].end() <= map::HIGH_MEMORY);
    }

    #[test]
    fn more_devices_than_fit_are_refused() {
        let virtio = devices(100_000);
        let said = Tables::make(&platform(1, &virtio)).unwrap_err().to_string();
        assert!(said.contains("there is room for 0x10000: it has too many devices"), "{said}");
    }
}
