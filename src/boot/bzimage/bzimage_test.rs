//! Whole loads of bzImages, with what they leave in guest memory.

use linux_loader::bootparam::boot_params;
use vm_memory::{Bytes, GuestAddress};

use super::super::bz_image::{CODE_AT, GUEST, PACKED, PAYLOAD_AT, bz_image, field};
use super::super::testing::*;
use super::super::{Entry, Options, Protocol, load, map};
use crate::memory::{GuestMemory, Region};
use crate::x86::mode::{InitialState, Parameters};

const CODE32: &[u8] = &[0x32; 16];
const CODE64: &[u8] = &[0x64; 16];

fn packed_as(payload: &[u8]) -> Vec<u8> {
    bz_image(CODE32, CODE64, payload)
}

fn entered_by(entry: Entry) -> Options<'static> {
    Options { entry, ..Options::default() }
}

fn zero_page(guest: &GuestMemory) -> boot_params {
    guest.mapped().read_obj(GuestAddress(map::ZERO_PAGE)).unwrap()
}

#[test]
fn the_kernel_in_every_format_is_loaded_like_the_elf_image_itself() {
    for entry in [Entry::Auto, Entry::Pvh, Entry::Linux64] {
        let expected_guest = memory(4 * MIB);
        let expected = load(&expected_guest, bytes(GUEST), &entered_by(entry)).unwrap();
        assert_eq!(expected.unpacked, None);
        for (name, payload) in PACKED {
            let guest = memory(4 * MIB);
            let mut start = load(&guest, bytes(&packed_as(payload)), &entered_by(entry)).unwrap();
            assert_eq!(start.unpacked.take().map(|format| format.to_string()), Some(name.to_owned()));
            assert_eq!(start, expected, "{name}");
            let above = |guest| read(guest, MIB, 3 * MIB as usize);
            assert!(above(&guest) == above(&expected_guest), "{name}");
        }
    }
}

#[test]
fn what_follows_the_elf_image_does_no_harm() {
    // As the table of relocations that a kernel with KASLR has behind it.
    let content = [GUEST, &[0xee; 3000]].concat();
    let block = lz4_flex::block::compress(&content);
    let mut payload = vec![0x02, 0x21, 0x4c, 0x18];
    payload.extend((block.len() as u32).to_le_bytes());
    payload.extend(block);
    payload.extend((content.len() as u32).to_le_bytes());
    assert_eq!(load_16m(&packed_as(&payload), &Options::default()).unwrap().protocol, Protocol::Pvh);
}

#[test]
fn a_kernel_entered_by_the_linux_protocol_finds_its_setup_header() {
    let guest = memory(16 * MIB);
    let mut file = packed_as(PACKED[0].1);
    // These are for the loader to fill in; what a file has there must not reach the kernel.
    for at in [field::RAMDISK_IMAGE, field::HEAP_END_PTR, field::SETUP_DATA] {
        patch(&mut file, at, [0xff; 2]);
    }
    patch(&mut file, 0x1f4 + 4, [0x21, 0x43]);
    patch(&mut file, field::LOADFLAGS, [0xff]);
    let initrd = [7; 100];
    let options =
        Options { command_line: Some("quiet"), initrds: &[bytes(&initrd)], ..entered_by(Entry::Linux64) };
    let start = load(&guest, bytes(&file), &options).unwrap();
    let params = zero_page(&guest);
    let hdr = params.hdr;
    assert_eq!(({ hdr.header }.to_le_bytes(), { hdr.boot_flag }, { hdr.version }), (*b"HdrS", 0xaa55, 0x20f));
    assert_eq!(({ hdr.ram_size }, { hdr.init_size }, { hdr.pref_address }), (0x4321, 0x1_0000, MIB));
    assert_eq!((hdr.type_of_loader, hdr.loadflags, params.sentinel), (0xff, 1, 0));
    assert_eq!(({ hdr.heap_end_ptr }, { hdr.setup_data }), (0, map::SEED));
    assert_eq!(read(&guest, u64::from(hdr.cmd_line_ptr), 6), b"quiet\0");
    assert_eq!(u64::from(hdr.ramdisk_image), start.initrd.unwrap().start);
    assert_eq!({ hdr.ramdisk_size }, 100);
    assert_eq!(params.e820_entries, 3);
    // Behind the header nothing of the file is left.
    assert_eq!(read(&guest, map::ZERO_PAGE + 0x26c, 0x290 - 0x26c), vec![0; 0x290 - 0x26c]);
}

