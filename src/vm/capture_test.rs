use std::fs;
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::devices::Collected;
use crate::hv::fake::{FakeHypervisor, FakeVm};
use crate::snapshot::testing::Scratch;
use crate::vm::{Completion, Config, MemorySpec, Timeline};

const MIB: u64 = 1 << 20;

fn hypervisor() -> FakeHypervisor {
    FakeHypervisor::new([])
}

fn config() -> Config {
    Config { completion: Completion::Off, memory: MemorySpec::of_size(16 * MIB), ..Config::default() }
}

fn machine() -> Machine<FakeVm> {
    Machine::new(&hypervisor(), &config(), Arc::new(Collected::default())).unwrap()
}

fn restore(place: &Path) -> Result<Machine<FakeVm>, Error> {
    let snapshot = Snapshot::open(place)?;
    let console = Arc::new(Collected::default());
    Machine::restore(&hypervisor(), &config(), &snapshot, console, &mut Timeline::start())
}

/// All pages that are not zeroes, but for the one with the id that every machine has of its own.
fn contents(machine: &Machine<FakeVm>) -> Vec<(u64, Vec<u8>)> {
    let mut pages = Vec::new();
    let each = |offset: u64, run: &[u8]| {
        let run = run.chunks(PAGE_SIZE as usize).map(<[u8]>::to_vec);
        pages.extend((offset..).step_by(PAGE_SIZE as usize).zip(run));
        Ok::<_, Error>(())
    };
    machine.memory().each_run(each).unwrap();
    let own = machine.parts.generation_id.map(|address| address / PAGE_SIZE * PAGE_SIZE);
    pages.retain(|(offset, _)| Some(*offset) != own);
    pages
}

fn put(machine: &Machine<FakeVm>, page: u64, value: u8) {
    machine.memory().mapped().write_obj(value, GuestAddress(8 * MIB + page * PAGE_SIZE)).unwrap();
}

fn take(machine: &Machine<FakeVm>, place: &Path, base: Option<&Path>) -> Result<Info, Error> {
    machine.begin_snapshot(place, base)?.complete(machine, &hypervisor())?.finish()
}

/// Whether this host tells what changes; if not, there is nothing to test.
fn tells(machine: &Machine<FakeVm>) -> bool {
    machine.memory().written_pages().inspect_err(|reason| println!("{reason}")).is_ok()
}

#[test]
fn what_changes_while_it_is_copied_is_copied_again() {
    let scratch = Scratch::new();
    let place = scratch.path("snapshot");
    let machine = machine();
    (0..600).for_each(|page| put(&machine, page, 1));
    let mut capture = machine.begin_snapshot(&place, None).unwrap();
    put(&machine, 3, 2);
    let mut reports = Vec::new();
    let report = &mut |progress: Progress| {
        // Somewhere in the middle, again and again.
        if progress.done < 4 * MIB {
            put(&machine, reports.len() as u64 % 900, 3);
        }
        reports.push(progress);
    };
    capture.copy(report).unwrap();
    if capture.untracked().is_none() {
        assert!(reports.windows(2).all(|pair| pair[0].done <= pair[1].done));
        let last = reports.last().unwrap();
        assert!(last.done == last.total && last.total >= 600 * PAGE_SIZE, "{last:?}");
    }
    put(&machine, 5, 0);
    put(&machine, 2000, 9);
    put(&machine, 7, 7);
    let drafted = capture.complete(&machine, &hypervisor()).unwrap();
    let expected = contents(&machine);
    put(&machine, 8, 8);
    drafted.finish().unwrap();
    assert!(contents(&restore(&place).unwrap()) == expected);
    Snapshot::open(&place).unwrap().check().unwrap();
}

#[test]
fn a_chain_of_diffs_is_as_good_as_a_full_snapshot() {
    let scratch = Scratch::new();
    let mut current = machine();
    if !tells(&current) {
        return;
    }
    (0..200).for_each(|page| put(&current, page, 1));
    let mut base = scratch.path("full");
    take(&current, &base, None).unwrap();
    for number in 1..=5_u64 {
        for page in 0..number * 7 {
            put(&current, page * number * 3 % 500, (page % 4) as u8);
        }
        current.memory().give_back(8 * MIB + 190 * PAGE_SIZE, number * PAGE_SIZE).unwrap();
        let place = scratch.path(&format!("diff {number}"));
        let info = take(&current, &place, Some(&base)).unwrap();
        let snapshot = Snapshot::open(&place).unwrap();
        assert_eq!(snapshot.info().id, info.id);
        let changed = snapshot.changes().unwrap().unwrap().pages();
        assert!(changed <= number * 8 + 4, "{changed} pages");
        snapshot.check().unwrap();
        let restored = restore(&place).unwrap();
        assert!(contents(&restored) == contents(&current), "after {number}");
        // What was restored goes on from there as well.
        if number % 2 == 0 {
            current = restored;
        }
        base = place;
    }
    let full = scratch.path("another");
    let expected = contents(&current);
    take(&current, &full, None).unwrap();
    assert!(!Snapshot::open(&full).unwrap().is_diff());
    assert!(contents(&restore(&full).unwrap()) == expected);
    assert!(contents(&restore(&base).unwrap()) == expected);
}

