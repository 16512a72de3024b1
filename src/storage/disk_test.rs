use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::*;
use crate::storage::testing::{self, Numbers, TempDir};
use crate::storage::tools;

fn open(path: &Path) -> Disk {
    Disk::open(path, &DiskOptions::default()).unwrap()
}

fn read_only() -> DiskOptions {
    DiskOptions { read_only: true, ..DiskOptions::default() }
}

fn fill(disk: &dyn Storage, offset: u64, len: usize, value: u8) {
    disk.write(offset, &[VolatileSlice::from(&mut vec![value; len][..])]).unwrap();
}

fn byte(disk: &dyn Storage, offset: u64) -> u8 {
    let mut byte = [0];
    disk.read(offset, &[VolatileSlice::from(&mut byte[..])]).unwrap();
    byte[0]
}

fn patch(path: &Path, offset: u64, bytes: &[u8]) {
    File::options().write(true).open(path).unwrap().write_all_at(bytes, offset).unwrap();
}

#[test]
fn disks_of_both_formats_hold_what_is_written() {
    let dir = TempDir::new();
    for format in [Format::Raw, Format::Qcow2] {
        let path = dir.path().join(format.to_string());
        tools::create(&path, format, 3 << 20, false).unwrap();
        let disk = open(&path);
        assert_eq!(disk.format(), format);
        testing::check_storage(&disk);
        disk.flush().unwrap();
        drop(disk);
        if format == Format::Qcow2 {
            let report = tools::check(&path, crate::storage::Repair::No, &mut |_, _| {}).unwrap();
            assert_eq!((report.corruptions, report.leaks), (0, 0), "{report:?}");
        }
    }
}

#[test]
fn overlays_on_data_hold_what_is_written() {
    let dir = TempDir::new();
    let (base, overlay) = (dir.path().join("base"), dir.path().join("overlay.qcow2"));
    tools::create(&base, Format::Raw, 1 << 20, false).unwrap();
    tools::create_overlay(&overlay, &base, None, None, false).unwrap();
    testing::check_storage(&open(&overlay));
    assert_eq!(std::fs::read(&base).unwrap(), vec![0; 1 << 20]);
}

#[test]
fn an_overlay_shows_its_base_until_it_is_written() {
    let dir = TempDir::new();
    let paths = ["base.raw", "middle.qcow2", "top.qcow2"].map(|name| dir.path().join(name));
    tools::create(&paths[0], Format::Raw, 1 << 20, false).unwrap();
    fill(&open(&paths[0]), 0, 1 << 20, 1);
    tools::create_overlay(&paths[1], &paths[0], None, None, false).unwrap();
    fill(&open(&paths[1]), 100_000, 300_000, 2);
    tools::create_overlay(&paths[2], &paths[1], None, None, false).unwrap();
    let top = open(&paths[2]);
    fill(&top, 200_000, 1000, 3);
    top.discard(262_144, 65536).unwrap();
    let seen = [99_999, 100_000, 199_999, 200_000, 200_999, 201_000, 399_999, 400_000];
    assert_eq!(seen.map(|at| byte(&top, at)), [1, 2, 2, 3, 3, 2, 2, 1]);
    assert_eq!(byte(&top, 262_144), 0, "what is discarded shows nothing from behind");
    assert_eq!(top.layers().iter().map(|layer| layer.path.clone()).collect::<Vec<_>>(), {
        let [base, middle, top] = paths;
        [top, middle, base]
    });
}

#[test]
fn several_threads_use_one_disk() {
    let dir = TempDir::new();
    let path = dir.path().join("disk.qcow2");
    tools::create(&path, Format::Qcow2, 16 << 20, false).unwrap();
    let disk: Arc<dyn Storage> = Arc::new(open(&path));
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let disk = &disk;
            scope.spawn(move || {
                let mut numbers = Numbers(thread + 1);
                for round in 0..200 {
                    let offset = numbers.below(1000) * 4 * 4096 + thread * 4096;
                    match round % 8 {
                        0 => disk.flush().unwrap(),
                        1 => disk.write_zeroes(offset, 4096, true).unwrap(),
                        _ => {
                            fill(&**disk, offset, 4096, thread as u8 + 1);
                            assert_eq!(byte(&**disk, offset + 4095), thread as u8 + 1);
                        }
                    }
                }
            });
        }
    });
    drop(disk);
    let report = tools::check(&path, crate::storage::Repair::No, &mut |_, _| {}).unwrap();
    assert!(!report.is_corrupt(), "{report:?}");
}

