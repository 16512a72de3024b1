use super::*;
use crate::snapshot::testing::{LAMP, sections};

fn info() -> Info {
    Info::of(&sections(), *b"0123456789abcdef", 1_700_000_000, 1 << 20).unwrap()
}

fn decode(bytes: &[u8]) -> Result<Info, Error> {
    Info::decode(Path::new("state"), bytes)
}

/// The bytes of something else with a checksum that is right.
fn sealed(info: &Info, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = info.encode();
    change(&mut bytes);
    let checksum = checksum(&bytes);
    bytes[CHECKSUM..HEADER_SIZE].copy_from_slice(&checksum);
    bytes
}

#[test]
fn header_and_table_are_laid_out_as_documented() {
    let bytes = info().encode();
    assert_eq!(bytes.len(), 128 + 2 * 128);
    assert_eq!(bytes[..8], *b"LODGSNAP");
    assert_eq!(bytes[8..16], [1, 0, 0, 0, 62, 0, 0, 0]);
    assert_eq!(bytes[16..32], *b"0123456789abcdef");
    assert_eq!(bytes[32..40], 1_700_000_000_u64.to_le_bytes());
    let lamp = crate::saved::encode(&LAMP).len() as u64;
    assert_eq!(bytes[40..48], (128 + 2 * 128 + 2 * lamp).to_le_bytes());
    assert_eq!(bytes[48..56], (1_u64 << 20).to_le_bytes());
    assert_eq!(bytes[56..64], [2, 0, 0, 0, 0, 0, 0, 0]);
    assert!(bytes[64..].starts_with(b"lodger "));
    let entry = &bytes[128..256];
    assert_eq!(entry[..40], *b"lamp/0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(entry[40..45], *b"lamp\0");
    assert_eq!(entry[72..80], [3, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(entry[80..88], (128 + 2 * 128_u64).to_le_bytes());
    assert_eq!(entry[88..96], lamp.to_le_bytes());
    assert_eq!(entry[96..], *blake3::hash(&crate::saved::encode(&LAMP)).as_bytes());
    assert_eq!(decode(&bytes).unwrap(), info());
}

#[test]
fn what_has_the_right_checksum_and_makes_no_sense_is_refused() {
    let entry = HEADER_SIZE + ENTRY_SIZE;
    let info = info();
    let cases: [(usize, &[u8], &str); 15] = [
        (8, &[0], "makes no sense"),
        (12, &[183], "architecture (ELF number 183)"),
        (40, &[0xff], "not all there is"),
        (40, &[0xff; 8], "longer than"),
        (48, &[1], "whole pages"),
        (48, &[0, 0xf0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], "whole pages"),
        (60, &[1], "makes no sense"),
        (64, &[0; 32], "is no name"),
        (95, b"x", "behind its end"),
        (entry, b"lamp/0", "two sections"),
        (entry, &[0xff], "no text"),
        (entry, b"\n", "is no name"),
        (entry + 76, &[1], "makes no sense"),
        (entry + 80, &[0], "not where it should be"),
        (entry + 88, &[0xff; 8], "no end"),
    ];
    for (at, with, said) in cases {
        let bytes = sealed(&info, |bytes| bytes[at..at + with.len()].copy_from_slice(with));
        let error = decode(&bytes).unwrap_err().to_string();
        assert!(error.contains(said), "{at} {with:?}: {error}");
    }
}

#[test]
fn a_newer_format_is_refused_whatever_else_it_has() {
    let mut header = [0xa5; HEADER_SIZE];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&2_u32.to_le_bytes());
    let error = Info::plain_size(Path::new("state"), &header).unwrap_err();
    assert!(matches!(error, Error::Newer { found: 2, .. }), "{error}");
    header[8..12].copy_from_slice(&1_u32.to_le_bytes());
    // More sections than there can be are not read.
    assert!(Info::plain_size(Path::new("state"), &header).is_err());
}

#[test]
fn what_has_no_place_in_a_snapshot_is_refused_when_it_is_written() {
    let long = Section::of("x".repeat(41), &LAMP);
    let twice = [sections(), sections()].concat();
    for sections in [vec![long], twice, vec![Section::of("", &LAMP)]] {
        assert!(matches!(Info::of(&sections, [0; 16], 0, 0), Err(Error::Unfit(_))));
    }
    assert!(Info::of(&sections(), [0; 16], 0, 4095).is_err());
}
