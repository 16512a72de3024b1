use std::fs;
use std::os::unix::fs::FileExt;

use super::*;
use crate::snapshot::testing::{LAMP, Lamp, MEMORY_SIZE, Scratch, page, sections, write};
use crate::snapshot::{Draft, Info, MEMORY, MemoryChanges, PAGE, STATE};

/// Writes a diff that has these pages.
fn write_diff(place: &Path, base: &Path, pages: &[(u64, u8)]) -> Info {
    let id = Snapshot::open(base).unwrap().info().id;
    let mut draft = Draft::begin(place, MEMORY_SIZE).unwrap();
    for &(number, filling) in pages {
        draft.put(number * PAGE, &page(filling)).unwrap();
    }
    let runs = pages.iter().map(|&(number, _)| number..number + 1);
    let changes = MemoryChanges::new(place, base, id, runs).unwrap();
    draft.finish([sections(), vec![changes.section()]].concat()).unwrap()
}

/// As a machine does that is restored, up to the memory's content.
fn read(place: &Path) -> Result<Vec<Layer>, Error> {
    let snapshot = Snapshot::open(place)?;
    let mut found = snapshot.sections()?;
    assert_eq!(found.take::<Lamp>("lamp/0")?, LAMP);
    found.take::<Lamp>("lamp/1")?;
    found.finish()?;
    snapshot.layers()
}

/// What is at the beginning of a page, by the layers.
fn value(layers: &[Layer], number: u64) -> u8 {
    let has = |layer: &&Layer| {
        layer.pages.as_ref().is_none_or(|pages| pages.iter().any(|run| run.contains(&number)))
    };
    let layer = layers.iter().rev().find(has).unwrap();
    let mut byte = [0];
    layer.file.read_exact_at(&mut byte, number * PAGE).unwrap();
    byte[0]
}

#[test]
fn diffs_build_on_each_other() {
    let scratch = Scratch::new();
    let places = ["full", "one", "two"].map(|name| scratch.path(name));
    let [full, one, two] = &places;
    write(full);
    write_diff(one, full, &[(2, 12), (5, 15), (255, 0)]);
    write_diff(two, one, &[(1, 0), (2, 22)]);
    let layers = read(two).unwrap();
    assert_eq!(layers.len(), 3);
    assert_eq!([0, 1, 2, 5, 6, 255].map(|number| value(&layers, number)), [0, 0, 22, 15, 0, 0]);
    assert_eq!([1, 2, 5].map(|number| value(&read(one).unwrap(), number)), [1, 12, 15]);
    assert_eq!(value(&read(full).unwrap(), 255), 3);
    Snapshot::open(two).unwrap().check().unwrap();
    let snapshot = Snapshot::open(two).unwrap();
    assert!(snapshot.is_diff() && !Snapshot::open(full).unwrap().is_diff());
    assert_eq!(snapshot.base(&snapshot.changes().unwrap().unwrap()), two.join("../one"));
    for place in &places {
        assert!(is_built_on(&snapshot, place).unwrap());
    }
    assert!(!is_built_on(&snapshot, &scratch.path("three")).unwrap());
}

