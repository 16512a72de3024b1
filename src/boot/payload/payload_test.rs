//! Each format as the usual packers write it, sizes that are wrong, and payloads that unpack to too much.

use std::io::Write;

use super::super::bz_image::{GUEST, PACKED};
use super::*;

const START: u64 = 0x1000;

fn unpack_all(packed: &[u8], most: u64) -> Result<Vec<u8>, Problem> {
    unpack(Format::detect(packed).unwrap(), packed.to_vec(), START, most)
}

fn said(packed: &[u8]) -> String {
    unpack_all(packed, 1 << 32).unwrap_err().to_string()
}

/// Appends the unpacked size.
fn sized(mut packed: Vec<u8>, size: usize) -> Vec<u8> {
    packed.extend((size as u32).to_le_bytes());
    packed
}

/// A legacy container with the given contents of blocks.
fn lz4(blocks: &[&[u8]]) -> Vec<u8> {
    let mut packed = lz4::MAGIC.to_le_bytes().to_vec();
    for block in blocks {
        let block = lz4_flex::block::compress(block);
        packed.extend((block.len() as u32).to_le_bytes());
        packed.extend(block);
    }
    packed
}

/// A frame with a window of 128 MiB, as Linux has it, of blocks that hold one repeated byte.
fn zstd(blocks: usize) -> Vec<u8> {
    let mut packed = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 17 << 3];
    for number in 1..=blocks {
        let header = (128 << 10) << 3 | 1 << 1 | u32::from(number == blocks);
        packed.extend(&header.to_le_bytes()[..3]);
        packed.push(0);
    }
    packed
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn bzip2(content: &[u8]) -> Vec<u8> {
    let mut encoder = ::bzip2::write::BzEncoder::new(Vec::new(), ::bzip2::Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn what_every_packer_writes_is_unpacked() {
    for (name, packed) in PACKED {
        assert_eq!(Format::detect(packed).unwrap().to_string(), name);
        assert!(unpack_all(packed, GUEST.len() as u64).unwrap() == GUEST, "{name}");
    }
}

#[test]
fn the_filter_for_x86_code_matters() {
    // Or the test above would not show that it is applied.
    let xz = PACKED[3].1;
    assert_eq!((xz[14], xz[15]), (0x04, 0x00), "the first filter is the one for x86 code");
}

#[test]
fn what_starts_with_no_known_magic_has_no_format() {
    for head in [&b""[..], b"\x1f", b"\x89LZO", b"MZ", &[0; 6], b"\x5d\x00\x01", b"\x7fEL"] {
        assert_eq!(Format::detect(head), None, "{head:02x?}");
    }
}

#[test]
fn content_of_many_blocks_is_unpacked() {
    let content: Vec<u8> = (0..300_000_u32).map(|at| (at >> 7 ^ at.wrapping_mul(at) >> 3) as u8).collect();
    let (one, two) = content.split_at(100_005);
    // Containers may follow each other.
    let mut chained = lz4(&[one]);
    chained.extend(lz4(&[&two[..7], &two[7..]]));
    let zstd = ruzstd::encoding::compress_to_vec(&content[..], ruzstd::encoding::CompressionLevel::Fastest);
    let packed = [
        sized(lz4(&[one, two]), content.len()),
        sized(chained, content.len()),
        sized(bzip2(&content), content.len()),
        gzip(&content),
        sized(zstd, content.len()),
    ];
    for packed in packed {
        assert!(unpack_all(&packed, content.len() as u64).unwrap() == content);
    }
}

#[test]
fn a_size_beyond_the_guests_memory_is_refused_before_anything_is_unpacked() {
    for (name, packed) in PACKED.iter().filter(|(name, _)| *name != "plain") {
        let expected = format!(
            "its {name} payload says that it unpacks to 4424 bytes, the guest has 4K of memory; if that is not \
             damage, give the guest more (--memory)"
        );
        assert_eq!(unpack_all(packed, 4096).unwrap_err().to_string(), expected);
    }
}

#[test]
fn a_size_that_is_not_that_of_the_content_is_refused() {
    for (name, packed) in PACKED.iter().filter(|(name, _)| *name != "plain") {
        let (content, _) = packed.split_last_chunk::<4>().unwrap();
        for announced in [0, 1, GUEST.len() - 1, GUEST.len() + 1, GUEST.len() * 1000] {
            let problem = unpack_all(&sized(content.to_vec(), announced), 1 << 32).unwrap_err();
            let text = problem.to_string();
            assert!(text.starts_with(&format!("its {name} payload is damaged")), "{text}");
            assert!(text.contains("byte 0x"), "{text}");
            // gzip compares the sizes by itself, LZ4 only sees that a block has no room.
            if matches!(*name, "gzip" | "LZ4") {
                continue;
            }
            let announced = announced as u64;
            match problem {
                Problem::Longer { announced: found, .. } => assert!(found == announced && found < 4424),
                Problem::Shorter { announced: said, found, at, .. } => {
                    assert_eq!((said, found), (announced, 4424));
                    assert!(at <= START + packed.len() as u64 - 4);
                }
                _ => panic!("{text}"),
            }
        }
    }
}

#[test]
fn nothing_can_be_too_short_to_be_refused() {
    for (_, packed) in PACKED {
        let format = Format::detect(packed).unwrap();
        for length in 0..20 {
            let cut = packed[..length].to_vec();
            assert!(format == Format::Plain || unpack(format, cut, START, 1 << 32).is_err());
        }
    }
    assert_eq!(said(&[0x1f, 0x8b, 8]), "its gzip payload has only 3 bytes");
    assert_eq!(
        said(&sized(vec![0x5d, 0, 0], 77)),
        "its LZMA payload is damaged near byte 0x1003 of \
        the file: it ends within its header"
    );
}

#[test]
fn damage_is_told_with_the_decoders_words_and_with_its_place() {
    let cut = |number: usize, at: usize| {
        let (_, packed) = PACKED[number];
        sized(packed[..at].to_vec(), GUEST.len())
    };
    let lz4_block = lz4(&[GUEST]);
    let mut lz4_offset = sized(lz4(&[&GUEST[..100]]), 100);
    lz4_offset[4] -= 1;
    let mut sum = PACKED[6].1.to_vec();
    let at = sum.len() - 5;
    sum[at] ^= 1;
    let cases = [
        (cut(0, 700), "its gzip payload is damaged near byte 0x12c0 of the file: it ends too early"),
        (cut(3, 300), "its xz payload is damaged near byte 0x112c of the file: "),
        (sum, "its zstd payload is damaged near byte 0x14d3 of the file: its checksum does not match"),
        (
            sized(lz4_block[..1000].to_vec(), GUEST.len()),
            "its LZ4 payload is damaged near byte 0x1004 of the file: a block of ",
        ),
        (lz4_offset, "its LZ4 payload is damaged near byte 0x1004 of the file: in the block that"),
    ];
    for (packed, expected) in cases {
        let said = said(&packed);
        assert!(said.starts_with(expected), "{said}");
    }
}

#[test]
fn a_bomb_goes_off_no_further_than_to_the_size_that_it_announced() {
    let zeros = vec![0; 2 << 20];
    let blocks = vec![&zeros[..]; 4];
    // These unpack to 2 MiB, to 8 MiB and to 4 GiB.
    let bombs = [gzip(&zeros), bzip2(&zeros), lz4(&blocks), zstd(1 << 15)];
    for bomb in bombs {
        let format = Format::detect(&bomb).unwrap();
        let packed = match format {
            Format::Gzip => sized(bomb[..bomb.len() - 4].to_vec(), 5000),
            _ => sized(bomb, 5000),
        };
        let mut output = Output::new(5000).unwrap();
        let (at, result) = decode(format, &packed[..packed.len() - 4], &mut output);
        assert!(result.is_err(), "{format}");
        assert!(at < 100_000 && output.made() <= 5000, "{format}: {at}, {}", output.made());
        assert!(unpack_all(&packed, 5000).is_err());
    }
}