#[test]
fn the_images_own_code_is_entered_in_the_mode_that_it_supports() {
    let guest = memory(16 * MIB);
    let file = packed_as(PACKED[1].1);
    let start = load(&guest, bytes(&file), &entered_by(Entry::Image)).unwrap();
    assert_eq!((start.protocol, start.unpacked), (Protocol::Linux64, None));
    assert_eq!(start.kernel, Region { start: MIB, size: 0x1_0000 });
    let InitialState::Long { entry, parameters, .. } = start.state else { panic!("{start:?}") };
    assert_eq!((entry, parameters), (MIB + 0x200, map::ZERO_PAGE));
    let code = &file[CODE_AT..];
    assert!(read(&guest, MIB, code.len()) == code);
    assert_eq!({ zero_page(&guest).hdr.code32_start }, MIB as u32);

    let mut file = file;
    patch(&mut file, field::XLOADFLAGS, [0xfe, 0xff]);
    let guest = memory(16 * MIB);
    let start = load(&guest, bytes(&file), &entered_by(Entry::Image)).unwrap();
    assert_eq!(start.protocol, Protocol::Linux32);
    let InitialState::Protected { entry, parameters, .. } = start.state else { panic!("{start:?}") };
    assert_eq!((entry, parameters), (MIB as u32, Parameters::Esi(map::ZERO_PAGE as u32)));
    assert_eq!({ zero_page(&guest).hdr.header }.to_le_bytes(), *b"HdrS");
    // 32-bit mode needs no page tables.
    assert_eq!(read(&guest, map::PAGE_TABLES, 0x6000), vec![0; 0x6000]);
}

#[test]
fn an_image_whose_payload_is_no_such_elf_runs_its_own_code_unless_told_otherwise() {
    let mut for_32_bits = GUEST.to_vec();
    for_32_bits[4] = 1;
    let mut for_arm = GUEST.to_vec();
    for_arm[18] = 183;
    let mut nameless = packed_as(GUEST);
    patch(&mut nameless, field::PAYLOAD_OFFSET, [0; 8]);
    let cases = [
        (packed_as(&for_32_bits), "its plain payload is no 64-bit ELF for x86"),
        (packed_as(&for_arm), "its plain payload is no 64-bit ELF for x86"),
        (packed_as(b"\x7fELF"), "its plain payload is no 64-bit ELF for x86"),
        (
            packed_as(b"\x89LZO\0\r\n\x1a\n"),
            "its payload starts with [89, 4c, 5a, 4f, 00, 0d], which is no format that lodger unpacks",
        ),
        (packed_as(b"?"), "its payload starts with [3f], which is no format that lodger unpacks"),
        (nameless, "its setup header names no payload"),
    ];
    for (file, why) in cases {
        let start = load_16m(&file, &Options::default()).unwrap();
        assert_eq!((start.protocol, start.unpacked), (Protocol::Linux64, None));
        for entry in [Entry::Pvh, Entry::Linux64] {
            assert_eq!(
                refusal(&file, &entered_by(entry)),
                format!(
                    "cannot load kernel test: {why}, so that it can only be entered by its own code (--entry image)"
                )
            );
        }
    }
}

#[test]
fn what_is_wrong_with_the_elf_image_is_told_as_such() {
    let mut elf = GUEST.to_vec();
    patch(&mut elf, program::paddr(0), (64 * MIB).to_le_bytes());
    assert_eq!(
        refusal(&packed_as(&elf), &Options::default()),
        "cannot load kernel test (unpacked): its PVH entry point 0x100000 is in none of the segments' contents \
         (physical addresses count)"
    );
    assert_eq!(
        refusal(GUEST, &entered_by(Entry::Image)),
        "cannot load kernel test: it is an ELF image; only a bzImage has code of its own to be entered by \
         (--entry image)"
    );
}

#[test]
fn a_damaged_payload_is_refused_and_leaves_no_trace() {
    for (name, payload) in PACKED.iter().filter(|(name, _)| *name != "plain") {
        let mut file = packed_as(payload);
        // In the middle of everything there is content; its end is the size.
        let end = PAYLOAD_AT + payload.len();
        file[end - 2] ^= 1;
        let guest = memory(4 * MIB);
        let error = load(&guest, bytes(&file), &Options::default()).unwrap_err().to_string();
        assert!(error.starts_with(&format!("cannot load kernel test: its {name} payload ")), "{error}");
        assert!(read(&guest, 0, 4 * MIB as usize).iter().all(|byte| *byte == 0));
    }
}

#[test]
fn a_payload_larger_than_memory_is_refused_without_being_read() {
    let length = 3 * MIB as usize;
    let file = packed_as(&[&[0x1f, 0x8b][..], &vec![0; length]].concat());
    let guest = memory(2 * MIB);
    assert_eq!(
        load(&guest, bytes(&file), &Options::default()).unwrap_err().to_string(),
        "cannot load kernel test: payload_length in its setup header is 0x300002: that is more than the guest's \
         memory (--memory)"
    );
}

