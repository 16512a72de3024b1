//! The symbol table of an ELF file. Everything in it is believed only where it can be true.

use super::super::elf::MAGIC;
use super::super::error::Error;
use super::super::image::Image;
use super::refuse;
use super::{
    Candidate, Found, LONGEST_NAME, MOST_FUNCTIONS, MOST_NAMES, Segment, Symbols, SymbolsError,
    SymbolsProblem,
};

const HEADER_SIZE: usize = 64;
const SECTION_SIZE: usize = 64;
const PROGRAM_HEADER_SIZE: usize = 56;
const SYMBOL_SIZE: usize = 24;
/// Kernels have fewer than a hundred.
const MOST_SECTIONS: u64 = 1 << 16;
/// Kernels have fewer than ten.
const MOST_SEGMENTS: u16 = 128;
const MOST_SECTION_NAMES: u64 = 1 << 20;
/// How many sections without symbols are known by their own names.
const MOST_NAMELESS: usize = 256;
/// So many bytes of the symbol table are read at once.
const CHUNK: usize = 4096 * SYMBOL_SIZE;
/// Four million symbols, of which most name no function.
const MOST_SYMBOL_BYTES: u64 = SYMBOL_SIZE as u64 * (4 << 20);

const SYMBOL_TABLE: u32 = 2;
const STRING_TABLE: u32 = 3;
const EXECUTABLE: u64 = 4;
const LOAD: u32 = 1;
const FIRST_RESERVED_SECTION: u16 = 0xff00;

const UNTYPED: u8 = 0;
const FUNCTION: u8 = 2;
const INDIRECT_FUNCTION: u8 = 10;
const LOCAL: u8 = 0;
const GLOBAL: u8 = 1;

type Outcome<T> = Result<T, SymbolsError>;

pub(super) fn is_elf(image: &Image<'_>) -> Result<bool, Error> {
    let mut start = [0; MAGIC.len()];
    if image.size() < start.len() as u64 {
        return Ok(false);
    }
    image.read_at(0, &mut start)?;
    Ok(start == *MAGIC)
}

/// A little-endian number in a record that is known to be long enough.
fn number<const N: usize>(record: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&record[at..at + N]);
    bytes
}

fn u16_at(record: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(number(record, at))
}

fn u32_at(record: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(number(record, at))
}

fn u64_at(record: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(number(record, at))
}

struct Section {
    name: u32,
    kind: u32,
    flags: u64,
    address: u64,
    offset: u64,
    size: u64,
    link: u32,
}

impl Section {
    fn new(record: &[u8]) -> Self {
        Self {
            name: u32_at(record, 0),
            kind: u32_at(record, 4),
            flags: u64_at(record, 8),
            address: u64_at(record, 16),
            offset: u64_at(record, 24),
            size: u64_at(record, 32),
            link: u32_at(record, 40),
        }
    }
}

pub(super) fn read(image: &Image<'_>) -> Outcome<Symbols> {
    const BIT_64: u8 = 2;
    const LITTLE_ENDIAN: u8 = 1;
    let header = part(image, "header", 0, HEADER_SIZE as u64, HEADER_SIZE as u64)?;
    if header[4] != BIT_64 || header[5] != LITTLE_ENDIAN {
        return Err(refuse(image, SymbolsProblem::OtherElf));
    }
    let sections = sections(image, &header)?;
    let table = sections.iter().find(|section| section.kind == SYMBOL_TABLE);
    let strings = table.and_then(|table| sections.get(table.link as usize));
    let (Some(table), Some(strings)) = (table, strings.filter(|section| section.kind == STRING_TABLE)) else {
        return Err(refuse(image, SymbolsProblem::Stripped));
    };
    let mut names = part(image, "table of names", strings.offset, strings.size, MOST_NAMES)?;
    let mut candidates = candidates(image, table, &sections, &names)?;
    add_nameless_code(image, &header, &sections, &mut names, &mut candidates)?;
    Found { names, candidates, physical: segments(image, &header)? }.into_symbols(image)
}

/// A part of the file of at most `most` bytes.
fn part(image: &Image<'_>, what: &'static str, offset: u64, size: u64, most: u64) -> Outcome<Vec<u8>> {
    check(image, what, offset, size, most)?;
    let mut bytes = vec![0; size as usize];
    if size > 0 {
        image.read_at(offset, &mut bytes)?;
    }
    Ok(bytes)
}

fn check(image: &Image<'_>, what: &'static str, offset: u64, size: u64, most: u64) -> Outcome<()> {
    if offset.checked_add(size).is_none_or(|end| end > image.size()) {
        return Err(refuse(image, SymbolsProblem::Outside { what }));
    }
    if size > most {
        return Err(refuse(image, SymbolsProblem::TooLarge { what, size, most }));
    }
    Ok(())
}

