use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use super::*;
use crate::sparse::is_zero;
use crate::storage::testing::{Numbers, TempDir};
use crate::storage::{DiskOptions, Format, Verified};

fn open(path: &Path) -> Disk {
    Disk::open(path, &DiskOptions::default()).unwrap()
}

fn content(path: &Path) -> Vec<u8> {
    let disk = Disk::open(path, &DiskOptions { read_only: true, ..DiskOptions::default() }).unwrap();
    let mut bytes = vec![0; disk.size() as usize];
    super::read(&disk, 0, &mut bytes).unwrap();
    bytes
}

/// Writes at places that a seed chooses.
fn scribble(path: &Path, seed: u64) {
    let disk = open(path);
    let mut numbers = Numbers(seed);
    for _ in 0..10 {
        let mut bytes: Vec<u8> = (0..numbers.below(100_000)).map(|_| numbers.next() as u8).collect();
        let offset = numbers.below(disk.size() - bytes.len() as u64);
        super::write(&disk, path, offset, &mut bytes).unwrap();
    }
    disk.write_zeroes(numbers.below(1 << 20), 200_000, true).unwrap();
    disk.flush().unwrap();
}

/// A template and an overlay, both with something in them.
fn pair(dir: &TempDir) -> (PathBuf, PathBuf) {
    let (base, overlay) = (dir.path().join("base.qcow2"), dir.path().join("overlay.qcow2"));
    create(&base, Format::Qcow2, 5 << 20, false).unwrap();
    scribble(&base, 1);
    create_overlay(&overlay, &base, None, None, false).unwrap();
    scribble(&overlay, 2);
    (base, overlay)
}

fn silent() -> impl FnMut(u64, u64) {
    |done, all| assert!(done <= all)
}

#[test]
fn an_overlay_is_small_and_made_at_once() {
    let dir = TempDir::new();
    let (base, overlay) = (dir.path().join("base"), dir.path().join("overlay.qcow2"));
    create(&base, Format::Raw, 1 << 30, false).unwrap();
    let start = Instant::now();
    create_overlay(&overlay, &base, None, None, false).unwrap();
    let took = start.elapsed();
    assert!(fs::metadata(&overlay).unwrap().len() <= 512 << 10);
    // The bar is 20 ms; a test may run beside others.
    assert!(took.as_millis() <= 200, "{took:?}");
}

#[test]
fn what_is_there_is_replaced_only_on_demand_and_never_while_in_use() {
    let dir = TempDir::new();
    let path = dir.path().join("disk");
    create(&path, Format::Raw, 4096, false).unwrap();
    let text = create(&path, Format::Raw, 8192, false).unwrap_err().to_string();
    assert!(text.contains("--force"), "{text}");
    let user = open(&path);
    assert!(matches!(create(&path, Format::Raw, 8192, true), Err(Error::InUse { .. })));
    drop(user);
    create(&path, Format::Raw, 8192, true).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 8192);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_conversion_that_fails_leaves_nothing() {
    let dir = TempDir::new();
    let (base, overlay) = pair(&dir);
    let disk = open(&overlay);
    // The data of the image behind is gone while the copy goes on.
    fs::OpenOptions::new().write(true).open(&base).unwrap().set_len(0).unwrap();
    let target = dir.path().join("copy");
    let mut interrupt = |done: u64, _| assert!(done < 1 << 20, "interrupted");
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        convert(&disk, &target, Format::Raw, false, &mut interrupt)
    }));
    assert!(caught.is_err());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn conversions_keep_what_a_guest_sees() {
    let dir = TempDir::new();
    let (_, overlay) = pair(&dir);
    let expected = content(&overlay);
    for format in [Format::Raw, Format::Qcow2] {
        let target = dir.path().join(format!("copy.{format}"));
        let source =
            Disk::open(&overlay, &DiskOptions { read_only: true, ..DiskOptions::default() }).unwrap();
        convert(&source, &target, format, false, &mut silent()).unwrap();
        assert!(content(&target) == expected, "{format}");
        assert!(info(&target, None).unwrap().image.allocated < 3 << 20);
    }
}

#[test]
fn a_commit_moves_everything_into_the_base() {
    let dir = TempDir::new();
    let (base, overlay) = pair(&dir);
    let expected = content(&overlay);
    let done = commit(&overlay, None, false, &mut silent()).unwrap();
    assert!(done.copied > 0 && done.zeroed > 0);
    assert!(content(&base) == expected && content(&overlay) == expected);
    assert!(fs::metadata(&overlay).unwrap().len() <= 512 << 10);
}

#[test]
fn a_commit_makes_a_base_larger_that_is_too_small() {
    let dir = TempDir::new();
    let (base, overlay) = pair(&dir);
    resize(&overlay, None, 7 << 20, false).unwrap();
    scribble(&overlay, 5);
    let expected = content(&overlay);
    commit(&overlay, None, true, &mut silent()).unwrap();
    assert!(content(&base) == expected);
}

#[test]
fn a_rebase_changes_nothing_that_a_guest_sees() {
    let dir = TempDir::new();
    let (_, overlay) = pair(&dir);
    let expected = content(&overlay);
    let other = dir.path().join("other.raw");
    create(&other, Format::Raw, 3 << 20, false).unwrap();
    scribble(&other, 9);
    let backing = NewBacking { path: &other, format: None };
    let done = rebase(&overlay, Some(backing), false, &mut silent()).unwrap();
    assert_eq!(done.backing.as_deref(), Some("other.raw"));
    assert!(content(&overlay) == expected);
    assert_eq!(info(&overlay, None).unwrap().chain[0].path, other);
    rebase(&overlay, None, false, &mut silent()).unwrap();
    assert!(info(&overlay, None).unwrap().chain.is_empty());
    assert!(content(&overlay) == expected);
    assert!(!check(&overlay, crate::storage::Repair::No, &mut silent()).unwrap().is_corrupt());
}

