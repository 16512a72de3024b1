//! Guest memory as a file: writing down what is in it, and having it begin as what was written.
//!
//! In such an image the regions follow each other without the gap between them. Pages that nobody ever touched are
//! found in the kernel's page tables, without being touched: what is not there is zeroes, or, in memory that itself
//! began as an image, what that image says. An image can have others over it, each with some pages in the place of
//! those below.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MmapRegion, VolatileMemory};

use super::{Error, GuestMemory, PAGE_SIZE, PageSet};
use crate::sparse::{data_ranges, runs};

const PAGEMAP: &str = "/proc/self/pagemap";
/// A page is in memory or in the swap space (kernel, admin-guide/mm/pagemap).
const TOUCHED: u64 = 1 << 63 | 1 << 62;
/// How many pages are asked for at once.
const WINDOW: usize = 16 << 10;
/// How many pages are handed on at once at most.
const RUN: usize = 64;
/// How many pieces of memory are mapped from overlays; what is in smaller ones is copied. Each takes up to two of the
/// 65,530 mappings that a process may have (vm.max_map_count).
const MOST_PIECES: usize = 10_000;

/// A file with what is in a guest's memory at first, and others that have it otherwise here and there.
#[derive(Debug)]
pub struct Image {
    base: Arc<File>,
    /// No page is in two of them.
    overlays: Vec<Overlay>,
    most_pieces: usize,
}

/// Some pages of an image, at the same places as in the image.
#[derive(Debug)]
pub struct Overlay {
    /// Where they are.
    pub file: File,
    /// Which they are.
    pub pages: PageSet,
}

impl From<File> for Image {
    fn from(base: File) -> Self {
        Self::new(base, Vec::new())
    }
}

impl Image {
    /// An image with overlays, of which each covers those before it.
    pub fn new(base: File, mut overlays: Vec<Overlay>) -> Self {
        let mut covered = PageSet::default();
        for overlay in overlays.iter_mut().rev() {
            let all = overlay.pages.clone();
            overlay.pages.subtract(&covered);
            covered.add(&all);
        }
        Self { base: Arc::new(base), overlays, most_pieces: MOST_PIECES }
    }

    #[cfg(test)]
    pub(super) fn with_most_pieces(self, most_pieces: usize) -> Self {
        Self { most_pieces, ..self }
    }

    pub(super) fn base(&self) -> &Arc<File> {
        &self.base
    }

    /// Whether some of it is copied even where the rest is mapped.
    pub(super) fn is_copied(&self) -> bool {
        self.pieces().nth(self.most_pieces).is_some()
    }

    fn pieces(&self) -> impl Iterator<Item = (&File, Range<u64>)> {
        self.overlays.iter().flat_map(|overlay| overlay.pages.runs().map(|run| (&overlay.file, run)))
    }

    /// The pieces that are within `length` bytes from `start` on, with offsets in bytes.
    fn pieces_within(&self, start: u64, length: u64) -> Vec<(&File, Range<u64>)> {
        let within = |(file, run): (_, Range<u64>)| {
            let bytes = (run.start * PAGE_SIZE).max(start)..(run.end * PAGE_SIZE).min(start + length);
            (!bytes.is_empty()).then_some((file, bytes))
        };
        self.pieces().filter_map(within).collect()
    }

    /// Puts the overlays over a mapping of the image from `start` on.
    pub(super) fn lay_over(&self, mapping: &MmapRegion, start: u64) -> io::Result<()> {
        let mut pieces = self.pieces_within(start, mapping.size() as u64);
        if pieces.len() > self.most_pieces {
            pieces.sort_unstable_by_key(|(_, bytes)| std::cmp::Reverse(bytes.end - bytes.start));
        }
        let (mapped, copied) = pieces.split_at(pieces.len().min(self.most_pieces));
        mapped.iter().try_for_each(|(file, bytes)| map_over(mapping, start, file, bytes))?;
        copied.iter().try_for_each(|(file, bytes)| fill_part(mapping, start, file, bytes))
    }

    /// Fills a fresh mapping with what is in the image from `start` on.
    pub(super) fn fill(&self, mapping: &MmapRegion, start: u64) -> io::Result<()> {
        let length = mapping.size() as u64;
        data_ranges(&self.base, start, start + length, |from, to| {
            fill_part(mapping, start, &self.base, &(from..to))
        })?;
        let pieces = self.pieces_within(start, length);
        pieces.iter().try_for_each(|(file, bytes)| fill_part(mapping, start, file, bytes))
    }

    /// Which pages may have something in them.
    fn data(&self, size: u64) -> io::Result<PageSet> {
        let mut data = PageSet::default();
        let pages = |from: u64, to: u64| from / PAGE_SIZE..to.div_ceil(PAGE_SIZE);
        data_ranges(&self.base, 0, size, |from, to| {
            data.insert(pages(from, to));
            Ok(())
        })?;
        for (file, run) in self.pieces() {
            data.remove(run.clone());
            data_ranges(file, run.start * PAGE_SIZE, run.end * PAGE_SIZE, |from, to| {
                data.insert(pages(from, to));
                Ok(())
            })?;
        }
        Ok(data)
    }
}

