//! Which pages of guest memory are written, by whomever.
//!
//! The guest's processors are only some of those who write: devices, io_uring and the software processor write through
//! this process's own mapping. So it is the host's page tables that are watched. Userfaultfd protects pages against
//! writing, and in its asynchronous mode (Linux 6.7) the kernel itself lifts the protection from a page that somebody
//! writes, without waking anybody; the ioctl `PAGEMAP_SCAN` tells which those are and protects them again, in one step
//! for each page (kernel, admin-guide/mm/pagemap and admin-guide/mm/userfaultfd). KVM learns of it as of any other
//! change of the page tables. As nobody handles a fault, a process without rights may do it.
//!
//! Nothing of that is there before somebody asks for the first time: until then, memory costs what it costs otherwise.
//! From then on, the page tables are there for all of it, 2 MiB for each GiB: a page that nobody touched is protected
//! too, so that to read it does not count as to write it. It cannot be told from one in the swap space any more, so
//! which pages were ever touched is noted here.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::{GuestMemory, PAGE_SIZE, PageSet};

/// Why it is not known which pages are written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Untracked {
    /// No such descriptor is to be had.
    #[error("this host does not let the program watch its memory: userfaultfd says: {0}")]
    Refused(String),
    /// An older kernel.
    #[error("this host's kernel does not tell which memory is written: that needs Linux 6.7 or later")]
    Kernel,
    /// It went wrong once, and what was written since then is not known.
    #[error("which memory is written could not be followed any more: {0}")]
    Lost(String),
}

/// What is known about a guest memory's pages.
#[derive(Debug, Default)]
pub(super) struct Written {
    watch: Watch,
    /// Given back, and so changed, since somebody asked.
    given_back: PageSet,
}

#[derive(Debug, Default)]
enum Watch {
    #[default]
    Off,
    On(Tracker),
    Lost(Untracked),
}

#[derive(Debug)]
struct Tracker {
    /// Everything is unprotected when it is closed.
    userfault: OwnedFd,
    pagemap: File,
    /// What may be something else than the image, or zeroes.
    touched: PageSet,
}

impl GuestMemory {
    /// Which pages were written since this was asked for the last time or, the first time, since the memory was
    /// mapped. Some may be among them that were not. Pages that are written meanwhile are named now or the next time.
    pub fn written_pages(&self) -> Result<PageSet, Untracked> {
        let mut written = self.lock_written();
        let Written { watch, given_back } = &mut *written;
        let found = match watch {
            Watch::Lost(reason) => return Err(reason.clone()),
            Watch::On(tracker) => tracker.look(self).map_err(|error| Untracked::Lost(error.to_string())),
            Watch::Off => match Tracker::begin(self) {
                Ok((tracker, found)) => {
                    *watch = Watch::On(tracker);
                    Ok(found)
                }
                Err(reason) => return Err(reason),
            },
        };
        match found {
            Ok(mut found) => {
                found.add(given_back);
                *given_back = PageSet::default();
                Ok(found)
            }
            Err(reason) => {
                *watch = Watch::Lost(reason.clone());
                Err(reason)
            }
        }
    }

    /// The pages that anybody ever touched, as far as was known when [`written_pages`](Self::written_pages) was asked
    /// for the last time. Others are what the image says, or zeroes. Nothing if nobody asked.
    pub(super) fn noted_touched(&self) -> Option<PageSet> {
        match &self.lock_written().watch {
            Watch::On(tracker) => Some(tracker.touched.clone()),
            Watch::Off | Watch::Lost(_) => None,
        }
    }
}

impl Written {
    /// Notes that pages were given back, and have other contents now. They may be in a new mapping at `host`.
    pub fn note_given_back(&mut self, pages: Range<u64>, host: *mut u8, is_new: bool) {
        if let Watch::On(tracker) = &mut self.watch {
            tracker.touched.remove(pages.clone());
            let size = (pages.end - pages.start) * PAGE_SIZE;
            if is_new && let Err(error) = register(&tracker.userfault, host as u64, size) {
                log::warn!("memory that was given back cannot be watched: {error}");
                self.watch = Watch::Lost(Untracked::Lost(error.to_string()));
            }
        }
        self.given_back.insert(pages);
    }
}

