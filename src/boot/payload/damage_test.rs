//! Packed guests with every byte damaged and of every length: what comes out is the guest or an error.

use super::super::bz_image::{GUEST, PACKED};
use super::*;

/// Whether what comes out is known to be right, because a checksum guards it.
fn is_guarded(format: Format) -> bool {
    !matches!(format, Format::Lzma | Format::Lz4)
}

/// Unpacks what may be damaged; whether that was noticed.
fn is_refused(format: Format, packed: Vec<u8>) -> bool {
    match unpack(format, packed, 0, 1 << 16) {
        Err(problem) => {
            let text = problem.to_string();
            assert!(text.starts_with(&format!("its {format} payload ")), "{text}");
            true
        }
        Ok(unpacked) if is_guarded(format) => {
            assert!(unpacked == GUEST, "{format}: garbage came out");
            false
        }
        Ok(unpacked) => {
            assert_eq!(unpacked.len(), GUEST.len());
            false
        }
    }
}

fn packed() -> impl Iterator<Item = (Format, &'static [u8])> {
    PACKED
        .iter()
        .map(|(_, packed)| (Format::detect(packed).unwrap(), *packed))
        .filter(|(format, _)| *format != Format::Plain)
}

#[test]
fn every_damaged_byte_is_noticed_or_does_no_harm() {
    for (format, packed) in packed() {
        let mut refused = 0;
        for at in 0..packed.len() {
            for damage in [1 << (at % 8), 0xff] {
                let mut damaged = packed.to_vec();
                damaged[at] ^= damage;
                refused += u32::from(is_refused(format, damaged));
            }
        }
        let all = 2 * packed.len() as u32;
        assert!(refused > all / 3, "{format}: {refused} of {all}");
    }
}

#[test]
fn every_truncation_is_noticed() {
    for (format, packed) in packed() {
        let (content, size) = packed.split_last_chunk::<4>().unwrap();
        for length in 0..content.len() {
            // What the build appends may be left, as when a hole is in the middle.
            let with_size = [&content[..length], size].concat();
            let refused = is_refused(format, with_size);
            // The index behind the blocks of xz is not needed.
            let is_index = format == Format::Xz && length + 100 > content.len();
            // Nor is the end mark of LZMA, as all is there when the size is reached.
            let is_mark = format == Format::Lzma && length + 10 > content.len();
            assert!(refused || is_index || is_mark, "{format} of {length} bytes");
            is_refused(format, packed[..length].to_vec());
        }
    }
}

#[test]
fn damage_in_many_places_at_once_is_survived() {
    let mut random = crate::boot::mutation_test::Random(0x0123_4567_89ab_cdef);
    for (format, packed) in packed() {
        for _ in 0..400 {
            let mut damaged = packed.to_vec();
            for _ in 0..=random.below(20) {
                // Past the magic number, and leaving the size.
                let at = 6 + random.below(packed.len() - 10);
                damaged[at] = random.next() as u8;
            }
            is_refused(format, damaged);
        }
    }
}
