//! Disks that are verified by the hashes of their blocks, as guests read them.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Stdio;

use lodger::storage::tools::BlockHashes;
use lodger::storage::{Disk, DiskOptions};

use crate::support::{Finished, Running, Scratch, guest, lodger, program};

const BLOCK: u64 = 64 << 10;
const BLOCKS: u64 = 16;

/// An image, and the hashes of its blocks.
fn template(scratch: &Scratch) -> String {
    let bytes: Vec<u8> = (0..BLOCKS * BLOCK).map(|at| (at / 1000) as u8).collect();
    let path = scratch.file("template.raw", &bytes);
    lodger(["disk", "hash", &path], "").with(0);
    path
}

/// Boots with the disk, and has the guest carry out `commands`.
fn run(disk: &str, commands: &str) -> Finished {
    lodger(["--disk", disk].map(str::to_owned).into_iter().chain(guest(commands)), "")
}

fn read_all() -> String {
    format!("disk read {BLOCK} 1 {BLOCKS} seq;halt")
}

/// Checks how many of the guest's requests have failed.
#[track_caller]
fn failed(finished: &Finished, count: u32) {
    assert!(finished.stdout.contains(&format!(", {count} failed,")), "{finished:?}");
}

/// Makes the kept hash of a block another, as if the image had changed without a trace in its times.
fn falsify(image: &str, block: usize) {
    let path = BlockHashes::path_for(Path::new(image));
    let mut bytes = fs::read(&path).unwrap();
    let (content, checksum) = (bytes.len() - 32, 64);
    bytes[checksum + block * 32] ^= 1;
    let checksum = *blake3::hash(&bytes[..content]).as_bytes();
    bytes[content..].copy_from_slice(&checksum);
    fs::write(&path, bytes).unwrap();
}

#[test]
fn what_is_as_it_was_hashed_is_read() {
    let scratch = Scratch::new();
    let path = template(&scratch);
    let overlay = scratch.at("overlay.qcow2");
    for options in ["ro,verify", "overlay,verify", &format!("overlay={overlay},verify,queues=2")] {
        let finished = run(&format!("{path},{options}"), &read_all()).with(0).silent();
        failed(&finished, 0);
    }
    let disk = Disk::open(path.as_ref(), &DiskOptions { read_only: true, ..DiskOptions::default() }).unwrap();
    let kept = BlockHashes::load(path.as_ref()).unwrap().unwrap();
    assert_eq!(BlockHashes::compute(&disk, &mut |_, _| {}).unwrap().whole(), kept.whole());
}

#[test]
fn a_block_that_differs_gives_the_guest_an_error_and_is_named() {
    let scratch = Scratch::new();
    let path = template(&scratch);
    falsify(&path, 3);
    let overlay = scratch.at("overlay.qcow2");
    for options in ["ro,verify", "overlay,verify", &format!("overlay={overlay},verify")] {
        let finished = run(&format!("{path},{options}"), &read_all()).with(0);
        failed(&finished, 1);
        let said = format!("lodger: warn: the block at 0x30000 of {path} is not what was hashed");
        assert!(finished.stderr.starts_with(&said), "{finished:?}");
        assert_eq!(finished.stderr.lines().count(), 1, "{finished:?}");
    }
    failed(&run(&format!("{path},overlay"), &read_all()).with(0).silent(), 0);
    // A guest that reads it for ever does not fill the log.
    let finished =
        run(&format!("{path},ro,verify"), &format!("disk read {BLOCK} 1 {} seq;halt", 20 * BLOCKS)).with(0);
    failed(&finished, 20);
    assert_eq!(finished.stderr.lines().count(), 16, "{finished:?}");
}

#[test]
fn what_changes_while_the_guest_runs_is_noticed_and_what_it_wrote_is_its_own() {
    let scratch = Scratch::new();
    let path = template(&scratch);
    let disk = format!("{path},overlay,verify");
    let first = format!("disk write {BLOCK} 1 8 seq;disk read {BLOCK} 1 {BLOCKS} seq");
    let arguments = ["--disk".to_owned(), disk].into_iter().chain(guest(&first));
    let mut running = Running::start(program().args(arguments).stdin(Stdio::piped()));
    let mut stdin = running.stdin();
    let mut output = running.stdout();
    let mut shown = String::new();
    while shown.matches("requests/s,").count() < 2 {
        let mut bytes = [0; 512];
        let count = output.read(&mut bytes).unwrap();
        assert!(count > 0, "{shown}");
        shown += &String::from_utf8_lossy(&bytes[..count]);
    }
    assert_eq!(shown.matches(", 0 failed,").count(), 2, "{shown}");
    // One block that the guest has overwritten, and two that it has not.
    let file = File::options().write(true).open(&path).unwrap();
    for block in [2, 9, 12] {
        file.write_all_at(b"other", block * BLOCK + 77).unwrap();
    }
    stdin.write_all(read_all().replace(';', "\n").as_bytes()).unwrap();
    stdin.write_all(b"\n").unwrap();
    let reader = std::thread::spawn(move || {
        let mut rest = String::new();
        output.read_to_string(&mut rest).unwrap();
        rest
    });
    let finished = running.finish().with(0);
    let rest = reader.join().unwrap();
    assert!(rest.contains(", 2 failed,"), "{rest} {finished:?}");
    for place in ["0x90000", "0xc0000"] {
        assert!(finished.stderr.contains(&format!("the block at {place} of {path}")), "{finished:?}");
    }
    assert!(!finished.stderr.contains("0x20000"), "{finished:?}");
}

#[test]
fn what_cannot_be_verified_is_refused_before_the_guest_starts() {
    let scratch = Scratch::new();
    let path = template(&scratch);
    let refused = |words: &[&str]| {
        for options in ["ro,verify", "overlay,verify"] {
            run(&format!("{path},{options}"), "halt")
                .refused(&[&[&path, "lodger disk hash"], words].concat());
        }
    };
    let finished = run(&format!("{path},verify"), "halt").with(2);
    assert!(finished.stderr.contains("no hash that it could be verified by"), "{finished:?}");
    File::options().write(true).open(&path).unwrap().write_all_at(b"other", 77).unwrap();
    refused(&["has changed since it was hashed"]);
    fs::remove_file(BlockHashes::path_for(Path::new(&path))).unwrap();
    refused(&["there are no hashes"]);
}

#[test]
fn the_hashes_of_a_copy_count_when_it_has_been_compared_with_them() {
    let scratch = Scratch::new();
    let path = template(&scratch);
    let copy = scratch.at("copy.raw");
    fs::copy(&path, &copy).unwrap();
    let hashes = [&path, &copy].map(|path| BlockHashes::path_for(Path::new(path)));
    fs::copy(&hashes[0], &hashes[1]).unwrap();
    let disk = format!("{copy},ro,verify");
    run(&disk, "halt").refused(&["is a copy", "lodger disk hash --verify"]);
    lodger(["disk", "hash", &copy, "--verify"], "").with(0);
    failed(&run(&disk, &read_all()).with(0).silent(), 0);
    // What differs changes nothing of what was kept.
    File::options().write(true).open(&copy).unwrap().write_all_at(b"other", 77).unwrap();
    let kept = fs::read(&hashes[1]).unwrap();
    lodger(["disk", "hash", &copy, "--verify"], "").with(1);
    assert!(fs::read(&hashes[1]).unwrap() == kept);
    run(&disk, "halt").refused(&["has changed since it was hashed"]);
}
