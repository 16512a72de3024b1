//! What the loader tells: memory, command line, initial RAM disk. PVH and the 64-bit Linux protocol say the same
//! things in different structures.

use core::ptr;

use crate::paging;

const PVH_MAGIC: u32 = 0x336e_c578;
const MOST_RANGES: usize = 64;
const LONGEST_COMMAND_LINE: usize = 2048;

/// How this guest was entered; the numbers are those of entry.s.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// By the PVH note, with a `start_info`.
    Pvh,
    /// By the 64-bit Linux boot protocol, with a zero page.
    Linux,
}

/// A range of the memory map.
#[derive(Clone, Copy)]
pub struct Range {
    pub start: u64,
    pub size: u64,
    kind: u32,
}

/// Everything the loader told.
pub struct Boot {
    pub protocol: Protocol,
    ranges: [Range; MOST_RANGES],
    range_count: usize,
    command_line: [u8; LONGEST_COMMAND_LINE],
    command_line_length: usize,
    /// Address and size of the initial RAM disk.
    pub initrd: Option<(u64, u64)>,
    /// Where the ACPI tables start.
    pub acpi: Option<u64>,
}

impl Range {
    pub fn is_usable(&self) -> bool {
        self.kind == 1
    }

    /// What the numbers mean, the same for PVH and e820.
    pub fn kind(&self) -> &'static str {
        match self.kind {
            1 => "usable",
            2 => "reserved",
            3 => "ACPI tables",
            4 => "ACPI storage",
            5 => "bad",
            _ => "other",
        }
    }

    /// The last address inside.
    pub fn last(&self) -> u64 {
        self.start.saturating_add(self.size).saturating_sub(1)
    }
}

/// Reads a value the loader left in memory; zero where the address cannot be reached.
pub fn value<T: Copy + Default>(address: u64) -> T {
    match paging::reach(address, size_of::<T>() as u64) {
        // SAFETY: the address is mapped, and loaders leave plain numbers, for which any bytes will do.
        Ok(()) => unsafe { ptr::read_unaligned(ptr::with_exposed_provenance(address as usize)) },
        Err(_) => T::default(),
    }
}

impl Boot {
    /// Reads what the loader left at `address`.
    pub fn read(protocol: Protocol, address: u64) -> Self {
        let mut boot = Self {
            protocol,
            ranges: [Range { start: 0, size: 0, kind: 0 }; MOST_RANGES],
            range_count: 0,
            command_line: [0; LONGEST_COMMAND_LINE],
            command_line_length: 0,
            initrd: None,
            acpi: None,
        };
        match protocol {
            Protocol::Pvh => boot.read_start_info(address),
            Protocol::Linux => boot.read_zero_page(address),
        }
        boot
    }

    /// Xen's `hvm_start_info`; the memory map came with version 1.
    fn read_start_info(&mut self, info: u64) {
        if value::<u32>(info) != PVH_MAGIC {
            return;
        }
        if value::<u32>(info + 12) > 0 {
            let first = value::<u64>(info + 16);
            self.initrd = Some((value(first), value(first + 8)));
        }
        self.read_command_line(value(info + 24));
        self.acpi = Some(value(info + 32)).filter(|&address| address != 0);
        if value::<u32>(info + 4) >= 1 {
            let map = value::<u64>(info + 40);
            for entry in (0..u64::from(value::<u32>(info + 48))).map(|index| map + 24 * index) {
                self.add(Range { start: value(entry), size: value(entry + 8), kind: value(entry + 16) });
            }
        }
    }

    /// Linux' `boot_params`, whose fields Documentation/arch/x86/zero-page.rst lists.
    fn read_zero_page(&mut self, page: u64) {
        for entry in (0..u64::from(value::<u8>(page + 0x1e8))).map(|index| page + 0x2d0 + 20 * index) {
            self.add(Range { start: value(entry), size: value(entry + 8), kind: value(entry + 16) });
        }
        let wide =
            |low, high| u64::from(value::<u32>(page + low)) | u64::from(value::<u32>(page + high)) << 32;
        self.read_command_line(wide(0x228, 0xc8));
        self.initrd = Some((wide(0x218, 0xc0), wide(0x21c, 0xc4))).filter(|&(_, size)| size != 0);
        self.acpi = Some(value(page + 0x70)).filter(|&address| address != 0);
    }

    fn add(&mut self, range: Range) {
        if let Some(place) = self.ranges.get_mut(self.range_count) {
            *place = range;
            self.range_count += 1;
        }
    }

    fn read_command_line(&mut self, address: u64) {
        if address == 0 {
            return;
        }
        for (place, address) in self.command_line.iter_mut().zip(address..) {
            match value::<u8>(address) {
                0 => break,
                byte => *place = byte,
            }
            self.command_line_length += 1;
        }
    }

    /// The memory map.
    pub fn ranges(&self) -> &[Range] {
        &self.ranges[..self.range_count]
    }

    /// How much memory can be used.
    pub fn usable(&self) -> u64 {
        self.ranges()
            .iter()
            .filter(|range| range.is_usable())
            .fold(0, |sum, range| sum.saturating_add(range.size))
    }

    /// The command line, up to the first byte that is no text.
    pub fn command_line(&self) -> &str {
        let bytes = &self.command_line[..self.command_line_length];
        match core::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => core::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default(),
        }
    }
}