#[test]
fn direct_io_works_for_both_formats_where_the_file_system_has_it() {
    let dir = TempDir::new();
    for format in [Format::Raw, Format::Qcow2] {
        let path = dir.path().join(format.to_string());
        tools::create(&path, format, 1 << 20, false).unwrap();
        match Disk::open(&path, &DiskOptions { direct: true, ..DiskOptions::default() }) {
            Ok(disk) => testing::check_storage(&disk),
            Err(error) => assert!(error.to_string().contains("direct"), "{error}"),
        }
    }
}

#[test]
fn one_writes_or_many_read() {
    let dir = TempDir::new();
    let (base, overlay) = (dir.path().join("base"), dir.path().join("overlay.qcow2"));
    tools::create(&base, Format::Raw, 1 << 20, false).unwrap();
    tools::create_overlay(&overlay, &base, None, None, false).unwrap();
    let writer = open(&overlay);
    assert!(matches!(Disk::open(&overlay, &read_only()), Err(Error::InUse { only_read: false, .. })));
    assert!(matches!(Disk::open(&base, &DiskOptions::default()), Err(Error::InUse { only_read: true, .. })));
    let reader = Disk::open(&base, &read_only()).unwrap();
    drop((writer, reader));
    open(&base);
}

#[test]
fn a_guest_cannot_make_its_raw_disk_an_image_of_another_format() {
    let dir = TempDir::new();
    let path = dir.path().join("disk");
    tools::create(&path, Format::Raw, 1 << 20, false).unwrap();
    let disk = open(&path);
    let mut header = *b"QFI\xfb\0\0\0\x03";
    let (start, end) = header.split_at_mut(3);
    let error =
        disk.write(0, &[VolatileSlice::from(&mut *start), VolatileSlice::from(&mut *end)]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    disk.write(0, &[VolatileSlice::from(&mut *start)]).unwrap();
    assert!(disk.write(3, &[VolatileSlice::from(&mut *end)]).is_err());
    fill(&disk, 510, 4096, 5);
    assert_eq!([0, 3, 509, 510, 4605, 4606].map(|at| byte(&disk, at)), [b'Q', 0, 0, 5, 5, 0]);
    drop(disk);
    // Who says that it is raw may write anything, and has to say so again.
    let raw = DiskOptions { format: Some(Format::Raw), ..DiskOptions::default() };
    Disk::open(&path, &raw).unwrap().write(0, &[VolatileSlice::from(&mut header[..])]).unwrap();
    assert!(Disk::open(&path, &DiskOptions::default()).is_err());
    assert_eq!(Disk::open(&path, &raw).unwrap().format(), Format::Raw);
}

#[test]
fn an_image_that_refers_to_others_has_to_be_called_one() {
    let dir = TempDir::new();
    let (base, honest, disguised) =
        (dir.path().join("base"), dir.path().join("o.qcow2"), dir.path().join("disk.img"));
    tools::create(&base, Format::Raw, 1 << 20, false).unwrap();
    tools::create_overlay(&honest, &base, None, None, false).unwrap();
    std::fs::copy(&honest, &disguised).unwrap();
    let text = Disk::open(&disguised, &read_only()).unwrap_err().to_string();
    assert!(text.contains("qcow2 or raw") && text.contains("format=raw"), "{text}");
    let said = DiskOptions { format: Some(Format::Qcow2), ..read_only() };
    Disk::open(&disguised, &said).unwrap();
}

#[test]
fn a_backing_file_of_unknown_format_is_not_guessed() {
    let dir = TempDir::new();
    let (base, overlay) = (dir.path().join("base"), dir.path().join("overlay.qcow2"));
    tools::create(&base, Format::Raw, 1 << 20, false).unwrap();
    tools::create_overlay(&overlay, &base, None, None, false).unwrap();
    let file = open_file(&overlay, false).unwrap();
    let header = Header::read(&file, &overlay).unwrap();
    let backing = qcow2::Backing { name: "base".into(), format: None };
    file.write_all_at(&header.encode_with_backing(Some(&backing)).unwrap(), 0).unwrap();
    let text = Disk::open(&overlay, &read_only()).unwrap_err().to_string();
    assert!(text.contains("rebase --unsafe"), "{text}");
    Disk::open(&overlay, &DiskOptions { probe_backing: true, ..read_only() }).unwrap();
}

#[test]
fn what_cannot_be_opened_says_which_file_and_what_to_do() {
    let dir = TempDir::new();
    let path = dir.path().join("disk");
    let message = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let text = Disk::open(&path, &DiskOptions::default()).unwrap_err().to_string();
        assert!(text.contains(path.to_str().unwrap()), "{text}");
        text
    };
    assert!(message(b"vhdxfile").contains("VHDX"));
    assert!(message(b"QFI\xfb\0\0\0\x09").contains("qcow2"));
    let text = Disk::open(&dir.path().join("none"), &DiskOptions::default()).unwrap_err().to_string();
    assert!(text.contains("lodger disk create"), "{text}");
    assert!(Disk::open(dir.path(), &read_only()).unwrap_err().to_string().contains("no file"));
    assert!(Disk::open(Path::new("/dev/null"), &read_only()).is_err());
}