#[test]
fn an_overlay_that_grows_shows_nothing_new_of_a_larger_base() {
    let dir = TempDir::new();
    let (base, overlay) = (dir.path().join("base.raw"), dir.path().join("small.qcow2"));
    create(&base, Format::Raw, 4 << 20, false).unwrap();
    super::write(&open(&base), &base, 0, &mut vec![9; 4 << 20]).unwrap();
    create_overlay(&overlay, &base, None, Some(1 << 20), false).unwrap();
    resize(&overlay, None, 2 << 20, false).unwrap();
    let bytes = content(&overlay);
    assert!(bytes[..1 << 20].iter().all(|byte| *byte == 9));
    assert!(is_zero(&bytes[1 << 20..]));
}

#[test]
fn a_smaller_size_has_to_be_allowed() {
    let dir = TempDir::new();
    for format in [Format::Raw, Format::Qcow2] {
        let path = dir.path().join(format.to_string());
        create(&path, format, 4 << 20, false).unwrap();
        scribble(&path, 3);
        let text = resize(&path, None, 1 << 20, false).unwrap_err().to_string();
        assert!(text.contains("--shrink"), "{text}");
        resize(&path, None, 1 << 20, true).unwrap();
        resize(&path, None, 4 << 20, false).unwrap();
        assert!(is_zero(&content(&path)[1 << 20..]), "{format}: what was cut off is gone");
    }
}

#[test]
fn hashes_are_of_the_content_and_kept_while_it_stays() {
    let dir = TempDir::new();
    let (_, overlay) = pair(&dir);
    let options = DiskOptions { read_only: true, ..DiskOptions::default() };
    let disk = Disk::open(&overlay, &options).unwrap();
    let raw = dir.path().join("copy.raw");
    convert(&disk, &raw, Format::Raw, false, &mut silent()).unwrap();
    let hashes = BlockHashes::compute(&disk, &mut silent()).unwrap();
    let copy = BlockHashes::compute(&Disk::open(&raw, &options).unwrap(), &mut silent()).unwrap();
    assert_eq!(hashes.whole(), copy.whole());
    hashes.save(&overlay).unwrap();
    assert_eq!(BlockHashes::load(&overlay).unwrap().as_ref(), Some(&hashes));
    let mut reads = 0;
    assert_eq!(BlockHashes::current(&disk, &mut |_, _| reads += 1).unwrap(), hashes);
    assert_eq!(reads, 0);
    drop(disk);
    scribble(&overlay, 77);
    let disk = Disk::open(&overlay, &options).unwrap();
    let changed = BlockHashes::current(&disk, &mut silent()).unwrap();
    assert!(!changed.differences(&hashes).is_empty());
}

#[test]
fn damaged_hashes_are_refused() {
    let dir = TempDir::new();
    let (_, overlay) = pair(&dir);
    let disk = open(&overlay);
    BlockHashes::compute(&disk, &mut silent()).unwrap().save(&overlay).unwrap();
    let path = BlockHashes::path_for(&overlay);
    let good = fs::read(&path).unwrap();
    for at in [0, 17, 24, 31, 40, 100, good.len() - 1] {
        let mut bytes = good.clone();
        bytes[at] ^= 0x80;
        fs::write(&path, bytes).unwrap();
        let text = BlockHashes::load(&overlay).unwrap_err().to_string();
        assert!(text.contains(if at == 0 { "holds no hashes" } else { "is damaged" }), "byte {at}: {text}");
    }
    fs::write(&path, &good[..50]).unwrap();
    assert!(BlockHashes::load(&overlay).is_err());
}

#[test]
fn a_sync_moves_only_what_differs() {
    let dir = TempDir::new();
    let (_, overlay) = pair(&dir);
    let target = dir.path().join("target.raw");
    let how = Sync { target_format: Some(Format::Raw), ..Sync::default() };
    assert!(sync(&overlay, &target, how, &mut silent()).unwrap().created);
    assert_eq!(sync(&overlay, &target, how, &mut silent()).unwrap().moved, 0);
    super::write(&open(&overlay), &overlay, 3 << 20, &mut [0xaa; 100]).unwrap();
    let done = sync(&overlay, &target, Sync { verify: true, ..how }, &mut silent()).unwrap();
    assert_eq!(done.moved, BLOCK_SIZE);
    assert!(content(&target) == content(&overlay));
}

#[test]
fn verified_reads_notice_what_was_changed_behind_their_back() {
    let dir = TempDir::new();
    let path = dir.path().join("disk");
    create(&path, Format::Raw, (1 << 20) + 100, false).unwrap();
    scribble(&path, 4);
    let options = DiskOptions { read_only: true, ..DiskOptions::default() };
    let disk = Disk::open(&path, &options).unwrap();
    BlockHashes::compute(&disk, &mut silent()).unwrap().save(&path).unwrap();
    let expected = content(&path);
    let disk = Verified::new(disk).unwrap();
    let mut bytes = vec![0; 200_001];
    disk.read(60_000, &[VolatileSlice::from(&mut bytes[..])]).unwrap();
    assert!(bytes == expected[60_000..260_001]);
    let end = expected.len() - 50;
    disk.read(end as u64, &[VolatileSlice::from(&mut bytes[..50])]).unwrap();
    assert_eq!(bytes[..50], expected[end..]);
    let mut damaged = expected;
    damaged[100_000] ^= 1;
    fs::write(&path, damaged).unwrap();
    let error = disk.read(70_000, &[VolatileSlice::from(&mut bytes[..1])]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
    disk.read(0, &[VolatileSlice::from(&mut bytes[..100])]).unwrap();
}