fn sections(image: &Image<'_>, header: &[u8]) -> Outcome<Vec<Section>> {
    const WHAT: &str = "section table";
    let (offset, size, count) = (u64_at(header, 40), u16_at(header, 58), u16_at(header, 60));
    if offset == 0 || usize::from(size) != SECTION_SIZE {
        return Err(refuse(image, SymbolsProblem::Stripped));
    }
    let record = SECTION_SIZE as u64;
    let count = match count {
        // More than fit into the field: the first section's size is their number.
        0 => Section::new(&part(image, WHAT, offset, record, record)?).size,
        count => count.into(),
    };
    let bytes = count.saturating_mul(record);
    let table = part(image, WHAT, offset, bytes, MOST_SECTIONS * record)?;
    Ok(table.chunks_exact(SECTION_SIZE).map(Section::new).collect())
}

/// Where the kernel lies in physical memory. Without it there are still symbols.
fn segments(image: &Image<'_>, header: &[u8]) -> Outcome<Vec<Segment>> {
    let (offset, size, count) = (u64_at(header, 32), u16_at(header, 54), u16_at(header, 56));
    if usize::from(size) != PROGRAM_HEADER_SIZE || count > MOST_SEGMENTS {
        return Ok(Vec::new());
    }
    let bytes = u64::from(count) * PROGRAM_HEADER_SIZE as u64;
    let table = part(image, "program header table", offset, bytes, bytes)?;
    let records = table.chunks_exact(PROGRAM_HEADER_SIZE).filter(|record| u32_at(record, 0) == LOAD);
    let segments = records.map(|record| Segment {
        linked: u64_at(record, 16),
        physical: u64_at(record, 24),
        size: u64_at(record, 40),
    });
    Ok(segments.collect())
}

fn candidates(
    image: &Image<'_>,
    table: &Section,
    sections: &[Section],
    names: &[u8],
) -> Outcome<Vec<Candidate>> {
    check(image, "symbol table", table.offset, table.size, MOST_SYMBOL_BYTES)?;
    let mut candidates = Vec::new();
    let mut chunk = vec![0; CHUNK.min(table.size as usize)];
    let mut done = 0;
    while done < table.size {
        let length = (table.size - done).min(CHUNK as u64);
        let chunk = &mut chunk[..length as usize];
        image.read_at(table.offset + done, chunk)?;
        let found = chunk.chunks_exact(SYMBOL_SIZE).filter_map(|record| candidate(record, sections, names));
        candidates.extend(found);
        if candidates.len() > MOST_FUNCTIONS {
            return Err(refuse(image, SymbolsProblem::TooMany));
        }
        done += length;
    }
    Ok(candidates)
}

/// Code that no symbol names goes by the name of its section. Linux has such a one, full of jumps that depend on
/// the processor's features.
fn add_nameless_code(
    image: &Image<'_>,
    header: &[u8],
    sections: &[Section],
    names: &mut Vec<u8>,
    candidates: &mut Vec<Candidate>,
) -> Outcome<()> {
    let Some(strings) = sections.get(usize::from(u16_at(header, 62))) else { return Ok(()) };
    let section_names =
        part(image, "table of section names", strings.offset, strings.size, MOST_SECTION_NAMES)?;
    let mut starts: Vec<u64> = candidates.iter().map(|candidate| candidate.start).collect();
    starts.sort_unstable();
    let code = sections.iter().filter(|section| section.flags & EXECUTABLE != 0 && section.size > 0);
    for &Section { name, address: start, size, .. } in code.take(MOST_NAMELESS) {
        let end = start.saturating_add(size);
        let next = starts.get(starts.partition_point(|&other| other < start));
        let has_names = next.is_some_and(|&next| next < end);
        let Some(text) = section_names.get(name as usize..).filter(|_| !has_names) else { continue };
        let text = text.split(|&byte| byte == 0).next().unwrap_or_default();
        let name = names.len() as u32 + 1;
        names.push(0);
        names.extend(&text[..text.len().min(LONGEST_NAME)]);
        candidates.push(Candidate { start, end, ends_there: true, name, rank: u8::MAX - 1 });
    }
    Ok(())
}

/// The function or label in code that a symbol is. Assemblers' labels have no type and often no size.
fn candidate(record: &[u8], sections: &[Section], names: &[u8]) -> Option<Candidate> {
    let (name, info, section) = (u32_at(record, 0), record[4], u16_at(record, 6));
    let (start, size) = (u64_at(record, 8), u64_at(record, 16));
    let (kind, binding) = (info & 0xf, info >> 4);
    if section >= FIRST_RESERVED_SECTION || !matches!(kind, UNTYPED | FUNCTION | INDIRECT_FUNCTION) {
        return None;
    }
    let section = sections.get(usize::from(section)).filter(|section| section.flags & EXECUTABLE != 0)?;
    let text = names.get(name as usize..)?;
    if matches!(text.first(), None | Some(0 | b'$')) || text.starts_with(b".L") {
        return None;
    }
    let section_end = section.address.saturating_add(section.size);
    // What only marks the end of a section would be taken for what follows.
    if !(section.address..section_end).contains(&start) {
        return None;
    }
    let end = if size > 0 { start.saturating_add(size) } else { section_end };
    let binding = match binding {
        GLOBAL => 0,
        LOCAL => 2,
        _ => 1,
    };
    let rank = if kind == UNTYPED { 3 + binding } else { binding };
    Some(Candidate { start, end, ends_there: size > 0, name, rank })
}
