//! The mapping of guest memory in this process.

use std::sync::{Arc, Mutex, MutexGuard};
use std::{fs, io};

use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{
    Address, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap, MmapRegion,
};

use super::dirty::Written;
use super::{Error, Image, Layout, PAGE_SIZE, Region};
use crate::kernel_files::{self, bytes};
use crate::threads::lock;

const HUGE_PAGE: u64 = 2 << 20;
const THP_SWITCH: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
const KSM_SWITCH: &str = "/sys/kernel/mm/ksm/run";

/// How the host is to back guest memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// Ask for transparent 2 MiB pages.
    pub hugepages: bool,
    /// Take 2 MiB pages from the pool that the administrator reserved.
    pub hugetlb: bool,
    /// Touch every page now rather than when the guest does.
    pub prefault: bool,
    /// Let the host keep one copy of pages that are equal to others, also to those of other guests.
    pub mergeable: bool,
}

/// Guest memory mapped into this process.
#[derive(Debug)]
pub struct GuestMemory {
    mapped: GuestMemoryMmap,
    layout: Layout,
    /// Its pages are from the reserved pool.
    reserved: bool,
    /// What it began as.
    image: Option<Image>,
    /// Held while memory is given back, so that none of it is missed.
    written: Mutex<Written>,
}

impl GuestMemory {
    /// Maps all regions of `layout`.
    pub fn map(layout: Layout, options: Options) -> Result<Self, Error> {
        Self::map_all(layout, options, None)
    }

    /// The same, and what is in it at first is what `image` says, in which the regions follow each other from its
    /// start on. Nothing of it is read before somebody needs it, but for pages of the reserved pool; the file is never
    /// changed, and must not be while this memory is used.
    pub fn map_image(layout: Layout, options: Options, image: impl Into<Image>) -> Result<Self, Error> {
        Self::map_all(layout, options, Some(image.into()))
    }

    fn map_all(layout: Layout, options: Options, image: Option<Image>) -> Result<Self, Error> {
        if options.hugepages {
            check_transparent_huge_pages()?;
        }
        if options.hugetlb && !layout.size().is_multiple_of(HUGE_PAGE) {
            return Err(Error::NotWholeHugePages { size: layout.size() });
        }
        if options.mergeable {
            check_page_sharing()?;
        }
        if options.prefault && !options.hugetlb {
            check_available(layout.size())?;
        }
        let mut start = 0;
        let regions = layout
            .regions()
            .iter()
            .map(|region| {
                let image = image.as_ref().map(|image| (image, start));
                start += region.size;
                map_region(region, layout.size(), options, image)
            })
            .collect::<Result<Vec<_>, _>>()?;
        // Regions of a layout are in order and apart, which is all that can be wrong here.
        let mapped = GuestMemoryMmap::from_regions(regions).map_err(|_| Error::Inconsistent)?;
        let copied = options.prefault || options.hugetlb || image.as_ref().is_some_and(Image::is_copied);
        let is_image = image.is_some();
        let written = Mutex::default();
        let memory = Self { mapped, layout, reserved: options.hugetlb, image, written };
        // What was copied out of the image looks as if the guest had written it, unless it is watched from now on.
        if is_image
            && copied
            && let Err(reason) = memory.written_pages()
        {
            log::debug!("all memory counts as changed: {reason}");
        }
        Ok(memory)
    }

    /// The view through which everything reads and writes guest memory.
    pub fn mapped(&self) -> &GuestMemoryMmap {
        &self.mapped
    }

    /// Where the memory lies in the guest.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// What it began as.
    pub(super) fn image(&self) -> Option<&Image> {
        self.image.as_ref()
    }

