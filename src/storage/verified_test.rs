//! Disks that were changed behind the back of those who hashed them.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::super::testing::{Numbers, TempDir, check_storage};
use super::super::{DiskOptions, Format, tools};
use super::*;

const SIZE: u64 = (1 << 20) + 1024;

fn open(path: &Path, verify_backing: bool, read_only: bool) -> Result<Disk, Error> {
    Disk::open(path, &DiskOptions { read_only, verify_backing, ..DiskOptions::default() })
}

/// Keeps hashes of an image.
fn hash_image(path: &Path) {
    let disk = open(path, false, true).unwrap();
    BlockHashes::compute(&disk, &mut |_, _| {}).unwrap().save(path).unwrap();
}

/// An image without a byte that is zero, its hashes, and what it holds.
fn template(dir: &TempDir, format: Format) -> (PathBuf, Vec<u8>) {
    let path = dir.path().join(format!("template.{format}"));
    tools::create(&path, format, SIZE, false).unwrap();
    let mut numbers = Numbers(SIZE);
    let mut bytes: Vec<u8> = (0..SIZE).map(|_| numbers.next() as u8 | 1).collect();
    let disk = open(&path, false, false).unwrap();
    disk.write(0, &[VolatileSlice::from(&mut bytes[..])]).unwrap();
    disk.flush().unwrap();
    drop(disk);
    hash_image(&path);
    (path, bytes)
}

fn overlay(dir: &TempDir, template: &Path) -> PathBuf {
    let path = dir.path().join("overlay.qcow2");
    tools::create_overlay(&path, template, None, None, true).unwrap();
    path
}

fn read(disk: &dyn Storage, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    disk.read(offset, &[VolatileSlice::from(&mut bytes[..])])?;
    Ok(bytes)
}

fn write(disk: &dyn Storage, offset: u64, len: usize) -> io::Result<()> {
    disk.write(offset, &[VolatileSlice::from(&mut vec![7; len][..])])
}

/// Changes a byte of an image that others have open, where `content` is found in it.
fn damage(path: &Path, content: &[u8]) {
    let image = fs::read(path).unwrap();
    let at = image.windows(64).position(|window| window == &content[..64]).unwrap();
    let file = fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(&[!image[at + 10]], at as u64 + 10).unwrap();
}

#[track_caller]
fn differs<T>(result: io::Result<T>, words: &[&str]) {
    let error = result.err().expect("it is noticed").to_string();
    for word in words.iter().chain(&["is not what was hashed"]) {
        assert!(error.contains(word), "{word:?} is not in {error}");
    }
}

#[test]
fn a_block_that_differs_is_not_read_and_named_with_its_file() {
    let dir = TempDir::new();
    for format in [Format::Raw, Format::Qcow2] {
        let (path, expected) = template(&dir, format);
        let disk = Verified::new(open(&path, false, true).unwrap()).unwrap();
        assert!(read(&disk, 0, SIZE as usize).unwrap() == expected);
        damage(&path, &expected[5 * BLOCK_SIZE as usize..]);
        let name = path.to_str().unwrap();
        differs(read(&disk, 5 * BLOCK_SIZE + 512, 512), &["0x50000", name]);
        differs(read(&disk, 0, SIZE as usize), &["0x50000", name]);
        assert!(read(&disk, 0, 5 * BLOCK_SIZE as usize).unwrap() == expected[..5 * BLOCK_SIZE as usize]);
        assert!(read(&disk, SIZE - 1000, 1000).unwrap() == expected[SIZE as usize - 1000..]);
        assert!(disk.place(Direction::Read, 0, &[]).is_none());
    }
}

#[test]
fn through_an_overlay_the_template_is_verified_and_what_was_written_is_not() {
    let dir = TempDir::new();
    for format in [Format::Raw, Format::Qcow2] {
        let (path, expected) = template(&dir, format);
        let disk = open(&overlay(&dir, &path), true, false).unwrap();
        // A whole cluster, of which nothing is read below any more.
        write(&disk, 5 * BLOCK_SIZE, BLOCK_SIZE as usize).unwrap();
        for block in [5, 6] {
            damage(&path, &expected[block * BLOCK_SIZE as usize..]);
        }
        assert_eq!(read(&disk, 5 * BLOCK_SIZE, 512).unwrap(), [7; 512]);
        let name = path.to_str().unwrap();
        differs(read(&disk, 6 * BLOCK_SIZE + 4096, 1), &["0x60000", name]);
        differs(read(&disk, 5 * BLOCK_SIZE, 3 * BLOCK_SIZE as usize), &["0x60000", name]);
        assert!(read(&disk, 7 * BLOCK_SIZE, 4096).unwrap() == expected[7 * BLOCK_SIZE as usize..][..4096]);
        assert!(read(&disk, SIZE - 700, 700).unwrap() == expected[SIZE as usize - 700..]);
        let layers: Vec<_> = disk.layers().iter().map(|layer| layer.format).collect();
        assert_eq!(layers, [Format::Qcow2, format]);
        fs::remove_file(dir.path().join("overlay.qcow2")).unwrap();
    }
}

