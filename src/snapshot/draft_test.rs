use super::*;
use crate::snapshot::testing::{MEMORY_SIZE, PAGES, Scratch, page, sections, write};
use crate::snapshot::{CHUNK, PAGE, Snapshot};

fn id(place: &Path) -> [u8; 16] {
    let snapshot = Snapshot::open(place).unwrap();
    snapshot.check().unwrap();
    snapshot.info().id
}

fn begin(place: &Path) -> Draft {
    let mut draft = Draft::begin(place, MEMORY_SIZE).unwrap();
    PAGES.iter().for_each(|&(offset, filling)| draft.put(offset, &page(filling)).unwrap());
    draft
}

#[test]
fn an_older_snapshot_is_valid_until_it_is_replaced() {
    let scratch = Scratch::new();
    let place = scratch.path("snapshot");
    let first = write(&place).id;
    let draft = begin(&place);
    assert_eq!(id(&place), first);
    let second = draft.finish(sections()).unwrap().id;
    assert_ne!(first, second);
    assert_eq!(id(&place), second);
    assert_eq!(scratch.names(), ["snapshot"]);
}

#[test]
fn a_snapshot_that_is_not_finished_leaves_nothing() {
    let scratch = Scratch::new();
    let place = scratch.path("snapshot");
    drop(begin(&place));
    assert!(scratch.names().is_empty());
    // A section that no snapshot can have.
    let bad = Section { name: String::new(), ..sections().remove(0) };
    assert!(matches!(begin(&place).finish(vec![bad.clone()]), Err(Error::Unfit(_))));
    assert!(scratch.names().is_empty());
    let first = write(&place).id;
    assert!(begin(&place).finish(vec![bad]).is_err());
    assert_eq!(scratch.names(), ["snapshot"]);
    assert_eq!(id(&place), first);
}

#[test]
fn what_a_crash_left_behind_is_removed() {
    let scratch = Scratch::new();
    let place = scratch.path("snapshot");
    let left = scratch.path(".snapshot.new");
    fs::create_dir(&left).unwrap();
    fs::write(left.join(MEMORY), b"half").unwrap();
    fs::write(left.join(STATE), b"LODG").unwrap();
    let first = write(&place).id;
    assert_eq!(id(&place), first);
    assert_eq!(scratch.names(), ["snapshot"]);
    // As after the exchange: the older one is whole, and still goes.
    write(&left);
    let second = write(&place).id;
    assert_eq!(id(&place), second);
    assert_eq!(scratch.names(), ["snapshot"]);
}

#[test]
fn two_do_not_write_to_one_place() {
    let scratch = Scratch::new();
    let place = scratch.path("snapshot");
    let first = begin(&place);
    let error = Draft::begin(&place, MEMORY_SIZE).map(drop).unwrap_err();
    assert!(matches!(error, Error::Busy { .. }), "{error}");
    drop(Draft::begin(&scratch.path("other"), MEMORY_SIZE).unwrap());
    first.finish(sections()).unwrap();
    drop(begin(&place));
    id(&place);
}

#[test]
fn what_is_no_snapshot_is_not_replaced() {
    let scratch = Scratch::new();
    let place = scratch.path("snapshot");
    let refused = || {
        let error = Draft::begin(&place, MEMORY_SIZE).map(drop).unwrap_err();
        assert!(matches!(error, Error::Occupied { .. }), "{error}");
    };
    fs::write(&place, b"LODGSNAP").unwrap();
    refused();
    fs::remove_file(&place).unwrap();
    fs::create_dir(&place).unwrap();
    fs::write(place.join(MEMORY), b"").unwrap();
    refused();
    fs::write(place.join(STATE), b"LODGSNAP, and cut short").unwrap();
    fs::write(place.join("letters"), b"").unwrap();
    refused();
    fs::remove_file(place.join("letters")).unwrap();
    write(&place);
    let empty = scratch.path("empty");
    fs::create_dir(&empty).unwrap();
    write(&empty);
    for odd in ["/", "/.."] {
        assert!(Draft::begin(Path::new(odd), 0).is_err(), "{odd}");
    }
}

#[test]
fn pages_are_within_the_memory() {
    let scratch = Scratch::new();
    let mut draft = Draft::begin(&scratch.path("snapshot"), MEMORY_SIZE).unwrap();
    draft.put(4096, &page(1)).unwrap();
    for (offset, length) in [(8193, 4096), (8192, 4095), (MEMORY_SIZE, 4096), (u64::MAX - 4095, 4096)] {
        assert!(draft.put(offset, &vec![1; length]).is_err(), "{offset:#x}");
    }
    draft.put(MEMORY_SIZE - 4096, &page(1)).unwrap();
}

