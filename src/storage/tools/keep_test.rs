use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use vm_memory::VolatileSlice;

use super::*;
use crate::storage::testing::TempDir;
use crate::storage::tools::create;

fn open(path: &Path, read_only: bool) -> Disk {
    Disk::open(path, &DiskOptions { read_only, ..DiskOptions::default() }).unwrap()
}

fn put(disk: &Disk, offset: u64, filling: u8, len: usize) {
    disk.write(offset, &[VolatileSlice::from(&mut vec![filling; len][..])]).unwrap();
}

fn content(disk: &Disk) -> Vec<u8> {
    let mut bytes = vec![1; disk.size() as usize];
    disk.read(0, &[VolatileSlice::from(&mut bytes[..])]).unwrap();
    bytes
}

/// A raw image under two overlays, the upper one open for writing, with something in memory only.
fn chain(dir: &TempDir) -> Disk {
    let paths: [PathBuf; 3] = ["base.img", "middle.qcow2", "top.qcow2"].map(|name| dir.path().join(name));
    create(&paths[0], Format::Raw, 4 << 20, false).unwrap();
    put(&open(&paths[0], false), 1 << 20, 0x11, 8192);
    for (above, below) in [(1, 0), (2, 1)] {
        let format = if below == 0 { Format::Raw } else { Format::Qcow2 };
        super::super::create_overlay(&paths[above], &paths[below], Some(format), None, false).unwrap();
        put(&open(&paths[above], false), above as u64 * 0x4000, 0x20 + above as u8, 4096);
    }
    let disk = open(&paths[2], false);
    put(&disk, 3 << 20, 0x33, 512);
    disk.write_zeroes((1 << 20) + 4096, 4096, true).unwrap();
    disk
}

#[test]
fn a_copy_is_what_the_guest_sees_and_what_is_zero_takes_no_space() {
    let dir = TempDir::new();
    let disk = chain(&dir);
    let copy = dir.path().join("copy.raw");
    let written = copy_raw(&disk, &copy).unwrap();
    let copied =
        Disk::open(&copy, &DiskOptions { format: Some(Format::Raw), ..DiskOptions::default() }).unwrap();
    assert!(content(&copied) == content(&disk));
    let status = fs::metadata(&copy).unwrap();
    assert!(status.blocks() * 512 < 128 << 10, "{}", status.blocks() * 512);
    assert_eq!(status.mode() & 0o777, 0o600);
    let pieces = content(&disk).chunks(4096).filter(|piece| piece.iter().any(|&byte| byte != 0)).count();
    assert_eq!(written, 4096 * pieces as u64);
    assert!(copy_raw(&disk, &copy).unwrap_err().to_string().contains("copy.raw"));
}

#[test]
fn one_raw_file_is_copied_whether_its_file_system_shares_bytes_or_not() {
    let dir = TempDir::new();
    let disk = Disk::ephemeral(dir.path(), 1 << 20, &DiskOptions::default()).unwrap();
    put(&disk, 70_000, 7, 5000);
    let copy = dir.path().join("copy.raw");
    copy_raw(&disk, &copy).unwrap();
    let before = content(&disk);
    put(&disk, 0, 9, 4096);
    assert!(fs::read(&copy).unwrap() == before);
}

#[test]
fn a_file_without_a_name_gets_one_or_is_copied() {
    let (dir, memory) = (TempDir::new(), Path::new("/dev/shm"));
    let disk = Disk::ephemeral(dir.path(), 1 << 20, &DiskOptions::default()).unwrap();
    put(&disk, 4096, 7, 4096);
    let linked = dir.path().join("linked");
    assert_eq!(link_or_copy(disk.file(), &linked).unwrap(), 0);
    assert_eq!(fs::metadata(&linked).unwrap().ino(), disk.layers()[0].identity().inode);
    assert!(link_or_copy(disk.file(), &linked).is_err());
    if memory.is_dir() {
        let copied = memory.join(format!("lodger-keep-{}", std::process::id()));
        let written = link_or_copy(disk.file(), &copied).unwrap();
        let same = fs::read(&copied).unwrap() == fs::read(&linked).unwrap();
        fs::remove_file(&copied).unwrap();
        assert!(same && written == 4096, "{written}");
    }
}

#[test]
fn an_overlay_takes_the_place_of_a_disk_that_is_written_to() {
    let dir = TempDir::new();
    let disk = chain(&dir);
    disk.flush().unwrap();
    let (top, path) = (dir.path().join("top.qcow2"), dir.path().join("new.qcow2"));
    let overlay = overlay_in_use(&disk, &top, &path, false, true).unwrap();
    let before = content(&disk);
    assert!(content(&overlay) == before);
    // Until it is shared, nobody else may read it.
    assert!(Disk::open(&top, &DiskOptions { read_only: true, ..DiskOptions::default() }).is_err());
    disk.share();
    overlay.lock_behind().unwrap();
    drop(disk);
    put(&overlay, 0, 0x44, 4096);
    let frozen = open(&top, true);
    assert!(content(&frozen) == before);
    assert!(Disk::open(&top, &DiskOptions::default()).unwrap_err().to_string().contains("in use"));
    drop((frozen, overlay));
    drop(open(&top, false));
}

#[test]
fn an_image_that_lost_its_name_gets_no_overlay() {
    let dir = TempDir::new();
    let disk = chain(&dir);
    disk.flush().unwrap();
    let (top, path) = (dir.path().join("top.qcow2"), dir.path().join("new.qcow2"));
    fs::rename(&top, dir.path().join("away.qcow2")).unwrap();
    fs::copy(dir.path().join("away.qcow2"), &top).unwrap();
    let error = overlay_in_use(&disk, &top, &path, false, false).unwrap_err().to_string();
    assert!(error.contains("not the file any more"), "{error}");
    assert!(!path.exists());
}
