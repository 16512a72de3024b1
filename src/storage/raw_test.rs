use std::io::Write;
use std::os::unix::fs::MetadataExt;

use super::*;
use crate::storage::testing::{self, TempDir};

fn raw(dir: &TempDir, size: u64) -> (RawFile, std::path::PathBuf) {
    let path = dir.path().join("disk");
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    file.set_len(size).unwrap();
    (RawFile::new(file, false).unwrap(), path)
}

#[test]
fn what_is_written_is_read_back_in_other_pieces() {
    let dir = TempDir::new();
    let (disk, _) = raw(&dir, 1 << 20);
    testing::check_storage(&disk);
}

#[test]
fn direct_requests_see_what_buffered_ones_wrote_and_the_other_way_round() {
    let dir = TempDir::new();
    let (disk, path) = raw(&dir, 1 << 20);
    // Some file systems have no direct I/O.
    let Ok(disk) = disk.with_direct_io(&path) else { return };
    testing::check_storage(&disk);
}

#[test]
fn a_file_that_shrank_is_an_error_and_no_crash() {
    let dir = TempDir::new();
    let (disk, path) = raw(&dir, 8192);
    OpenOptions::new().write(true).open(path).unwrap().set_len(4096).unwrap();
    let mut bytes = vec![0; 8192];
    let error = disk.read(0, &[VolatileSlice::from(&mut bytes[..])]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn a_file_that_shrank_is_not_made_longer_again() {
    let dir = TempDir::new();
    let (disk, path) = raw(&dir, 16384);
    let disk = disk.with_direct_io(&path).unwrap_or_else(|_| raw(&dir, 16384).0);
    let length = |length| OpenOptions::new().write(true).open(&path).unwrap().set_len(length).unwrap();
    length(8192);
    let mut bytes = vec![1; 12288];
    let bytes = &mut bytes[..];
    let start = bytes.as_ptr().align_offset(4096);
    let page = [VolatileSlice::from(&mut bytes[start..start + 4096])];
    for offset in [4097, 8192, 12288] {
        assert_eq!(disk.write(offset, &page).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(disk.write_zeroes(offset, 4096, false).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(disk.place(Direction::Write, offset, &page).is_none_or(|place| !place.direct));
    }
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 8192);
    disk.write(4096, &page).unwrap();
    length(16384);
    disk.write(12288, &page).unwrap();
}

#[test]
fn requests_past_the_end_fail_and_do_nothing() {
    let dir = TempDir::new();
    let (disk, path) = raw(&dir, 4096);
    let mut bytes = vec![1; 1024];
    for offset in [3584, 4096, u64::MAX - 10, u64::MAX / 2] {
        let slices = [VolatileSlice::from(&mut bytes[..])];
        assert!(disk.write(offset, &slices).is_err());
        assert!(disk.read(offset, &slices).is_err());
        assert!(disk.discard(offset, 1024).is_err());
        assert!(disk.write_zeroes(offset, u64::MAX, true).is_err());
    }
    assert_eq!(std::fs::read(path).unwrap(), vec![0; 4096]);
}

#[test]
fn a_read_only_disk_refuses_every_change() {
    let dir = TempDir::new();
    let (_, path) = raw(&dir, 4096);
    let disk = RawFile::new(File::open(path).unwrap(), true).unwrap();
    let mut bytes = [1; 512];
    let slices = [VolatileSlice::from(&mut bytes[..])];
    disk.read(0, &slices).unwrap();
    disk.flush().unwrap();
    for error in [disk.write(0, &slices), disk.discard(0, 512), disk.write_zeroes(0, 512, true)] {
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }
}

#[test]
fn a_discard_gives_space_back() {
    let dir = TempDir::new();
    let (disk, path) = raw(&dir, 1 << 20);
    File::options().write(true).open(&path).unwrap().write_all(&vec![7; 1 << 20]).unwrap();
    let before = std::fs::metadata(&path).unwrap().blocks();
    disk.discard(0, 1 << 19).unwrap();
    let after = std::fs::metadata(&path).unwrap().blocks();
    assert!(after < before, "{after} of {before}");
}
