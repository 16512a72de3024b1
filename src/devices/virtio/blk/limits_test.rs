//! Disks with limits: what has to wait is late, and never lost.

use std::num::NonZeroU64;
use std::thread;
use std::time::{Duration, Instant};

use super::super::Rate;
use super::super::testing::{BUFFERS, Driver};
use super::*;
use crate::storage::{Disk, DiskOptions};

const SIZE: u64 = 1 << 20;
const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

fn rate(per_second: u64, burst: u64) -> Option<Rate> {
    let [per_second, burst] = [per_second, burst].map(|number| NonZeroU64::new(number).unwrap());
    Some(Rate { per_second, burst })
}

/// One request of 4 KiB goes on credit, and the next would wait for more than an hour.
fn as_good_as_none() -> Limits {
    Limits { bytes: rate(1, 1), operations: None }
}

fn disk(queues: u16, limits: Limits) -> Arc<Blk> {
    let storage = Disk::ephemeral(&std::env::temp_dir(), SIZE, &DiskOptions::default()).unwrap();
    let disk = Blk::new(Arc::new(storage), "", queues);
    disk.set_limits(limits);
    Arc::new(disk)
}

/// Header, status, data of the request with this number; in queues of 16 entries there can be 5 of them.
fn place(number: u64) -> [u64; 3] {
    let header = BUFFERS + 0x4000 * number;
    [header, header + 0x800, header + 0x1000]
}

/// Puts a request of 4 KiB into a queue; requests with different numbers are for different places.
fn begin(driver: &mut Driver, queue: u16, number: u64, kind: u32) {
    let [header, status, data] = place(number);
    driver.put(header, &[&kind.to_le_bytes()[..], &[0; 4], &(number * 8).to_le_bytes()].concat());
    driver.put(status, &[0xee]);
    match kind {
        FLUSH => driver.chain(queue, &[(header, 16, false), (status, 1, true)]),
        DISCARD | WRITE_ZEROES => {
            let range = [&(number * 8).to_le_bytes()[..], &8_u32.to_le_bytes(), &[0; 4]];
            driver.put(data, &range.concat());
            driver.chain(queue, &[(header, 16, false), (data, 16, false), (status, 1, true)]);
        }
        _ => driver.chain(queue, &[(header, 16, false), (data, 4096, kind == READ), (status, 1, true)]),
    }
}

fn status(driver: &Driver, number: u64) -> u8 {
    driver.get::<1>(place(number)[1])[0]
}

/// Has begun three writes, of which the first is done; the others wait or have waited.
fn waiting(disk: &Arc<Blk>) -> Driver {
    let mut driver = Driver::new(Arc::clone(disk) as _);
    for number in 0..3 {
        driver.put(place(number)[2], &[1 + number as u8; 4096]);
        begin(&mut driver, 0, number, WRITE);
    }
    driver.ring(0);
    driver.until("the first request ends", || driver.used(0) >= 1);
    driver
}

#[track_caller]
fn check_all_written(driver: &mut Driver) {
    driver.until("all requests end", || driver.used(0) == 3);
    assert_eq!([0, 1, 2].map(|number| status(driver, number)), [0; 3]);
    for number in 0..3 {
        driver.put(place(number)[2], &[0xff; 4096]);
        begin(driver, 0, number, READ);
        driver.finish(0);
        assert_eq!(driver.get::<4096>(place(number)[2]), [1 + number as u8; 4096]);
    }
}

#[test]
fn requests_take_as_long_as_their_limit_says_and_are_all_done() {
    for limits in [
        Limits { bytes: rate(200 << 10, 4 << 10), operations: None },
        Limits { bytes: None, operations: rate(50, 1) },
    ] {
        let start = Instant::now();
        let mut driver = waiting(&disk(1, limits));
        check_all_written(&mut driver);
        // Six, of which the first goes at once and the second may go on credit, every 20 milliseconds.
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(79), "{took:?}");
    }
}

#[test]
fn the_driver_need_not_ring_while_it_waits_and_doorbells_do_no_harm() {
    let disk = disk(1, as_good_as_none());
    let mut driver = waiting(&disk);
    let flags = |driver: &Driver| u16::from_le_bytes(driver.get(driver.rings(0)[2]));
    for _ in 0..1000 {
        driver.ring(0);
        assert_eq!((flags(&driver), driver.used(0)), (1, 1));
    }
    disk.set_limits(Limits::default());
    check_all_written(&mut driver);
    driver.until("doorbells are wanted again", || flags(&driver) == 0);
}

