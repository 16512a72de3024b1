//! Reads of what the host has in its page cache, which need not wait for a disk.
//!
//! To ask the kernel to read only what is there (`preadv2` with `RWF_NOWAIT`) costs 7 % more than just to read, 4 KiB
//! at a time. So, of a file whose reads have all been in the cache for long, only some reads ask. When it is no longer
//! there, as many as go between two that ask wait for the disk, at most, before that is noticed.

use std::io;
use std::os::fd::AsRawFd;

use vm_memory::VolatileSlice;

use super::{Place, vectors};

/// After so many reads in a row the rest of the file is thought to be there, too. The few that find it is not cost
/// little in comparison.
const LONG: u32 = 1024;
/// One of so many reads asks even then.
const ASKS: u32 = 16;

/// What was seen of the cache.
#[derive(Debug, Default)]
pub struct Cached {
    /// How many reads in a row were there; behind [`LONG`], how many since the last that asked.
    there: u32,
}

impl Cached {
    /// Reads all of `to`, if all of that is in the page cache. May wait where it has always been there so far.
    pub fn read(&mut self, place: &Place<'_>, to: &[VolatileSlice<'_>]) -> bool {
        if place.direct {
            return false;
        }
        let read = match to {
            [one] if !self.asks() => all_at_once(place, one),
            _ => at_once(place, to),
        };
        if let Err(error) = &read {
            log::trace!("not in the page cache: {error}");
        }
        self.saw(read.is_ok());
        read.is_ok()
    }

    fn asks(&self) -> bool {
        self.there <= LONG
    }

    fn saw(&mut self, read: bool) {
        self.there = match self.there {
            _ if !read => 0,
            there @ ..LONG => there + 1,
            there => LONG + (there - LONG + 1) % ASKS,
        };
    }
}

fn at_once(place: &Place<'_>, to: &[VolatileSlice<'_>]) -> io::Result<()> {
    let fd = place.file.as_raw_fd();
    vectors::transfer_all(place.offset, to, |position, vectors| {
        // SAFETY: the vectors describe memory that `to` borrows and that anybody may change at any time.
        unsafe { libc::preadv2(fd, vectors.as_ptr(), vectors.len() as i32, position, libc::RWF_NOWAIT) }
    })
}

fn all_at_once(place: &Place<'_>, to: &VolatileSlice<'_>) -> io::Result<()> {
    let position = libc::off_t::try_from(place.offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    let (fd, memory) = (place.file.as_raw_fd(), to.ptr_guard_mut());
    // The C library's function is a point at which threads can be cancelled, for which it pays another 3 %.
    // SAFETY: `to` borrows the memory, which anybody may change at any time.
    let read = unsafe { libc::syscall(libc::SYS_pread64, fd, memory.as_ptr(), to.len(), position) };
    match usize::try_from(read) {
        Ok(read) if read == to.len() => Ok(()),
        Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::AsFd;

    use super::super::testing::TempDir;
    use super::*;

    #[test]
    fn what_is_in_the_page_cache_is_read_however_often() {
        let directory = TempDir::new();
        let path = directory.path().join("file");
        let bytes: Vec<u8> = (0..8192_u32).map(|number| (number % 251) as u8).collect();
        fs::write(&path, &bytes).unwrap();
        let file = File::open(path).unwrap();
        let mut cached = Cached::default();
        for number in 0..3 * u64::from(LONG) {
            let mut to = [0; 512];
            let offset = number % 15 * 512;
            let place = Place { file: file.as_fd(), offset, direct: false };
            assert!(cached.read(&place, &[VolatileSlice::from(&mut to[..])]), "{number}");
            assert_eq!(to, bytes[offset as usize..][..512]);
        }
        // The file ends there, whether that is asked or not.
        for _ in 0..2 * ASKS {
            let place = Place { file: file.as_fd(), offset: 7937, direct: false };
            assert!(!cached.read(&place, &[VolatileSlice::from(&mut [0; 512][..])]));
            (0..LONG + 1).for_each(|_| cached.saw(true));
            assert!(!cached.asks());
        }
    }

    #[test]
    fn after_many_reads_that_were_there_only_one_of_sixteen_asks() {
        let mut cached = Cached::default();
        let mut asked = |times| {
            (0..times)
                .filter(|_| {
                    let asks = cached.asks();
                    cached.saw(true);
                    asks
                })
                .count()
        };
        assert_eq!(asked(LONG), LONG as usize);
        assert_eq!(asked(10 * ASKS), 10);
    }

    #[test]
    fn after_one_that_was_not_there_each_asks_again() {
        let mut cached = Cached::default();
        (0..LONG + 5).for_each(|_| cached.saw(true));
        assert!(!cached.asks());
        cached.saw(false);
        for _ in 0..LONG {
            assert!(cached.asks());
            cached.saw(true);
        }
    }
}
