//! How a processor is called back from the guest by other threads.

use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;

use crate::hv::{Error, Kick, Result};

/// Where `immediate_exit` lies in `struct kvm_run`.
const IMMEDIATE_EXIT_OFFSET: usize = std::mem::offset_of!(kvm_run, immediate_exit);
const RUN_PAGE: usize = 4096;

/// A second mapping of the page in which the kernel looks for `immediate_exit`, so that another thread can
/// set it while the vCPU's own thread is inside the guest, and even after the vCPU is gone.
pub(super) struct RunPage {
    page: NonNull<u8>,
}

// SAFETY: the page is only accessed through an atomic byte.
unsafe impl Send for RunPage {}
// SAFETY: as above.
unsafe impl Sync for RunPage {}

impl RunPage {
    pub(super) fn map(fd: &VcpuFd) -> Result<Self> {
        // SAFETY: a fresh shared mapping of the vCPU's first page; the kernel checks descriptor and range.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                RUN_PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        match NonNull::new(page.cast::<u8>()) {
            Some(mapped) if page != libc::MAP_FAILED => Ok(Self { page: mapped }),
            _ => Err(Error::Call { what: "map a processor's run page", source: io::Error::last_os_error() }),
        }
    }
}

impl Kick for RunPage {
    fn set(&self, leave: bool) {
        // SAFETY: the byte lies inside the mapping, which lives as long as `self`, and is only ever accessed
        // atomically from here; the kernel reads it with a single load.
        let immediate_exit = unsafe { AtomicU8::from_ptr(self.page.as_ptr().add(IMMEDIATE_EXIT_OFFSET)) };
        immediate_exit.store(leave.into(), Ordering::SeqCst);
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length, and nobody else has the address.
        unsafe { libc::munmap(self.page.as_ptr().cast(), RUN_PAGE) };
    }
}
