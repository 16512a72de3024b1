//! Each header field with a value that cannot be, and what is said about it.

use super::super::testing::*;
use super::super::{Entry, Options, Protocol};

const CODE: &[u8] = &[0xf4; 16];

/// Code at 1 MiB, data with zeros behind it at 2 MiB, a PVH note.
fn good() -> Vec<u8> {
    elf(MIB + 4, &[code(MIB, CODE), code_and_zeros(2 * MIB, b"data", 0x2000), notes(&pvh_note(MIB + 8))])
}

fn patched<const N: usize>(at: usize, value: [u8; N]) -> Vec<u8> {
    let mut file = good();
    patch(&mut file, at, value);
    file
}

fn linux64() -> Options<'static> {
    Options { entry: Entry::Linux64, ..Options::default() }
}

#[test]
fn the_good_file_is_good() {
    assert_eq!(load_16m(&good(), &Options::default()).unwrap().protocol, Protocol::Pvh);
    assert_eq!(load_16m(&good(), &linux64()).unwrap().protocol, Protocol::Linux64);
    // Position-independent executables are loaded where their headers say, like others.
    let file = patched(header::TYPE, 3_u16.to_le_bytes());
    assert_eq!(load_16m(&file, &linux64()).unwrap().protocol, Protocol::Linux64);
}

#[test]
fn each_impossible_header_field_is_named() {
    let cases: &[(Vec<u8>, &str)] = &[
        (patched(header::CLASS, [1]), "this is a 32-bit ELF, lodger boots 64-bit ones"),
        (patched(header::CLASS, [9]), "this is a class 9 ELF, lodger boots 64-bit ones"),
        (patched(header::DATA, [2]), "this is a big-endian ELF, lodger boots little-endian ones"),
        (patched(header::IDENT_VERSION, [0]), "its ELF version is 0, only 1 is known"),
        (patched(header::VERSION, [7, 0, 0, 0]), "its ELF version is 7, only 1 is known"),
        (
            patched(header::MACHINE, 183_u16.to_le_bytes()),
            "this is an ELF for AArch64 (machine 183), lodger runs x86-64 guests",
        ),
        (
            patched(header::MACHINE, 4711_u16.to_le_bytes()),
            "this is an ELF for another processor (machine 4711), lodger runs x86-64 guests",
        ),
        (
            patched(header::TYPE, [1, 0]),
            "this is an object file or kernel module (ELF type 1), not an executable",
        ),
        (patched(header::TYPE, [4, 0]), "this is a core dump (ELF type 4), not an executable"),
        (
            patched(header::PHENTSIZE, [55, 0]),
            "its program headers have 55 bytes each (e_phentsize), 64-bit ELF has 56",
        ),
        (patched(header::PHNUM, [0, 0]), "it has nothing to load: no PT_LOAD segment with memory"),
        (
            patched(header::PHNUM, [0xff, 0xff]),
            "it has 65535 program headers (e_phnum), lodger reads at most 128",
        ),
        (
            patched(header::PHNUM, [100, 0]),
            "truncated: its program headers need bytes 0x40..0x1620, the file has 0x114",
        ),
        (
            patched(header::PHOFF, u64::MAX.to_le_bytes()),
            "truncated: its program headers need bytes 0xffffffffffffffff..0x100000000000000a7, the file has 0x114",
        ),
        (good()[..63].to_vec(), "truncated: an ELF header has 64 bytes, the file has 63"),
        (b"\x7fELF".to_vec(), "truncated: an ELF header has 64 bytes, the file has 4"),
    ];
    for (file, expected) in cases {
        assert_eq!(refusal(file, &linux64()), format!("cannot load kernel test: {expected}"));
    }
}

#[test]
fn each_impossible_segment_is_named() {
    let word = u64::to_le_bytes;
    let cases: &[(Vec<u8>, &str)] = &[
        (
            patched(program::offset(1), word(0x200)),
            "truncated: segment 1 needs bytes 0x200..0x204, the file has 0x114",
        ),
        (
            patched(program::offset(1), word(u64::MAX)),
            "truncated: segment 1 needs bytes 0xffffffffffffffff..0x10000000000000003, the file has 0x114",
        ),
        (patched(program::memsz(1), word(3)), "segment 1 has 0x4 bytes in the file, but only 0x3 in memory"),
        (
            patched(program::paddr(1), word(63 * MIB)),
            "segment 1 (0x3f00000..0x3f02000) lies outside the guest's 16M of memory: give the guest at least \
             64M (--memory 64M)",
        ),
        (
            patched(program::memsz(1), word(1 << 30)),
            "segment 1 (0x200000..0x40200000) lies outside the guest's 16M of memory: give the guest at least \
             1026M (--memory 1026M)",
        ),
        (
            patched(program::paddr(1), word(0xc000_0000)),
            "segment 1 (0xc0000000..0xc0002000) lies outside the guest's 16M of memory: no guest has any \
             between 3G and 4G",
        ),
        (
            patched(program::paddr(1), word(0x1_0000_0000)),
            "segment 1 (0x100000000..0x100002000) lies outside the guest's 16M of memory: give the guest at \
             least 3073M (--memory 3073M)",
        ),
        (
            patched(program::paddr(1), word(0xffff_ffff_8100_0000)),
            "segment 1 (0xffffffff81000000..0xffffffff81002000) lies outside the guest's 16M of memory; is \
             that a virtual address?",
        ),
        (
            patched(program::paddr(1), word(u64::MAX)),
            "segment 1 (0xffffffffffffffff..0x10000000000001fff) lies outside the guest's 16M of memory; is \
             that a virtual address?",
        ),
        (
            patched(program::paddr(1), word(MIB + 15)),
            "segment 0 (0x100000..0x100010) and segment 1 (0x10000f..0x10200f) overlap in memory",
        ),
        (
            patched(program::paddr(1), word(MIB - 0x1fff)),
            "segment 1 (0xfe001..0x100001) and segment 0 (0x100000..0x100010) overlap in memory",
        ),
        (
            patched(program::paddr(1), word(0x8fff)),
            "segment 1 (0x8fff..0xafff) overlaps 0x500..0x9000, where lodger puts boot parameters and page \
             tables: place it at 0x9000 or above",
        ),
        (
            patched(header::ENTRY, word(MIB + 16)),
            "its ELF entry point 0x100010 is in none of the segments' contents (physical addresses count)",
        ),
        (
            // Among the zeros there is nothing to run.
            patched(header::ENTRY, word(2 * MIB + 4)),
            "its ELF entry point 0x200004 is in none of the segments' contents (physical addresses count)",
        ),
    ];
    for (file, expected) in cases {
        assert_eq!(refusal(file, &linux64()), format!("cannot load kernel test: {expected}"));
    }
}