#[test]
fn an_image_lies_where_it_prefers_or_where_there_is_memory() {
    let place = |preferred: u64, alignment: u32, size: u64| {
        let mut file = packed_as(GUEST);
        patch(&mut file, field::PREF_ADDRESS, preferred.to_le_bytes());
        patch(&mut file, field::KERNEL_ALIGNMENT, alignment.to_le_bytes());
        let start = load(&memory(size), bytes(&file), &entered_by(Entry::Image)).unwrap();
        assert_eq!(start.kernel.size, 0x1_0000);
        start.kernel.start
    };
    assert_eq!(place(8 * MIB, 2 << 20, 16 * MIB), 8 * MIB);
    assert_eq!(place(7 * MIB, 2 << 20, 16 * MIB), 8 * MIB);
    // No memory there, or none at all.
    assert_eq!(place(16 * MIB, 2 << 20, 16 * MIB), 2 * MIB);
    assert_eq!(place(15 * MIB, 2 << 20, 16 * MIB), 2 * MIB);
    assert_eq!(place(u64::MAX, 1 << 20, 16 * MIB), MIB);
    // No preference; and one for what belongs to others on a PC.
    assert_eq!(place(0, 0x1000, 16 * MIB), MIB);
    assert_eq!(place(0x1000, 0x1000, 16 * MIB), MIB);
}

#[test]
fn an_image_that_cannot_choose_keeps_both_its_places_free() {
    let initrd = vec![1; MIB as usize];
    let load_with = |start: u64, preferred: u64, size: u32| {
        let mut file = packed_as(GUEST);
        patch(&mut file, field::RELOCATABLE_KERNEL, [0]);
        patch(&mut file, field::CODE32_START, (start as u32).to_le_bytes());
        patch(&mut file, field::PREF_ADDRESS, preferred.to_le_bytes());
        patch(&mut file, field::INIT_SIZE, size.to_le_bytes());
        let guest = memory(8 * MIB);
        let options = Options { initrds: &[bytes(&initrd)], ..entered_by(Entry::Image) };
        let loaded = load(&guest, bytes(&file), &options).unwrap();
        assert_eq!(read(&guest, start, 16), CODE32);
        (loaded.kernel.start, loaded.kernel.end(), loaded.initrd.unwrap().start)
    };
    // Apart, the one around the other, and overlapping at either end; room is never less than the image.
    assert_eq!(load_with(MIB, 6 * MIB, 2 << 20), (MIB, 8 * MIB, 5 * MIB));

    assert_eq!(load_with(MIB, MIB, 2 << 20), (MIB, 3 * MIB, 7 * MIB));
    assert_eq!(load_with(2 * MIB, MIB, 0x10_0800), (MIB, 2 * MIB + 0x1450, 7 * MIB));
    assert_eq!(load_with(MIB, MIB + 0x1000, 0x1000), (MIB, MIB + 0x2450, 7 * MIB));
}

#[test]
fn an_initrd_keeps_below_the_limit_of_kernels_that_have_one() {
    let mut file = packed_as(GUEST);
    patch(&mut file, field::INITRD_ADDR_MAX, (5 * MIB as u32 - 1).to_le_bytes());
    let initrd = vec![1; 2 * MIB as usize];
    let place = |file: &[u8], entry| {
        let options = Options { initrds: &[bytes(&initrd)], ..entered_by(entry) };
        load_16m(file, &options).map(|start| start.initrd.unwrap().start).map_err(|error| error.to_string())
    };
    // It can take one anywhere (XLF_CAN_BE_LOADED_ABOVE_4G), so the limit is not for it.
    assert_eq!(place(&file, Entry::Auto), Ok(14 * MIB));
    assert_eq!(place(&file, Entry::Image), Ok(14 * MIB));
    patch(&mut file, field::XLOADFLAGS, [1, 0]);
    assert_eq!(place(&file, Entry::Auto), Ok(3 * MIB));
    assert_eq!(place(&file, Entry::Image), Ok(3 * MIB));
    patch(&mut file, field::XLOADFLAGS, [2, 0]);
    assert_eq!(place(&file, Entry::Image), Ok(3 * MIB), "started in 32-bit mode");
    patch(&mut file, field::INITRD_ADDR_MAX, (2 * MIB as u32 - 1).to_le_bytes());
    assert_eq!(
        place(&file, Entry::Image),
        Err("cannot load initrd test: it has 2097152 bytes, but the largest free piece of the guest's memory \
             below 2M has 983040; no more of it can be had, so it has to become smaller"
            .to_owned())
    );
}
