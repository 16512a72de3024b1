//! What the kernel is handed: descriptor table, command line, and the structure that its protocol defines.
//!
//! PVH: Xen's `public/arch-x86/hvm/start_info.h`. Linux: Documentation/arch/x86/boot.rst, "64-bit Boot
//! Protocol", and zero-page.rst. The structures are linux-loader's.

use linux_loader::bootparam::{
    E820_MAX_ENTRIES_ZEROPAGE, LOADED_HIGH, SETUP_RNG_SEED, boot_e820_entry, boot_params,
};
use linux_loader::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::hv::Segment;
use crate::memory::{GuestMemory, Region};
use crate::random;
use crate::x86::segments;

use super::bzimage::SetupHeader;
use super::error::Error;
use super::map::{self, MemoryRange};

/// How many random bytes a kernel is given: twice what Linux's generator is keyed with.
const SEED_SIZE: usize = 64;
/// The version of `hvm_start_info` that has a memory map.
const PVH_VERSION: u32 = 1;
/// The last bytes of a boot sector, which every kernel image starts with.
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
/// Version 2.15 of the boot protocol: what the structure of this program describes.
const PROTOCOL_VERSION: u16 = 0x020f;
/// A boot loader without a number of its own.
const UNKNOWN_LOADER: u8 = 0xff;

/// What every protocol has a place for.
#[derive(Debug)]
pub struct Told {
    /// All memory.
    pub map: Vec<MemoryRange>,
    /// Where the initrd is.
    pub initrd: Option<Region>,
    /// Where ACPI's root pointer is.
    pub acpi_root: Option<u64>,
    /// Whether there is a seed for random numbers, where the protocol has a place for one.
    pub seed: bool,
}

/// Writes the descriptor table whose code segment is `code`.
pub fn write_descriptors(memory: &GuestMemory, code: &Segment) -> Result<(), GuestMemoryError> {
    let mut bytes = [0; segments::BOOT_TABLE_ENTRIES * 8];
    for (bytes, entry) in bytes.chunks_exact_mut(8).zip(segments::boot_table(code)) {
        bytes.copy_from_slice(&entry.to_le_bytes());
    }
    memory.mapped().write_slice(&bytes, GuestAddress(map::DESCRIPTORS))
}

/// Writes the command line with a zero behind it.
pub fn write_command_line(memory: &GuestMemory, line: &str) -> Result<(), GuestMemoryError> {
    memory.mapped().write_slice(line.as_bytes(), GuestAddress(map::COMMAND_LINE))?;
    memory.mapped().write_obj(0_u8, GuestAddress(map::COMMAND_LINE + line.len() as u64))
}

/// Writes what a PVH kernel finds through EBX.
pub fn write_pvh(memory: &GuestMemory, told: &Told) -> Result<(), GuestMemoryError> {
    let mut start = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: PVH_VERSION,
        cmdline_paddr: map::COMMAND_LINE,
        memmap_paddr: map::PVH_MEMORY_MAP,
        rsdp_paddr: told.acpi_root.unwrap_or(0),
        ..hvm_start_info::default()
    };
    let mut at = map::PVH_MEMORY_MAP;
    for range in &told.map {
        let entry = hvm_memmap_table_entry {
            addr: range.region.start,
            size: range.region.size,
            type_: range.usage as u32,
            reserved: 0,
        };
        memory.mapped().write_obj(entry, GuestAddress(at))?;
        at += size_of_val(&entry) as u64;
        start.memmap_entries += 1;
    }
    if let Some(initrd) = told.initrd {
        let module =
            hvm_modlist_entry { paddr: initrd.start, size: initrd.size, ..hvm_modlist_entry::default() };
        memory.mapped().write_obj(module, GuestAddress(map::PVH_MODULES))?;
        start.nr_modules = 1;
        start.modlist_paddr = map::PVH_MODULES;
    }
    memory.mapped().write_obj(start, GuestAddress(map::PVH_START_INFO))
}

/// Writes random bytes for the zero page to point to: without any, kernels that find no random numbers elsewhere
/// spend seconds of their boot collecting them.
fn write_seed(memory: &GuestMemory) -> Result<(), Error> {
    let mut seed = [0; SEED_SIZE];
    random::fill(&mut seed).map_err(Error::Random)?;
    let mut data = Vec::with_capacity(16 + SEED_SIZE);
    // The last of the list.
    data.extend(0_u64.to_le_bytes());
    data.extend(SETUP_RNG_SEED.to_le_bytes());
    data.extend((SEED_SIZE as u32).to_le_bytes());
    data.extend(seed);
    Ok(memory.mapped().write_slice(&data, GuestAddress(map::SEED))?)
}

/// Writes what a Linux kernel finds through RSI. `header` is that of the image which the kernel came in.
pub fn write_zero_page(memory: &GuestMemory, told: &Told, header: Option<&SetupHeader>) -> Result<(), Error> {
    let mut params = header.map_or_else(own_parameters, SetupHeader::boot_params);
    params.hdr.cmd_line_ptr = map::COMMAND_LINE as u32;
    if told.seed {
        write_seed(memory)?;
        params.hdr.setup_data = map::SEED;
    }
    params.acpi_rsdp_addr = told.acpi_root.unwrap_or(0);
    if let Some(initrd) = told.initrd {
        (params.hdr.ramdisk_image, params.ext_ramdisk_image) = halves(initrd.start);
        (params.hdr.ramdisk_size, params.ext_ramdisk_size) = halves(initrd.size);
    }
    for (number, range) in told.map.iter().take(E820_MAX_ENTRIES_ZEROPAGE).enumerate() {
        params.e820_table[number] =
            boot_e820_entry { addr: range.region.start, size: range.region.size, r#type: range.usage as u32 };
        params.e820_entries = number as u8 + 1;
    }
    Ok(memory.mapped().write_obj(params, GuestAddress(map::ZERO_PAGE))?)
}

/// The boot parameters to start from for a kernel that came without a setup header.
fn own_parameters() -> boot_params {
    let mut params = boot_params::default();
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = HEADER_MAGIC;
    params.hdr.version = PROTOCOL_VERSION;
    params.hdr.type_of_loader = UNKNOWN_LOADER;
    params.hdr.loadflags = LOADED_HIGH;
    params.hdr.cmdline_size = map::COMMAND_LINE_ROOM as u32 - 1;
    params
}

/// The lower and the upper 32 bits.
fn halves(value: u64) -> (u32, u32) {
    (value as u32, (value >> 32) as u32)
}
