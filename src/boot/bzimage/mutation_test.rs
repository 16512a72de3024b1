//! Damaged bzImages by the ten thousand: none may do more than be refused.

use super::super::bz_image::{PACKED, bz_image};
use super::super::mutation_test::{Random, is_untouched};
use super::super::testing::*;
use super::super::{Entry, Error, Options, load};

/// The first and the last byte of the setup header.
const HEADER: std::ops::Range<usize> = 0x1f1..0x270;

fn mutate(file: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(3) {
        // Headers are where it matters most.
        let at = match random.below(4) {
            0 => random.below(file.len()),
            _ => HEADER.start + random.below(HEADER.len()),
        };
        match random.below(6) {
            0 => file[at] ^= 1 << random.below(8),
            1 => file[at] = random.next() as u8,
            2 | 3 => {
                // Most fields have four bytes and lie at multiples of four.
                let at = at & !3;
                file[at..at + 4].copy_from_slice(&(random.nasty() as u32).to_le_bytes());
            }
            4 => {
                let at = at & !7;
                file[at..at + 8].copy_from_slice(&random.nasty().to_le_bytes());
            }
            _ => {
                // Long enough to be taken for what it was.
                let length = random.below(file.len()).max(HEADER.end + 8);
                file.truncate(length);
            }
        }
    }
}

#[test]
fn damaged_images_are_loaded_inside_memory_or_refused_without_a_trace() {
    let mut random = Random(0x0fed_cba9_8765_4321);
    let (mut loaded, mut refused) = (0, 0);
    for round in 0..12_000 {
        // The slowest decoder has its own test.
        let (_, payload) = PACKED[[0, 3, 5, 6, 7][random.below(5)]];
        let mut file = bz_image(&[0xf4; 64], &[0xf4; 64], payload);
        mutate(&mut file, &mut random);
        let guest = memory(2 * MIB);
        let entry = [Entry::Auto, Entry::Pvh, Entry::Linux64, Entry::Image][random.below(4)];
        let files = [bytes(b"initrd"); 2];
        let initrds = &files[..random.below(3)];
        let command_line = Some("quiet");
        let options = Options { entry, command_line, initrds, ..Options::default() };
        match load(&guest, bytes(&file), &options) {
            Ok(start) => {
                loaded += 1;
                assert!(start.kernel.end() <= 2 * MIB, "round {round}: {start:?}");
                let apart = |initrd: crate::memory::Region| {
                    initrd.start >= start.kernel.end() || start.kernel.start >= initrd.end()
                };
                assert!(start.initrd.is_none_or(apart), "round {round}: {start:?}");
            }
            Err(error) => {
                refused += 1;
                let expected = matches!(
                    error,
                    Error::Kernel { .. } | Error::InitrdTooLarge { .. } | Error::CommandLineTooLong { .. }
                );
                assert!(expected, "round {round}: {error}");
                assert!(round % 16 != 0 || is_untouched(&guest), "round {round}: {error}");
            }
        }
    }
    assert!(loaded > 2_000 && refused > 2_000, "{loaded} loaded, {refused} refused");
}
