use std::fs;

use super::*;
use crate::snapshot::testing::{LAMP, Lamp, MEMORY_SIZE, PAGES, Scratch, page, sections, write};

/// As a machine does that is restored, up to the memory's content.
fn read(place: &Path) -> Result<(), Error> {
    let snapshot = Snapshot::open(place)?;
    let mut found = snapshot.sections()?;
    assert_eq!(found.take::<Lamp>("lamp/0")?, LAMP);
    found.take::<Lamp>("lamp/1")?;
    found.finish()?;
    snapshot.memory().map(drop)
}

#[test]
fn what_was_written_is_read() {
    let scratch = Scratch::new();
    let place = scratch.path("snapshot");
    let written = write(&place);
    let snapshot = Snapshot::open(&place).unwrap();
    assert_eq!(*snapshot.info(), written);
    assert_eq!(snapshot.info().memory_size, MEMORY_SIZE);
    read(&place).unwrap();
    snapshot.check().unwrap();
    let mut found = snapshot.sections().unwrap();
    for section in sections() {
        assert_eq!(found.take_section(&section.name).unwrap(), section);
    }
    found.finish().unwrap();
    let memory = snapshot.memory().unwrap();
    for offset in (0..MEMORY_SIZE).step_by(PAGE as usize) {
        let mut bytes = page(9);
        memory.read_exact_at(&mut bytes, offset).unwrap();
        let filling = PAGES.iter().find(|(place, _)| *place == offset).map_or(0, |(_, filling)| *filling);
        assert!(bytes == page(filling), "{offset:#x}");
    }
}

#[test]
fn only_what_is_not_zero_takes_space() {
    use std::os::unix::fs::MetadataExt;
    let scratch = Scratch::new();
    let place = scratch.path("snapshot");
    write(&place);
    let status = fs::metadata(place.join(MEMORY)).unwrap();
    assert_eq!(status.len(), MEMORY_SIZE + PAGE);
    // Pages, the last page, and what a file system may add.
    assert!(status.blocks() * 512 <= (PAGES.len() as u64 + 1) * PAGE + (64 << 10), "{}", status.blocks());
    assert_eq!(status.mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(&place).unwrap().mode() & 0o777, 0o700);
}

#[test]
fn every_byte_that_is_changed_in_the_state_is_noticed() {
    let scratch = Scratch::new();
    let place = scratch.path("snapshot");
    write(&place);
    let path = place.join(STATE);
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    for (at, byte) in (0..).zip(fs::read(&path).unwrap()) {
        for changed in [byte ^ 1 << (at % 8), !byte] {
            file.write_all_at(&[changed], at).unwrap();
            read(&place).expect_err(&format!("byte {at}"));
        }
        file.write_all_at(&[byte], at).unwrap();
    }
    read(&place).unwrap();
}

#[test]
fn a_state_of_any_other_length_is_refused() {
    let scratch = Scratch::new();
    let place = scratch.path("snapshot");
    write(&place);
    let whole = fs::read(place.join(STATE)).unwrap();
    for length in 0..whole.len() {
        fs::write(place.join(STATE), &whole[..length]).unwrap();
        let error = read(&place).expect_err(&format!("{length} bytes"));
        assert!(matches!(error, Error::Length { .. } | Error::NoState { .. }), "{error}");
    }
    fs::write(place.join(STATE), [&whole[..], &[0]].concat()).unwrap();
    assert!(matches!(read(&place), Err(Error::Length { .. })));
}

#[test]
fn a_memory_that_is_cut_short_longer_or_of_another_snapshot_is_refused() {
    let scratch = Scratch::new();
    let (place, other) = (scratch.path("snapshot"), scratch.path("other"));
    write(&place);
    write(&other);
    let path = place.join(MEMORY);
    let whole = fs::read(&path).unwrap();
    for length in [0, 1, PAGE, MEMORY_SIZE - 1, MEMORY_SIZE, MEMORY_SIZE + 1, MEMORY_SIZE + PAGE + 1, 1 << 40]
    {
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(length).unwrap();
        assert!(matches!(read(&place), Err(Error::Length { .. })), "{length}");
    }
    fs::write(&path, &whole).unwrap();
    read(&place).unwrap();
    fs::copy(other.join(MEMORY), &path).unwrap();
    let error = read(&place).unwrap_err();
    assert!(matches!(error, Error::OtherMemory { .. }), "{error}");
    fs::remove_file(&path).unwrap();
    assert!(read(&place).unwrap_err().to_string().contains("cannot open"));
}

#[test]
fn a_check_finds_every_page_that_has_changed() {
    let scratch = Scratch::new();
    let place = scratch.path("snapshot");
    write(&place);
    let file = fs::OpenOptions::new().read(true).write(true).open(place.join(MEMORY)).unwrap();
    let check = || Snapshot::open(&place).unwrap().check();
    for offset in (0..MEMORY_SIZE).step_by(PAGE as usize) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset + 77).unwrap();
        file.write_all_at(&[byte[0] ^ 1], offset + 77).unwrap();
        let error = check().expect_err("a byte has changed").to_string();
        let chunk = offset / (1 << 20) * (1 << 20);
        assert!(error.contains(&format!("the MiB at {chunk:#x}")), "{error}");
        file.write_all_at(&byte, offset + 77).unwrap();
    }
    // A page of zeroes is what a hole is.
    check().unwrap();
}

#[test]
fn what_is_no_snapshot_is_refused_at_once() {
    let scratch = Scratch::new();
    let place = scratch.path("snapshot");
    let refused = || Snapshot::open(&place).map(drop).unwrap_err().to_string();
    assert!(refused().contains("there is no such directory"), "{}", refused());
    fs::create_dir(&place).unwrap();
    assert!(refused().contains("there is no snapshot in"), "{}", refused());
    let state = place.join(STATE);
    fs::write(&state, vec![b'x'; 4096]).unwrap();
    assert!(refused().contains("does not begin with LODGSNAP"), "{}", refused());
    fs::remove_file(&state).unwrap();
    fs::create_dir(&state).unwrap();
    assert!(refused().contains("no ordinary file"), "{}", refused());
    fs::remove_dir(&state).unwrap();
    let name = std::ffi::CString::new(state.to_str().unwrap()).unwrap();
    // SAFETY: a string with an end.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    assert!(refused().contains("no ordinary file"), "{}", refused());
}
