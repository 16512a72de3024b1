//! Requests that the kernel carries out while their thread does something else (io_uring).
//!
//! What takes its time is put into the ring; what the kernel has finished is taken out, and an event tells when that
//! is worth a look. Relied on by the block device, which has one ring for each queue.

use std::collections::TryReserveError;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::{IoUring, opcode, squeue, types};
use vm_memory::VolatileSlice;
use vmm_sys_util::eventfd::EventFd;

use super::{Direction, Place};

/// A ring, with as many places as there can be requests under way.
pub struct Ring {
    uring: IoUring,
    /// What the kernel still needs of each request under way.
    vectors: Vec<Vec<libc::iovec>>,
    under_way: usize,
}

// SAFETY: the vectors point to memory that is not the ring's, and only the kernel follows them.
unsafe impl Send for Ring {}

/// A request that has ended.
#[derive(Debug)]
pub struct Ended {
    /// The number that it was given.
    pub number: u16,
    /// How many bytes were moved.
    pub result: io::Result<usize>,
}

impl Ring {
    /// A ring for requests numbered from 0 to `most`, exclusively. `event` is signalled when one ends.
    pub fn new(most: u16, event: &EventFd) -> io::Result<Self> {
        let uring = IoUring::builder().setup_clamp().build(most.into())?;
        uring.submitter().register_eventfd(event.as_raw_fd())?;
        Ok(Self { uring, vectors: vec![Vec::new(); most.into()], under_way: 0 })
    }

    /// How many requests are under way.
    pub fn under_way(&self) -> usize {
        self.under_way
    }

    /// Begins to move bytes.
    ///
    /// # Safety
    ///
    /// The memory of `slices` stays mapped and the file open until the request has ended, and no other request with
    /// this number is under way.
    pub unsafe fn transfer(
        &mut self,
        number: u16,
        direction: Direction,
        place: &Place<'_>,
        slices: &[VolatileSlice<'_>],
    ) -> Result<(), Full> {
        let vectors = self.vectors.get_mut(usize::from(number)).ok_or(Full)?;
        vectors.clear();
        vectors.try_reserve(slices.len())?;
        vectors.extend(slices.iter().map(|slice| libc::iovec {
            // `vm-memory`'s guards do something only under Xen.
            iov_base: slice.ptr_guard_mut().as_ptr().cast(),
            iov_len: slice.len(),
        }));
        let fd = types::Fd(place.file.as_raw_fd());
        let entry = match (direction, vectors.as_slice()) {
            (Direction::Read, [one]) if u32::try_from(one.iov_len).is_ok() => {
                opcode::Read::new(fd, one.iov_base.cast(), one.iov_len as u32).offset(place.offset).build()
            }
            (Direction::Write, [one]) if u32::try_from(one.iov_len).is_ok() => {
                opcode::Write::new(fd, one.iov_base.cast(), one.iov_len as u32).offset(place.offset).build()
            }
            (Direction::Read, all) => {
                opcode::Readv::new(fd, all.as_ptr(), all.len() as u32).offset(place.offset).build()
            }
            (Direction::Write, all) => {
                opcode::Writev::new(fd, all.as_ptr(), all.len() as u32).offset(place.offset).build()
            }
        };
        self.push(number, entry)
    }

    /// Begins to bring the host's cache of a file to its disk.
    ///
    /// # Safety
    ///
    /// The file stays open until the request has ended, and no other request with this number is under way.
    pub unsafe fn flush(&mut self, number: u16, file: BorrowedFd<'_>) -> Result<(), Full> {
        let entry = opcode::Fsync::new(types::Fd(file.as_raw_fd()));
        self.push(number, entry.flags(types::FsyncFlags::DATASYNC).build())
    }

    fn push(&mut self, number: u16, entry: squeue::Entry) -> Result<(), Full> {
        let entry = entry.user_data(number.into());
        // SAFETY: what the entry points to stays until the request has ended: the vectors here, and the rest as the
        // callers promise.
        unsafe { self.uring.submission().push(&entry) }.map_err(|_| Full)?;
        self.under_way += 1;
        Ok(())
    }

    /// Gives the kernel what was begun; whether it took all. If it did not, that has to be tried again: it has no
    /// memory to spare, or wants to be relieved of what has ended.
    pub fn submit(&mut self) -> bool {
        while !self.uring.submission().is_empty() {
            match self.uring.submit() {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    log::debug!("io_uring takes no more: {error}");
                    return false;
                }
            }
        }
        true
    }

    /// The next request that has ended.
    pub fn ended(&mut self) -> Option<Ended> {
        let entry = self.uring.completion().next()?;
        self.under_way -= 1;
        let result = match entry.result() {
            error @ ..0 => Err(io::Error::from_raw_os_error(-error)),
            bytes => Ok(bytes as usize),
        };
        Some(Ended { number: entry.user_data() as u16, result })
    }

    /// Waits until a request has ended.
    pub fn wait(&mut self) {
        if let Err(error) = self.uring.submit_and_wait(1)
            && error.kind() != io::ErrorKind::Interrupted
        {
            log::debug!("io_uring does not wait: {error}");
            std::thread::yield_now();
        }
    }
}

impl Drop for Ring {
    /// The kernel may use the memory of a request until it has ended.
    fn drop(&mut self) {
        while self.under_way > 0 {
            self.wait();
            while self.ended().is_some() {}
        }
    }
}

/// There is no room for another request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

impl From<TryReserveError> for Full {
    fn from(_: TryReserveError) -> Self {
        Self
    }
}