#[test]
fn chains_that_come_back_to_themselves_are_refused() {
    let dir = TempDir::new();
    let (a, b) = (dir.path().join("a.qcow2"), dir.path().join("b.qcow2"));
    tools::create(&a, Format::Qcow2, 1 << 20, false).unwrap();
    tools::create_overlay(&b, &a, None, None, false).unwrap();
    let backing = tools::NewBacking { path: &b, format: None };
    let error = tools::rebase(&a, Some(backing), true, &mut |_, _| {}).unwrap_err().to_string();
    assert!(error.contains("in use") || error.contains("itself"), "{error}");
    let file = open_file(&a, false).unwrap();
    let header = Header::read(&file, &a).unwrap();
    let backing = qcow2::Backing { name: "b.qcow2".into(), format: Some("qcow2".into()) };
    file.write_all_at(&header.encode_with_backing(Some(&backing)).unwrap(), 0).unwrap();
    let error = Disk::open(&a, &read_only()).unwrap_err().to_string();
    assert!(error.contains("comes back"), "{error}");
}

#[test]
fn only_files_can_lie_behind_an_image() {
    for name in ["nbd://host/x", "json:{}", "http://x"] {
        assert!(backing_path(Path::new("/x/y.qcow2"), name).unwrap_err().to_string().contains("only files"));
    }
    for (name, path) in [("b", "/x/b"), ("/b", "/b"), ("file:b", "/x/b"), ("./a:b", "/x/./a:b")] {
        assert_eq!(backing_path(Path::new("/x/y.qcow2"), name).unwrap(), Path::new(path));
    }
}