#[test]
fn what_is_written_last_counts_and_zeroes_are_holes() {
    use std::os::unix::fs::MetadataExt;
    let scratch = Scratch::new();
    let place = scratch.path("snapshot");
    let mut draft = Draft::begin(&place, MEMORY_SIZE).unwrap();
    draft.put(0, &vec![9; MEMORY_SIZE as usize]).unwrap();
    draft.restart_memory().unwrap();
    draft.put(PAGE, &vec![5; MEMORY_SIZE as usize - PAGE as usize]).unwrap();
    draft.flush().unwrap();
    let mixed = [page(0), page(2), page(0), page(0), page(1), page(0)].concat();
    draft.put(PAGE, &mixed).unwrap();
    draft.put(CHUNK, &vec![0; CHUNK as usize]).unwrap();
    draft.put(0, &page(0)).unwrap();
    draft.put(0, &page(7)).unwrap();
    let id_before = draft.id();
    draft.finish(sections()).unwrap();
    assert_eq!(id(&place), id_before);
    let memory = fs::read(place.join(MEMORY)).unwrap();
    let firsts: Vec<_> = memory.chunks(PAGE as usize).map(|page| page[9]).take(9).collect();
    assert_eq!(firsts, [7, 0, 2, 0, 0, 1, 0, 5, 5]);
    assert!(memory[CHUNK as usize..2 * CHUNK as usize].iter().all(|&byte| byte == 0));
    let blocks = fs::metadata(place.join(MEMORY)).unwrap().blocks() * 512;
    assert!(blocks < CHUNK + (128 << 10), "{blocks}");
}

/// As whoever is killed leaves it: nothing is put away.
#[test]
fn an_older_snapshot_outlives_whoever_writes_a_new_one() {
    let scratch = Scratch::new();
    let place = scratch.path("snapshot");
    let first = write(&place).id;
    for steps in 0..4 {
        let mut draft = Draft::begin(&place, MEMORY_SIZE).unwrap();
        for &(offset, filling) in PAGES.iter().take(steps) {
            draft.put(offset, &page(filling + 1)).unwrap();
        }
        // The lock ends with the process; here it is the last thing that is left of the draft.
        let Draft { room, .. } = draft;
        let (path, directory) = (room.path.clone(), room.directory.try_clone().unwrap());
        std::mem::forget(room);
        assert!(path.is_dir());
        assert_eq!(id(&place), first);
        directory.unlock().unwrap();
    }
    assert_ne!(write(&place).id, first);
    assert_eq!(scratch.names(), ["snapshot"]);
}

/// The host may crash at any step: whatever is then in the place is whole.
#[test]
fn a_place_is_looked_at_while_it_is_replaced_over_and_over() {
    let scratch = Scratch::new();
    let place = scratch.path("snapshot");
    write(&place);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| (0..20).for_each(|_| drop(write(&place))));
        while !writer.is_finished() {
            // The directory may be exchanged between two files; then these do not belong together, and it is noticed.
            let snapshot = Snapshot::open(&place).unwrap();
            snapshot.sections().unwrap();
        }
    });
    id(&place);
}

#[test]
fn images_of_disks_are_part_of_a_snapshot_and_go_with_it() {
    let scratch = Scratch::new();
    let place = scratch.path("snapshot");
    let with_disks = || {
        let draft = begin(&place);
        let disks = draft.directory().join(DISKS);
        fs::create_dir(&disks).unwrap();
        ["0.raw", "disk1.qcow2", "disk1.2.qcow2"]
            .iter()
            .for_each(|name| fs::write(disks.join(name), b"x").unwrap());
        draft
    };
    drop(with_disks());
    assert!(scratch.names().is_empty());
    with_disks().finish(sections()).unwrap();
    assert_eq!(fs::read(place.join("disks/0.raw")).unwrap(), b"x");
    // One without disks in its place, and what a crash left of one.
    write(&place);
    assert!(!place.join(DISKS).exists());
    with_disks().finish(sections()).unwrap();
    fs::rename(&place, scratch.path(".snapshot.new")).unwrap();
    write(&place);
    assert_eq!(scratch.names(), ["snapshot"]);
}

#[test]
fn what_is_no_image_among_a_snapshot_s_images_is_not_lost() {
    let scratch = Scratch::new();
    let place = scratch.path("snapshot");
    write(&place);
    let disks = place.join(DISKS);
    fs::create_dir(&disks).unwrap();
    for name in ["letters", "a.raw", "0.raw.bak", "disk.qcow2", "1.2.3.raw", "00000.raw"] {
        assert!(!is_disk_name(name), "{name}");
        fs::write(disks.join(name), b"").unwrap();
        let error = Draft::begin(&place, MEMORY_SIZE).map(drop).unwrap_err();
        assert!(matches!(error, Error::Occupied { .. }), "{error}");
        fs::remove_file(disks.join(name)).unwrap();
    }
    fs::remove_dir(&disks).unwrap();
    std::os::unix::fs::symlink("/", &disks).unwrap();
    assert!(matches!(Draft::begin(&place, MEMORY_SIZE), Err(Error::Occupied { .. })));
}

#[test]
fn no_snapshot_is_written_into_another() {
    let scratch = Scratch::new();
    let place = scratch.path("outer");
    let first = write(&place).id;
    for inner in ["outer/inner", "outer/disks", "outer/disks/inner", "outer/../outer/inner"] {
        if inner == "outer/disks/inner" {
            fs::create_dir(scratch.path("outer/disks")).unwrap();
        }
        let error = Draft::begin(&scratch.path(inner), MEMORY_SIZE).err().unwrap();
        assert!(matches!(&error, Error::Inside { snapshot, .. } if *snapshot == place), "{inner}: {error}");
        assert_eq!(id(&place), first);
    }
    // It can be replaced still, by whichever name.
    let second = write(&scratch.path("outer/../outer")).id;
    assert_eq!(id(&place), second);
    assert_eq!(scratch.names(), ["outer"]);
}
