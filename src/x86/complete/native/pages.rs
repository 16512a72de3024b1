//! The pages on which a guest's instruction is executed: one of code, and next to it some of data.
//!
//! No page is ever writable and executable: the code page has a second mapping through which it is written.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};

const PAGE: usize = 4096;
/// Where data begins, behind the code page and one that nobody may touch.
const DATA: usize = 2 * PAGE;
/// Room for the largest operand at any place within a cache line, twice over.
pub(super) const DATA_SIZE: usize = PAGE;
/// Another page behind the data that nobody may touch.
const SIZE: usize = DATA + DATA_SIZE + PAGE;

/// Pages of one thread.
pub(super) struct Pages {
    region: NonNull<u8>,
    writable_code: NonNull<u8>,
}

impl Pages {
    /// Maps new pages.
    pub(super) fn map() -> io::Result<Self> {
        // SAFETY: the name is a constant that ends with a zero.
        let fd = unsafe { libc::memfd_create(c"lodger-instruction".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and belongs to nobody else.
        let file = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: a call on a descriptor of ours.
        if unsafe { libc::ftruncate(file.as_raw_fd(), PAGE as libc::off_t) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let region = map(None, SIZE, libc::PROT_NONE, anonymous, -1)?;
        let writable_code = match map(None, PAGE, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, fd) {
            Ok(mapping) => mapping,
            Err(error) => {
                // SAFETY: the region was just mapped, and nobody has its address.
                unsafe { libc::munmap(region.as_ptr().cast(), SIZE) };
                return Err(error);
            }
        };
        let pages = Self { region, writable_code };
        map(Some(region), PAGE, libc::PROT_READ | libc::PROT_EXEC, libc::MAP_SHARED | libc::MAP_FIXED, fd)?;
        // SAFETY: the offset lies within the region.
        let data = unsafe { region.add(DATA) };
        let fixed = anonymous | libc::MAP_FIXED;
        map(Some(data), DATA_SIZE, libc::PROT_READ | libc::PROT_WRITE, fixed, -1)?;
        Ok(pages)
    }

    /// Where the code page begins.
    pub(super) fn code(&self) -> usize {
        self.region.as_ptr() as usize
    }

    /// Where the data begins.
    pub(super) fn data_address(&self) -> usize {
        self.code() + DATA
    }

    /// The data.
    pub(super) fn data(&mut self) -> &mut [u8; DATA_SIZE] {
        // SAFETY: the pages are mapped for reading and writing as long as `self` lives; `&mut self` makes sure
        // that there is no other reference, and instructions are executed on them only between borrows.
        unsafe { &mut *self.region.as_ptr().add(DATA).cast() }
    }

    /// Writes code to the beginning of the code page.
    pub(super) fn write_code(&mut self, code: &[u8]) {
        let length = code.len().min(PAGE);
        for (offset, byte) in code[..length].iter().enumerate() {
            // SAFETY: the mapping has `PAGE` bytes and only this method uses it. The compiler has to believe that
            // somebody reads what is written: volatile.
            unsafe { self.writable_code.as_ptr().add(offset).write_volatile(*byte) };
        }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: both were mapped by `map` with these sizes, and nobody else has their addresses.
        unsafe {
            libc::munmap(self.region.as_ptr().cast(), SIZE);
            libc::munmap(self.writable_code.as_ptr().cast(), PAGE);
        }
    }
}

fn map(
    at: Option<NonNull<u8>>,
    size: usize,
    protection: i32,
    flags: i32,
    fd: i32,
) -> io::Result<NonNull<u8>> {
    let hint = at.map_or(ptr::null_mut(), |at| at.as_ptr().cast());
    // SAFETY: either the kernel chooses a free place, or `at` lies in a region that is ours alone.
    let mapping = unsafe { libc::mmap(hint, size, protection, flags, fd, 0) };
    match NonNull::new(mapping.cast()) {
        Some(address) if mapping != libc::MAP_FAILED => Ok(address),
        _ => Err(io::Error::last_os_error()),
    }
}
