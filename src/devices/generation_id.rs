//! The machine's generation: an id in guest memory that is another one whenever the guest goes on from a snapshot.
//!
//! After Microsoft's "Virtual Machine Generation ID". Two machines that go on from one snapshot are the same machine,
//! with the same random numbers to come, until they learn of it: Linux makes new ones as soon as it hears of a new id.
//! ACPI tells the guest where the id is, and an interrupt, an edge like the power button's, when it has changed. There
//! is nothing for a snapshot to keep but the place: the old id is in memory.

use std::io;
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::InterruptLine;
use crate::memory::GuestMemory;
use crate::random;

/// Its interrupt: the last input of the IOAPIC.
pub const IRQ: u32 = 23;

/// Why there is no new id.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host has no random numbers.
    #[error("cannot make a new id for the machine's generation: {0}")]
    Random(io::Error),
    /// No machine of this program has it there.
    #[error("the id of the machine's generation is not in its memory: {0}")]
    Place(GuestMemoryError),
}

/// The generation of a machine.
pub struct GenerationId {
    line: Arc<dyn InterruptLine>,
}

impl GenerationId {
    /// One that is announced on this wire.
    pub fn new(line: Arc<dyn InterruptLine>) -> Self {
        Self { line }
    }

    /// Writes an id that no machine has had to `address`. The guest must not be running.
    pub fn renew(&self, memory: &GuestMemory, address: u64) -> Result<(), Error> {
        let mut id = [0; 16];
        random::fill(&mut id).map_err(Error::Random)?;
        memory.mapped().write_slice(&id, GuestAddress(address)).map_err(Error::Place)
    }

    /// Tells the guest that it has another one.
    pub fn announce(&self) {
        self.line.pulse();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::testing::CountingLine;
    use crate::memory::{Layout, Options};

    const PLACE: u64 = 0xd_f010;

    fn memory() -> GuestMemory {
        GuestMemory::map(Layout::new(1 << 20, 48).unwrap(), Options::default()).unwrap()
    }

    #[test]
    fn each_id_is_another_one_and_nothing_else_is_written() {
        let line = Arc::new(CountingLine::default());
        let generation = GenerationId::new(line.clone());
        let memory = memory();
        let mut seen = Vec::new();
        for _ in 0..3 {
            generation.renew(&memory, PLACE).unwrap();
            let id: [u8; 16] = memory.mapped().read_obj(GuestAddress(PLACE)).unwrap();
            assert!(id != [0; 16] && !seen.contains(&id));
            seen.push(id);
        }
        for neighbour in [PLACE - 8, PLACE + 16] {
            assert_eq!(memory.mapped().read_obj::<u64>(GuestAddress(neighbour)).unwrap(), 0);
        }
        assert_eq!(line.take(), 0, "it is for the machine to say when");
        generation.announce();
        assert_eq!(line.take(), 1);
    }

    #[test]
    fn a_place_outside_of_memory_is_refused() {
        let generation = GenerationId::new(Arc::new(CountingLine::default()));
        for place in [(1 << 20) - 8, 1 << 20, u64::MAX - 7] {
            assert!(matches!(generation.renew(&memory(), place), Err(Error::Place(_))), "{place:#x}");
        }
    }
}