#[test]
fn what_is_built_on_is_found_where_it_was_moved_with() {
    let scratch = Scratch::new();
    let (full, one) = (scratch.path("full"), scratch.path("one"));
    write(&full);
    write_diff(&one, &full, &[(2, 12)]);
    let elsewhere = scratch.path("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::rename(&one, elsewhere.join("one")).unwrap();
    let error = read(&elsewhere.join("one")).unwrap_err();
    assert!(matches!(error, Error::Base { .. }), "{error}");
    let snapshot = Snapshot::open(&elsewhere.join("one")).unwrap();
    let snapshot = snapshot.with_bases(std::slice::from_ref(&full)).unwrap();
    assert_eq!(value(&snapshot.layers().unwrap(), 2), 12);
    snapshot.check().unwrap();
    fs::rename(&full, elsewhere.join("full")).unwrap();
    assert_eq!(read(&elsewhere.join("one")).unwrap().len(), 2);
}

#[test]
fn whatever_is_below_is_found_by_its_number_where_it_is_said_to_be() {
    let scratch = Scratch::new();
    let places = ["full", "one", "two", "three"].map(|name| scratch.path(name));
    write(&places[0]);
    (1..4).for_each(|number| drop(write_diff(&places[number], &places[number - 1], &[(number as u64, 9)])));
    let moved = ["a", "b"].map(|name| scratch.path(name));
    // All but the last two.
    fs::rename(&places[0], &moved[0]).unwrap();
    fs::rename(&places[1], &moved[1]).unwrap();
    let open = |bases: &[PathBuf]| Snapshot::open(&places[3]).unwrap().with_bases(bases);
    for bases in [moved.clone(), [moved[1].clone(), moved[0].clone()]] {
        let layers = open(&bases).unwrap().layers().unwrap();
        assert_eq!([1, 2, 3].map(|number| value(&layers, number)), [9; 3]);
    }
    // The one that is still missing is named, with what to do.
    for (given, missing) in [(0, "two/../one"), (1, "b/../full")] {
        let error = open(&moved[given..=given]).unwrap().layers().unwrap_err().to_string();
        assert!(error.contains(missing) && error.contains("(--base DIR)"), "{error}");
    }
    // One that nobody needs is said to be that, and one that was used is not.
    let other = scratch.path("other");
    let id = write(&other).id_in_hex();
    let error = open(&[moved[1].clone(), other.clone()]).unwrap().layers().unwrap_err().to_string();
    let end = format!("other is snapshot {id}, on which none that was found builds");
    assert!(error.ends_with(&end) && !error.contains("b is snapshot"), "{error}");
    let error = open(std::slice::from_ref(&other)).unwrap().layers().unwrap_err().to_string();
    assert!(error.contains("two/../one") && error.ends_with(&end), "{error}");
    // In its place is another one.
    write(&places[1]);
    assert_eq!(open(&moved).unwrap().bases().unwrap().len(), 3);
    let error = open(&moved[..1]).unwrap().layers().unwrap_err();
    assert!(
        matches!(error, Error::OtherBase { .. }) && error.to_string().contains("(--base DIR)"),
        "{error}"
    );
    assert!(open(&[scratch.path("nowhere")]).unwrap_err().to_string().contains("nowhere"));
}

#[test]
fn a_base_that_was_replaced_is_noticed() {
    let scratch = Scratch::new();
    let (full, one) = (scratch.path("full"), scratch.path("one"));
    write(&full);
    write_diff(&one, &full, &[(2, 12)]);
    write(&full);
    let error = read(&one).unwrap_err();
    assert!(matches!(error, Error::OtherBase { .. }), "{error}");
    assert!(Snapshot::open(&one).unwrap().check().is_err());
    fs::write(full.join(STATE), b"LODGSNAP").unwrap();
    let error = read(&one).unwrap_err().to_string();
    assert!(error.contains("which cannot be used") && error.contains("shorter than a header"), "{error}");
}

#[test]
fn a_damaged_base_is_found_by_a_check() {
    let scratch = Scratch::new();
    let (full, one) = (scratch.path("full"), scratch.path("one"));
    write(&full);
    write_diff(&one, &full, &[(2, 12)]);
    let check = || Snapshot::open(&one).unwrap().check();
    check().unwrap();
    for (place, number) in [(&full, 7), (&one, 2)] {
        let file = fs::OpenOptions::new().read(true).write(true).open(place.join(MEMORY)).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, number * PAGE).unwrap();
        file.write_all_at(&[byte[0] ^ 1], number * PAGE).unwrap();
        let error = check().unwrap_err().to_string();
        assert!(error.contains(place.file_name().unwrap().to_str().unwrap()), "{error}");
        file.write_all_at(&byte, number * PAGE).unwrap();
    }
    check().unwrap();
    fs::OpenOptions::new().write(true).open(full.join(MEMORY)).unwrap().set_len(PAGE).unwrap();
    assert!(matches!(read(&one).unwrap_err(), Error::Length { .. }));
}

#[test]
fn there_is_an_end_to_diffs_upon_diffs() {
    let scratch = Scratch::new();
    let place = |number: usize| scratch.path(&number.to_string());
    write(&place(0));
    for number in 1..=MOST_LAYERS {
        write_diff(&place(number), &place(number - 1), &[(number as u64, 1)]);
    }
    assert_eq!(read(&place(MOST_LAYERS - 1)).unwrap().len(), MOST_LAYERS);
    let error = read(&place(MOST_LAYERS)).unwrap_err();
    assert!(matches!(error, Error::TooManyLayers { .. }), "{error}");
}

#[test]
fn a_circle_is_refused() {
    let scratch = Scratch::new();
    let one = scratch.path("one");
    let mut draft = Draft::begin(&one, MEMORY_SIZE).unwrap();
    draft.put(0, &page(1)).unwrap();
    fs::create_dir(&one).unwrap();
    let changes = MemoryChanges::new(&one, &one, draft.id(), std::iter::once(0..1)).unwrap();
    draft.finish([sections(), vec![changes.section()]].concat()).unwrap();
    let error = read(&one).unwrap_err();
    assert!(matches!(error, Error::TooManyLayers { .. }), "{error}");
}

#[test]
fn every_byte_of_a_diffs_state_that_is_changed_and_every_length_is_noticed() {
    let scratch = Scratch::new();
    let (full, one) = (scratch.path("full"), scratch.path("one"));
    write(&full);
    write_diff(&one, &full, &[(2, 12), (5, 15), (255, 0)]);
    let path = one.join(STATE);
    let whole = fs::read(&path).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    for (at, &byte) in (0..).zip(&whole) {
        for changed in [byte ^ 1 << (at % 8), !byte] {
            file.write_all_at(&[changed], at).unwrap();
            read(&one).expect_err(&format!("byte {at}"));
        }
        file.write_all_at(&[byte], at).unwrap();
    }
    read(&one).unwrap();
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        read(&one).expect_err(&format!("{length} bytes"));
    }
}
