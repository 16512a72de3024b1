//! The balloon, driven by good drivers and bad ones.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::super::testing::{BUFFERS, Driver, MEMORY, Part};
use super::*;
use crate::bus::Device as _;
use crate::saved::{decode, encode};

const LIST: u64 = BUFFERS;
const DATA: u64 = BUFFERS + 0x1_0000;
const REPORTS: u16 = 3;
const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(20);

fn balloon() -> Arc<Balloon> {
    Arc::new(Balloon::new(MEMORY, true))
}

fn driver(balloon: &Arc<Balloon>) -> Driver {
    Driver::new(Arc::clone(balloon) as _)
}

fn numbers(addresses: &[u64]) -> Vec<u8> {
    addresses.iter().flat_map(|address| ((address / PAGE) as u32).to_le_bytes()).collect()
}

/// Puts a list of pages into a queue.
#[track_caller]
fn list(driver: &mut Driver, queue: u16, addresses: &[u64]) {
    driver.put(LIST, &numbers(addresses));
    driver.chain(queue, &[(LIST, addresses.len() as u32 * 4, false)]);
    assert_eq!(driver.finish(queue), 0);
}

fn is_zero(driver: &Driver, page: u64) -> bool {
    driver.get::<4096>(page).iter().all(|&byte| byte == 0)
}

