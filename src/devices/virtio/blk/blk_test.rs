//! Disks, asked for everything that drivers and others ask for.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use vm_memory::VolatileSlice;

use super::super::testing::{BUFFERS, Driver, MEMORY, Part};
use super::*;
use crate::bus::Device as _;
use crate::storage::{Direction, Flush, Place};

const HEADER: u64 = BUFFERS;
const DATA: u64 = BUFFERS + 0x1000;
const STATUS: u64 = BUFFERS + 0x800;
const SIZE: usize = 1 << 20;

/// A disk in memory, which can fail.
struct Memory {
    bytes: Mutex<Vec<u8>>,
    read_only: bool,
    fails: AtomicBool,
    flushes: Mutex<u32>,
}

impl Memory {
    fn new(read_only: bool) -> Arc<Self> {
        Arc::new(Self {
            bytes: Mutex::new(vec![0; SIZE]),
            read_only,
            fails: AtomicBool::new(false),
            flushes: Mutex::new(0),
        })
    }

    fn range(&self, offset: u64, length: u64) -> io::Result<std::ops::Range<usize>> {
        let end = offset.checked_add(length).filter(|&end| end <= SIZE as u64);
        match end {
            Some(end) if !self.fails.load(Ordering::SeqCst) => Ok(offset as usize..end as usize),
            Some(_) => Err(io::Error::from_raw_os_error(libc::EIO)),
            None => Err(io::Error::other("beyond the end")),
        }
    }
}

