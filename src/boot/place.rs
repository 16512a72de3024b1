//! Who lies where in guest memory: the pieces of the kernel, the boot data, the initrd.
//!
//! All of it is decided, and refused if need be, before the first byte of guest memory is written.

use crate::memory::{Layout, PAGE_SIZE, Region};
use crate::x86::paging::IdentityTables;

use super::error::{Part, Problem, Range, memory_advice};
use super::map;

/// A part of the kernel and where it is to lie.
#[derive(Debug, Clone, Copy)]
pub struct Piece {
    /// What it is.
    pub part: Part,
    /// Where its contents start in the file.
    pub offset: u64,
    /// How long its contents are; the rest of its place stays zero.
    pub in_file: u64,
    /// Where it is to lie.
    pub place: Range,
}

impl Piece {
    /// Its place, known to be in memory.
    fn region(&self) -> Region {
        Region { start: self.place.start, size: self.place.size }
    }

    /// Whether `address` lies in what comes from the file.
    pub fn has_contents_at(&self, address: u64) -> bool {
        address.checked_sub(self.place.start).is_some_and(|offset| offset < self.in_file)
    }
}

/// Checks that every piece lies in memory and apart from the others; returns what they span.
pub fn check_pieces(pieces: &mut [Piece], layout: &Layout) -> Result<Region, Problem> {
    for piece in &*pieces {
        if !is_in_memory(piece.place, layout) {
            return Err(Problem::OutsideMemory {
                part: piece.part,
                place: piece.place,
                memory: layout.size(),
                advice: memory_advice(piece.place, layout),
            });
        }
    }
    pieces.sort_unstable_by_key(|piece| piece.place.start);
    for pair in pieces.windows(2) {
        if pair[0].region().end() > pair[1].place.start {
            return Err(Problem::Overlap {
                first: pair[0].part,
                first_place: pair[0].place,
                second: pair[1].part,
                second_place: pair[1].place,
            });
        }
    }
    let (Some(first), Some(last)) = (pieces.first(), pieces.last()) else { return Err(Problem::NoSegments) };
    Ok(Region { start: first.place.start, size: last.region().end() - first.place.start })
}

fn is_in_memory(place: Range, layout: &Layout) -> bool {
    place.start.checked_add(place.size).is_some_and(|end| {
        layout.regions().iter().any(|region| region.start <= place.start && end <= region.end())
    })
}

/// Checks that no piece lies in `boot_data`.
pub fn check_boot_data(pieces: &[Piece], boot_data: Region) -> Result<(), Problem> {
    match find_on(pieces, boot_data) {
        None => Ok(()),
        Some(piece) => {
            Err(Problem::OnBootData { part: piece.part, place: piece.place, boot_data: boot_data.into() })
        }
    }
}

/// Checks that no piece lies in any of the `tables`.
pub fn check_tables(pieces: &[Piece], tables: &[Region]) -> Result<(), Problem> {
    match tables.iter().find_map(|table| Some((find_on(pieces, *table)?, table))) {
        None => Ok(()),
        Some((piece, table)) => {
            Err(Problem::OnTables { part: piece.part, place: piece.place, tables: (*table).into() })
        }
    }
}

fn find_on(pieces: &[Piece], region: Region) -> Option<&Piece> {
    pieces.iter().find(|piece| piece.place.start < region.end() && region.start < piece.region().end())
}

/// Plans page tables that reach every piece.
pub fn page_tables(pieces: &[Piece]) -> Result<IdentityTables, Problem> {
    let reach: Vec<_> = pieces.iter().map(Piece::region).collect();
    IdentityTables::plan(map::PAGE_TABLES, &reach).map_err(|source| {
        // Pieces are in ascending order, and only what lies high needs tables of its own.
        let last = pieces.last();
        Problem::Unmappable {
            part: last.map_or(Part::Image, |piece| piece.part),
            place: last.map_or(Range { start: 0, size: 0 }, |piece| piece.place),
            source,
        }
    })
}

/// The highest place for `size` bytes below `limit` that is page aligned and free; if there is none, how much
/// would fit.
pub fn initrd(size: u64, limit: u64, pieces: &[Piece], boot_data: Region) -> Result<Region, u64> {
    let bios = Region { start: map::EXTENDED_BIOS_DATA, size: map::HIGH_MEMORY - map::EXTENDED_BIOS_DATA };
    let first = Region { start: 0, size: boot_data.end() };
    let mut taken: Vec<_> = pieces.iter().map(Piece::region).chain([bios, first]).collect();
    taken.sort_unstable_by_key(|region| std::cmp::Reverse(region.end()));

    // From the top down: everything taken that is still to come ends below what has been looked at.
    let mut top = limit;
    let mut largest = 0;
    for region in taken.iter().filter(|region| region.start < limit) {
        // Whole pages: a kernel that frees its initrd frees the pages it touches.
        let bottom = region.end().next_multiple_of(PAGE_SIZE);
        let end = top - top % PAGE_SIZE;
        let free = end.saturating_sub(bottom);
        if size <= free {
            let start = end - size;
            return Ok(Region { start: start - start % PAGE_SIZE, size });
        }
        largest = largest.max(free);
        top = top.min(region.start);
    }
    Err(largest)
}
