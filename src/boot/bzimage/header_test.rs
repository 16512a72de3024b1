//! Each field of the setup header with a value that cannot be, and what is said about it.

use super::super::super::bz_image::{GUEST, bz_image, field};
use super::super::super::testing::*;
use super::super::super::{Entry, Options, Protocol};

const OWN: Options<'_> = Options {
    entry: Entry::Image,
    command_line: Some(""),
    virtio_console: false,
    append: &[],
    initrds: &[],
    platform: None,
    without_nx: false,
    flat: None,
};

fn good() -> Vec<u8> {
    bz_image(&[0xf4], &[0xf4], GUEST)
}

fn patched<const N: usize>(at: usize, value: [u8; N]) -> Vec<u8> {
    let mut file = good();
    patch(&mut file, at, value);
    file
}

fn with_version(version: u16) -> Vec<u8> {
    patched(field::VERSION, version.to_le_bytes())
}

#[test]
fn the_good_image_is_good() {
    assert_eq!(load_16m(&good(), &Options::default()).unwrap().protocol, Protocol::Pvh);
    assert_eq!(load_16m(&good(), &OWN).unwrap().protocol, Protocol::Linux64);
}

#[test]
fn each_impossible_field_is_named_with_its_value() {
    let cases: &[(Vec<u8>, &str)] = &[
        (
            with_version(0x205),
            "version in its setup header is 0x205: lodger needs boot protocol 2.06 (0x206) or later",
        ),
        (
            with_version(0),
            "version in its setup header is 0x0: lodger needs boot protocol 2.06 (0x206) or later",
        ),
        (with_version(0x300), "version in its setup header is 0x300: this boot protocol is not known"),
        (
            patched(field::JUMP, [0xe9, 0x6a]),
            "jump in its setup header is 0x6ae9: it is no short jump (0xeb) over the header",
        ),
        (
            patched(field::JUMP, [0xeb, 0x61]),
            "jump in its setup header is 0x61eb: the header would end at 0x263, with version 0x20f it ends \
             between 0x264 and 0x290",
        ),
        (
            patched(field::JUMP, [0xeb, 0x8f]),
            "jump in its setup header is 0x8feb: the header would end at 0x291, with version 0x20f it ends \
             between 0x264 and 0x290",
        ),
        (
            good()[..0x230].to_vec(),
            "truncated: its setup header needs bytes 0x1f1..0x26c, the file has 0x230",
        ),
        (
            patched(field::SETUP_SECTS, [14]),
            "setup_sects in its setup header is 0xe: that many sectors are 0x1e00 bytes with the first, the \
             file has 0x1850",
        ),
        (patched(field::SYSSIZE, [0; 4]), "syssize in its setup header is 0x0: there is no code"),
        (
            patched(field::SYSSIZE, 0x146_u32.to_le_bytes()),
            "syssize in its setup header is 0x146: truncated: that is 0x1460 bytes of code, the file has 0x1450",
        ),
        (
            patched(field::SYSSIZE, u32::MAX.to_le_bytes()),
            "syssize in its setup header is 0xffffffff: truncated: that is 0xffffffff0 bytes of code, the file \
             has 0x1450",
        ),
        (
            patched(field::LOADFLAGS, [0xfe]),
            "loadflags in its setup header is 0xfe: bit 0 (LOADED_HIGH) is clear, as in a zImage, which is \
             loaded low; that is not supported",
        ),
        (
            patched(field::KERNEL_ALIGNMENT, 0x1800_u32.to_le_bytes()),
            "kernel_alignment in its setup header is 0x1800: it is no power of two",
        ),
        (
            patched(field::KERNEL_ALIGNMENT, [0; 4]),
            "kernel_alignment in its setup header is 0x0: it is no power of two",
        ),
        (
            patched(field::INITRD_ADDR_MAX, 0xf_fffe_u32.to_le_bytes()),
            "initrd_addr_max in its setup header is 0xffffe: it leaves no room for an initrd",
        ),
        (
            patched(field::PAYLOAD_OFFSET, 0x1450_u32.to_le_bytes()),
            "payload_offset in its setup header is 0x1450: the image's code has 0x1450 bytes",
        ),
        (
            patched(field::PAYLOAD_OFFSET, u32::MAX.to_le_bytes()),
            "payload_offset in its setup header is 0xffffffff: the image's code has 0x1450 bytes",
        ),
        (
            patched(field::PAYLOAD_LENGTH, 0x1151_u32.to_le_bytes()),
            "payload_length in its setup header is 0x1151: payload_offset is 0x300 and the image's code has \
             0x1450 bytes",
        ),
        (
            patched(field::PAYLOAD_LENGTH, [0; 4]),
            "payload_length in its setup header is 0x0: payload_offset is 0x300 and the image's code has \
             0x1450 bytes",
        ),
    ];
    for (file, expected) in cases {
        for options in [OWN, Options::default()] {
            assert_eq!(refusal(file, &options), format!("cannot load kernel test: {expected}"));
        }
    }
}