    pub(super) fn lock_written(&self) -> MutexGuard<'_, Written> {
        lock(&self.written)
    }

    /// Where a region begins in an image, in pages.
    fn first_page(&self, region: &GuestRegionMmap) -> u64 {
        let before = self.mapped.iter().take_while(|other| other.start_addr() < region.start_addr());
        before.map(|region| region.len() / PAGE_SIZE).sum()
    }

    /// Each region with the host address where it is mapped.
    pub fn host_regions(&self) -> impl Iterator<Item = (Region, *mut u8)> {
        self.mapped
            .iter()
            .map(|region| (Region { start: region.start_addr().0, size: region.len() }, region.as_ptr()))
    }

    /// Gives the whole pages in a range back to the host, and says how many bytes they are. Their contents are lost;
    /// who touches them again finds zeroes. Pages of the reserved pool stay: they are reserved for this machine
    /// anyway, and a guest that wants one back when the pool is empty would kill this process.
    pub fn give_back(&self, address: u64, length: u64) -> Result<u64, Error> {
        let outside = Error::NotMemory { address, length };
        let Some((region, offset)) = self.mapped.to_region_addr(GuestAddress(address)) else {
            return Err(outside);
        };
        let offset = offset.raw_value();
        let Some(end) = offset.checked_add(length).filter(|&end| end <= region.len()) else {
            return Err(outside);
        };
        // Regions begin and end with a page.
        let (first, last) = (offset.next_multiple_of(PAGE_SIZE), end - end % PAGE_SIZE);
        if self.reserved || first >= last {
            return Ok(0);
        }
        let length = last - first;
        let in_image = self.first_page(region);
        let mut written = self.lock_written();
        let given_back = match region.file_offset() {
            None => discard(region, first as usize, length as usize),
            // What the image has there would show again.
            Some(_) => replace(region, first as usize, length as usize),
        };
        let pages = in_image + first / PAGE_SIZE..in_image + last / PAGE_SIZE;
        let host = region.as_ptr().wrapping_add(first as usize);
        written.note_given_back(pages, host, region.file_offset().is_some());
        drop(written);
        given_back.map(|()| length).map_err(|source| Error::GiveBack { length, source })
    }
}