#[test]
fn what_differs_is_not_copied_into_the_overlay_either() {
    let dir = TempDir::new();
    let (path, expected) = template(&dir, Format::Raw);
    let disk = open(&overlay(&dir, &path), true, false).unwrap();
    damage(&path, &expected[5 * BLOCK_SIZE as usize..]);
    // The rest of the cluster would be the template's.
    differs(write(&disk, 5 * BLOCK_SIZE + 4096, 4096), &["0x50000"]);
    assert!(disk.write_zeroes(5 * BLOCK_SIZE + 4096, 4096, false).is_err());
    assert!(disk.write_zeroes(5 * BLOCK_SIZE + 4096, 4096, true).is_err());
    differs(read(&disk, 5 * BLOCK_SIZE, 512), &["0x50000"]);
    disk.flush().unwrap();
    drop(disk);
    // Without anybody looking, too, all of the block is as it is behind.
    let disk = open(&dir.path().join("overlay.qcow2"), false, true).unwrap();
    let behind = fs::read(&path).unwrap();
    let range = 5 * BLOCK_SIZE as usize..6 * BLOCK_SIZE as usize;
    assert!(read(&disk, 5 * BLOCK_SIZE, BLOCK_SIZE as usize).unwrap() == behind[range]);
}

#[test]
fn nothing_that_is_verified_has_a_place_to_be_read_past_it() {
    let dir = TempDir::new();
    let (path, _) = template(&dir, Format::Raw);
    let overlay = overlay(&dir, &path);
    let mut bytes = [0; 512];
    let slices = [VolatileSlice::from(&mut bytes[..])];
    let place = |verify| {
        let disk = open(&overlay, verify, false).unwrap();
        disk.place(Direction::Read, 4096, &slices).is_some()
    };
    assert_eq!((place(false), place(true)), (true, false));
    let disk = open(&overlay, true, false).unwrap();
    write(&disk, 0, BLOCK_SIZE as usize).unwrap();
    assert!(
        disk.place(Direction::Read, 4096, &slices).is_some(),
        "what the overlay itself has is not verified"
    );
}

#[test]
fn an_overlay_of_what_is_verified_is_a_disk_like_others() {
    let dir = TempDir::new();
    let path = dir.path().join("empty.raw");
    tools::create(&path, Format::Raw, SIZE, false).unwrap();
    hash_image(&path);
    check_storage(&open(&overlay(&dir, &path), true, false).unwrap());
}

#[test]
fn an_overlay_that_is_larger_than_its_template_goes_on_with_zeroes() {
    let dir = TempDir::new();
    let (path, expected) = template(&dir, Format::Raw);
    let overlay = dir.path().join("larger.qcow2");
    tools::create_overlay(&overlay, &path, None, Some(2 * SIZE), false).unwrap();
    let disk = open(&overlay, true, false).unwrap();
    let bytes = read(&disk, SIZE - 500, 2000).unwrap();
    assert!(bytes[..500] == expected[SIZE as usize - 500..] && bytes[500..] == [0; 1500]);
    write(&disk, SIZE + 100, 10).unwrap();
    assert_eq!(read(&disk, SIZE + 90, 30).unwrap(), [&[0; 10][..], &[7; 10], &[0; 10]].concat());
}

#[track_caller]
fn refused<T>(result: Result<T, Error>, words: &[&str]) {
    let error = result.err().expect("it is refused").to_string();
    for word in words {
        assert!(error.contains(word), "{word:?} is not in {error}");
    }
}

#[test]
fn hashes_that_are_missing_outdated_or_broken_are_an_error_before_anything_is_read() {
    let dir = TempDir::new();
    let (path, _) = template(&dir, Format::Raw);
    let overlay = overlay(&dir, &path);
    let name = path.to_str().unwrap();
    let both = |words: &[&str]| {
        refused(open(&overlay, true, false), words);
        refused(open(&path, false, true).and_then(Verified::new), words);
    };
    refused(Verified::new(open(&path, false, false).unwrap()), &["can be written", name]);
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"other", 100).unwrap();
    both(&["has changed since it was hashed", name, "lodger disk hash"]);
    hash_image(&path);
    open(&overlay, true, false).unwrap();
    let hashes = BlockHashes::path_for(&path);
    let mut bytes = fs::read(&hashes).unwrap();
    bytes[100] ^= 1;
    fs::write(&hashes, bytes).unwrap();
    both(&["it is damaged", hashes.to_str().unwrap()]);
    fs::remove_file(&hashes).unwrap();
    both(&["no hashes to verify it by", name, "lodger disk hash"]);
}