fn entry(tag: u16, value: u64) -> Vec<u8> {
    [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat()
}

/// Hands over the statistics buffer, as drivers do.
fn hand_over(driver: &mut Driver, entries: &[Vec<u8>]) {
    let bytes = entries.concat();
    driver.put(LIST, &bytes);
    driver.chain(STATISTICS, &[(LIST, bytes.len() as u32, false)]);
    driver.ring(STATISTICS);
}

#[test]
fn what_goes_into_the_balloon_is_the_hosts() {
    let balloon = balloon();
    let mut driver = driver(&balloon);
    let pages = [5, 0, 2, 1, 2, 9].map(|page| DATA + page * PAGE);
    for page in 0..10 {
        driver.put(DATA + page * PAGE, &[7; PAGE as usize]);
    }
    list(&mut driver, INFLATE, &pages);
    for page in 0..10 {
        assert_eq!(is_zero(&driver, DATA + page * PAGE), [0, 1, 2, 5, 9].contains(&page), "{page}");
    }
    // A page that is named twice is given back once.
    assert_eq!(balloon.given_back(), GivenBack { inflated: 5 * PAGE, reported: 0 });
    list(&mut driver, DEFLATE, &pages);
    assert_eq!(balloon.given_back().inflated, 5 * PAGE);
    // The last page that there is.
    list(&mut driver, INFLATE, &[MEMORY - PAGE]);
    assert_eq!(balloon.given_back().inflated, 6 * PAGE);
}

#[test]
fn reported_pages_are_given_back_through_either_queue() {
    let balloon = balloon();
    let mut driver = driver(&balloon);
    for queue in [3, 4] {
        driver.put(DATA, &[7; 5 * PAGE as usize]);
        // Two pages and a half; and one, at once.
        let ranges = [(DATA + PAGE / 2, 3 * PAGE as u32, true), (DATA + 4 * PAGE, PAGE as u32, true)];
        driver.indirect(queue, LIST, &ranges);
        assert_eq!(driver.finish(queue), 0);
        let zero = [0, 1, 2, 3, 4].map(|page| is_zero(&driver, DATA + page * PAGE));
        assert_eq!(zero, [false, true, true, false, true]);
    }
    assert_eq!(balloon.given_back(), GivenBack { inflated: 0, reported: 6 * PAGE });
}

#[test]
fn reported_pages_that_are_poisoned_keep_their_contents() {
    let balloon = balloon();
    let mut driver = driver(&balloon);
    let mut report = |poison: u32| {
        driver.write(0x10c, poison);
        driver.put(DATA, &[0xaa; PAGE as usize]);
        driver.chain(REPORTS, &[(DATA, PAGE as u32, true)]);
        driver.finish(REPORTS);
        is_zero(&driver, DATA)
    };
    assert!(!report(0xaaaa_aaaa));
    assert!(report(0));
    assert_eq!(balloon.given_back().reported, PAGE);
}

#[test]
fn a_balloon_that_is_not_made_for_reports_takes_none() {
    let mut driver = Driver::new(Arc::new(Balloon::new(MEMORY, false)));
    let own = driver.offered() & 0xff_ffff;
    assert_eq!(own, feature::STATISTICS | feature::DEFLATE_ON_OOM);
    driver.put(DATA, &[7; PAGE as usize]);
    driver.chain(REPORTS, &[(DATA, PAGE as u32, true)]);
    driver.ring(REPORTS);
    list(&mut driver, DEFLATE, &[DATA]);
    assert_eq!(driver.used(REPORTS), 0);
    assert!(!is_zero(&driver, DATA));
}

#[test]
fn the_driver_hears_of_a_new_target_and_says_what_it_did() {
    let balloon = balloon();
    balloon.set_target(3 * PAGE + 1).unwrap();
    let driver = driver(&balloon);
    assert_eq!((driver.read(0x100), driver.read(0x104), driver.read(0x60)), (3, 0, 0));
    let generation = driver.read(0xfc);
    balloon.set_target(1 << 20).unwrap();
    assert_eq!(driver.read(0x60), 2);
    assert_ne!(driver.read(0xfc), generation);
    assert_eq!(driver.read(0x100), 256);
    driver.write(0x64, 2);
    // The same once more is no change.
    balloon.set_target(1 << 20).unwrap();
    assert_eq!(driver.read(0x60), 0);
    driver.write(0x104, 17);
    assert_eq!((balloon.target(), balloon.actual()), (1 << 20, 17 * PAGE));
    for target in [MEMORY, MEMORY + 1, u64::MAX] {
        let error = balloon.set_target(target).unwrap_err();
        assert_eq!(error, TooLarge { target, memory: MEMORY });
    }
    assert_eq!(balloon.target(), 1 << 20);
    driver.write(0x70, 0);
    // The target is the host's wish and stays; what the driver said does not.
    assert_eq!((balloon.target(), balloon.actual()), (1 << 20, 0));
    balloon.set_target(0).unwrap();
    assert_eq!(driver.read(0x60), 0, "nobody is there to hear");
}

#[test]
fn the_configuration_is_written_in_any_width_and_only_where_it_is_the_drivers() {
    let balloon = balloon();
    let driver = driver(&balloon);
    let config = || [0, 4, 8, 12].map(|at| driver.read(0x100 + at));
    driver.transport.write(0x104, 1, 0x11);
    driver.transport.write(0x105, 1, 0x22);
    driver.transport.write(0x106, 2, 0x4433);
    assert_eq!(config(), [0, 0x4433_2211, 0, 0]);
    // Half of it is no field of the driver's.
    driver.transport.write(0x100, 8, 0x5566_7788_ffff_ffff);
    assert_eq!(config(), [0, 0x5566_7788, 0, 0]);
    driver.transport.write(0x10a, 4, 0x99aa_ffff);
    assert_eq!(config(), [0, 0x5566_7788, 0, 0x99aa]);
    for (offset, width) in [(0x10e, 4), (0x110, 8), (0xfff, 1), (0x108, 4)] {
        driver.transport.write(offset, width, 0);
    }
    assert_eq!(config(), [0, 0x5566_7788, 0, 0x99aa]);
}

#[test]
fn statistics_are_asked_for_and_waited_for() {
    let balloon = balloon();
    assert_eq!(balloon.statistics(LONG), Err(NoStatistics::NoDriver));
    let mut driver = driver(&balloon);
    assert_eq!(balloon.statistics(SHORT), Err(NoStatistics::NoAnswer));
    // The question still stands when the first buffer comes.
    hand_over(&mut driver, &[entry(4, 1)]);
    driver.until("it is read", || balloon.last_statistics().is_some());
    assert_eq!(driver.used(STATISTICS), 0);
    for round in 2..20 {
        let asks = Arc::clone(&balloon);
        let asking = thread::spawn(move || asks.statistics(LONG));
        driver.until("the buffer comes back", || driver.used(STATISTICS) == round - 1);
        hand_over(&mut driver, &[entry(4, round.into()), entry(0x77, 9), entry(9, u64::MAX), vec![1; 9]]);
        let free = Some(u64::from(round));
        let expected = Statistics { free, huge_pages_failed: Some(u64::MAX), ..Statistics::default() };
        assert_eq!(asking.join().unwrap(), Ok(expected));
        assert_eq!(balloon.last_statistics(), Some(expected));
    }
    // A driver that does not answer.
    assert_eq!(balloon.statistics(SHORT), Err(NoStatistics::NoAnswer));
    driver.write(0x70, 0);
    assert_eq!(balloon.last_statistics(), None);
    assert_eq!(balloon.statistics(LONG), Err(NoStatistics::NoDriver));
}

#[test]
fn each_statistic_has_its_field() {
    let bytes: Vec<u8> = (0..12).flat_map(|tag| entry(tag, u64::from(tag) + 100)).collect();
    let read = Statistics::parse(&bytes);
    let Statistics { swapped_in, swapped_out, major_faults, minor_faults, free, .. } = read;
    assert_eq!(
        [swapped_in, swapped_out, major_faults, minor_faults, free],
        [100, 101, 102, 103, 104].map(Some)
    );
    let Statistics { total, available, caches, huge_pages_allocated, huge_pages_failed, .. } = read;
    assert_eq!(
        [total, available, caches, huge_pages_allocated, huge_pages_failed],
        [105, 106, 107, 108, 109].map(Some)
    );
    assert_eq!(Statistics::parse(&bytes[..19]), Statistics { swapped_in, ..Statistics::default() });
}

#[test]
fn a_balloon_goes_on_where_it_was_saved() {
    let old = balloon();
    old.set_target(64 << 10).unwrap();
    let mut driver = driver(&old);
    driver.put(DATA, &[7; PAGE as usize]);
    list(&mut driver, INFLATE, &[DATA]);
    driver.chain(REPORTS, &[(DATA + PAGE, PAGE as u32, true)]);
    driver.finish(REPORTS);
    driver.write(0x104, 1);
    driver.write(0x10c, 5);
    hand_over(&mut driver, &[entry(5, MEMORY)]);
    driver.until("it is read", || old.last_statistics().is_some());

    driver.transport.pause();
    let saved = old.save();
    let bytes = encode(&saved);
    let new = balloon();
    new.restore(&decode(&bytes).unwrap()).unwrap();
    assert_eq!(new.save(), saved);
    let mut driver = driver.move_to(Arc::clone(&new) as _);
    assert_eq!([0, 4, 12].map(|at| driver.read(0x100 + at)), [16, 1, 5]);
    assert_eq!(new.given_back(), GivenBack { inflated: PAGE, reported: PAGE });
    // The buffer that the old one kept is in the new one's hands.
    let asks = Arc::clone(&new);
    let asking = thread::spawn(move || asks.statistics(LONG));
    driver.until("an answer or the buffer", || asking.is_finished() || driver.used(STATISTICS) == 1);
    if driver.used(STATISTICS) == 1 {
        hand_over(&mut driver, &[entry(5, MEMORY)]);
    }
    assert_eq!(asking.join().unwrap().unwrap().total, Some(MEMORY));

    let small = Balloon::new(PAGE * 16, true);
    let error = small.restore(&saved).unwrap_err();
    assert!(error.to_string().contains("more than the guest has"), "{error}");
}

#[test]
fn what_is_no_request_stops_the_balloon_until_it_is_reset() {
    let balloon = balloon();
    let mut driver = driver(&balloon);
    let cases: [(&str, u16, u64, &[Part]); 9] = [
        ("a page behind the end", INFLATE, MEMORY, &[(LIST, 4, false)]),
        ("a page far behind the end", INFLATE, u64::from(u32::MAX) * PAGE, &[(LIST, 4, false)]),
        ("the same to take out", DEFLATE, MEMORY, &[(LIST, 4, false)]),
        ("half a number", INFLATE, 0, &[(LIST, 6, false)]),
        ("a list to write to", INFLATE, 0, &[(LIST, 4, true)]),
        ("a list to write to, behind one", DEFLATE, 0, &[(LIST, 4, false), (LIST, 4, true)]),
        ("a list of everything", INFLATE, 0, &[(LIST, 65540, false)]),
        ("a report to read", REPORTS, 0, &[(DATA, 4096, false), (DATA, 4096, true)]),
        ("statistics to write", STATISTICS, 0, &[(LIST, 10, true)]),
    ];
    for (what, queue, address, parts) in cases {
        println!("{what}");
        driver.put(LIST, &numbers(&[address]));
        driver.chain(queue, parts);
        driver.expect_misuse(queue);
    }
    assert_eq!(balloon.given_back(), GivenBack::default());
    list(&mut driver, INFLATE, &[DATA]);
}