fn total(slices: &[VolatileSlice<'_>]) -> u64 {
    slices.iter().map(|slice| slice.len() as u64).sum()
}

impl Storage for Memory {
    fn size(&self) -> u64 {
        SIZE as u64
    }

    fn read(&self, offset: u64, to: &[VolatileSlice<'_>]) -> io::Result<()> {
        let mut at = self.range(offset, total(to))?.start;
        for slice in to {
            slice.copy_from(&self.bytes.lock().unwrap()[at..at + slice.len()]);
            at += slice.len();
        }
        Ok(())
    }

    fn write(&self, offset: u64, from: &[VolatileSlice<'_>]) -> io::Result<()> {
        let mut at = self.range(offset, total(from))?.start;
        if self.read_only {
            return Err(io::Error::other("read-only"));
        }
        for slice in from {
            slice.copy_to(&mut self.bytes.lock().unwrap()[at..at + slice.len()]);
            at += slice.len();
        }
        Ok(())
    }

    fn begin_flush(&self) -> io::Result<Flush<'_>> {
        *self.flushes.lock().unwrap() += 1;
        self.range(0, 0).map(|_| Flush::Done)
    }

    fn place(&self, _: Direction, _: u64, _: &[VolatileSlice<'_>]) -> Option<Place<'_>> {
        None
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.write_zeroes(offset, len, true)
    }

    fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool) -> io::Result<()> {
        let range = self.range(offset, len)?;
        self.bytes.lock().unwrap()[range].fill(0);
        Ok(())
    }

    fn read_only(&self) -> bool {
        self.read_only
    }
}

fn driver(storage: &Arc<Memory>) -> Driver {
    Driver::new(Arc::new(Blk::new(Arc::clone(storage) as _, "serial 7", 2)))
}

/// Makes a request; its status, and the length that was told.
#[track_caller]
fn request(driver: &mut Driver, queue: u16, kind: u32, sector: u64, data: &[Part]) -> (u8, u32) {
    driver.put(HEADER, &[&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat());
    driver.put(STATUS, &[0xee]);
    let parts = [&[(HEADER, 16, false)][..], data, &[(STATUS, 1, true)]].concat();
    driver.chain(queue, &parts);
    let length = driver.finish(queue);
    (driver.get::<1>(STATUS)[0], length)
}

#[test]
fn the_configuration_tells_size_and_limits() {
    let driver = driver(&Memory::new(false));
    let config = |at: u64, width: u8| driver.transport.read(0x100 + at, width);
    assert_eq!(config(0, 8), SIZE as u64 / 512);
    assert_eq!(config(0, 4), SIZE as u64 / 512);
    assert_eq!((config(12, 4), config(20, 4), config(34, 2)), (254, 512, 2));
    assert_eq!((config(36, 4), config(48, 4), config(56, 1)), (1 << 21, 1 << 21, 1));
    assert_eq!((config(60, 8), config(0xef8, 8)), (0, 0), "behind the end");
    driver.transport.write(0x100, 8, 0);
    assert_eq!(config(0, 8), SIZE as u64 / 512, "it is not written");
}

#[test]
fn what_is_written_is_read_from_either_queue() {
    let storage = Memory::new(false);
    let mut driver = driver(&storage);
    let data: Vec<u8> = (0..3072_u32).map(|at| (at / 7) as u8).collect();
    driver.put(DATA, &data);
    // In pieces that are no whole sectors.
    let pieces = [(DATA, 500, false), (DATA + 500, 1036, false), (DATA + 1536, 1536, false)];
    assert_eq!(request(&mut driver, 0, 1, 3, &pieces), (0, 1));
    assert_eq!(storage.bytes.lock().unwrap()[1536..4608], data);
    driver.put(DATA, &[0; 3072]);
    let pieces = [(DATA, 1, true), (DATA + 1, 3071, true)];
    assert_eq!(request(&mut driver, 1, 0, 3, &pieces), (0, 3073));
    assert_eq!(driver.get::<3072>(DATA).to_vec(), data);
}

#[test]
fn what_storage_refuses_fails_for_the_guest_alone() {
    let storage = Memory::new(false);
    let mut driver = driver(&storage);
    let last = SIZE as u64 / 512 - 1;
    assert_eq!(request(&mut driver, 0, 0, last, &[(DATA, 512, true)]).0, 0);
    for sector in [last + 1, u64::MAX, u64::MAX / 512, 1 << 55] {
        assert_eq!(request(&mut driver, 0, 0, sector, &[(DATA, 512, true)]).0, 1, "{sector:#x}");
        assert_eq!(request(&mut driver, 0, 1, sector, &[(DATA, 512, false)]).0, 1, "{sector:#x}");
    }
    storage.fails.store(true, Ordering::SeqCst);
    // A range of one sector, for the kinds that have ranges.
    driver.put(DATA, &[&[0; 8][..], &1_u32.to_le_bytes(), &[0; 4]].concat());
    for (kind, data) in [
        (0, &[(DATA, 512, true)][..]),
        (1, &[(DATA, 512, false)]),
        (4, &[]),
        (11, &[(DATA, 16, false)]),
        (13, &[(DATA, 16, false)]),
    ] {
        // Nothing is said to have been written but the status.
        let told = if kind == 0 { 0 } else { 1 };
        assert_eq!(request(&mut driver, 0, kind, 0, data), (1, told), "{kind}");
        assert!(!driver.needs_reset());
    }
    assert_eq!(request(&mut driver, 0, 8, 0, &[(DATA, 20, true)]).0, 0, "its name is not on the disk");
    storage.fails.store(false, Ordering::SeqCst);
    assert_eq!(request(&mut driver, 0, 4, 0, &[]), (0, 1));
    assert_eq!(*storage.flushes.lock().unwrap(), 2);
}

#[test]
fn the_serial_number_is_padded_with_zeroes() {
    let mut driver = driver(&Memory::new(false));
    assert_eq!(request(&mut driver, 0, 8, 0, &[(DATA, 20, true)]), (0, 21));
    assert_eq!(&driver.get::<20>(DATA), b"serial 7\0\0\0\0\0\0\0\0\0\0\0\0");
}

#[test]
fn ranges_are_discarded_and_zeroed() {
    let storage = Memory::new(false);
    for (kind, flags) in [(11, 0_u32), (13, 0), (13, 1)] {
        storage.bytes.lock().unwrap().fill(7);
        let mut driver = driver(&storage);
        let range = |sector: u64, count: u32, flags: u32| {
            [&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat()
        };
        driver.put(DATA, &[range(2, 3, flags), range(100, 1, flags)].concat());
        assert_eq!(request(&mut driver, 0, kind, 0, &[(DATA, 32, false)]).0, 0);
        let bytes = storage.bytes.lock().unwrap().clone();
        let zeroes = |from: usize, to: usize| bytes[from * 512..to * 512].iter().all(|&byte| byte == 0);
        assert!(zeroes(2, 5) && zeroes(100, 101));
        assert_eq!(bytes.iter().filter(|&&byte| byte == 0).count(), 4 * 512);
        for (sector, count, flags, status) in [
            (u64::MAX, 1, 0, 1),
            (0, u32::MAX, 0, 1),
            (2000, 100, 0, 1),
            (0, 1, 2, 2),
            (0, 1, if kind == 11 { 1 } else { 3 }, 2),
        ] {
            driver.put(DATA, &range(sector, count, flags));
            assert_eq!(
                request(&mut driver, 0, kind, 0, &[(DATA, 16, false)]).0,
                status,
                "{sector:#x} {count}"
            );
        }
        let many: Vec<u8> = (0..17).flat_map(|_| range(0, 1, 0)).collect();
        driver.put(DATA, &many);
        assert_eq!(request(&mut driver, 0, kind, 0, &[(DATA, 17 * 16, false)]).0, 1, "too many");
    }
}

#[test]
fn a_disk_that_is_read_only_says_so_and_is() {
    let mut driver = driver(&Memory::new(true));
    assert_eq!(driver.offered() & (1 << 5 | 1 << 13 | 1 << 14), 1 << 5);
    assert_eq!(request(&mut driver, 0, 1, 0, &[(DATA, 512, false)]).0, 1);
    assert_eq!(request(&mut driver, 0, 0, 0, &[(DATA, 512, true)]).0, 0);
}

#[test]
fn requests_of_other_kinds_are_not_supported() {
    let mut driver = driver(&Memory::new(false));
    for kind in [2, 3, 5, 7, 9, 12, 14, 0x8000_0000, u32::MAX] {
        assert_eq!(request(&mut driver, 0, kind, 0, &[]).0, 2, "{kind}");
    }
}

#[test]
fn what_is_no_request_stops_the_disk_until_it_is_reset() {
    let mut driver = driver(&Memory::new(false));
    let cases: [(&str, u32, &[Part]); 9] = [
        ("no header", 0, &[(STATUS, 1, true)]),
        ("half a header", 0, &[(HEADER, 8, false), (STATUS, 1, true)]),
        ("no status", 0, &[(HEADER, 16, false)]),
        ("half a sector to read", 0, &[(HEADER, 16, false), (DATA, 256, true), (STATUS, 1, true)]),
        ("half a sector to write", 1, &[(HEADER, 16, false), (DATA, 256, false), (STATUS, 1, true)]),
        ("no room for the serial number", 8, &[(HEADER, 16, false), (DATA, 19, true), (STATUS, 1, true)]),
        ("no range", 11, &[(HEADER, 16, false), (STATUS, 1, true)]),
        ("half a range", 13, &[(HEADER, 16, false), (DATA, 8, false), (STATUS, 1, true)]),
        ("outside memory", 0, &[(HEADER, 16, false), (MEMORY - 256, 512, true), (STATUS, 1, true)]),
    ];
    for (what, kind, parts) in cases {
        println!("{what}");
        driver.put(HEADER, &kind.to_le_bytes());
        driver.chain(0, parts);
        driver.expect_misuse(0);
    }
    assert_eq!(request(&mut driver, 0, 4, 0, &[]), (0, 1));
}
