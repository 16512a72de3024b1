//! ELF kernels: what the headers say, believed only where it can be true.
//!
//! [`read`] checks each field on its own and against the file; whether the segments fit into the guest's
//! memory is `place`'s business, as it is for every other format. The structures are linux-loader's.

use linux_loader::elf;
use vm_memory::ByteValued;

use super::error::{Error, Part, Problem, Range};
use super::image::Image;
use super::place::Piece;

/// The bytes at the start of every ELF file.
pub const MAGIC: &[u8] = b"\x7fELF";

const HEADER_SIZE: usize = size_of::<elf::Elf64_Ehdr>();
const PROGRAM_HEADER_SIZE: usize = size_of::<elf::Elf64_Phdr>();
/// Kernels have fewer than ten.
const MAX_PROGRAM_HEADERS: u16 = 128;

const NOTE_HEADER_SIZE: usize = size_of::<elf::Elf64_Nhdr>();
/// Linux has a few hundred bytes of notes.
const MAX_NOTES_SIZE: u64 = 64 << 10;
/// `XEN_ELFNOTE_PHYS32_ENTRY`: the note that holds the PVH entry point.
const PVH_NOTE: u32 = 18;
const PVH_NOTE_NAME: &[u8] = b"Xen\0";
/// Who every Linux kernel since 4.18 says wrote some of its notes (`LINUX_ELFNOTE_BUILD_SALT`).
const LINUX_NOTE_NAME: &[u8] = b"Linux\0";

/// Whether a file is an ELF image for this kind of processor. Its header may still say what cannot be.
pub fn is_bootable(file: &[u8]) -> bool {
    let Some(bytes) = file.first_chunk::<HEADER_SIZE>() else { return false };
    let header: elf::Elf64_Ehdr = from_bytes(bytes);
    bytes.starts_with(MAGIC)
        && header.e_ident[elf::EI_CLASS] == elf::ELFCLASS64
        && header.e_machine == elf::EM_X86_64
}

/// What an ELF kernel asks for.
#[derive(Debug)]
pub struct Kernel {
    /// What is to be loaded, in the order of the program headers.
    pub pieces: Vec<Piece>,
    /// The ELF entry point, as it stands in the header.
    pub entry: u64,
    notes: Vec<Notes>,
}

/// A `PT_NOTE` entry.
#[derive(Debug)]
struct Notes {
    number: usize,
    offset: u64,
    size: u64,
    alignment: usize,
}

/// Reads the headers of an ELF file.
pub fn read(image: &Image<'_>) -> Result<Kernel, Error> {
    let refuse = |problem| image.refuse(problem);
    if image.size() < HEADER_SIZE as u64 {
        return Err(refuse(Problem::HeaderTruncated { found: image.size() }));
    }
    let mut header = elf::Elf64_Ehdr::default();
    image.read_at(0, header.as_mut_slice())?;
    check_header(&header).map_err(refuse)?;

    let headers = program_headers(image, &header)?;
    let mut kernel = Kernel { pieces: Vec::new(), entry: header.e_entry, notes: Vec::new() };
    for (number, header) in headers.iter().enumerate() {
        match header.p_type {
            elf::PT_LOAD if header.p_memsz > 0 || header.p_filesz > 0 => {
                kernel.pieces.push(piece(number, header, image.size()).map_err(refuse)?);
            }
            elf::PT_NOTE => kernel.notes.push(Notes {
                number,
                offset: header.p_offset,
                size: header.p_filesz,
                alignment: if header.p_align == 8 { 8 } else { 4 },
            }),
            _ => {}
        }
    }
    if kernel.pieces.is_empty() {
        return Err(refuse(Problem::NoSegments));
    }
    Ok(kernel)
}

fn check_header(header: &elf::Elf64_Ehdr) -> Result<(), Problem> {
    let ident = &header.e_ident;
    if ident[elf::EI_CLASS] != elf::ELFCLASS64 {
        return Err(Problem::Class { class: ident[elf::EI_CLASS] });
    }
    if ident[elf::EI_DATA] != elf::ELFDATA2LSB {
        return Err(Problem::Encoding { data: ident[elf::EI_DATA] });
    }
    for version in [u32::from(ident[elf::EI_VERSION]), header.e_version] {
        if version != u32::from(elf::EV_CURRENT) {
            return Err(Problem::Version { version });
        }
    }
    if header.e_machine != elf::EM_X86_64 {
        return Err(Problem::Machine { machine: header.e_machine });
    }
    if !matches!(header.e_type, elf::ET_EXEC | elf::ET_DYN) {
        return Err(Problem::Type { kind: header.e_type });
    }
    if header.e_phnum == 0 {
        return Err(Problem::NoSegments);
    }
    if usize::from(header.e_phentsize) != PROGRAM_HEADER_SIZE {
        return Err(Problem::ProgramHeaderSize { size: header.e_phentsize });
    }
    if header.e_phnum > MAX_PROGRAM_HEADERS {
        return Err(Problem::TooManyProgramHeaders { count: header.e_phnum, most: MAX_PROGRAM_HEADERS });
    }
    Ok(())
}

