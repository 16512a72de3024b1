//! A process that is killed while it writes to an image: what it had flushed is there, and the tables are sound.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use lodger::storage::{Disk, DiskOptions, Storage};
use vm_memory::VolatileSlice;

use crate::support::Place;

const IMAGE: &str = "LODGER_TEST_IMAGE";
const BLOCKS: u64 = 4096;

/// Blocks are written all over the disk, so that tables are made at many places.
fn place_of(number: u64, disk: &Disk) -> u64 {
    (number * 1_640_531_527 % BLOCKS) * (disk.size() / BLOCKS)
}

/// A small disk has one table of the second level and is flushed often. One with many such tables is flushed rarely:
/// then much of it is in memory only.
fn writes_to_a_flush(disk: &Disk) -> u64 {
    if disk.size() > 1 << 30 { 100 } else { 16 }
}

fn content_of(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(512)
}

fn open(path: &Path, read_only: bool) -> Disk {
    Disk::open(path, &DiskOptions { read_only, ..DiskOptions::default() }).unwrap()
}

/// What is killed: this test program once more, in this test.
#[test]
#[ignore = "runs in a process of its own"]
fn write_until_killed() {
    let Some(path) = std::env::var_os(IMAGE) else { return };
    let disk = open(Path::new(&path), false);
    println!("begins");
    for number in 0..BLOCKS {
        disk.write(place_of(number, &disk), &[VolatileSlice::from(&mut content_of(number)[..])]).unwrap();
        if number % 3 == 0 {
            disk.discard(place_of(number, &disk) + 8192, 4096).unwrap();
        }
        if (number + 1) % writes_to_a_flush(&disk) == 0 {
            disk.flush().unwrap();
            println!("flushed {number}");
            std::io::stdout().flush().unwrap();
        }
    }
}

#[test]
fn what_was_flushed_is_there_after_a_kill() {
    let place = Place::new();
    place.sample("base.raw", 64 << 20, 1);
    let flushed: u64 = (0..20)
        .map(|round| {
            place.disk("create image.qcow2 --backing base.raw --force");
            killed_after(&place, Duration::from_millis(5 + round * 15))
        })
        .sum();
    assert!(flushed > 100, "the writers were killed before they wrote: {flushed}");
}

#[test]
fn tables_that_are_in_memory_only_leave_no_damage_behind() {
    let place = Place::new();
    let flushed: u64 = (0..12)
        .map(|round| {
            place.disk("create image.qcow2 --size 16G --force");
            killed_after(&place, Duration::from_millis(5 + round * 20))
        })
        .sum();
    assert!(flushed > 0, "the writers were killed before they flushed");
}

/// Kills a process that writes to an image after so long; how many of its blocks it had flushed, which are there.
fn killed_after(place: &Place, time: Duration) -> u64 {
    let path = place.path("image.qcow2");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["killed::write_until_killed", "--exact", "--ignored", "--nocapture"])
        .env(IMAGE, &path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let mut lines = output.lines().map_while(Result::ok);
    assert!(lines.any(|line| line.ends_with("begins")));
    let killer = std::thread::spawn(move || {
        std::thread::sleep(time);
        child.kill().unwrap();
        child.wait().unwrap();
    });
    let flushed = lines.filter_map(|line| line.strip_prefix("flushed ")?.parse::<u64>().ok()).last();
    killer.join().unwrap();
    let check = place.disk("check image.qcow2 --json");
    assert!(check.contains("\"corruptions\":0"), "{check}");
    let disk = open(&path, true);
    let mut bytes = vec![0; 4096];
    let count = flushed.map_or(0, |last| last + 1);
    for number in 0..count {
        disk.read(place_of(number, &disk), &[VolatileSlice::from(&mut bytes[..])]).unwrap();
        assert!(bytes == content_of(number), "block {number} of {flushed:?}");
    }
    count
}
