//! The tables that describe the machine, at their places in the first MiB.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::platform::Platform;
use super::{Error, acpi, map, mp};
use crate::memory::{GuestMemory, Region};

/// ACPI and MP tables, known to fit.
#[derive(Debug)]
pub struct Tables {
    acpi: acpi::Tables,
    mp: Vec<u8>,
}

impl Tables {
    /// Makes the tables for `platform`.
    pub fn make(platform: &Platform<'_>) -> Result<Self, Error> {
        let acpi = acpi::tables(platform, map::ACPI_TABLES);
        let size = acpi.bytes.len() as u64;
        if size > map::ACPI_ROOM {
            return Err(Error::AcpiTooLarge { size, room: map::ACPI_ROOM });
        }
        Ok(Self { acpi, mp: mp::table(platform) })
    }

    /// Where ACPI's root pointer and tables lie; the root pointer comes first.
    pub fn acpi(&self) -> Region {
        Region { start: self.acpi.start, size: self.acpi.bytes.len() as u64 }
    }

    /// Everything that is written.
    pub fn regions(&self) -> [Region; 3] {
        [
            self.acpi(),
            Region { start: map::MP_TABLE, size: self.mp.len() as u64 },
            Region { start: map::MP_POINTER, size: size_of_val(&mp::floating_pointer(0)) as u64 },
        ]
    }

    /// Writes them.
    pub fn write(&self, memory: &GuestMemory) -> Result<(), GuestMemoryError> {
        let memory = memory.mapped();
        memory.write_slice(&self.acpi.bytes, GuestAddress(self.acpi.start))?;
        memory.write_slice(&self.mp, GuestAddress(map::MP_TABLE))?;
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
        assert!(regions[0].start == map::EXTENDED_BIOS_DATA && regions[2].end() <= map::HIGH_MEMORY);
    }

    #[test]
    fn more_devices_than_fit_are_refused() {
        let virtio = devices(100_000);
        let said = Tables::make(&platform(1, &virtio)).unwrap_err().to_string();
        assert!(said.contains("there is room for 0x10000: it has too many devices"), "{said}");
    }
}
