//! Where a bzImage lies whose own code is run.

use crate::boot::error::{Part, Range};
use crate::boot::map;
use crate::boot::place::Piece;
use crate::memory::Layout;

use super::SetupHeader;

/// The image and the room that it needs, and where the image lies. Whether there is memory is not checked here.
pub fn pieces(header: &SetupHeader, layout: &Layout) -> (u64, Vec<Piece>) {
    match header.relocatable() {
        Some(alignment) => {
            let address = choose(header, alignment, layout);
            // The room starts where the image lies, as that is aligned.
            (address, vec![image(header, address, header.room())])
        }
        None => (header.load_address(), fixed(header)),
    }
}

fn image(header: &SetupHeader, address: u64, size: u64) -> Piece {
    let code = header.code();
    let place = Range { start: address, size };
    Piece { part: Part::Image, offset: code.start, in_file: code.size, place }
}

/// The preferred address if there is memory, else the lowest that is aligned and clear of everything a PC has in
/// its first MiB.
fn choose(header: &SetupHeader, alignment: u64, layout: &Layout) -> u64 {
    let low = layout.low();
    let fits = |address: &u64| address.checked_add(header.room()).is_some_and(|end| end <= low.end());
    let aligned = |address: u64| address.max(map::HIGH_MEMORY).checked_next_multiple_of(alignment);
    aligned(header.preferred_address())
        .filter(fits)
        .unwrap_or_else(|| map::HIGH_MEMORY.next_multiple_of(alignment))
}

/// An image that cannot choose is loaded where it says, and unpacks itself to where it prefers to run.
fn fixed(header: &SetupHeader) -> Vec<Piece> {
    let loaded = image(header, header.load_address(), header.code().size);
    // Both in 64 bits: the one address has 32, and nothing is placed at the other that wraps around.
    let load = loaded.place.start..loaded.place.start + loaded.place.size;
    let (start, room) = (header.preferred_address(), header.room());
    let Some(end) = start.checked_add(room) else {
        return vec![loaded, workspace(Range { start, size: room })];
    };
    // The two may overlap; what is only room is what the image leaves of it.
    let below = start..end.min(load.start);
    let above = start.max(load.end)..end;
    let rest = [below, above].into_iter().filter(|rest| rest.start < rest.end);
    let rest = rest.map(|rest| workspace(Range { start: rest.start, size: rest.end - rest.start }));
    std::iter::once(loaded).chain(rest).collect()
}

fn workspace(place: Range) -> Piece {
    Piece { part: Part::Workspace, offset: 0, in_file: 0, place }
}