impl Tracker {
    /// Protects everything; what anybody has written up to then is told, too.
    fn begin(memory: &GuestMemory) -> Result<(Self, PageSet), Untracked> {
        let refused = |error: io::Error| Untracked::Refused(error.to_string());
        let userfault = userfaultfd().map_err(refused)?;
        agree(&userfault)?;
        let pagemap = File::open("/proc/self/pagemap").map_err(refused)?;
        for (region, host) in memory.host_regions() {
            register(&userfault, host as u64, region.size).map_err(refused)?;
        }
        let mut tracker = Self { userfault, pagemap, touched: PageSet::default() };
        let found = tracker.look_first(memory).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOTTY) => Untracked::Kernel,
            _ => refused(error),
        })?;
        tracker.touched.add(&found);
        Ok((tracker, found))
    }

    /// Protects pages that were written, then those of an image that were only read: these are the file's.
    fn look_first(&self, memory: &GuestMemory) -> io::Result<PageSet> {
        let mut found = PageSet::default();
        self.scan(memory, &Query { is: WRITTEN, is_not: FILE, tell: PRESENT | SWAPPED }, |pages, told| {
            if told != 0 {
                found.insert(pages);
            }
        })?;
        self.scan(memory, &Query { is: WRITTEN | FILE, ..ALL }, |_, _| {})?;
        Ok(found)
    }

    fn look(&mut self, memory: &GuestMemory) -> io::Result<PageSet> {
        let mut found = PageSet::default();
        // The kernel is ten times as fast if it is asked for this and nothing else: a millisecond for each GiB.
        self.scan(memory, &Query { is: WRITTEN, tell: WRITTEN, ..ALL }, |pages, _| found.insert(pages))?;
        self.touched.add(&found);
        Ok(found)
    }

    /// Finds pages, and protects them.
    fn scan(
        &self,
        memory: &GuestMemory,
        query: &Query,
        mut each: impl FnMut(Range<u64>, u64),
    ) -> io::Result<()> {
        let mut regions = [PageRegion::default(); 512];
        let mut image = 0;
        for region in memory.mapped().iter() {
            let host = region.as_ptr() as u64;
            let (mut at, end) = (host, host + region.len());
            while at < end {
                let mut argument = ScanArgument {
                    size: size_of::<ScanArgument>() as u64,
                    flags: PROTECT_MATCHING | CHECK_ASYNC,
                    start: at,
                    end,
                    vec: regions.as_mut_ptr() as u64,
                    vec_len: regions.len() as u64,
                    category_inverted: query.is_not,
                    category_mask: query.is | query.is_not,
                    return_mask: query.tell,
                    ..ScanArgument::default()
                };
                let count = scan(&self.pagemap, &mut argument)?;
                for PageRegion { start, end, categories } in regions.iter().take(count) {
                    each((start - host + image) / PAGE_SIZE..(end - host + image) / PAGE_SIZE, *categories);
                }
                if argument.walk_end <= at {
                    return Err(io::Error::other("the kernel makes no progress"));
                }
                at = argument.walk_end;
            }
            image += region.len();
        }
        Ok(())
    }
}

/// Which pages are looked for.
struct Query {
    is: u64,
    is_not: u64,
    tell: u64,
}

const ALL: Query = Query { is: 0, is_not: 0, tell: 0 };

// `PAGE_IS_…`, from the kernel's <linux/fs.h>.
const WRITTEN: u64 = 1 << 1;
const FILE: u64 = 1 << 2;
const PRESENT: u64 = 1 << 3;
const SWAPPED: u64 = 1 << 4;

/// `PM_SCAN_WP_MATCHING`.
const PROTECT_MATCHING: u64 = 1 << 0;
/// `PM_SCAN_CHECK_WPASYNC`: what nobody watches is an error.
const CHECK_ASYNC: u64 = 1 << 1;

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Default)]
struct ScanArgument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct uffdio_api`, from <linux/userfaultfd.h>.
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
struct Register {
    start: u64,
    length: u64,
    mode: u64,
    ioctls: u64,
}

/// `UFFD_API`.
const API: u64 = 0xaa;
/// `UFFD_FEATURE_WP_ASYNC`.
const ASYNC: u64 = 1 << 15;
/// `UFFD_FEATURE_WP_HUGETLBFS_SHMEM`.
const RESERVED_POOL: u64 = 1 << 12;
/// `UFFDIO_REGISTER_MODE_WP`.
const MODE_PROTECT: u64 = 1 << 1;
/// `UFFD_USER_MODE_ONLY`: what everybody may have. It is about faults that are handled, and here none is.
const USER_MODE_ONLY: libc::c_int = 1;

/// `_IOWR`.
const fn both_ways<T>(group: u8, number: u8) -> libc::Ioctl {
    (3 << 30 | (size_of::<T>() as u64) << 16 | (group as u64) << 8 | number as u64) as libc::Ioctl
}

fn userfaultfd() -> io::Result<OwnedFd> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | USER_MODE_ONLY;
    // SAFETY: takes flags only.
    let descriptor = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    match libc::c_int::try_from(descriptor) {
        // SAFETY: fresh, and nobody else's.
        Ok(descriptor) if descriptor >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Tells the kernel what is expected of it.
fn agree(userfault: &OwnedFd) -> Result<(), Untracked> {
    let mut api = Api { api: API, features: ASYNC | RESERVED_POOL, ioctls: 0 };
    // SAFETY: reads and writes a structure of that size.
    match unsafe { libc::ioctl(userfault.as_raw_fd(), both_ways::<Api>(0xaa, 0x3f), &raw mut api) } {
        0 => Ok(()),
        _ => Err(Untracked::Kernel),
    }
}

/// Has a part of guest memory watched.
fn register(userfault: &OwnedFd, start: u64, length: u64) -> io::Result<()> {
    let mut argument = Register { start, length, mode: MODE_PROTECT, ioctls: 0 };
    // SAFETY: reads and writes a structure of that size. Pages that are protected asynchronously can be written as
    // before.
    let result =
        unsafe { libc::ioctl(userfault.as_raw_fd(), both_ways::<Register>(0xaa, 0x00), &raw mut argument) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Says how many regions were found.
fn scan(pagemap: &File, argument: &mut ScanArgument) -> io::Result<usize> {
    // SAFETY: reads and writes a structure of that size, and writes to the array that it names, which lives as long and
    // has as many elements as it says.
    let count = unsafe {
        libc::ioctl(pagemap.as_raw_fd(), both_ways::<ScanArgument>(b'f', 16), std::ptr::from_mut(argument))
    };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
#[path = "dirty_test.rs"]
mod tests;
