//! Damaged files by the ten thousand: none may do more than be refused.

use super::platform::platform;
use super::testing::*;
use super::{Entry, Error, Options};
use crate::memory::{GuestMemory, Region};

/// A small generator of our own (xorshift64*), so that every run does the same.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// Numbers that break arithmetic more often than arbitrary ones do.
    pub fn nasty(&mut self) -> u64 {
        let near = [0, 1, 0x1000, 0xa_0000, MIB, 2 * MIB, 3 << 30, 4 << 30, 1 << 32, 1 << 47, 1 << 63];
        let value = near[self.below(near.len())];
        match self.below(4) {
            0 => value,
            1 => value.wrapping_sub(1),
            2 => value.wrapping_sub(self.next() % 0x3000),
            _ => self.next(),
        }
    }
}

fn original() -> Vec<u8> {
    elf(
        MIB,
        &[
            code(MIB, &[0xf4; 64]),
            code_and_zeros(MIB + 0x1000, b"data", 0x2000),
            notes(&[note(1, b"GNU\0", b"12345"), pvh_note(MIB)].concat()),
        ],
    )
}

fn mutate(file: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(3) {
        match random.below(5) {
            0 => {
                let at = random.below(file.len());
                file[at] ^= 1 << random.below(8);
            }
            1 => {
                let at = random.below(file.len());
                file[at] = random.next() as u8;
            }
            // A whole field of the header, the program headers, or the notes.
            2 | 3 => {
                let at = random.below(file.len() / 8) * 8;
                let value = random.nasty().to_le_bytes();
                file[at..at + 8].copy_from_slice(&value);
            }
            _ => {
                let length = random.below(file.len()).max(8);
                file.truncate(length);
            }
        }
    }
}

pub fn is_untouched(memory: &GuestMemory) -> bool {
    const SIZE: usize = 2 * MIB as usize;
    read(memory, 0, SIZE) == vec![0; SIZE]
}

#[test]
fn damaged_files_are_loaded_inside_memory_or_refused_without_a_trace() {
    let mut random = Random(0x1234_5678_9abc_def1);
    let (mut loaded, mut refused) = (0, 0);
    for round in 0..30_000 {
        let mut file = original();
        mutate(&mut file, &mut random);
        let guest = memory(2 * MIB);
        let entry = [Entry::Auto, Entry::Pvh, Entry::Linux64][random.below(3)];
        let files = [bytes(b"initrd"); 2];
        let initrds = &files[..random.below(3)];
        let platform = platform(2, &[]);
        let platform = [None, Some(&platform)][random.below(2)];
        let command_line = Some("quiet");
        let options = Options { entry, command_line, initrds, platform, ..Options::default() };
        match super::load(&guest, bytes(&file), &options) {
            Ok(start) => {
                loaded += 1;
                let Region { start: first, size } = start.kernel;
                assert!(first + size <= 2 * MIB, "round {round}: {start:?}");
                // An initrd may lie in a gap of the kernel, but on neither of its ends.
                let ends = [first, first + size - 1];
                let is_on_end =
                    |initrd: Region| ends.iter().any(|at| (initrd.start..initrd.end()).contains(at));
                assert!(start.initrd.is_none_or(|initrd| !is_on_end(initrd)), "round {round}: {start:?}");
            }
            Err(error) => {
                refused += 1;
                assert!(
                    matches!(error, Error::Kernel { .. } | Error::InitrdTooLarge { .. }),
                    "round {round}: {error}"
                );
                // Looking at all of memory is slow in a debug build; now and then is enough.
                assert!(round % 16 != 0 || is_untouched(&guest), "round {round}: {error}");
            }
        }
    }
    // Both happen often, or this tests less than it seems to.
    assert!(loaded > 2_000 && refused > 10_000, "{loaded} loaded, {refused} refused");
}
