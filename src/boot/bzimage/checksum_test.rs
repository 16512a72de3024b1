//! Images that are whole, damaged, signed, or made without a CRC.

use super::super::super::bz_image::{CODE_AT, PACKED, PAYLOAD_AT, bz_image, field, seal};
use super::super::super::testing::*;
use super::super::super::{Entry, Options};
use super::*;

const PE: usize = 0x40;
const CHECKSUM_AT: usize = PE + OPTIONAL + CHECKSUM;
const COUNT_AT: usize = PE + OPTIONAL + 108;
const CERTIFICATES_AT: usize = COUNT_AT + 4 + 32;

fn sealed(payload: &[u8]) -> Vec<u8> {
    let mut file = bz_image(&[0x32; 16], &[0x64; 16], payload);
    seal(&mut file);
    file
}

/// One that firmware could start.
fn for_firmware() -> Vec<u8> {
    let mut file = bz_image(&[0x32; 16], &[0x64; 16], PACKED[5].1);
    patch(&mut file, 0, *b"MZ");
    patch(&mut file, PE_OFFSET_AT, (PE as u32).to_le_bytes());
    patch(&mut file, PE, *b"PE\0\0");
    patch(&mut file, PE + OPTIONAL, MAGIC_PE32_PLUS.to_le_bytes());
    patch(&mut file, COUNT_AT, [6]);
    seal(&mut file);
    file
}

fn sign(file: &mut Vec<u8>) {
    let end = file.len() as u32;
    patch(file, CHECKSUM_AT, [1, 2, 3, 4]);
    patch(file, CERTIFICATES_AT, end.to_le_bytes());
    patch(file, CERTIFICATES_AT + 4, 100_u32.to_le_bytes());
    file.extend([0xcc; 100]);
}

fn loads(file: &[u8]) -> bool {
    [Entry::Auto, Entry::Image].into_iter().all(|entry| {
        let options = Options { entry, ..Options::default() };
        load_16m(file, &options).is_ok()
    })
}

#[test]
fn an_image_with_its_crc_is_whole_in_every_format() {
    for (name, payload) in PACKED {
        let file = sealed(payload);
        assert_eq!(crc32fast::hash(&file), INTACT, "{name}");
        assert!(loads(&file), "{name}");
        // What stands behind the image is none of its own.
        assert!(loads(&[&file[..], b"more"].concat()), "{name}");
    }
}

#[test]
fn damage_that_unpacking_does_not_notice_is_found_and_told() {
    // Code and the header have no other protection in any format, and a payload that is not packed has none either.
    for (_, payload) in PACKED {
        let mut file = sealed(payload);
        let end = file.len();
        file[CODE_AT + 8] ^= 1;
        let found = crc32fast::hash(&file);
        for entry in [Entry::Auto, Entry::Image] {
            assert_eq!(
                refusal(&file, &Options { entry, ..Options::default() }),
                format!(
                    "cannot load kernel test: the image is damaged: the CRC-32 of its first {end:#x} bytes, which \
                     its last four are for, is {found:#x} instead of 0xffffffff"
                )
            );
        }
    }
    let mut plain = sealed(PACKED[7].1);
    plain[PAYLOAD_AT + 0x1004] ^= 0x80;
    assert!(refusal(&plain, &Options::default()).contains("the image is damaged: the CRC-32"));
}

#[test]
fn no_bit_of_an_image_can_change_unnoticed() {
    let file = sealed(PACKED[5].1);
    for at in 0x270..file.len() {
        let mut damaged = file.clone();
        damaged[at] ^= 1 << (at % 8);
        assert!(load_16m(&damaged, &Options::default()).is_err(), "{at:#x}");
    }
}

#[test]
fn an_image_that_was_made_without_a_crc_is_loaded() {
    // Linux from 6.16 on.
    assert!(loads(&bz_image(&[0x32; 16], &[0x64; 16], PACKED[5].1)));
    // No Linux.
    let mut file = sealed(PACKED[5].1);
    patch(&mut file, field::PAYLOAD_OFFSET, [0; 8]);
    assert!(load_16m(&file, &Options::default()).is_ok());
    // Before protocol 2.08.
    let mut file = sealed(PACKED[5].1);
    patch(&mut file, field::VERSION, 0x207_u16.to_le_bytes());
    assert!(load_16m(&file, &Options::default()).is_ok());
}

#[test]
fn a_signed_image_is_loaded() {
    let mut file = for_firmware();
    assert!(signed_fields(&file).is_none() && loads(&file));
    let size = file.len();
    sign(&mut file);
    assert_eq!(
        signed_fields(&file),
        Some([CHECKSUM_AT..CHECKSUM_AT + 4, CERTIFICATES_AT..CERTIFICATES_AT + 8])
    );
    assert_ne!(crc32fast::hash(&file[..size]), INTACT);
    assert!(loads(&file));
    // Changed by a tool that does more: nobody can tell.
    patch(&mut file, PE + 8, [1]);
    assert!(loads(&file));
    // The same change without a signature is damage.
    let mut file = for_firmware();
    patch(&mut file, PE + 8, [1]);
    assert!(!loads(&file));
}

#[test]
fn headers_that_only_look_signed_are_read_within_their_bounds() {
    let mut file = for_firmware();
    sign(&mut file);
    for offset in [0, 1, 0x3c, HEADERS as u32 - 4, HEADERS as u32, u32::MAX - 3, u32::MAX] {
        let mut file = file[..HEADERS].to_vec();
        patch(&mut file, PE_OFFSET_AT, offset.to_le_bytes());
        assert_eq!(signed_fields(&file), None, "{offset:#x}");
    }
    for length in 0..CERTIFICATES_AT + DIRECTORY_SIZE {
        assert_eq!(signed_fields(&file[..length]), None, "{length:#x}");
    }
    patch(&mut file, COUNT_AT, [4]);
    assert_eq!(signed_fields(&file), None);
}