#[test]
fn all_queues_share_the_limits() {
    let disk = disk(3, as_good_as_none());
    let mut driver = waiting(&disk);
    for queue in [1, 2] {
        begin(&mut driver, queue, 2 + u64::from(queue), READ);
        driver.ring(queue);
    }
    thread::sleep(Duration::from_millis(20));
    assert_eq!([0, 1, 2].map(|queue| driver.used(queue)), [1, 0, 0]);
    disk.set_limits(Limits::default());
    driver.until("they end", || [0, 1, 2].map(|queue| driver.used(queue)) == [3, 1, 1]);
}

#[test]
fn what_moves_no_bytes_is_an_operation() {
    let disk = disk(2, as_good_as_none());
    let mut driver = waiting(&disk);
    begin(&mut driver, 1, 3, FLUSH);
    driver.finish(1);
    disk.set_limits(Limits { bytes: None, operations: rate(1000, 1) });
    let start = Instant::now();
    for _ in 0..20 {
        begin(&mut driver, 1, 3, FLUSH);
        driver.finish(1);
        assert_eq!(status(&driver, 3), 0);
    }
    assert!(start.elapsed() >= Duration::from_millis(19), "{:?}", start.elapsed());
}

#[test]
fn zeroes_are_bytes_and_what_is_discarded_is_none() {
    let disk = disk(2, as_good_as_none());
    let mut driver = waiting(&disk);
    begin(&mut driver, 1, 3, DISCARD);
    driver.finish(1);
    assert_eq!(status(&driver, 3), 0);
    begin(&mut driver, 1, 4, WRITE_ZEROES);
    driver.ring(1);
    thread::sleep(Duration::from_millis(20));
    assert_eq!(driver.used(1), 1);
    disk.set_limits(Limits::default());
    driver.until("the zeroes are written", || driver.used(1) == 2);
    assert_eq!(status(&driver, 4), 0);
}

#[test]
fn a_reset_ends_the_wait_and_forgives_nothing() {
    let disk = disk(1, as_good_as_none());
    let mut driver = waiting(&disk);
    for _ in 0..20 {
        driver.start_again();
        begin(&mut driver, 0, 3, READ);
        driver.ring(0);
        thread::sleep(Duration::from_millis(2));
        assert_eq!(driver.used(0), 0);
    }
    driver.start_again();
    disk.set_limits(Limits::default());
    begin(&mut driver, 0, 0, WRITE);
    driver.finish(0);
    assert_eq!(status(&driver, 0), 0);
    assert_eq!((driver.used(0), status(&driver, 3)), (1, 0xee), "what was reset is not done");
}

#[test]
fn a_pause_ends_the_wait_and_what_waited_goes_on_waiting() {
    let disk = disk(1, as_good_as_none());
    let mut driver = waiting(&disk);
    for _ in 0..20 {
        driver.transport.pause();
        assert_eq!(driver.used(0), 1);
        driver.transport.resume();
    }
    driver.transport.pause();
    disk.set_limits(Limits::default());
    thread::sleep(Duration::from_millis(5));
    assert_eq!(driver.used(0), 1, "nothing goes on in a pause");
    driver.transport.resume();
    check_all_written(&mut driver);
}

#[test]
fn what_waited_is_done_by_the_disk_that_comes_next() {
    let storage: Arc<dyn Storage> =
        Arc::new(Disk::ephemeral(&std::env::temp_dir(), SIZE, &DiskOptions::default()).unwrap());
    let disk = || Blk::new(Arc::clone(&storage), "", 1);
    let limited = disk();
    limited.set_limits(as_good_as_none());
    let driver = waiting(&Arc::new(limited));
    check_all_written(&mut driver.move_to(Arc::new(disk())));
}

#[test]
fn limits_are_told_as_they_were_set() {
    let limits = Limits { bytes: rate(1 << 20, 7), operations: rate(3, u64::MAX) };
    let disk = disk(1, limits);
    assert_eq!(disk.limits(), limits);
    disk.set_limits(Limits::default());
    assert_eq!(disk.limits(), Limits::default());
}