#[test]
fn places_without_memory_are_refused() {
    let word = u64::to_le_bytes;
    let fixed = |address: u64, start: u32| {
        let mut file = patched(field::PREF_ADDRESS, word(address));
        patch(&mut file, field::RELOCATABLE_KERNEL, [0]);
        patch(&mut file, field::CODE32_START, start.to_le_bytes());
        file
    };
    let cases: &[(Vec<u8>, &str)] = &[
        (
            patched(field::INIT_SIZE, 0x200_0000_u32.to_le_bytes()),
            "the image (0x100000..0x2100000) lies outside the guest's 16M of memory: give the guest at least \
             33M (--memory 33M)",
        ),
        (
            patched(field::KERNEL_ALIGNMENT, 0x8000_0000_u32.to_le_bytes()),
            "the image (0x80000000..0x80010000) lies outside the guest's 16M of memory: give the guest at \
             least 2049M (--memory 2049M)",
        ),
        (
            fixed(0x100_0000, 0x10_0000),
            "the room into which the image unpacks its kernel (0x1000000..0x1010000) lies outside the guest's \
             16M of memory: give the guest at least 17M (--memory 17M)",
        ),
        (
            fixed(u64::MAX, 0x10_0000),
            "the room into which the image unpacks its kernel (0xffffffffffffffff..0x1000000000000ffff) lies \
             outside the guest's 16M of memory; is that a virtual address?",
        ),
        (
            fixed(0x10_0000, u32::MAX),
            "the image (0xffffffff..0x10000144f) lies outside the guest's 16M of memory: no guest has any \
             between 3G and 4G",
        ),
        (
            fixed(0x10_0000, 0x8000),
            "the image (0x8000..0x9450) overlaps 0x500..0x9000, where lodger puts boot parameters and page \
             tables: place it at 0x9000 or above",
        ),
    ];
    for (file, expected) in cases {
        assert_eq!(refusal(file, &OWN), format!("cannot load kernel test: {expected}"));
    }
}

#[test]
fn a_command_line_longer_than_the_kernel_takes_is_refused() {
    let file = patched(field::CMDLINE_SIZE, 20_u32.to_le_bytes());
    for entry in [Entry::Auto, Entry::Linux64, Entry::Image] {
        let with = |line| Options { entry, command_line: Some(line), ..Options::default() };
        assert!(load_16m(&file, &with("console=ttyS0 quiet.")).is_ok());
        assert_eq!(
            refusal(&file, &with("console=ttyS0 quiet..")),
            "the command line has 21 bytes, this kernel takes at most 20"
        );
    }
    // A kernel that does not say takes what all took before they could.
    let file = patched(field::CMDLINE_SIZE, [0; 4]);
    let (longest, too_long) = ("x".repeat(255), "x".repeat(256));
    let with = |line| Options { command_line: Some(line), ..Options::default() };
    assert!(load_16m(&file, &with(&longest)).is_ok());
    assert!(refusal(&file, &with(&too_long)).ends_with("this kernel takes at most 255"));
}

#[test]
fn fields_that_came_with_later_versions_are_not_believed_in_older_ones() {
    // 2.06 knows neither payload nor place nor flags for 64-bit entries; its header may end before them.
    let mut file = with_version(0x206);
    patch(&mut file, field::JUMP, [0xeb, 0x3a]);
    patch(&mut file, field::INIT_SIZE, u32::MAX.to_le_bytes());
    let start = load_16m(&file, &Options::default()).unwrap();
    assert_eq!((start.protocol, start.unpacked), (Protocol::Linux32, None));
    // Where it does not say, a kernel gets three times what it has.
    assert_eq!((start.kernel.start, start.kernel.size), (MIB, 3 * 0x1450));
    for (version, protocol) in
        [(0x208, Protocol::Linux32), (0x20b, Protocol::Linux32), (0x20c, Protocol::Linux64)]
    {
        assert_eq!(load_16m(&with_version(version), &Options::default()).unwrap().protocol, Protocol::Pvh);
        assert_eq!(load_16m(&with_version(version), &OWN).unwrap().protocol, protocol);
    }
}

#[test]
fn the_last_paragraph_of_the_code_need_not_be_whole() {
    let mut file = good();
    file.truncate(file.len() - 7);
    assert!(load_16m(&file, &Options::default()).is_ok());
    file.truncate(file.len() - 9);
    assert!(refusal(&file, &Options::default()).contains("syssize"));
}

#[test]
fn no_sectors_are_four() {
    let mut file = patched(field::SETUP_SECTS, [0]);
    file.splice(0x400..0x400, [0; 3 * 512]);
    assert_eq!(load_16m(&file, &Options::default()).unwrap().protocol, Protocol::Pvh);
}