#[test]
fn segments_that_touch_and_empty_ones_are_fine() {
    let file = elf(
        MIB,
        &[
            code(MIB, CODE),
            code(MIB + 16, CODE),
            code_and_zeros(MIB, &[], 0),
            code_and_zeros(MIB + 32, &[], 64),
        ],
    );
    let start = load_16m(&file, &linux64()).unwrap();
    assert_eq!((start.kernel.start, start.kernel.size), (MIB, 96));
    // A segment of zeros has no contents, so its offset means nothing.
    let mut file = file;
    patch(&mut file, program::offset(3), u64::MAX.to_le_bytes());
    assert!(load_16m(&file, &linux64()).is_ok());
    let nothing = elf(MIB, &[code_and_zeros(MIB, &[], 0)]);
    assert!(refusal(&nothing, &linux64()).ends_with("no PT_LOAD segment with memory"));
}

#[test]
fn the_pvh_entry_is_found_among_other_notes() {
    let other =
        [note(1, b"GNU\0", b"12345"), note(18, b"NetBSD\0", &[0; 4]), note(6, b"Xen\0", &[])].concat();
    for pvh in [pvh_note(MIB + 8), note(18, b"Xen\0", &(MIB as u32 + 8).to_le_bytes())] {
        let file =
            elf(MIB, &[code(MIB, CODE), notes(&other), notes(&[&other[..], &pvh, &[1, 2, 3]].concat())]);
        let start = load_16m(&file, &Options::default()).unwrap();
        assert_eq!(start.protocol, Protocol::Pvh);
        assert!(format!("{:?}", start.state).contains(&format!("entry: {}", MIB + 8)), "{start:?}");
    }
    let mut unpadded = note(1, b"odd", &[]);
    unpadded.truncate(15);
    let without = elf(MIB, &[code(MIB, CODE), notes(&other), notes(&unpadded)]);
    assert_eq!(load_16m(&without, &Options::default()).unwrap().protocol, Protocol::Linux64);
    let pvh = Options { entry: Entry::Pvh, ..Options::default() };
    assert!(refusal(&without, &pvh).contains("it has no PVH entry point"));
}

#[test]
fn notes_aligned_to_eight_bytes_are_walked_as_such() {
    let mut all = note(5, b"GNU\0", &[0; 4]);
    all.resize(all.len().next_multiple_of(8), 0);
    all.extend(pvh_note(MIB));
    let mut file = elf(MIB, &[code(MIB, CODE), notes(&all)]);
    patch(&mut file, 64 + 56 + 48, 8_u64.to_le_bytes());
    assert_eq!(load_16m(&file, &Options::default()).unwrap().protocol, Protocol::Pvh);
}

#[test]
fn each_impossible_note_is_named() {
    let with = |contents: &[u8]| elf(MIB, &[code(MIB, CODE), notes(contents)]);
    let truncated =
        |at: &str| format!("note segment 1 is damaged: the note at its byte {at} reaches beyond its end");
    let mut long_name = pvh_note(MIB);
    patch(&mut long_name, 0, u32::MAX.to_le_bytes());
    let mut long_contents = [note(1, b"GNU\0", &[]), pvh_note(MIB)].concat();
    patch(&mut long_contents, 16 + 4, u32::MAX.to_le_bytes());
    let mut outside = with(&pvh_note(MIB));
    patch(&mut outside, program::offset(1), 0x1000_u64.to_le_bytes());
    let mut endless = with(&pvh_note(MIB));
    patch(&mut endless, program::filesz(1), u64::MAX.to_le_bytes());
    let cases = [
        (with(&long_name), truncated("0x0")),
        (with(&long_contents), truncated("0x10")),
        (outside, "truncated: segment 1 needs bytes 0x1000..0x1018, the file has 0xd8".into()),
        (endless, "note segment 1 has 0xffffffffffffffff bytes, lodger reads at most 0x10000".into()),
        (with(&note(18, b"Xen\0", &[0; 2])), "its PVH note does not hold a 32-bit address (2 bytes)".into()),
        (with(&pvh_note(1 << 32)), "its PVH note does not hold a 32-bit address (8 bytes)".into()),
        (
            with(&pvh_note(MIB - 1)),
            "its PVH entry point 0xfffff is in none of the segments' contents (physical addresses count)"
                .into(),
        ),
    ];
    for (file, expected) in cases {
        let said = refusal(&file, &Options::default());
        assert_eq!(said, format!("cannot load kernel test: {expected}"));
        // Who does not ask for the notes is not troubled by them.
        assert!(load_16m(&file, &linux64()).is_ok());
    }
}
