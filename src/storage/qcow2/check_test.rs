use vm_memory::VolatileSlice;

use super::*;
use crate::storage::testing::TempDir;
use crate::storage::{Disk, DiskOptions, Format, Storage, tools};

/// An image of four clusters of tables (header, refcount table, its block, L1 table), then an L2 table and data.
fn image(dir: &TempDir) -> std::path::PathBuf {
    let path = dir.path().join("image.qcow2");
    tools::create(&path, Format::Qcow2, 4 << 20, true).unwrap();
    let disk = Disk::open(&path, &DiskOptions::default()).unwrap();
    disk.write(0, &[VolatileSlice::from(&mut vec![1; 200_000][..])]).unwrap();
    disk.flush().unwrap();
    path
}

fn run(path: &Path, repair: Repair) -> CheckReport {
    tools::check(path, repair, &mut |_, _| {}).unwrap()
}

fn patch(path: &Path, offset: u64, bytes: &[u8]) {
    File::options().write(true).open(path).unwrap().write_all_at(bytes, offset).unwrap();
}

fn table(path: &Path, field: u64) -> u64 {
    let mut bytes = [0; 8];
    read_up_to(&File::open(path).unwrap(), &mut bytes, field).unwrap();
    u64::from_be_bytes(bytes)
}

fn refcount_block(path: &Path) -> u64 {
    table(path, table(path, 48))
}

#[test]
fn a_sound_image_has_nothing() {
    let dir = TempDir::new();
    let path = image(&dir);
    let report = run(&path, Repair::No);
    assert_eq!((report.corruptions, report.leaks), (0, 0), "{report:?}");
    assert_eq!((report.allocated_clusters, report.total_clusters), (4, 64));
}

#[test]
fn leaks_are_found_and_freed() {
    let dir = TempDir::new();
    let path = image(&dir);
    patch(&path, refcount_block(&path) + 40 * 2, &[0, 1, 0, 3]);
    let report = run(&path, Repair::No);
    assert_eq!((report.corruptions, report.leaks), (0, 2));
    assert_eq!(run(&path, Repair::Yes).repaired, 2);
    assert_eq!(run(&path, Repair::No).leaks, 0);
}

#[test]
fn counts_that_are_too_low_are_corruption_and_can_be_put_right() {
    let dir = TempDir::new();
    let path = image(&dir);
    // The last data cluster.
    patch(&path, refcount_block(&path) + 7 * 2, &[0, 0]);
    let report = run(&path, Repair::No);
    assert!(report.is_corrupt());
    assert!(report.problems.iter().any(|problem| problem.contains("0 times")), "{report:?}");
    run(&path, Repair::Yes);
    let report = run(&path, Repair::No);
    assert_eq!((report.corruptions, report.leaks), (0, 0), "{report:?}");
}

#[test]
fn tables_that_point_nowhere_are_corruption() {
    let dir = TempDir::new();
    let path = image(&dir);
    let l1 = table(&path, 40);
    let l2 = table(&path, l1) & OFFSET;
    for (entry, word) in [(COPIED | 1 << 40, "past the end"), (COPIED | 0x200, "no cluster begins")] {
        patch(&path, l2, &entry.to_be_bytes());
        let report = run(&path, Repair::No);
        assert!(report.problems.iter().any(|problem| problem.contains(word)), "{report:?}");
    }
}

#[test]
fn a_dirty_image_is_usable_after_a_repair() {
    let dir = TempDir::new();
    let path = image(&dir);
    patch(&path, 72, &DIRTY.to_be_bytes());
    patch(&path, refcount_block(&path) + 7 * 2, &[0, 0]);
    let text = Disk::open(&path, &DiskOptions::default()).unwrap_err().to_string();
    assert!(text.contains("check --repair"), "{text}");
    run(&path, Repair::Yes);
    Disk::open(&path, &DiskOptions::default()).unwrap();
}

fn content(path: &Path) -> Vec<u8> {
    let disk = Disk::open(path, &DiskOptions { read_only: true, ..DiskOptions::default() }).unwrap();
    let mut bytes = vec![0; disk.size() as usize];
    disk.read(0, &[VolatileSlice::from(&mut bytes[..])]).unwrap();
    bytes
}

#[test]
fn counts_that_are_nowhere_are_made_anew() {
    let dir = TempDir::new();
    let data = {
        let path = image(&dir);
        table(&path, table(&path, table(&path, 40)) & OFFSET) & OFFSET
    };
    // None, past the end, where no cluster begins, in the header, and in what the guest has written.
    for entry in [0, 1 << 40, 0x200, 0, data] {
        let path = image(&dir);
        let expected = content(&path);
        patch(&path, table(&path, 48), &entry.to_be_bytes());
        let report = run(&path, Repair::No);
        assert!(report.is_corrupt(), "{entry:#x}: {report:?}");
        let report = run(&path, Repair::Yes);
        assert!(!report.is_corrupt() && report.repaired > 5, "{entry:#x}: {report:?}");
        let report = run(&path, Repair::No);
        assert_eq!((report.corruptions, report.leaks), (0, 0), "{entry:#x}: {report:?}");
        assert!(content(&path) == expected, "{entry:#x}");
        let disk = Disk::open(&path, &DiskOptions::default()).unwrap();
        disk.write(1 << 20, &[VolatileSlice::from(&mut vec![2; 1 << 20][..])]).unwrap();
        disk.flush().unwrap();
        drop(disk);
        let report = run(&path, Repair::No);
        assert_eq!((report.corruptions, report.leaks), (0, 0), "{entry:#x}: {report:?}");
        assert!(content(&path)[..1 << 20] == expected[..1 << 20], "{entry:#x}");
    }
}

#[test]
fn a_flag_that_is_there_wrongly_is_taken_away() {
    let dir = TempDir::new();
    let path = image(&dir);
    // Two entries for one cluster.
    let l2 = table(&path, table(&path, 40)) & OFFSET;
    let entry = table(&path, l2);
    patch(&path, l2 + 8, &entry.to_be_bytes());
    run(&path, Repair::Yes);
    let report = run(&path, Repair::No);
    assert_eq!((report.corruptions, report.leaks), (0, 0), "{report:?}");
    assert_eq!((table(&path, l2), table(&path, l2 + 8)), (entry & OFFSET, entry & OFFSET));
}

#[test]
fn a_check_does_not_advise_a_check() {
    let dir = TempDir::new();
    let path = image(&dir);
    File::options().write(true).open(&path).unwrap().set_len(66_000).unwrap();
    for repair in [Repair::No, Repair::Yes] {
        let text = tools::check(&path, repair, &mut |_, _| {}).unwrap_err().to_string();
        assert!(text.contains("cannot be repaired; take it from a backup"), "{text}");
    }
}
