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
fn place_of(number: u64) -> u64 {
    (number * 1_640_531_527 % BLOCKS) * 16384
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
    for number in 0..BLOCKS {
        disk.write(place_of(number), &[VolatileSlice::from(&mut content_of(number)[..])]).unwrap();
        if number % 3 == 0 {
            disk.discard(place_of(number) + 8192, 4096).unwrap();
        }
        if number % 16 == 15 {
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
    let mut flushed_in_all = 0;
    for round in 0..20_u64 {
        let (image, path) = ("image.qcow2", place.path("image.qcow2"));
        place.disk(&format!("create {image} --backing base.raw --force"));
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["killed::write_until_killed", "--exact", "--ignored", "--nocapture"])
            .env(IMAGE, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let killer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(30 + round * 19));
            child.kill().unwrap();
            child.wait().unwrap();
        });
        let lines = output.lines().map_while(Result::ok);
        let flushed = lines.filter_map(|line| line.strip_prefix("flushed ")?.parse::<u64>().ok()).last();
        killer.join().unwrap();
        let check = place.disk(&format!("check {image} --json"));
        assert!(check.contains("\"corruptions\":0"), "{check}");
        let disk = open(&path, true);
        let mut bytes = vec![0; 4096];
        let count = flushed.map_or(0, |last| last + 1);
        flushed_in_all += count;
        for number in 0..count {
            disk.read(place_of(number), &[VolatileSlice::from(&mut bytes[..])]).unwrap();
            assert!(bytes == content_of(number), "block {number} of {flushed:?}");
        }
    }
    assert!(flushed_in_all > 100, "the writers were killed before they wrote: {flushed_in_all}");
}
