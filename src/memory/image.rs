//! Guest memory as a file: writing down what is in it, and having it begin as what was written.
//!
//! In such an image the regions follow each other without the gap between them. Pages that nobody ever touched are
//! found in the kernel's page tables, without being touched: what is not there is zeroes, or, in memory that itself
//! began as an image, what that image says.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MmapRegion, VolatileMemory};

use super::{Error, GuestMemory, PAGE_SIZE};
use crate::sparse::{data_ranges, is_zero};

const PAGEMAP: &str = "/proc/self/pagemap";
/// A page is in memory or in the swap space (kernel, admin-guide/mm/pagemap).
const TOUCHED: u64 = 1 << 63 | 1 << 62;
/// How many pages are asked for at once.
const WINDOW: usize = 16 << 10;
/// How many pages are handed on at once at most.
const RUN: usize = 64;

impl GuestMemory {
    /// Calls `each` with all pages that are not zeroes, by their place in the image, in ascending order and as many at
    /// once as follow each other, up to 256 KiB. Nobody may write to the memory meanwhile.
    pub fn each_run<E: From<Error>>(
        &self,
        mut each: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        // Without it, all pages are looked at.
        let pagemap = File::open(PAGEMAP).ok();
        let mut buffer = vec![0; RUN * PAGE_SIZE as usize];
        let mut touched = Vec::with_capacity(WINDOW);
        let mut image = 0;
        for region in self.mapped().iter() {
            let pages = (region.len() / PAGE_SIZE) as usize;
            for first in (0..pages).step_by(WINDOW) {
                let window = Window { region, first, count: WINDOW.min(pages - first) };
                window.find_touched(pagemap.as_ref(), &mut touched);
                let mut at = 0;
                while let Some(next) = touched[at..].iter().position(|&touched| touched) {
                    let start = at + next;
                    let run = touched[start..].iter().take(RUN).take_while(|&&touched| touched).count();
                    let bytes = &mut buffer[..run * PAGE_SIZE as usize];
                    let place = (first + start) as u64 * PAGE_SIZE;
                    copy(region, place, bytes)?;
                    each_nonzero(bytes, |offset, pages| each(image + place + offset, pages))?;
                    at = start + run;
                }
            }
            image += region.len();
        }
        Ok(())
    }
}

/// Some pages of a region.
struct Window<'a> {
    region: &'a GuestRegionMmap,
    first: usize,
    count: usize,
}

impl Window<'_> {
    /// Finds out which pages may have something in them.
    fn find_touched(&self, pagemap: Option<&File>, touched: &mut Vec<bool>) {
        touched.clear();
        let resident = pagemap.and_then(|pagemap| self.resident(pagemap));
        match resident {
            Some(entries) => touched.extend(entries.iter().map(|entry| entry & TOUCHED != 0)),
            None => touched.resize(self.count, true),
        }
        let mapping: &MmapRegion = self.region;
        let Some(image) = mapping.file_offset() else { return };
        let start = image.start() + self.first as u64 * PAGE_SIZE;
        let end = start + self.count as u64 * PAGE_SIZE;
        let found = data_ranges(image.file(), start, end, |from, to| {
            let pages = (from - start) / PAGE_SIZE..(to - start).div_ceil(PAGE_SIZE);
            touched[pages.start as usize..pages.end as usize].fill(true);
            Ok(())
        });
        if found.is_err() {
            touched.fill(true);
        }
    }

    fn resident(&self, pagemap: &File) -> Option<Vec<u64>> {
        const ENTRY: usize = size_of::<u64>();
        let mut bytes = vec![0; self.count * ENTRY];
        let host = self.region.as_ptr() as u64 / PAGE_SIZE + self.first as u64;
        pagemap.read_exact_at(&mut bytes, host * ENTRY as u64).ok()?;
        let entries = bytes.chunks_exact(ENTRY);
        Some(
            entries
                .map(|entry| entry.iter().rev().fold(0, |entry, &byte| entry << 8 | u64::from(byte)))
                .collect(),
        )
    }
}

/// Copies what is in a region from `place` on.
fn copy(region: &GuestRegionMmap, place: u64, bytes: &mut [u8]) -> Result<(), Error> {
    let mapping: &MmapRegion = region;
    let slice = mapping.get_slice(place as usize, bytes.len()).map_err(|_| Error::Inconsistent)?;
    slice.copy_to(bytes);
    Ok(())
}

/// Fills a fresh mapping with what is in the image from `start` on.
pub(super) fn fill(mapping: &MmapRegion, image: &File, start: u64) -> io::Result<()> {
    let end = start + mapping.size() as u64;
    let mut buffer = vec![0; RUN * PAGE_SIZE as usize];
    data_ranges(image, start, end, |from, to| {
        let mut at = from;
        while at < to {
            let bytes = &mut buffer[..((to - at) as usize).min(RUN * PAGE_SIZE as usize)];
            image.read_exact_at(bytes, at)?;
            let slice = mapping.get_slice((at - start) as usize, bytes.len()).map_err(io::Error::other)?;
            slice.copy_from(bytes);
            at += bytes.len() as u64;
        }
        Ok(())
    })
}

/// Calls `each` with the runs of pages that are not all zeroes, by their offset in `bytes`.
fn each_nonzero<E>(bytes: &[u8], mut each: impl FnMut(u64, &[u8]) -> Result<(), E>) -> Result<(), E> {
    let page = PAGE_SIZE as usize;
    let mut at = 0;
    while at < bytes.len() {
        let run = bytes[at..].chunks(page).take_while(|page| !is_zero(page)).map(<[u8]>::len).sum::<usize>();
        if run > 0 {
            each(at as u64, &bytes[at..at + run])?;
        }
        // What ended it is a page of zeroes.
        at += run + page;
    }
    Ok(())
}

#[cfg(test)]
#[path = "image_test.rs"]
mod tests;
