//! Whole loads, with what they leave in guest memory.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use linux_loader::bootparam::boot_params;
use linux_loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{Bytes, GuestAddress};

use super::testing::*;
use super::*;
use crate::hv::SpecialRegisters;
use crate::x86::mode::Parameters;
use crate::x86::{segments, walk};

const GIB: u64 = 1 << 30;
const CODE: &[u8] = &[0xf4; 16];

fn kernel() -> Vec<u8> {
    elf(MIB + 4, &[code_and_zeros(MIB, CODE, 0x5000), notes(&pvh_note(MIB + 8))])
}

/// A directory for the files of one test, gone when the test ends.
struct Files(PathBuf);

impl Files {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("lodger-boot-{test}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, contents: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, contents).unwrap();
        path
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_content_decides_what_a_file_is() {
    let mut bz_image = vec![0; 0x300];
    patch(&mut bz_image, 0x1fe, [0x55, 0xaa]);
    assert_eq!(Format::detect(&bz_image), Format::Flat);
    patch(&mut bz_image, 0x202, *b"HdrS");
    assert_eq!(Format::detect(&bz_image), Format::BzImage);
    assert_eq!(Format::detect(&bz_image[..0x205]), Format::Flat);
    assert_eq!(Format::detect(&kernel()), Format::Elf);
    assert_eq!(Format::detect(b"\x7fEL"), Format::Flat);
}

#[test]
fn a_pvh_kernel_finds_its_start_information() {
    let guest = memory(5 * GIB);
    let initrd = vec![0x55; 0x1801];
    let options = Options {
        command_line: Some("console=ttyS0 quiet"),
        initrds: &[bytes(&initrd)],
        ..Options::default()
    };
    let start = load(&guest, bytes(&kernel()), &options).unwrap();

    assert_eq!(start.protocol, Protocol::Pvh);
    assert_eq!(start.kernel, Region { start: MIB, size: 0x5000 });
    let InitialState::Protected { entry, parameters: Parameters::Ebx(parameters), descriptors } = start.state
    else {
        panic!("{start:?}");
    };
    assert_eq!(entry, MIB as u32 + 8);
    let object = |address: u64| GuestAddress(address);
    let info: hvm_start_info = guest.mapped().read_obj(object(parameters.into())).unwrap();
    assert_eq!((info.magic, info.version, info.flags, info.rsdp_paddr), (0x336e_c578, 1, 0, 0));
    assert_eq!(read(&guest, info.cmdline_paddr, 20), b"console=ttyS0 quiet\0");

    assert_eq!(info.nr_modules, 1);
    let module: hvm_modlist_entry = guest.mapped().read_obj(object(info.modlist_paddr)).unwrap();
    // As high as it fits where every kernel looks for it, on a page of its own.
    assert_eq!((module.paddr, module.size), (2 * GIB - 0x2000, 0x1801));
    assert_eq!(start.initrd, Some(Region { start: module.paddr, size: module.size }));
    assert_eq!(read(&guest, module.paddr, 0x1802), [&initrd[..], &[0]].concat());

    let ranges: Vec<_> = (0..u64::from(info.memmap_entries))
        .map(|number| {
            let address = object(info.memmap_paddr + number * 24);
            let entry: hvm_memmap_table_entry = guest.mapped().read_obj(address).unwrap();
            (entry.addr, entry.size, entry.type_)
        })
        .collect();
    let expected =
        [(0, 0x9_fc00, 1), (0x9_fc00, 0x6_0400, 2), (MIB, 3 * GIB - MIB, 1), (4 * GIB, 2 * GIB, 1)];
    assert_eq!(ranges, expected);
    assert_eq!(descriptor(&guest, descriptors, 0x10), segments::code32());
}

#[test]
fn a_linux_kernel_finds_its_zero_page() {
    let guest = memory(64 * MIB);
    let options = Options {
        entry: Entry::Linux64,
        command_line: Some("panic=-1"),
        initrds: &[bytes(b"cpio")],
        ..Options::default()
    };
    let start = load(&guest, bytes(&kernel()), &options).unwrap();
    let InitialState::Long { entry, parameters, page_tables, descriptors, stack } = start.state else {
        panic!("{start:?}");
    };
    assert_eq!((entry, stack % 16), (MIB + 4, 0));
    let params: boot_params = guest.mapped().read_obj(GuestAddress(parameters)).unwrap();
    let hdr = params.hdr;
    assert_eq!(({ hdr.header }.to_le_bytes(), { hdr.boot_flag }), (*b"HdrS", 0xaa55));
    assert_eq!((hdr.type_of_loader, hdr.loadflags & 1, params.sentinel), (0xff, 1, 0));
    assert_eq!(read(&guest, u64::from(hdr.cmd_line_ptr), 9), b"panic=-1\0");
    assert_eq!(({ hdr.ramdisk_image }, { hdr.ramdisk_size }), (64 * MIB as u32 - 0x1000, 4));
    assert_eq!(({ params.ext_ramdisk_image }, { params.ext_ramdisk_size }), (0, 0));
    let map: Vec<_> = params.e820_table[..params.e820_entries.into()]
        .iter()
        .map(|entry| ({ entry.addr }, { entry.size }, { entry.r#type }))
        .collect();
    assert_eq!(map, [(0, 0x9_fc00, 1), (0x9_fc00, 0x6_0400, 2), (MIB, 63 * MIB, 1)]);

    let (_, special) = start.state.registers(&SpecialRegisters::default());
    assert_eq!(special.cr3, page_tables);
    for address in [0, parameters, entry, 64 * MIB, 4 * GIB - 1] {
        assert_eq!(walk::walk(&guest, &special, address), Ok(address));
    }
    assert_eq!(descriptor(&guest, descriptors, 0x10), special.cs);
    assert_eq!(descriptor(&guest, descriptors, 0x18), special.ss);
    assert_eq!(descriptor(&guest, descriptors, 0x20), special.tr);
}

fn descriptor(guest: &GuestMemory, table: u64, selector: u16) -> crate::hv::Segment {
    let address = GuestAddress(table + u64::from(selector));
    segments::decode(selector, guest.mapped().read_obj(address).unwrap())
}

#[test]
fn without_an_initrd_none_is_mentioned() {
    let guest = memory(16 * MIB);
    let start = load(&guest, bytes(&kernel()), &Options::default()).unwrap();
    assert_eq!(start.initrd, None);
    let info: hvm_start_info = guest.mapped().read_obj(GuestAddress(map::PVH_START_INFO)).unwrap();
    assert_eq!((info.nr_modules, info.modlist_paddr), (0, 0));
    assert_eq!(read(&guest, info.cmdline_paddr, 1), [0]);
}

#[test]
fn contents_are_copied_and_the_rest_of_a_segment_stays_zero() {
    let guest = memory(16 * MIB);
    load(&guest, bytes(&kernel()), &Options::default()).unwrap();
    assert_eq!(read(&guest, MIB, 16), CODE);
    assert_eq!(read(&guest, MIB + 16, 0x5000 - 16), vec![0; 0x5000 - 16]);
    assert_eq!(read(&guest, map::ZERO_PAGE, 0x8000), vec![0; 0x8000], "PVH needs no zero page, no tables");
}

#[test]
fn a_kernel_above_four_gib_is_loaded_and_mapped() {
    let guest = memory(8 * GIB);
    let address = 7 * GIB + 0x1234;
    let start = load(&guest, bytes(&elf(address, &[code(address, CODE)])), &Options::default()).unwrap();
    assert_eq!(read(&guest, address, 16), CODE);
    let (general, special) = start.state.registers(&SpecialRegisters::default());
    assert_eq!((general.rip, walk::walk(&guest, &special, address)), (address, Ok(address)));
}

#[test]
fn a_kernel_out_of_the_page_tables_reach_is_refused() {
    let file = elf(MIB, &[code(MIB, CODE), code_and_zeros(4 * GIB, &[], 100 * GIB)]);
    let error = load(&memory(200 * GIB), bytes(&file), &Options::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot load kernel test: segment 1 (0x100000000..0x1a00000000) is out of reach: page tables for it \
         take more than the 64 pages set aside for them"
    );
}

#[test]
fn a_flat_image_runs_in_long_mode_from_its_first_byte() {
    let guest = memory(16 * MIB);
    let start = load(&guest, bytes(CODE), &Options::default()).unwrap();
    assert_eq!(start.protocol, Protocol::Flat(Mode::Long));
    assert_eq!(start.kernel, Region { start: MIB, size: 16 });
    assert!(matches!(start.state, InitialState::Long { entry: MIB, parameters: map::ZERO_PAGE, .. }));
    assert_eq!(read(&guest, MIB, 17), [CODE, &[0]].concat());
}

#[test]
fn a_machine_with_one_mib_runs_what_fits_below_640_kib() {
    let guest = memory(MIB);
    let flat = |address, mode| Options { flat: Some(Flat { address, mode }), ..Options::default() };
    let options =
        Options { command_line: Some("x"), initrds: &[bytes(&[7; 0x1000])], ..flat(0x1_0000, Mode::Long) };
    let start = load(&guest, bytes(CODE), &options).unwrap();
    assert!(matches!(start.state, InitialState::Long { entry: 0x1_0000, .. }));
    // Below the extended BIOS data, at a page.
    assert_eq!(start.initrd, Some(Region { start: 0x9_e000, size: 0x1000 }));
    let said = |address, mode| load(&guest, bytes(CODE), &flat(address, mode)).unwrap_err().to_string();
    assert_eq!(
        said(MIB, Mode::Long),
        "cannot load kernel test: the image (0x100000..0x100010) lies outside the guest's 1M of memory: give \
         the guest at least 2M (--memory 2M)"
    );
    assert_eq!(
        said(0x8fff, Mode::Long),
        "cannot load kernel test: the image (0x8fff..0x900f) overlaps 0x500..0x9000, where lodger puts boot \
         parameters and page tables: place it at 0x9000 or above"
    );
    // A PVH kernel leaves more room, as it needs no page tables.
    let low = elf(0x2000, &[code(0x2000, CODE), notes(&pvh_note(0x2000))]);
    assert!(load(&memory(MIB), bytes(&low), &Options::default()).is_ok());
}

#[test]
fn a_real_mode_image_gets_the_first_mib_to_itself() {
    let guest = memory(MIB);
    let options = |address| Options { flat: Some(Flat { address, mode: Mode::Real }), ..Options::default() };
    let start = load(&guest, bytes(CODE), &options(0x1005)).unwrap();
    assert_eq!(start.state, InitialState::Real { entry: 0x1005, stack: 0x1000 });
    assert_eq!(start.protocol, Protocol::Flat(Mode::Real));
    assert_eq!(read(&guest, 0, 0x1005), vec![0; 0x1005]);
    assert!(load(&guest, bytes(CODE), &options(0xf_fff0)).is_ok());
    assert!(load(&memory(MIB), bytes(CODE), &options(0)).is_ok());
    assert!(refusal(CODE, &options(0xf_fff1)).ends_with("does not lie below 1 MiB, where real mode ends"));
    assert!(refusal(CODE, &options(u64::MAX)).contains("does not lie below 1 MiB"));
    let with_line = Options { command_line: Some("x"), ..options(0) };
    let with_initrd = Options { initrds: &[bytes(CODE)], ..options(0) };
    for options in [with_line, with_initrd] {
        assert!(refusal(CODE, &options).contains("neither a command line nor an initrd"));
    }
}

#[test]
fn a_flat_image_can_look_like_anything_if_it_is_said_to_be_one() {
    let options = Options { flat: Some(Flat::default()), ..Options::default() };
    assert_eq!(load_16m(&kernel(), &options).unwrap().protocol, Protocol::Flat(Mode::Long));
    for (entry, name) in [(Entry::Pvh, "a PVH entry"), (Entry::Linux64, "an ELF entry")] {
        assert_eq!(
            refusal(CODE, &Options { entry, ..Options::default() }),
            format!(
                "cannot load kernel test: it is a flat image, which is entered at its first byte; {name} was \
                 asked for"
            )
        );
    }
}

#[test]
fn command_lines_that_no_kernel_takes_are_refused() {
    let (longest, too_long) = ("x".repeat(2047), "x".repeat(2048));
    let guest = memory(16 * MIB);
    let options = |line| Options { command_line: Some(line), entry: Entry::Linux64, ..Options::default() };
    load(&guest, bytes(&kernel()), &options(&longest)).unwrap();
    assert_eq!(read(&guest, map::COMMAND_LINE, 2048), [longest.as_bytes(), &[0]].concat());
    assert_eq!(
        refusal(&kernel(), &options(&too_long)),
        "the command line has 2048 bytes, a kernel takes at most 2047"
    );
    assert_eq!(refusal(&kernel(), &options("ab\0c")), "the command line has a zero byte at position 2");
}

#[test]
fn an_initrd_goes_into_the_highest_gap_that_holds_it() {
    // Memory of 16 MiB with kernel pieces at 8 MiB and at the very end.
    let file = elf(
        8 * MIB,
        &[code_and_zeros(8 * MIB, CODE, 0x1001), code_and_zeros(16 * MIB - 0x1800, CODE, 0x1800)],
    );
    let place = |size: u64| {
        let contents = vec![1; size as usize];
        let options = Options { initrds: &[bytes(&contents)], ..Options::default() };
        load_16m(&file, &options).map(|start| start.initrd.unwrap().start).map_err(|error| error.to_string())
    };
    assert_eq!(place(1), Ok(16 * MIB - 0x3000));
    // The gap between the pieces ends at 0xffe800 and its last whole page at 0xffe000.
    assert_eq!(place(0x7f_c000), Ok(8 * MIB + 0x2000));
    assert_eq!(
        place(0x7f_c001),
        Err("cannot load initrd test: it has 8372225 bytes, but the largest free piece of the guest's memory \
             below 2G has 8372224; give the guest more memory (--memory)"
            .to_owned())
    );
    let low = elf(8 * MIB, &[code_and_zeros(8 * MIB, CODE, 8 * MIB)]);
    let contents = vec![1; 7 * MIB as usize];
    let options = Options { initrds: &[bytes(&contents)], ..Options::default() };
    assert_eq!(load_16m(&low, &options).unwrap().initrd.unwrap().start, MIB);
}

#[test]
fn files_are_loaded_like_bytes() {
    let files = Files::new("same");
    let path = files.write("kernel", &kernel());
    let initrd = files.write("initrd", &[9; 5000]);
    let guest = memory(16 * MIB);
    let options = Options { initrds: &[Source::File(&initrd)], ..Options::default() };
    let start = load(&guest, Source::File(&path), &options).unwrap();
    let expected = Options { initrds: &[bytes(&[9; 5000])], ..Options::default() };
    let other = memory(16 * MIB);
    assert_eq!(start, load(&other, bytes(&kernel()), &expected).unwrap());
    let all = 16 * MIB as usize;
    assert!(read(&guest, 0, all) == read(&other, 0, all));
}

#[test]
fn what_cannot_be_opened_is_named_with_its_path() {
    let files = Files::new("open");
    let empty = files.write("empty", &[]);
    let missing = files.0.join("missing");
    let socket = files.0.join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    let pipe = files.0.join("pipe");
    let name = std::ffi::CString::new(pipe.to_str().unwrap()).unwrap();
    // SAFETY: the path is a string with a zero behind it.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);

    let guest = memory(16 * MIB);
    let kernel_file = kernel();
    let cases = [
        (&missing, "cannot open", "No such file or directory (os error 2)"),
        (&files.0, "cannot open", "it is a directory, not a file"),
        (&pipe, "cannot open", "it is a pipe, not a file"),
        (&socket, "cannot open", "No such device or address (os error 6)"),
        (&PathBuf::from("/dev/zero"), "cannot open", "it is a device, not a file"),
        (&empty, "cannot load", "it is empty"),
    ];
    for (path, what, why) in cases {
        let said = load(&guest, Source::File(path), &Options::default()).unwrap_err().to_string();
        assert_eq!(said, format!("{what} kernel {}: {why}", path.display()));
        let options = Options { initrds: &[Source::File(path)], ..Options::default() };
        let said = load(&guest, bytes(&kernel_file), &options).unwrap_err().to_string();
        assert_eq!(said, format!("{what} initrd {}: {why}", path.display()));
    }
}

#[test]
fn a_file_larger_than_memory_is_refused_without_being_read() {
    let files = Files::new("large");
    let path = files.write("sparse", &[]);
    // A tebibyte of nothing: reading it would not end.
    fs::File::options().write(true).open(&path).unwrap().set_len(1 << 40).unwrap();
    let guest = memory(16 * MIB);
    let said = load(&guest, Source::File(&path), &Options::default()).unwrap_err().to_string();
    assert!(said.contains("lies outside the guest's 16M of memory"), "{said}");
    let kernel_file = kernel();
    let options = Options { initrds: &[Source::File(&path)], ..Options::default() };
    let said = load(&guest, bytes(&kernel_file), &options).unwrap_err().to_string();
    assert!(said.contains("it has 1099511627776 bytes, but the largest free piece"), "{said}");
}
