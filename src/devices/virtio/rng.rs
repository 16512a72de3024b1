//! A source of random numbers (specification 1.2, section 5.4).
//!
//! Each buffer is filled from the host's own generator, which never runs dry.

use serde::{Deserialize, Serialize};
use vm_memory::VolatileSlice;

use super::queue::{self, length};
use super::{Device, Kind, Left, Misuse, Queue};
use crate::devices;
use crate::random;
use crate::saved::{self, Envelope, Saved};

/// As many buffers as a driver can have waiting.
const QUEUE_SIZES: [u16; 1] = [64];
/// What a request is given at most: drivers ask for some dozen bytes and take what they get.
const MOST: u64 = 64 << 10;

/// The device.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rng;

impl Device for Rng {
    fn kind(&self) -> Kind {
        Kind { id: 4, name: "virtio-rng" }
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn save_state(&self) -> Envelope {
        let Self = self;
        Envelope::of(&SavedRng {})
    }

    fn restore_state(&self, bytes: &[u8]) -> Result<(), devices::Error> {
        let SavedRng {} = saved::decode(bytes)?;
        Ok(())
    }

    fn serve(&self, _number: u16, queue: &mut Queue) -> Result<Left, Misuse> {
        let more = queue.each(|chain, memory| {
            let wanted = length(chain.writable()).min(MOST);
            if wanted == 0 {
                return Err(Misuse::Request);
            }
            let mut slices = Vec::new();
            queue::slices(memory, chain.writable(), 0, wanted, &mut slices)?;
            Ok(slices.iter().map(fill).sum())
        })?;
        Ok(Left::more(more))
    }
}

/// There is nothing to keep: the next random numbers are others anyway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedRng {}

impl Saved for SavedRng {
    const NAME: &'static str = "virtio-rng";
    const VERSION: u16 = 1;
}

/// Fills a piece of guest memory, and says how much of it.
fn fill(slice: &VolatileSlice<'_>) -> u32 {
    let mut bytes = [0; 256];
    let mut done = 0;
    while done < slice.len() {
        let count = bytes.len().min(slice.len() - done);
        let Ok(rest) = slice.offset(done) else { break };
        if random::fill(&mut bytes[..count]).is_err() {
            break;
        }
        rest.copy_from(&bytes[..count]);
        done += count;
    }
    done as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_restored_from_its_own_state_only() {
        let saved = Rng.save_state();
        Rng.restore_state(&saved.bytes).unwrap();
        assert!(Rng.restore_state(&saved.bytes[1..]).is_err());
        assert!(Rng.restore_state(&[saved.bytes, vec![0]].concat()).is_err());
    }
}
