//! Lists of page numbers, as drivers give them for what goes into the balloon and comes out.

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::super::queue::{self, Chain, Misuse, length};

/// Drivers count in pages of this size, whatever theirs is.
pub(super) const PAGE: u64 = 4096;
const NUMBER: usize = 4;
/// How many one request may have: Linux sends 256. More would take so long that the device could not be stopped.
const MOST: usize = 1 << 14;

/// Reads the numbers in a request; all of them are of pages in memory.
pub(super) fn read(chain: &Chain, memory: &GuestMemoryMmap, numbers: &mut Vec<u32>) -> Result<(), Misuse> {
    numbers.clear();
    let total = length(chain.readable());
    if !chain.writable().is_empty() || total > (MOST * NUMBER) as u64 {
        return Err(Misuse::Request);
    }
    let mut bytes = vec![0; total as usize];
    queue::read(memory, chain.readable(), &mut bytes).ok_or(Misuse::Request)?;
    let (whole, rest) = bytes.as_chunks::<NUMBER>();
    if !rest.is_empty() {
        return Err(Misuse::Request);
    }
    numbers.extend(whole.iter().map(|number| u32::from_le_bytes(*number)));
    let is_memory = |&number: &u32| {
        GuestMemoryBackend::check_range(memory, GuestAddress(u64::from(number) * PAGE), PAGE as usize)
    };
    if numbers.iter().all(is_memory) { Ok(()) } else { Err(Misuse::Buffer) }
}

/// The same pages as runs, in order: where each begins, and its length in bytes.
pub(super) fn runs(numbers: &mut Vec<u32>) -> impl Iterator<Item = (u64, u64)> + '_ {
    numbers.sort_unstable();
    numbers.dedup();
    let runs = numbers.chunk_by(|&number, &next| number.checked_add(1) == Some(next));
    runs.filter_map(|run| Some((u64::from(*run.first()?) * PAGE, run.len() as u64 * PAGE)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_one_run_in_whatever_order_they_come() {
        let mut numbers = vec![9, 3, 5, 4, 4, u32::MAX, 0, 8, u32::MAX - 1];
        let found: Vec<_> = runs(&mut numbers).map(|(start, length)| (start / PAGE, length / PAGE)).collect();
        assert_eq!(found, [(0, 1), (3, 3), (8, 2), (u64::from(u32::MAX) - 1, 2)]);
        assert_eq!(runs(&mut Vec::new()).count(), 0);
    }
}