/// Gives up what is in a part of a region.
fn discard(region: &GuestRegionMmap, from: usize, length: usize) -> io::Result<()> {
    // SAFETY: the range lies in a mapping of ours. Guest memory is accessed through volatile accessors only, which
    // expect that its contents change at any time.
    match unsafe { libc::madvise(region.as_ptr().add(from).cast(), length, libc::MADV_DONTNEED) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Puts fresh memory in the place of a part of a region.
fn replace(region: &GuestRegionMmap, from: usize, length: usize) -> io::Result<()> {
    // SAFETY: as for `discard`; the range stays mapped, and is unmapped with the rest.
    let mapped = unsafe {
        libc::mmap(
            region.as_ptr().add(from).cast(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED,
            -1,
            0,
        )
    };
    if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn check_transparent_huge_pages() -> Result<(), Error> {
    let setting = fs::read_to_string(THP_SWITCH).unwrap_or_else(|error| error.to_string());
    let setting = setting.trim();
    if setting.contains("[always]") || setting.contains("[madvise]") {
        return Ok(());
    }
    Err(Error::NoHugePages { path: THP_SWITCH, setting: setting.to_owned() })
}

/// A host that merges nothing now may do so later.
fn check_page_sharing() -> Result<(), Error> {
    let Some(switch) = kernel_files::read(KSM_SWITCH) else { return Err(Error::NoPageSharing) };
    if switch.trim() != "1" {
        log::warn!(
            "guest memory may be merged, but this host's KSM is switched off: write \"1\" to {KSM_SWITCH}"
        );
    }
    Ok(())
}

/// Touching more than there is would have the kernel kill this process, or another one.
fn check_available(size: u64) -> Result<(), Error> {
    match kernel_files::read("/proc/meminfo").and_then(|info| available(&info)) {
        Some(available) if size > available => Err(Error::PrefaultTooMuch { size, available }),
        _ => Ok(()),
    }
}

/// What can be had without taking memory from other processes, in bytes.
fn available(info: &str) -> Option<u64> {
    let swap = bytes(info, "SwapFree").unwrap_or(0);
    bytes(info, "MemAvailable")?.checked_add(swap)
}

fn map_region(
    region: &Region,
    whole: u64,
    options: Options,
    image: Option<(&Image, u64)>,
) -> Result<GuestRegionMmap, Error> {
    let failed = |source| Error::Map { size: whole, hugetlb: options.hugetlb, source };
    let size =
        usize::try_from(region.size).map_err(|_| failed(io::Error::from_raw_os_error(libc::ENOMEM)))?;
    let mapping = match image {
        // The pool's pages are no file's.
        Some((image, start)) if !options.hugetlb => {
            let file = FileOffset::from_arc(Arc::clone(image.base()), start);
            let mapping = map_file(size, file).map_err(failed)?;
            image.lay_over(&mapping, start).map_err(Error::Fill)?;
            mapping
        }
        Some((image, start)) => {
            let mapping = map_anonymous(size, options).map_err(failed)?;
            image.fill(&mapping, start).map_err(Error::Fill)?;
            mapping
        }
        None => map_anonymous(size, options).map_err(failed)?,
    };
    if options.hugepages {
        advise(&mapping, libc::MADV_HUGEPAGE).map_err(failed)?;
    }
    if options.mergeable {
        advise(&mapping, libc::MADV_MERGEABLE).map_err(failed)?;
    }
    if options.prefault {
        advise(&mapping, libc::MADV_POPULATE_WRITE)
            .map_err(|source| Error::Prefault { size: whole, source })?;
    }
    GuestRegionMmap::new(mapping, GuestAddress(region.start)).ok_or(Error::Inconsistent)
}

/// Maps `size` bytes, not reserved. Linux aligns such mappings to 2 MiB by itself from 6.7 on; on older hosts
/// huge pages back all but the edges.
fn map_anonymous(size: usize, options: Options) -> io::Result<MmapRegion> {
    // Pages from the pool are reserved now: a guest that finds the pool empty later would kill this process.
    let backing = if options.hugetlb { libc::MAP_HUGETLB | libc::MAP_HUGE_2MB } else { libc::MAP_NORESERVE };
    let builder =
        MmapRegionBuilder::new(size).with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | backing);
    build(builder)
}

/// Maps a part of a file so that changes are this process's own.
fn map_file(size: usize, file: FileOffset) -> io::Result<MmapRegion> {
    let builder = MmapRegionBuilder::new(size).with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_NORESERVE);
    build(builder.with_file_offset(file))
}

fn build(builder: MmapRegionBuilder) -> io::Result<MmapRegion> {
    builder.with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE).build().map_err(|error| match error {
        MmapRegionError::Mmap(error) => error,
        other => io::Error::other(other.to_string()),
    })
}

fn advise(mapping: &MmapRegion, advice: i32) -> io::Result<()> {
    // SAFETY: the range is one whole mapping of ours, and none of the advices used here discards contents.
    match unsafe { libc::madvise(mapping.as_ptr().cast(), mapping.size(), advice) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    fn map(size: u64, options: Options) -> Result<GuestMemory, Error> {
        GuestMemory::map(Layout::new(size, 48)?, options)
    }

    /// Resident pages of the mapping, as the kernel counts them.
    fn resident_pages(memory: &GuestMemory) -> usize {
        let (region, host) = memory.host_regions().next().unwrap();
        let mut pages = vec![0_u8; (region.size / super::super::PAGE_SIZE) as usize];
        // SAFETY: `pages` has one byte for each page of the mapping.
        let result = unsafe { libc::mincore(host.cast(), region.size as usize, pages.as_mut_ptr()) };
        assert_eq!(result, 0);
        pages.iter().filter(|page| **page & 1 != 0).count()
    }

    #[test]
    fn more_memory_than_the_host_has_can_be_mapped_and_used_sparsely() {
        let memory = map(1 << 40, Options::default()).unwrap();
        let far = GuestAddress((1 << 40) + 12345);
        memory.mapped().write_obj(0x1234_5678_u32, far).unwrap();
        assert_eq!(memory.mapped().read_obj::<u32>(far).unwrap(), 0x1234_5678);
    }

    #[test]
    fn memory_costs_nothing_until_it_is_touched() {
        let memory = map(64 << 20, Options::default()).unwrap();
        assert_eq!(resident_pages(&memory), 0);
        memory.mapped().write_obj(1_u8, GuestAddress(0x1000)).unwrap();
        assert_eq!(resident_pages(&memory), 1);
    }

    #[test]
    fn prefaulted_memory_is_there_from_the_start() {
        let memory = map(4 << 20, Options { prefault: true, ..Options::default() }).unwrap();
        assert_eq!(resident_pages(&memory), 1024);
    }

    #[test]
    fn mergeable_memory_is_marked_so_and_other_memory_is_not() {
        if !std::path::Path::new(KSM_SWITCH).exists() {
            let error = map(4 << 20, Options { mergeable: true, ..Options::default() }).unwrap_err();
            assert!(matches!(error, Error::NoPageSharing), "{error}");
            return;
        }
        for mergeable in [false, true] {
            let memory = map(4 << 20, Options { mergeable, ..Options::default() }).unwrap();
            let (_, host) = memory.host_regions().next().unwrap();
            let maps = fs::read_to_string("/proc/self/smaps").unwrap();
            let address = format!("{:x}", host as usize);
            // Neighbours of the same kind may be one mapping.
            let has = |line: &&str| line.split('-').any(|bound| bound.split(' ').next() == Some(&address));
            let from = maps.lines().position(|line| has(&line));
            let Some(from) = from else { continue };
            let flags = maps.lines().skip(from + 1).find(|line| line.starts_with("VmFlags")).unwrap();
            assert_eq!(flags.split(' ').any(|flag| flag == "mg"), mergeable, "{flags}");
        }
    }

    #[test]
    fn pages_that_are_given_back_are_not_resident_and_read_as_zero() {
        let memory = map(4 << 20, Options { prefault: true, ..Options::default() }).unwrap();
        memory.mapped().write_slice(&[7; 0x6000], GuestAddress(0x1000)).unwrap();
        // From the middle of a page to the middle of another: four whole ones between them.
        assert_eq!(memory.give_back(0x1800, 0x4fff).unwrap(), 0x4000);
        assert_eq!(resident_pages(&memory), 1020);
        let mut bytes = [0xee; 0x6000];
        memory.mapped().read_slice(&mut bytes, GuestAddress(0x1000)).unwrap();
        assert!(bytes[..0x1000].iter().all(|&byte| byte == 7));
        assert!(bytes[0x1000..0x5000].iter().all(|&byte| byte == 0));
        assert!(bytes[0x5000..].iter().all(|&byte| byte == 7));
        // No whole page.
        for (address, length) in [(0, 0), (0, 0xfff), (1, 0x1fff - 1), ((4 << 20) - 1, 1)] {
            assert_eq!(memory.give_back(address, length).unwrap(), 0, "{address:#x} {length:#x}");
        }
        assert_eq!(memory.give_back(0, 4 << 20).unwrap(), 4 << 20);
        assert_eq!(resident_pages(&memory), 0);
    }

    #[test]
    fn what_is_no_memory_is_not_given_back() {
        let memory = map(4 << 30, Options::default()).unwrap();
        for (address, length) in [
            (5 << 30, 0x1000),
            (0xbfff_f000, 0x2000),
            (0xc000_0000, 0x1000),
            (0xffff_f000, 0x2000),
            (0x1000, u64::MAX),
            (u64::MAX, 1),
            (u64::MAX, u64::MAX),
        ] {
            let error = memory.give_back(address, length).unwrap_err();
            assert!(matches!(error, Error::NotMemory { .. }), "{address:#x} {length:#x}: {error}");
        }
        assert_eq!(memory.give_back(0xbfff_f000, 0x1000).unwrap(), 0x1000);
        assert_eq!(memory.give_back(0x1_0000_0000, 0x1000).unwrap(), 0x1000);
    }

    #[test]
    fn prefaulting_more_than_the_host_has_is_refused_before_anything_is_touched() {
        let error = map(1 << 40, Options { prefault: true, ..Options::default() }).unwrap_err();
        assert!(matches!(error, Error::PrefaultTooMuch { .. }), "{error}");
        let info = "MemTotal: 9 kB\nMemAvailable:   1000 kB\nSwapFree:  24 kB\n";
        assert_eq!(available(info), Some(1 << 20));
        assert_eq!(available("MemTotal: 9 kB\n"), None);
    }

    #[test]
    fn reserved_huge_pages_are_not_split() {
        let error = map(3 << 20, Options { hugetlb: true, ..Options::default() }).unwrap_err();
        assert!(matches!(error, Error::NotWholeHugePages { .. }), "{error}");
    }

    #[test]
    fn the_hole_below_four_gib_holds_no_memory() {
        let memory = map(4 << 30, Options::default()).unwrap();
        assert!(memory.mapped().write_obj(1_u8, GuestAddress(0xc000_0000)).is_err());
        assert!(memory.mapped().write_obj(1_u8, GuestAddress(0xffff_ffff)).is_err());
        assert!(memory.mapped().write_obj(1_u8, GuestAddress(0x1_0000_0000)).is_ok());
    }

    #[test]
    fn an_empty_pool_of_huge_pages_is_an_error_that_says_how_to_fill_it() {
        // A terabyte of reserved huge pages is nowhere available.
        let error = map(1 << 40, Options { hugetlb: true, ..Options::default() }).unwrap_err();
        assert!(error.to_string().contains("nr_hugepages"), "{error}");
    }
}