fn program_headers(image: &Image<'_>, header: &elf::Elf64_Ehdr) -> Result<Vec<elf::Elf64_Phdr>, Error> {
    let size = usize::from(header.e_phnum) * PROGRAM_HEADER_SIZE;
    let bytes = Range { start: header.e_phoff, size: size as u64 };
    if !is_inside(bytes, image.size()) {
        return Err(image.refuse(Problem::ProgramHeadersTruncated { bytes, found: image.size() }));
    }
    let mut table = vec![0; size];
    image.read_at(header.e_phoff, &mut table)?;
    Ok(table.chunks_exact(PROGRAM_HEADER_SIZE).map(from_bytes).collect())
}

/// A structure made of its bytes; there must be exactly as many as it has.
fn from_bytes<T: ByteValued + Default>(bytes: &[u8]) -> T {
    let mut value = T::default();
    value.as_mut_slice().copy_from_slice(bytes);
    value
}

fn is_inside(bytes: Range, file_size: u64) -> bool {
    bytes.start.checked_add(bytes.size).is_some_and(|end| end <= file_size)
}

fn piece(number: usize, header: &elf::Elf64_Phdr, file_size: u64) -> Result<Piece, Problem> {
    let (in_file, in_memory) = (header.p_filesz, header.p_memsz);
    if in_memory < in_file {
        return Err(Problem::SegmentSizes { number, in_file, in_memory });
    }
    let bytes = Range { start: header.p_offset, size: in_file };
    // Without contents the offset means nothing.
    if in_file > 0 && !is_inside(bytes, file_size) {
        return Err(Problem::SegmentTruncated { number, bytes, found: file_size });
    }
    Ok(Piece {
        part: Part::Segment(number),
        offset: header.p_offset,
        in_file,
        place: Range { start: header.p_paddr, size: in_memory },
    })
}

impl Kernel {
    /// The PVH entry point, if there is a note that names one.
    pub fn pvh_entry(&self, image: &Image<'_>) -> Result<Option<u32>, Error> {
        for notes in &self.notes {
            let found = notes.read(image)?;
            let entry = notes
                .find(&found, |kind, name| kind == PVH_NOTE && name == PVH_NOTE_NAME)
                .and_then(|contents| contents.map(address).transpose())
                .map_err(|problem| image.refuse(problem))?;
            if entry.is_some() {
                return Ok(entry);
            }
        }
        Ok(None)
    }

    /// Whether its notes say that it is Linux. Notes that cannot be read say nothing.
    pub fn is_linux(&self, image: &Image<'_>) -> bool {
        self.notes.iter().any(|notes| {
            let Ok(found) = notes.read(image) else { return false };
            matches!(notes.find(&found, |_, name| name == LINUX_NOTE_NAME), Ok(Some(_)))
        })
    }
}

impl Notes {
    fn read(&self, image: &Image<'_>) -> Result<Vec<u8>, Error> {
        let Self { number, offset, size, .. } = *self;
        if size > MAX_NOTES_SIZE {
            return Err(image.refuse(Problem::NotesTooLong { number, size, most: MAX_NOTES_SIZE }));
        }
        let bytes = Range { start: offset, size };
        if size > 0 && !is_inside(bytes, image.size()) {
            return Err(image.refuse(Problem::SegmentTruncated { number, bytes, found: image.size() }));
        }
        let mut found = vec![0; size as usize];
        if size > 0 {
            image.read_at(offset, &mut found)?;
        }
        Ok(found)
    }

    /// The contents of the first note that is `wanted` by its type and name.
    fn find<'n>(
        &self,
        notes: &'n [u8],
        wanted: impl Fn(u32, &[u8]) -> bool,
    ) -> Result<Option<&'n [u8]>, Problem> {
        let mut at = 0;
        // What is left behind the last note and is too short for another one is padding.
        while let Some(header) = notes.get(at..at + NOTE_HEADER_SIZE) {
            let header: elf::Elf64_Nhdr = from_bytes(header);
            let truncated = Problem::NoteTruncated { number: self.number, at: at as u64 };
            let name_start = at + NOTE_HEADER_SIZE;
            let Some((name, contents_start)) = self.field(notes, name_start, header.n_namesz) else {
                return Err(truncated);
            };
            let Some((contents, next)) = self.field(notes, contents_start, header.n_descsz) else {
                return Err(truncated);
            };
            if wanted(header.n_type, name) {
                return Ok(Some(contents));
            }
            at = next;
        }
        Ok(None)
    }

    /// `size` bytes from `start` on, and where the next field starts, which may be behind the end.
    fn field<'n>(&self, notes: &'n [u8], start: usize, size: u32) -> Option<(&'n [u8], usize)> {
        let end = start.checked_add(size as usize)?;
        // Names and contents begin at multiples of the alignment, counted from the start of the segment.
        let next = end.checked_next_multiple_of(self.alignment)?;
        // The last note may end without the padding before an empty field.
        let field = if size == 0 { &[] } else { notes.get(start..end)? };
        Some((field, next))
    }
}

/// The 32-bit address in a PVH note. Linux on x86-64 writes it as eight bytes.
fn address(contents: &[u8]) -> Result<u32, Problem> {
    match *contents {
        [a, b, c, d] | [a, b, c, d, 0, 0, 0, 0] => Ok(u32::from_le_bytes([a, b, c, d])),
        _ => Err(Problem::PvhNote { size: contents.len() as u32 }),
    }
}

#[cfg(test)]
#[path = "elf_test.rs"]
mod tests;
