//! Requests that are left to the kernel, among others that are not.

use std::fs::File;
use std::io::{self, PipeWriter, Write};
use std::num::NonZeroU64;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use vm_memory::VolatileSlice;

use super::super::super::Rate;
use super::super::super::testing::{BUFFERS, Driver};
use super::super::*;
use crate::storage::{Direction, Disk, DiskOptions, Flush, Place, Storage};

const SIZE: u64 = 1 << 20;
const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;
/// Reads of this sector come from the pipe, so they wait until somebody writes to it.
const FROM_PIPE: u64 = 8;

/// A disk whose every request has to be waited for.
struct Waits {
    disk: Disk,
    file: File,
    pipe: io::PipeReader,
    writer: Mutex<Option<PipeWriter>>,
    /// What was done by calls, and not by the kernel alone.
    calls: AtomicU32,
    fails: AtomicBool,
}

impl Waits {
    fn new() -> Arc<Self> {
        let (pipe, writer) = io::pipe().unwrap();
        let disk = Disk::ephemeral(&std::env::temp_dir(), SIZE, &DiskOptions::default()).unwrap();
        let place = disk.place(Direction::Write, 0, &[]).unwrap();
        let file = File::from(place.file.try_clone_to_owned().unwrap());
        let (writer, calls, fails) = (Mutex::new(Some(writer)), AtomicU32::new(0), AtomicBool::new(false));
        Arc::new(Self { disk, file, pipe, writer, calls, fails })
    }

    fn fill_pipe(&self, bytes: &[u8]) {
        self.writer.lock().unwrap().as_mut().unwrap().write_all(bytes).unwrap();
    }
}

impl Storage for Waits {
    fn size(&self) -> u64 {
        SIZE
    }

    fn read(&self, offset: u64, to: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.disk.read(offset, to)
    }

    fn write(&self, offset: u64, from: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.disk.write(offset, from)
    }

