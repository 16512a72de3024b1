//! ELF files made to measure, for the tests of this room.

use vm_memory::{Bytes, GuestAddress};

use super::{Error, Options, Source, Start, load};
use crate::memory::{self, GuestMemory, Layout};

pub const MIB: u64 = 1 << 20;

/// Offsets of fields in the ELF header.
pub mod header {
    pub const CLASS: usize = 4;
    pub const DATA: usize = 5;
    pub const IDENT_VERSION: usize = 6;
    pub const TYPE: usize = 16;
    pub const MACHINE: usize = 18;
    pub const VERSION: usize = 20;
    pub const ENTRY: usize = 24;
    pub const PHOFF: usize = 32;
    pub const PHENTSIZE: usize = 54;
    pub const PHNUM: usize = 56;
}

/// Offset of a field in the file, by the number of the program header.
pub mod program {
    const fn at(number: usize, field: usize) -> usize {
        64 + number * 56 + field
    }

    pub fn offset(number: usize) -> usize {
        at(number, 8)
    }
    pub fn paddr(number: usize) -> usize {
        at(number, 24)
    }
    pub fn filesz(number: usize) -> usize {
        at(number, 32)
    }
    pub fn memsz(number: usize) -> usize {
        at(number, 40)
    }
}

/// A segment of an [`elf`].
pub struct Segment {
    kind: u32,
    address: u64,
    contents: Vec<u8>,
    in_memory: u64,
}

/// A `PT_LOAD` segment without anything behind its contents.
pub fn code(address: u64, contents: &[u8]) -> Segment {
    Segment { kind: 1, address, contents: contents.to_vec(), in_memory: contents.len() as u64 }
}

/// A `PT_LOAD` segment with zeros behind its contents.
pub fn code_and_zeros(address: u64, contents: &[u8], in_memory: u64) -> Segment {
    Segment { in_memory, ..code(address, contents) }
}

/// A `PT_NOTE` segment.
pub fn notes(contents: &[u8]) -> Segment {
    Segment { kind: 4, ..code(0, contents) }
}

/// One note, its fields padded to four bytes.
pub fn note(kind: u32, name: &[u8], contents: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    for word in [name.len() as u32, contents.len() as u32, kind] {
        note.extend(word.to_le_bytes());
    }
    for field in [name, contents] {
        note.extend(field);
        note.resize(note.len().next_multiple_of(4), 0);
    }
    note
}

/// The note that names a PVH entry point, as Linux writes it.
pub fn pvh_note(entry: u64) -> Vec<u8> {
    note(18, b"Xen\0", &entry.to_le_bytes())
}

/// A correct ELF file.
pub fn elf(entry: u64, segments: &[Segment]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(64, 0);
    patch(&mut file, header::TYPE, 2_u16.to_le_bytes());
    patch(&mut file, header::MACHINE, 62_u16.to_le_bytes());
    patch(&mut file, header::VERSION, 1_u32.to_le_bytes());
    patch(&mut file, header::ENTRY, entry.to_le_bytes());
    patch(&mut file, header::PHOFF, 64_u64.to_le_bytes());
    patch(&mut file, header::PHENTSIZE, 56_u16.to_le_bytes());
    patch(&mut file, header::PHNUM, (segments.len() as u16).to_le_bytes());
    let mut offset = 64 + 56 * segments.len() as u64;
    for segment in segments {
        let in_file = segment.contents.len() as u64;
        file.extend(segment.kind.to_le_bytes());
        file.extend(7_u32.to_le_bytes());
        for field in [offset, segment.address, segment.address, in_file, segment.in_memory, 4] {
            file.extend(field.to_le_bytes());
        }
        offset += in_file;
    }
    for segment in segments {
        file.extend(&segment.contents);
    }
    file
}

/// Overwrites part of a file.
pub fn patch<const N: usize>(file: &mut [u8], at: usize, value: [u8; N]) {
    file[at..at + N].copy_from_slice(&value);
}

pub fn memory(size: u64) -> GuestMemory {
    GuestMemory::map(Layout::new(size, 48).unwrap(), memory::Options::default()).unwrap()
}

pub fn bytes(bytes: &[u8]) -> Source<'_> {
    Source::Bytes { name: "test", bytes }
}

/// Loads `kernel` into 16 MiB.
pub fn load_16m(kernel: &[u8], options: &Options<'_>) -> Result<Start, Error> {
    load(&memory(16 * MIB), bytes(kernel), options)
}

/// Loads `kernel` into 16 MiB, which must fail; returns what it says.
pub fn refusal(kernel: &[u8], options: &Options<'_>) -> String {
    load_16m(kernel, options).unwrap_err().to_string()
}

/// Part of guest memory.
pub fn read(memory: &GuestMemory, address: u64, size: usize) -> Vec<u8> {
    let mut buffer = vec![0; size];
    memory.mapped().read_slice(&mut buffer, GuestAddress(address)).unwrap();
    buffer
}
