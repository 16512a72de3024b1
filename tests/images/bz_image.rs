//! bzImages made to measure, for unit tests and for those with a real hypervisor.
//!
//! `make` beside this file says where the packed guests come from.

/// The ELF image that is packed: whichever way it is entered, it writes 42 to the debug-exit port.
pub const GUEST: &[u8] = include_bytes!("guest.elf");

/// The image packed in every format, with the name by which messages call it.
pub const PACKED: [(&str, &[u8]); 8] = [
    ("gzip", include_bytes!("guest.gz")),
    ("bzip2", include_bytes!("guest.bz2")),
    ("LZMA", include_bytes!("guest.lzma")),
    ("xz", include_bytes!("guest.xz")),
    ("xz", include_bytes!("guest-blocks.xz")),
    ("LZ4", include_bytes!("guest.lz4")),
    ("zstd", include_bytes!("guest.zst")),
    ("plain", GUEST),
];

/// Offsets of fields of the setup header.
#[allow(dead_code, reason = "each user of this file has need of some of them")]
pub mod field {
    pub const SETUP_SECTS: usize = 0x1f1;
    pub const SYSSIZE: usize = 0x1f4;
    pub const JUMP: usize = 0x200;
    pub const VERSION: usize = 0x206;
    pub const LOADFLAGS: usize = 0x211;
    pub const CODE32_START: usize = 0x214;
    pub const RAMDISK_IMAGE: usize = 0x218;
    pub const HEAP_END_PTR: usize = 0x224;
    pub const INITRD_ADDR_MAX: usize = 0x22c;
    pub const KERNEL_ALIGNMENT: usize = 0x230;
    pub const RELOCATABLE_KERNEL: usize = 0x234;
    pub const XLOADFLAGS: usize = 0x236;
    pub const CMDLINE_SIZE: usize = 0x238;
    pub const PAYLOAD_OFFSET: usize = 0x248;
    pub const PAYLOAD_LENGTH: usize = 0x24c;
    pub const SETUP_DATA: usize = 0x250;
    pub const PREF_ADDRESS: usize = 0x258;
    pub const INIT_SIZE: usize = 0x260;
}

/// Where the code starts in the file.
pub const CODE_AT: usize = 0x400;
/// Where the payload starts in the file.
pub const PAYLOAD_AT: usize = CODE_AT + PAYLOAD_OFFSET;
const PAYLOAD_OFFSET: usize = 0x300;
/// How long the CRC is with which an image ends.
const CRC_SIZE: usize = 4;
/// Where the code for 64-bit mode starts, counted from the code for 32-bit mode.
const ENTRY_64: usize = 0x200;

/// A correct bzImage: boot protocol 2.15, relocatable by pages, at 1 MiB if it can, with room for 64 KiB. Its CRC is
/// left out, as by Linux from 6.16 on, so that fields can be changed; [`seal`] puts it in.
pub fn bz_image(code32: &[u8], code64: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut image = vec![0; PAYLOAD_AT];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    let code_size = (PAYLOAD_OFFSET + payload.len() + CRC_SIZE).next_multiple_of(16);
    put(field::SETUP_SECTS, &[1]);
    put(field::SYSSIZE, &(code_size as u32 / 16).to_le_bytes());
    put(0x1fe, &[0x55, 0xaa]);
    // A jump to the end of the last field.
    put(field::JUMP, &[0xeb, 0x6a]);
    put(0x202, b"HdrS");
    put(field::VERSION, &0x20f_u16.to_le_bytes());
    put(field::LOADFLAGS, &[1]);
    put(field::CODE32_START, &0x10_0000_u32.to_le_bytes());
    put(field::INITRD_ADDR_MAX, &0x7fff_ffff_u32.to_le_bytes());
    put(field::KERNEL_ALIGNMENT, &0x1000_u32.to_le_bytes());
    put(field::RELOCATABLE_KERNEL, &[1]);
    put(field::XLOADFLAGS, &[3, 0]);
    put(field::CMDLINE_SIZE, &2047_u32.to_le_bytes());
    put(field::PAYLOAD_OFFSET, &(PAYLOAD_OFFSET as u32).to_le_bytes());
    put(field::PAYLOAD_LENGTH, &(payload.len() as u32).to_le_bytes());
    put(field::PREF_ADDRESS, &0x10_0000_u64.to_le_bytes());
    put(field::INIT_SIZE, &0x1_0000_u32.to_le_bytes());
    put(CODE_AT, code32);
    put(CODE_AT + ENTRY_64, code64);
    image.extend(payload);
    image.resize(CODE_AT + code_size, 0);
    image
}

/// Ends `image` with the CRC-32 of all before it, as Linux's build did up to 6.15.
#[allow(dead_code, reason = "each user of this file has need of some of them")]
pub fn seal(image: &mut [u8]) {
    let (contents, field) = image.split_at_mut(image.len() - CRC_SIZE);
    field.copy_from_slice(&(!crc32fast::hash(contents)).to_le_bytes());
}
