//! A harmless request of which a device thinks nothing, for checks that are the same for all.

use super::{Failure, Outcome, same};
use crate::virtio::queue::{Part, Queue};

const MOST: usize = 3;

/// A request that changes nothing, in two or three parts.
#[derive(Clone, Copy)]
pub struct Sample {
    /// Which queue it goes into.
    pub queue: u16,
    parts: [Part; MOST],
    count: usize,
    /// How much the device writes for it.
    written: u32,
    /// Where the device puts a zero, if it does.
    zeroed: Option<u64>,
}

impl Sample {
    /// A request of these parts, of which at most three count.
    pub fn new(queue: u16, parts: &[Part], written: u32) -> Self {
        let mut sample = Self {
            queue,
            parts: [Part { address: 0, length: 0, written: false }; MOST],
            count: parts.len().min(MOST),
            written,
            zeroed: None,
        };
        sample.parts[..sample.count].copy_from_slice(&parts[..sample.count]);
        sample
    }

    /// The same, which ends with a zero here.
    pub fn zeroing(self, address: u64) -> Self {
        Self { zeroed: Some(address), ..self }
    }

    pub fn parts(&self) -> &[Part] {
        &self.parts[..self.count]
    }

    /// The same parts in the wrong direction.
    pub fn turned(&self) -> Self {
        let parts = self.parts.map(|part| Part { written: !part.written, ..part });
        Self { parts, ..*self }
    }

    /// How many descriptors it takes.
    pub fn descriptors(&self) -> u16 {
        self.count as u16
    }

    /// Describes as many as there is room for, one behind the other; how many.
    pub fn fill(&self, queue: &Queue) -> u16 {
        let most = queue.size() / self.descriptors();
        for number in 0..most {
            queue.describe(number * self.descriptors(), self.parts());
        }
        most
    }

    /// Makes sure that the answer can be told from none.
    pub fn prepare(&self) {
        if let Some(address) = self.zeroed {
            crate::memory::write(address, 0xee, 1);
        }
    }

    /// What the device has made of it.
    pub fn check(&self, written: u32) -> Result<(), Failure> {
        same("written", written, self.written)?;
        self.check_end()
    }

    fn check_end(&self) -> Outcome {
        match self.zeroed {
            Some(address) => same("the last byte", crate::memory::read8(address), 0_u8),
            None => Ok(()),
        }
    }
}
