//! Memory: looking at and changing it at addresses that a person chose, and using what is free.

use core::ptr;

use crate::boot::Range;
use crate::machine::Machine;
use crate::paging;

unsafe extern "C" {
    /// The first address behind this guest (linker.ld).
    static image_end: u8;
}

const PAGE: usize = 4096;
/// The tables of the image map so much from the start.
const MAPPED_END: u64 = 1 << 30;
/// Below 1 MiB lies what the loader left.
const LOW_END: u64 = 1 << 20;

/// Reads one byte; faults where there is nothing.
pub fn read8(address: u64) -> u8 {
    // SAFETY: reading memory has no effect on this program; a fault is caught by the caller.
    unsafe { ptr::read_volatile(ptr::with_exposed_provenance(address as usize)) }
}

/// Writes `width` bytes; faults where nothing can be written.
pub fn write(address: u64, value: u64, width: u64) {
    let at: *mut u8 = ptr::with_exposed_provenance_mut(address as usize);
    // SAFETY: not safe at all: a person asked for it and may break this guest by it. Unaligned is fine on x86.
    unsafe {
        match width {
            1 => at.write_volatile(value as u8),
            2 => at.cast::<u16>().write_unaligned(value as u16),
            4 => at.cast::<u32>().write_unaligned(value as u32),
            _ => at.cast::<u64>().write_unaligned(value),
        }
    }
}

/// Free memory in one piece, of which parts are taken; all of it is free again when the next arena is made.
pub struct Arena {
    next: u64,
    end: u64,
}

impl Arena {
    /// The largest piece of free memory that is mapped.
    pub fn new(machine: &Machine) -> Self {
        let free_from = ptr::addr_of!(image_end).expose_provenance() as u64;
        let initrd_from = machine.boot.initrd.map_or(u64::MAX, |(start, _)| start);
        let pieces = machine.boot.ranges().iter().filter(|range| range.is_usable()).map(|range| {
            let next = range.start.max(free_from);
            // Whoever loads an initial RAM disk puts it at the end of a piece.
            let end = range.start.saturating_add(range.size);
            let end = if (next..end).contains(&initrd_from) { initrd_from } else { end };
            Self { next, end: end.min(MAPPED_END) }
        });
        pieces.max_by_key(|piece| piece.end.saturating_sub(piece.next)).unwrap_or(Self { next: 0, end: 0 })
    }

    /// Pages for so many bytes, zeroed.
    pub fn take(&mut self, length: u64) -> Option<u64> {
        let start = self.next.checked_next_multiple_of(PAGE as u64)?;
        let end = start.checked_add(length).filter(|&end| end <= self.end)?;
        self.next = end;
        // SAFETY: free memory, which the tables of the image map.
        unsafe { ptr::with_exposed_provenance_mut::<u8>(start as usize).write_bytes(0, length as usize) };
        Some(start)
    }
}

/// What [`touch`] did.
pub struct Touched {
    pub pages: u64,
    pub wrong: u64,
}

/// Writes a word of its own into each of `pages` free pages, then reads them all back.
pub fn touch(machine: &Machine, pages: u64) -> Touched {
    let mut touched = Touched { pages: 0, wrong: 0 };
    for_free_pages(machine, pages, |word, address| {
        // SAFETY: free memory, mapped by `for_free_pages`.
        unsafe { word.write_volatile(!address) };
        touched.pages += 1;
    });
    for_free_pages(machine, pages, |word, address| {
        // SAFETY: as above.
        touched.wrong += u64::from(unsafe { word.read_volatile() } != !address);
    });
    touched
}

fn for_free_pages(machine: &Machine, mut pages: u64, mut visit: impl FnMut(*mut u64, u64)) {
    let free_from = ptr::addr_of!(image_end).expose_provenance() as u64;
    for range in machine.boot.ranges().iter().filter(|range| range.is_usable() && range.start >= LOW_END) {
        let Range { start, size, .. } = *range;
        let first = start.max(free_from).next_multiple_of(PAGE as u64);
        let end = start.saturating_add(size);
        for address in (first..end).step_by(PAGE) {
            let initrd = machine
                .boot
                .initrd
                .is_some_and(|(at, size)| (at..at.saturating_add(size)).contains(&address));
            if initrd {
                continue;
            }
            if pages == 0 || paging::reach(address, PAGE as u64).is_err() {
                return;
            }
            pages -= 1;
            visit(ptr::with_exposed_provenance_mut(address as usize), address);
        }
    }
}
