//! What a kernel is handed besides its memory: command line, initrd, seed, tables.

use linux_loader::bootparam::boot_params;
use linux_loader::start_info::hvm_start_info;
use vm_memory::{Bytes, GuestAddress};

use super::platform::platform;
use super::testing::*;
use super::*;

const GIB: u64 = 1 << 30;
const CODE: &[u8] = &[0xf4; 16];

/// The note by which a kernel tells that it is Linux.
fn linux_note() -> Vec<u8> {
    note(0x100, b"Linux\0", &[0; 4])
}

/// Linux, with a PVH entry as well.
fn linux() -> Vec<u8> {
    elf(
        MIB,
        &[code(MIB, CODE), notes(&[note(3, b"GNU\0", &[1; 20]), linux_note(), pvh_note(MIB + 8)].concat())],
    )
}

fn other() -> Vec<u8> {
    elf(MIB, &[code(MIB, CODE), notes(&pvh_note(MIB + 8))])
}

fn zero_page(guest: &GuestMemory) -> boot_params {
    guest.mapped().read_obj(GuestAddress(map::ZERO_PAGE)).unwrap()
}

fn command_line(guest: &GuestMemory) -> String {
    let room = read(guest, map::COMMAND_LINE, map::COMMAND_LINE_ROOM as usize);
    let end = room.iter().position(|byte| *byte == 0).unwrap();
    String::from_utf8(room[..end].to_vec()).unwrap()
}

#[test]
fn linux_is_entered_where_it_can_be_given_most_and_others_by_pvh() {
    let protocol = |file: &[u8], entry| {
        load_16m(file, &Options { entry, ..Options::default() }).map(|start| start.protocol).unwrap()
    };
    assert_eq!(protocol(&linux(), Entry::Auto), Protocol::Linux64);
    assert_eq!(protocol(&other(), Entry::Auto), Protocol::Pvh);
    assert_eq!(protocol(&linux(), Entry::Pvh), Protocol::Pvh);
    assert_eq!(protocol(&other(), Entry::Linux64), Protocol::Linux64);
    // Where the 64-bit entry leads nowhere there is still the other one.
    let mut file = linux();
    patch(&mut file, header::ENTRY, 0_u64.to_le_bytes());
    assert_eq!(protocol(&file, Entry::Auto), Protocol::Pvh);
}

#[test]
fn linux_gets_the_default_command_line_and_others_get_none() {
    let append = ["quiet".to_owned()];
    let line = |file: &[u8], options: &Options<'_>| {
        let guest = memory(16 * MIB);
        load(&guest, bytes(file), options).unwrap();
        command_line(&guest)
    };
    let plain = Options::default();
    assert_eq!(line(&linux(), &plain), LINUX_COMMAND_LINE);
    assert_eq!(line(&linux(), &Options { entry: Entry::Pvh, ..plain }), LINUX_COMMAND_LINE);
    assert_eq!(line(&other(), &plain), "");
    assert_eq!(line(&linux(), &Options { append: &append, ..plain }), format!("{LINUX_COMMAND_LINE} quiet"));
    assert_eq!(line(&other(), &Options { append: &append, ..plain }), "quiet");
    assert_eq!(line(&linux(), &Options { command_line: Some("a"), append: &append, ..plain }), "a quiet");
}

#[test]
fn the_files_of_an_initrd_follow_each_other_at_multiples_of_four() {
    let guest = memory(16 * MIB);
    let files = [bytes(&[1; 5]), bytes(&[2; 4]), bytes(&[3; 0x1001]), bytes(&[4; 1])];
    let start = load(&guest, bytes(&linux()), &Options { initrds: &files, ..Options::default() }).unwrap();
    let place = start.initrd.unwrap();
    assert_eq!(place, Region { start: 16 * MIB - 0x2000, size: 8 + 4 + 0x1004 + 1 });
    let expected = [&[1; 5][..], &[0; 3], &[2; 4], &[3; 0x1001], &[0; 3], &[4; 1], &[0; 4]].concat();
    assert_eq!(read(&guest, place.start, expected.len()), expected);
    let params = zero_page(&guest);
    assert_eq!(u64::from(params.hdr.ramdisk_image), place.start);
    assert_eq!(u64::from(params.hdr.ramdisk_size), place.size);
}

#[test]
fn files_that_do_not_fit_together_are_all_named() {
    let (one, two) = (vec![1; 9 * MIB as usize], vec![2; 7 * MIB as usize]);
    let files =
        [Source::Bytes { name: "one.cpio", bytes: &one }, Source::Bytes { name: "two.cpio", bytes: &two }];
    let said = refusal(&linux(), &Options { initrds: &files, ..Options::default() });
    assert_eq!(
        said,
        "cannot load initrd one.cpio (9437184 bytes), two.cpio (7340032 bytes): together they take 16777216 \
         bytes, but the largest free piece of the guest's memory below 2G has 15724544; give the guest more \
         memory (--memory)"
    );
    let empty = [files[0], bytes(&[])];
    assert!(refusal(&linux(), &Options { initrds: &empty, ..Options::default() }).contains("it is empty"));
}

