use std::collections::BTreeMap;
use std::fs::File;
use std::time::Instant;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::memory::{HOLE_END, HOLE_START, Layout, Options};

const MIB: u64 = 1 << 20;

fn map(size: u64) -> GuestMemory {
    GuestMemory::map(Layout::new(size, 48).unwrap(), Options::default()).unwrap()
}

/// The pages of the memory's image that are not zeroes.
fn pages(memory: &GuestMemory) -> BTreeMap<u64, Vec<u8>> {
    let mut pages = BTreeMap::new();
    let mut end = 0;
    let each = |offset: u64, run: &[u8]| {
        assert!(offset >= end && offset.is_multiple_of(PAGE_SIZE));
        end = offset + run.len() as u64;
        let offsets = (offset..).step_by(PAGE_SIZE as usize);
        pages.extend(offsets.zip(run.chunks_exact(PAGE_SIZE as usize).map(<[u8]>::to_vec)));
        Ok::<_, Error>(())
    };
    memory.each_run(each).unwrap();
    pages
}

fn file(size: u64) -> File {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("lodger-image-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let path = std::env::temp_dir().join(name);
    let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    file.set_len(size).unwrap();
    file
}

fn write(memory: &GuestMemory) -> File {
    let file = file(memory.layout().size());
    memory.each_run(|offset, run| file.write_all_at(run, offset).map_err(Error::Fill)).unwrap();
    file
}

fn put(memory: &GuestMemory, address: u64, value: u8) {
    memory.mapped().write_obj(value, GuestAddress(address)).unwrap();
}

fn get(memory: &GuestMemory, address: u64) -> u8 {
    memory.mapped().read_obj(GuestAddress(address)).unwrap()
}

#[test]
fn only_pages_that_are_not_zero_are_written() {
    let memory = map(128 * MIB);
    assert!(pages(&memory).is_empty());
    for page in [0, 1, 5, 63, 64, 65, 128, 32767] {
        put(&memory, page * PAGE_SIZE + 4095, 1);
    }
    put(&memory, 6 * PAGE_SIZE, 0);
    // Read, and so there: a page of zeroes all the same.
    assert_eq!(get(&memory, 7 * PAGE_SIZE), 0);
    let found: Vec<_> = pages(&memory).into_keys().map(|offset| offset / PAGE_SIZE).collect();
    assert_eq!(found, [0, 1, 5, 63, 64, 65, 128, 32767]);
}

#[test]
fn memory_behind_the_hole_follows_that_before_it() {
    let memory = map(HOLE_START + 2 * MIB);
    put(&memory, HOLE_START - 1, 1);
    put(&memory, HOLE_END + PAGE_SIZE, 2);
    let found: Vec<_> = pages(&memory).into_keys().collect();
    assert_eq!(found, [HOLE_START - PAGE_SIZE, HOLE_START + PAGE_SIZE]);
    let image = write(&memory);
    let copy = GuestMemory::map_image(memory.layout().clone(), Options::default(), image).unwrap();
    assert_eq!((get(&copy, HOLE_START - 1), get(&copy, HOLE_END + PAGE_SIZE)), (1, 2));
    assert_eq!(pages(&copy), pages(&memory));
}

#[test]
fn an_image_is_copied_when_it_is_written_and_can_be_written_down_again() {
    let memory = map(4 * MIB);
    (0..1024).step_by(3).for_each(|page| put(&memory, page * PAGE_SIZE + page, 7));
    let image = write(&memory);
    let layout = memory.layout().clone();
    let copy =
        || GuestMemory::map_image(layout.clone(), Options::default(), image.try_clone().unwrap()).unwrap();
    let (one, other) = (copy(), copy());
    assert_eq!(pages(&one), pages(&memory));
    put(&one, 3 * PAGE_SIZE + 3, 9);
    put(&one, PAGE_SIZE, 8);
    put(&one, 6 * PAGE_SIZE + 6, 0);
    assert_eq!((get(&one, 3 * PAGE_SIZE + 3), get(&other, 3 * PAGE_SIZE + 3)), (9, 7));
    assert_eq!(pages(&other), pages(&memory));
    let mut expected = pages(&memory);
    expected.get_mut(&(3 * PAGE_SIZE)).unwrap()[3] = 9;
    expected.remove(&(6 * PAGE_SIZE));
    let mut page = vec![0; PAGE_SIZE as usize];
    page[0] = 8;
    expected.insert(PAGE_SIZE, page);
    assert_eq!(pages(&one), expected);
}

#[test]
fn what_is_given_back_of_an_image_is_zero_and_stays_so() {
    let memory = map(4 * MIB);
    (0..1024).for_each(|page| put(&memory, page * PAGE_SIZE, 7));
    let copy = GuestMemory::map_image(memory.layout().clone(), Options::default(), write(&memory)).unwrap();
    put(&copy, 10 * PAGE_SIZE, 9);
    assert_eq!(copy.give_back(8 * PAGE_SIZE, 5 * PAGE_SIZE).unwrap(), 5 * PAGE_SIZE);
    assert_eq!([7, 8, 10, 12, 13].map(|page| get(&copy, page * PAGE_SIZE)), [7, 0, 0, 0, 7]);
    put(&copy, 8 * PAGE_SIZE, 1);
    let found = pages(&copy);
    assert_eq!(found.len(), 1024 - 4);
    assert!(!found.contains_key(&(10 * PAGE_SIZE)) && found[&(8 * PAGE_SIZE)][0] == 1);
}

#[test]
fn a_fresh_mapping_is_filled_from_an_image() {
    let memory = map(4 * MIB);
    (0..1024).step_by(5).for_each(|page| put(&memory, page * PAGE_SIZE, 7));
    let image = Image::from(write(&memory));
    let fresh = map(4 * MIB);
    for region in fresh.mapped().iter() {
        image.fill(region, 0).unwrap();
    }
    assert_eq!(pages(&fresh), pages(&memory));
}

/// The comparison is one of the same run: a machine that is busy is so for both.
#[test]
fn pages_that_nobody_touched_cost_next_to_nothing_and_stay_untouched() {
    let (large, small) = (map(1024 * MIB), map(8 * MIB));
    put(&large, 512 * MIB, 1);
    (0..2048).for_each(|page| put(&small, page * PAGE_SIZE, 1));
    let time = |memory: &GuestMemory| {
        let start = Instant::now();
        let count = pages(memory).len();
        (start.elapsed(), count)
    };
    let (of_large, found) = time(&large);
    let (of_small, all) = time(&small);
    println!("1 GiB with one page: {of_large:?}, 8 MiB of pages: {of_small:?}");
    assert_eq!((found, all), (1, 2048));
    let image = write(&large);
    drop(GuestMemory::map_image(large.layout().clone(), Options::default(), image).unwrap());
    // What neighbours have in memory, with which the kernel may count it as one mapping, is none of its affair.
    let resident = large.touched_pages().unwrap().count();
    assert!(resident < 2048, "{resident} pages");
}
