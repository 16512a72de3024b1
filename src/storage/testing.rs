//! What the tests of this room share.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::VolatileSlice;

use super::Storage;

/// A directory that goes away with the value.
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("lodger-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The path of something in it.
    pub fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Numbers that look random and are the same each time.
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// Does random requests to a disk that reads as zeroes, and the same to memory, and compares.
pub fn check_storage(disk: &dyn Storage) {
    let size = disk.size();
    let mut expected = vec![0_u8; size as usize];
    let mut numbers = Numbers(size | 1);
    for round in 0..400 {
        let unit = [1, 512, 4096][numbers.below(3) as usize];
        let offset = numbers.below(size / unit) * unit;
        let len = ((1 + numbers.below(40)) * unit).min(size - offset);
        let range = offset as usize..(offset + len) as usize;
        match numbers.below(8) {
            0 => {
                disk.write_zeroes(offset, len, numbers.below(2) == 0).unwrap();
                expected[range].fill(0);
            }
            1 => {
                disk.discard(offset, len).unwrap();
                // Both answers are allowed: take the one that the disk gives.
                let mut after = vec![1; len as usize];
                read(disk, offset, &mut after, &mut numbers);
                for (after, expected) in after.iter().zip(&mut expected[range]) {
                    assert!(*after == 0 || after == expected, "round {round}");
                    *expected = *after;
                }
            }
            2..=4 => {
                let mut bytes: Vec<u8> = (0..len).map(|_| numbers.next() as u8).collect();
                expected[range].copy_from_slice(&bytes);
                disk.write(offset, &pieces(&mut bytes, &mut numbers)).unwrap();
            }
            5 => disk.flush().unwrap(),
            _ => {
                let mut bytes = vec![1; len as usize];
                read(disk, offset, &mut bytes, &mut numbers);
                assert!(bytes == expected[range], "round {round}: {len} bytes at {offset}");
            }
        }
    }
    let mut all = vec![1; size as usize];
    read(disk, 0, &mut all, &mut numbers);
    assert!(all == expected);
}

fn read(disk: &dyn Storage, offset: u64, to: &mut [u8], numbers: &mut Numbers) {
    disk.read(offset, &pieces(to, numbers)).unwrap();
}

fn pieces<'a>(mut bytes: &'a mut [u8], numbers: &mut Numbers) -> Vec<VolatileSlice<'a>> {
    let mut slices = Vec::new();
    while !bytes.is_empty() {
        let (piece, rest) = bytes.split_at_mut(numbers.below(bytes.len() as u64 + 1) as usize);
        slices.push(VolatileSlice::from(piece));
        bytes = rest;
    }
    // Slices without a byte may be anywhere.
    slices.push(VolatileSlice::from(bytes));
    slices
}