#[test]
fn a_snapshot_that_fails_forgets_nothing_that_changed() {
    let scratch = Scratch::new();
    let [full, one, two] = ["full", "one", "two"].map(|name| scratch.path(name));
    let machine = machine();
    if !tells(&machine) {
        return;
    }
    take(&machine, &full, None).unwrap();
    put(&machine, 1, 1);
    drop(machine.begin_snapshot(&one, Some(&full)).unwrap());
    put(&machine, 2, 1);
    let mut capture = machine.begin_snapshot(&one, None).unwrap();
    capture.copy(&mut |_| {}).unwrap();
    put(&machine, 3, 1);
    drop(capture.complete(&machine, &hypervisor()).unwrap());
    put(&machine, 4, 1);
    // It goes wrong at the very end.
    let capture = machine.begin_snapshot(&one, None).unwrap();
    let drafted = capture.complete(&machine, &hypervisor()).unwrap();
    fs::write(&one, b"a letter").unwrap();
    assert!(drafted.finish().is_err());
    put(&machine, 5, 1);
    take(&machine, &two, Some(&full)).unwrap();
    let changed: Vec<_> =
        Snapshot::open(&two).unwrap().changes().unwrap().unwrap().runs().flatten().collect();
    let first = 8 * MIB / PAGE_SIZE;
    assert_eq!(changed, (first + 1..first + 6).collect::<Vec<_>>());
    assert!(contents(&restore(&two).unwrap()) == contents(&machine));
}

#[test]
fn what_a_diff_cannot_build_on_is_refused() {
    let scratch = Scratch::new();
    let [full, one, two, other] = ["full", "one", "two", "other"].map(|name| scratch.path(name));
    let machine = machine();
    if !tells(&machine) {
        return;
    }
    let refused = |place: &Path, base: &Path| {
        let error = machine.begin_snapshot(place, Some(base)).map(drop).unwrap_err();
        error.to_string()
    };
    assert!(refused(&one, &full).contains("there is no snapshot in"), "{}", refused(&one, &full));
    take(&super::tests::machine(), &other, None).unwrap();
    assert!(refused(&one, &other).contains("not the last snapshot of this machine"));
    take(&machine, &full, None).unwrap();
    assert!(refused(&one, &other).contains("not the last snapshot of this machine"));
    assert!(refused(&full, &full).contains("would replace what it builds on"));
    take(&machine, &one, Some(&full)).unwrap();
    assert!(refused(&two, &full).contains("not the last snapshot of this machine"));
    assert!(refused(&full, &one).contains("would replace what it builds on"));
    {
        let _capture = machine.begin_snapshot(&two, Some(&one)).unwrap();
        let error = machine.begin_snapshot(&other, None).map(drop).unwrap_err();
        assert!(matches!(error, Error::Capture(CannotCapture::Busy)), "{error}");
    }
    fs::remove_dir_all(&full).unwrap();
    assert!(refused(&two, &one).contains("which cannot be used"), "{}", refused(&two, &one));
    let error = restore(&one).map(drop).unwrap_err().to_string();
    assert!(error.contains("full") && error.contains("which cannot be used"), "{error}");
    take(&machine, &two, None).unwrap();
}

#[test]
fn there_are_no_more_layers_than_can_be_restored() {
    let scratch = Scratch::new();
    let place = |number: usize| scratch.path(&number.to_string());
    let machine = machine();
    if !tells(&machine) {
        return;
    }
    take(&machine, &place(0), None).unwrap();
    for number in 1..MOST_LAYERS {
        put(&machine, number as u64, 1);
        take(&machine, &place(number), Some(&place(number - 1))).unwrap();
    }
    assert!(contents(&restore(&place(MOST_LAYERS - 1)).unwrap()) == contents(&machine));
    let error = machine.begin_snapshot(&place(MOST_LAYERS), Some(&place(MOST_LAYERS - 1))).map(drop);
    assert!(matches!(error, Err(Error::Capture(CannotCapture::TooManyLayers { .. }))));
}