    fn begin_flush(&self) -> io::Result<Flush<'_>> {
        match self.fails.load(Ordering::SeqCst) {
            // A pipe cannot be brought to a disk.
            true => Ok(Flush::File(self.pipe.as_fd())),
            false => self.disk.begin_flush(),
        }
    }

    fn place(&self, direction: Direction, offset: u64, slices: &[VolatileSlice<'_>]) -> Option<Place<'_>> {
        if direction == Direction::Read && offset == FROM_PIPE * SECTOR {
            return Some(Place { file: self.pipe.as_fd(), offset: 0, direct: true });
        }
        self.disk.place(direction, offset, slices).map(|place| Place { direct: true, ..place })
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.disk.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.disk.write_zeroes(offset, len, unmap)
    }

    fn read_only(&self) -> bool {
        false
    }
}

/// Places for requests in the guest's memory.
fn place(number: u64) -> [u64; 3] {
    let header = BUFFERS + 0x4000 * number;
    [header, header + 0x800, header + 0x1000]
}

fn begin(driver: &mut Driver, number: u64, kind: u32, sector: u64, length: u32) {
    let [header, status, data] = place(number);
    driver.put(header, &[&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat());
    driver.put(status, &[0xee]);
    let written = kind == READ;
    match kind {
        FLUSH => driver.chain(0, &[(header, 16, false), (status, 1, true)]),
        // In two pieces.
        _ => driver.chain(
            0,
            &[
                (header, 16, false),
                (data, length / 4, written),
                (data + u64::from(length / 4), length - length / 4, written),
                (status, 1, true),
            ],
        ),
    }
}

fn status(driver: &Driver, number: u64) -> u8 {
    driver.get::<1>(place(number)[1])[0]
}

fn driver(storage: &Arc<Waits>) -> Driver {
    Driver::new(Arc::new(Blk::new(Arc::clone(storage) as _, "", 1)))
}

#[test]
fn what_waits_is_done_by_the_kernel_alone() {
    let storage = Waits::new();
    let mut driver = driver(&storage);
    let data: Vec<u8> = (0..4096_u32).map(|at| (at / 3) as u8).collect();
    driver.put(place(0)[2], &data);
    begin(&mut driver, 0, WRITE, 16, 4096);
    driver.finish(0);
    begin(&mut driver, 1, FLUSH, 0, 0);
    begin(&mut driver, 2, READ, 16, 4096);
    driver.finish(0);
    assert_eq!([0, 1, 2].map(|number| status(&driver, number)), [0; 3]);
    assert_eq!(driver.get::<4096>(place(2)[2]).to_vec(), data);
    let mut on_disk = [0; 4096];
    storage.file.read_exact_at(&mut on_disk, 16 * SECTOR).unwrap();
    assert_eq!(on_disk.to_vec(), data);
    assert_eq!(storage.calls.load(Ordering::SeqCst), 0);
}

#[test]
fn a_request_that_waits_holds_up_no_other() {
    let storage = Waits::new();
    let mut driver = driver(&storage);
    storage.file.write_all_at(&[7; 512], 0).unwrap();
    begin(&mut driver, 0, READ, FROM_PIPE, 512);
    begin(&mut driver, 1, READ, 0, 512);
    driver.ring(0);
    driver.until("the second request ends", || driver.used(0) == 1);
    assert_eq!((status(&driver, 0), status(&driver, 1)), (0xee, 0));
    storage.fill_pipe(&[5; 512]);
    driver.until("the first request ends", || driver.used(0) == 2);
    assert_eq!((status(&driver, 0), driver.last_length(0)), (0, 513));
    assert_eq!(driver.get::<512>(place(0)[2]), [5; 512]);
}

#[test]
fn what_is_under_way_ends_while_the_next_request_waits_for_its_limit() {
    let storage = Waits::new();
    let disk = Arc::new(Blk::new(Arc::clone(&storage) as _, "", 1));
    // The first goes on credit, and the second would wait for more than a minute.
    let bytes = Some(Rate { per_second: 8.try_into().unwrap(), burst: NonZeroU64::MIN });
    disk.set_limits(Limits { bytes, operations: None });
    let mut driver = Driver::new(Arc::clone(&disk) as _);
    storage.file.write_all_at(&[7; 512], 0).unwrap();
    begin(&mut driver, 0, READ, FROM_PIPE, 512);
    begin(&mut driver, 1, READ, 0, 512);
    driver.ring(0);
    storage.fill_pipe(&[5; 512]);
    driver.until("the first request ends", || driver.used(0) == 1);
    thread::sleep(Duration::from_millis(20));
    assert_eq!((driver.used(0), status(&driver, 0), status(&driver, 1)), (1, 0, 0xee));
    assert_eq!(driver.get::<512>(place(0)[2]), [5; 512]);
    disk.set_limits(Limits::default());
    driver.until("the second request ends", || driver.used(0) == 2);
    assert_eq!((status(&driver, 1), driver.get::<512>(place(1)[2])), (0, [7; 512]));
}

#[test]
fn what_the_kernel_did_only_in_part_is_done_again() {
    let storage = Waits::new();
    let mut driver = driver(&storage);
    storage.file.write_all_at(&[9; 512], FROM_PIPE * SECTOR).unwrap();
    begin(&mut driver, 0, READ, FROM_PIPE, 512);
    driver.ring(0);
    storage.fill_pipe(&[5; 100]);
    driver.finish(0);
    assert_eq!((status(&driver, 0), storage.calls.load(Ordering::SeqCst)), (0, 1));
    assert_eq!(driver.get::<512>(place(0)[2]), [9; 512]);
}

#[test]
fn what_the_kernel_cannot_do_fails_for_the_guest() {
    let storage = Waits::new();
    let mut driver = driver(&storage);
    storage.file.set_len(4096).unwrap();
    begin(&mut driver, 0, READ, 16, 4096);
    begin(&mut driver, 1, READ, 4, 512);
    storage.fails.store(true, Ordering::SeqCst);
    begin(&mut driver, 2, FLUSH, 0, 0);
    driver.finish(0);
    assert_eq!([0, 1, 2].map(|number| status(&driver, number)), [1, 0, 1]);
}

#[test]
fn a_pause_waits_for_what_is_under_way_and_nothing_is_lost() {
    let storage = Waits::new();
    let mut driver = driver(&storage);
    begin(&mut driver, 0, READ, FROM_PIPE, 512);
    driver.ring(0);
    let filler = {
        let storage = Arc::clone(&storage);
        thread::spawn(move || storage.fill_pipe(&[3; 512]))
    };
    driver.transport.pause();
    filler.join().unwrap();
    // The request may have been seen or not; if it was, it has ended.
    let seen = driver.used(0);
    assert_eq!(status(&driver, 0), if seen == 1 { 0 } else { 0xee });
    let mut driver = driver.move_to(Arc::new(Blk::new(Arc::clone(&storage) as _, "", 1)));
    begin(&mut driver, 1, WRITE, 0, 512);
    driver.finish(0);
    assert_eq!((driver.used(0), status(&driver, 0), status(&driver, 1)), (2, 0, 0));
}

#[test]
fn a_reset_leaves_nothing_under_way_that_could_write_to_memory() {
    let storage = Waits::new();
    let mut driver = driver(&storage);
    for round in 0..50 {
        begin(&mut driver, 0, READ, FROM_PIPE, 512);
        driver.ring(0);
        let filler = {
            let storage = Arc::clone(&storage);
            thread::spawn(move || storage.fill_pipe(&[3; 512]))
        };
        if round % 2 == 0 {
            thread::yield_now();
        }
        driver.start_again();
        driver.put(place(0)[2], &[1; 512]);
        filler.join().unwrap();
        // If the device had not seen the request, nobody has read what is in the pipe now.
        begin(&mut driver, 1, WRITE, 0, 512);
        driver.finish(0);
        assert_eq!(driver.get::<512>(place(0)[2]), [1; 512], "round {round}");
        let mut left = [0; 512];
        // SAFETY: reads into an array of ours, without waiting.
        unsafe {
            use std::os::fd::AsRawFd;
            let fd = storage.pipe.as_raw_fd();
            libc::fcntl(fd, libc::F_SETFL, libc::O_NONBLOCK);
            libc::read(fd, left.as_mut_ptr().cast(), left.len());
            libc::fcntl(fd, libc::F_SETFL, 0);
        }
    }
}