#[test]
fn an_initrd_lies_below_two_gib_and_more_memory_does_not_help_beyond() {
    let file = [bytes(&[1; 0x1000])];
    let options = Options { initrds: &file, ..Options::default() };
    for size in [2 * GIB, 3 * GIB, 5 * GIB] {
        let start = load(&memory(size), bytes(&linux()), &options).unwrap();
        assert_eq!(start.initrd.unwrap().end(), 2 * GIB);
    }
    let sparse = std::env::temp_dir().join(format!("lodger-boot-sparse-{}", std::process::id()));
    std::fs::File::create(&sparse).unwrap().set_len(2 * GIB).unwrap();
    let file = [Source::File(&sparse)];
    let options = Options { initrds: &file, ..Options::default() };
    let said = load(&memory(5 * GIB), bytes(&linux()), &options).unwrap_err().to_string();
    std::fs::remove_file(&sparse).unwrap();
    assert!(
        said.ends_with("below 2G has 2146430976; no more of it can be had, so it has to become smaller"),
        "{said}"
    );
}

#[test]
fn each_boot_has_a_seed_of_its_own() {
    let seeds: Vec<_> = (0..2)
        .map(|_| {
            let guest = memory(16 * MIB);
            load(&guest, bytes(&linux()), &Options::default()).unwrap();
            let at = { zero_page(&guest).hdr.setup_data };
            let data = read(&guest, at, 16 + 64);
            // The end of the list, SETUP_RNG_SEED, 64 bytes.
            assert_eq!(data[..16], [[0; 8], [9, 0, 0, 0, 64, 0, 0, 0]].concat());
            assert!(at + 80 <= map::PVH_START_INFO);
            data[16..].to_vec()
        })
        .collect();
    assert_ne!(seeds[0], seeds[1]);
    assert!(seeds.iter().all(|seed| seed.iter().any(|byte| *byte != seed[0])), "{seeds:?}");
}

#[test]
fn a_kernel_without_no_execute_gets_no_seed() {
    let guest = memory(16 * MIB);
    load(&guest, bytes(&linux()), &Options { without_nx: true, ..Options::default() }).unwrap();
    assert_eq!({ zero_page(&guest).hdr.setup_data }, 0);
    assert!(read(&guest, map::SEED, 80).iter().all(|byte| *byte == 0));
}

#[test]
fn pvh_and_linux_are_told_where_the_tables_are() {
    let platform = platform(2, &[]);
    let options = |entry| Options { entry, platform: Some(&platform), ..Options::default() };
    for entry in [Entry::Linux64, Entry::Pvh] {
        let guest = memory(16 * MIB);
        load(&guest, bytes(&linux()), &options(entry)).unwrap();
        let (root, map): (u64, Vec<u32>) = match entry {
            Entry::Pvh => {
                let info: hvm_start_info =
                    guest.mapped().read_obj(GuestAddress(map::PVH_START_INFO)).unwrap();
                let kind = |number| info.memmap_paddr + number * 24 + 16;
                let kinds = (0..u64::from(info.memmap_entries)).map(kind);
                (
                    info.rsdp_paddr,
                    kinds.map(|at| guest.mapped().read_obj(GuestAddress(at)).unwrap()).collect(),
                )
            }
            _ => {
                let params = zero_page(&guest);
                let entries = &params.e820_table[..params.e820_entries.into()];
                (params.acpi_rsdp_addr, entries.iter().map(|entry| entry.r#type).collect())
            }
        };
        assert_eq!(root, 0xe_0000);
        assert_eq!(read(&guest, root, 8), b"RSD PTR ");
        assert_eq!(map, [1, 2, 3, 2, 1]);
        // At the start of the last KiB of base memory.
        assert_eq!(read(&guest, 639 << 10, 8), b"_MP_\0\0\x0f\0");
        assert_eq!(read(&guest, 0xf_0000, 4), b"PCMP");
    }
}

#[test]
fn kernels_on_the_tables_places_are_refused_unless_there_are_no_tables() {
    let platform = platform(1, &[]);
    for (at, places) in
        [(0x9_f000, "0x9fc00..0x9fc10"), (0xe_0000, "0xe0000..0xe"), (0xe_f000, "0xf0000..0xf")]
    {
        let file = elf(at, &[code_and_zeros(at, CODE, 0x1800), notes(&pvh_note(at))]);
        let with = Options { platform: Some(&platform), ..Options::default() };
        let said = refusal(&file, &with);
        assert!(said.contains(places) && said.contains("where lodger puts ACPI and MP tables"), "{said}");
        assert!(load_16m(&file, &Options::default()).is_ok());
    }
    // In real mode there are none.
    let flat = Some(Flat { address: 0xe_0000, mode: Mode::Real });
    let guest = memory(MIB);
    load(&guest, bytes(CODE), &Options { flat, platform: Some(&platform), ..Options::default() }).unwrap();
    assert_eq!(read(&guest, map::MP_POINTER, 16), [0; 16]);
}