impl GuestMemory {
    /// The pages that may have something in them: all others are zeroes.
    pub fn used_pages(&self) -> PageSet {
        let size = self.layout().size();
        let all = || PageSet::from(0..size / PAGE_SIZE);
        let mut used = match self.noted_touched().map_or_else(|| self.touched_pages(), Ok) {
            Ok(touched) => touched,
            // All are looked at.
            Err(_) => return all(),
        };
        match self.image().map(|image| image.data(size)) {
            Some(Ok(data)) => used.add(&data),
            Some(Err(_)) => return all(),
            None => {}
        }
        used
    }

    /// The pages that are in the page tables.
    fn touched_pages(&self) -> io::Result<PageSet> {
        const ENTRY: usize = size_of::<u64>();
        let pagemap = File::open(PAGEMAP)?;
        let mut bytes = vec![0; WINDOW * ENTRY];
        let (mut touched, mut image) = (PageSet::default(), 0);
        for region in self.mapped().iter() {
            let (host, pages) = (region.as_ptr() as u64 / PAGE_SIZE, region.len() / PAGE_SIZE);
            for first in (0..pages).step_by(WINDOW) {
                let bytes = &mut bytes[..(pages - first).min(WINDOW as u64) as usize * ENTRY];
                pagemap.read_exact_at(bytes, (host + first) * ENTRY as u64)?;
                for (page, entry) in (image + first..).zip(bytes.chunks_exact(ENTRY)) {
                    let entry = entry.iter().rev().fold(0, |entry, &byte| entry << 8 | u64::from(byte));
                    if entry & TOUCHED != 0 {
                        touched.insert(page..page + 1);
                    }
                }
            }
            image += pages;
        }
        Ok(touched)
    }

    /// Calls `each` with what is in these pages, by their place in the image, in ascending order and as many at once as
    /// follow each other, up to 256 KiB. If somebody writes to them meanwhile, there may be something of before and
    /// something of after in them.
    pub fn each_of<E: From<Error>>(
        &self,
        pages: &PageSet,
        mut each: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut buffer = vec![0; RUN * PAGE_SIZE as usize];
        let mut image = 0;
        let mut regions = self.mapped().iter();
        let mut region = regions.next();
        for run in pages.runs() {
            let (mut at, end) = (run.start * PAGE_SIZE, run.end * PAGE_SIZE);
            while at < end {
                let Some(current) = region else { return Err(Error::Inconsistent.into()) };
                if at >= image + current.len() {
                    image += current.len();
                    region = regions.next();
                    continue;
                }
                let length = (end - at).min(image + current.len() - at).min(buffer.len() as u64);
                let bytes = &mut buffer[..length as usize];
                copy(current, at - image, bytes)?;
                each(at, bytes)?;
                at += length;
            }
        }
        Ok(())
    }

    /// Calls `each` with all pages that are not zeroes, as [`each_of`](Self::each_of) does.
    pub fn each_run<E: From<Error>>(
        &self,
        mut each: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.each_of(&self.used_pages(), |place, bytes| {
            let mut data = runs(bytes, PAGE_SIZE as usize).filter(|(zero, _)| !zero);
            data.try_for_each(|(_, run)| each(place + run.start as u64, &bytes[run]))
        })
    }
}

/// Copies what is in a region from `place` on.
fn copy(region: &GuestRegionMmap, place: u64, bytes: &mut [u8]) -> Result<(), Error> {
    let mapping: &MmapRegion = region;
    let slice = mapping.get_slice(place as usize, bytes.len()).map_err(|_| Error::Inconsistent)?;
    slice.copy_to(bytes);
    Ok(())
}

/// Maps a part of a file, at its place in a mapping of the image from `start` on.
fn map_over(mapping: &MmapRegion, start: u64, file: &File, bytes: &Range<u64>) -> io::Result<()> {
    let place = (bytes.start - start) as usize;
    let length = (bytes.end - bytes.start) as usize;
    // Makes sure that this is within the mapping.
    mapping.get_slice(place, length).map_err(io::Error::other)?;
    let offset = libc::off_t::try_from(bytes.start).map_err(io::Error::other)?;
    // SAFETY: the range lies in a mapping of ours that nobody else knows yet: it stays mapped, readable and writable and
    // private as the rest of it, and is unmapped with it.
    let mapped = unsafe {
        libc::mmap(
            mapping.as_ptr().add(place).cast(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_NORESERVE | libc::MAP_FIXED,
            file.as_raw_fd(),
            offset,
        )
    };
    if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Copies a part of a file to its place in a mapping of the image from `start` on.
fn fill_part(mapping: &MmapRegion, start: u64, file: &File, part: &Range<u64>) -> io::Result<()> {
    let mut buffer = vec![0; RUN * PAGE_SIZE as usize];
    let mut at = part.start;
    while at < part.end {
        let bytes = &mut buffer[..((part.end - at) as usize).min(RUN * PAGE_SIZE as usize)];
        file.read_exact_at(bytes, at)?;
        let slice = mapping.get_slice((at - start) as usize, bytes.len()).map_err(io::Error::other)?;
        slice.copy_from(bytes);
        at += bytes.len() as u64;
    }
    Ok(())
}

#[cfg(test)]
#[path = "image_test.rs"]
mod tests;