#[test]
fn an_ephemeral_disk_leaves_nothing() {
    let dir = TempDir::new();
    let Ok(disk) = Disk::ephemeral(dir.path(), 1 << 20, &DiskOptions::default()) else { return };
    testing::check_storage(&disk);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn an_ephemeral_disk_has_the_options_that_it_was_given() {
    let dir = TempDir::new();
    let options = DiskOptions { read_only: true, ..DiskOptions::default() };
    let Ok(disk) = Disk::ephemeral(dir.path(), 1 << 20, &options) else { return };
    assert!(disk.read_only());
    assert!(disk.write_zeroes(0, 512, false).is_err());
    // Not every file system has direct I/O.
    let options = DiskOptions { direct: true, ..DiskOptions::default() };
    if let Ok(disk) = Disk::ephemeral(dir.path(), 1 << 20, &options) {
        testing::check_storage(&disk);
        let mut bytes = vec![0; 2 * 4096];
        let aligned = bytes.as_ptr().align_offset(4096);
        let slices = [VolatileSlice::from(&mut bytes[aligned..aligned + 4096])];
        assert!(disk.place(Direction::Read, 0, &slices).is_some_and(|place| place.direct));
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// Uses a disk as a guest would; every error is fine.
fn use_it(disk: &Disk, numbers: &mut Numbers) {
    let mut bytes = vec![7; 70_000];
    for _ in 0..12 {
        let offset = numbers.below(disk.size().max(1));
        let len = numbers.below(70_000).min(disk.size().saturating_sub(offset));
        let slices = [VolatileSlice::from(&mut bytes[..len as usize])];
        let _ = match numbers.below(5) {
            0 => disk.read(offset, &slices),
            1 => disk.write_zeroes(offset, len, true),
            2 => disk.discard(offset, len),
            3 => disk.flush(),
            _ => disk.write(offset, &slices),
        };
    }
}

/// A small image with tables, data and an overlay's name in its header.
fn victim(dir: &TempDir) -> Vec<u8> {
    let (base, path) = (dir.path().join("base"), dir.path().join("victim.qcow2"));
    tools::create(&base, Format::Raw, 4 << 20, false).unwrap();
    tools::create_overlay(&path, &base, None, None, true).unwrap();
    let disk = open(&path);
    for offset in [0, 1 << 20, 3 << 20] {
        fill(&disk, offset, 100_000, 1);
    }
    drop(disk);
    std::fs::read(&path).unwrap()
}

/// Opens, uses, checks and repairs a damaged image; nothing of that may panic, hang or take much memory.
fn survive(path: &Path, bytes: &[u8], numbers: &mut Numbers) {
    std::fs::write(path, bytes).unwrap();
    let options = DiskOptions { format: Some(Format::Qcow2), ..DiskOptions::default() };
    if let Ok(disk) = Disk::open(path, &options) {
        use_it(&disk, numbers);
    }
    let _ = tools::check(path, crate::storage::Repair::No, &mut |_, _| {});
    let _ = tools::check(path, crate::storage::Repair::Yes, &mut |_, _| {});
    let _ = tools::info(path, None);
}

#[test]
fn damaged_headers_are_survived() {
    let dir = TempDir::new();
    let good = victim(&dir);
    let path = dir.path().join("damaged.qcow2");
    let mut numbers = Numbers(0x5eed);
    for field in (4..112).step_by(4) {
        for value in [0, 1, 0xffff_ffff, 0x8000_0000, 0x0001_0000, 0x4000_0000, numbers.next() as u32] {
            let mut bytes = good.clone();
            bytes[field..field + 4].copy_from_slice(&value.to_be_bytes());
            survive(&path, &bytes, &mut numbers);
        }
    }
}

#[test]
fn damaged_tables_are_survived() {
    let dir = TempDir::new();
    let good = victim(&dir);
    let path = dir.path().join("damaged.qcow2");
    let mut numbers = Numbers(0xbeef1);
    // Refcount table, its block, L1 and L2 tables and some data come in the first clusters.
    for round in 0..400 {
        let mut bytes = good.clone();
        for _ in 0..=numbers.below(4) {
            let cluster = 1 + numbers.below(bytes.len() as u64 / 65536 - 1);
            let entry = (cluster * 65536 + numbers.below(70) * 8) as usize;
            let value = match numbers.below(6) {
                0 => 0,
                1 => u64::MAX,
                // Into the image's own tables.
                2 => 0x8000_0000_0000_0000 | (numbers.below(10) << 16),
                3 => 0xc000_0000_0000_0000 | numbers.next() >> 8,
                4 => numbers.below(10) << 16,
                _ => numbers.next(),
            };
            if let Some(place) = bytes.get_mut(entry..entry + 8) {
                place.copy_from_slice(&value.to_be_bytes());
            }
        }
        if round % 5 == 0 {
            bytes.truncate(numbers.below(bytes.len() as u64) as usize);
        }
        survive(&path, &bytes, &mut numbers);
    }
}

#[test]
fn a_huge_promise_costs_no_memory() {
    let dir = TempDir::new();
    victim(&dir);
    let path = dir.path().join("victim.qcow2");
    // A file that is huge, but has only holes.
    File::options().write(true).open(&path).unwrap().set_len(1 << 40).unwrap();
    patch(&path, 36, &u32::MAX.to_be_bytes());
    let text = Disk::open(&path, &read_only()).unwrap_err().to_string();
    assert!(text.contains("L1 table"), "{text}");
    patch(&path, 36, &1_u32.to_be_bytes());
    patch(&path, 56, &u32::MAX.to_be_bytes());
    let text = Disk::open(&path, &read_only()).unwrap_err().to_string();
    assert!(text.contains("refcount table"), "{text}");
}
