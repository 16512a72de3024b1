use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::memory::{Error, HOLE_END, HOLE_START, Image, Layout, Options, Overlay};

const MIB: u64 = 1 << 20;

fn map(size: u64, options: Options) -> GuestMemory {
    GuestMemory::map(Layout::new(size, 48).unwrap(), options).unwrap()
}

fn put(memory: &GuestMemory, page: u64, value: u8) {
    memory.mapped().write_obj(value, GuestAddress(page * PAGE_SIZE + 9)).unwrap();
}

fn get(memory: &GuestMemory, page: u64) -> u8 {
    memory.mapped().read_obj(GuestAddress(page * PAGE_SIZE + 9)).unwrap()
}

/// The pages that were written, or nothing where no kernel tells.
fn written(memory: &GuestMemory) -> Option<Vec<u64>> {
    match memory.written_pages() {
        Ok(pages) => Some(pages.runs().flatten().collect()),
        Err(reason) => {
            println!("{reason}");
            None
        }
    }
}

/// An image of so many pages; page `n` begins with `value(n)`.
fn image(pages: u64, value: impl Fn(u64) -> u8) -> File {
    use std::os::unix::fs::FileExt;
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("lodger-dirty-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let path = std::env::temp_dir().join(name);
    let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    file.set_len(pages * PAGE_SIZE).unwrap();
    for page in (0..pages).filter(|&page| value(page) != 0) {
        file.write_all_at(&[value(page)], page * PAGE_SIZE + 9).unwrap();
    }
    file
}

fn map_image(image: impl Into<Image>, options: Options) -> GuestMemory {
    GuestMemory::map_image(Layout::new(4 * MIB, 48).unwrap(), options, image).unwrap()
}

#[test]
fn what_is_written_is_told_once() {
    for options in [Options::default(), Options { prefault: true, ..Options::default() }] {
        let memory = map(64 * MIB, options);
        put(&memory, 5, 1);
        if written(&memory).is_none() {
            return;
        }
        assert_eq!(written(&memory).unwrap(), [0_u64; 0]);
        for page in [5, 6, 700, 16383] {
            put(&memory, page, 2);
        }
        // Reading is not writing, whether there is something or not.
        for page in [5, 9, 8000] {
            get(&memory, page);
        }
        assert_eq!(written(&memory).unwrap(), [5, 6, 700, 16383]);
        assert_eq!(written(&memory).unwrap(), [0_u64; 0]);
        for page in [9, 8000, 700] {
            put(&memory, page, 3);
        }
        assert_eq!(written(&memory).unwrap(), [9, 700, 8000]);
    }
}

#[test]
fn the_first_answer_is_what_was_ever_written() {
    let memory = map(HOLE_START + 2 * MIB, Options::default());
    put(&memory, 3, 1);
    put(&memory, HOLE_START / PAGE_SIZE - 1, 1);
    put(&memory, HOLE_END / PAGE_SIZE + 1, 1);
    let last = HOLE_START / PAGE_SIZE;
    let Some(found) = written(&memory) else { return };
    assert_eq!(found, [3, last - 1, last + 1]);
    put(&memory, HOLE_END / PAGE_SIZE, 1);
    assert_eq!(written(&memory).unwrap(), [last]);
}

#[test]
fn what_the_kernel_writes_for_the_process_counts() {
    let memory = map(4 * MIB, Options::default());
    if written(&memory).is_none() {
        return;
    }
    // As a disk does that reads straight into the guest's memory.
    let mut source = File::open("/proc/self/maps").unwrap();
    memory.mapped().read_volatile_from(GuestAddress(20 * PAGE_SIZE), &mut source, 16).unwrap();
    assert_eq!(written(&memory).unwrap(), [20]);
}

#[test]
fn what_is_given_back_has_changed() {
    let memory = map(8 * MIB, Options::default());
    (0..2048).for_each(|page| put(&memory, page, 1));
    memory.give_back(30 * PAGE_SIZE, 2 * PAGE_SIZE).unwrap();
    if written(&memory).is_none() {
        return;
    }
    memory.give_back(8 * PAGE_SIZE, 3 * PAGE_SIZE).unwrap();
    memory.give_back(1024 * PAGE_SIZE, 1024 * PAGE_SIZE).unwrap();
    let expected: Vec<_> = (8..11).chain(1024..2048).collect();
    assert_eq!(written(&memory).unwrap(), expected);
    put(&memory, 9, 1);
    assert!(written(&memory).unwrap().contains(&9));
    let mut pages = Vec::new();
    memory
        .each_run(|offset, run| {
            pages.extend((offset..offset + run.len() as u64).step_by(4096).map(|offset| offset / 4096));
            Ok::<_, Error>(())
        })
        .unwrap();
    let expected: Vec<_> = [0..8, 9..10, 11..30, 32..1024].into_iter().flatten().collect();
    assert_eq!(pages, expected);
}

#[test]
fn of_an_image_only_what_was_written_has_changed() {
    let memory = map_image(image(1024, |page| (page % 3) as u8), Options::default());
    for page in [1, 2, 3, 4, 700] {
        get(&memory, page);
    }
    for page in [2, 3, 500] {
        put(&memory, page, 7);
    }
    memory.give_back(40 * PAGE_SIZE, 4 * PAGE_SIZE).unwrap();
    let Some(found) = written(&memory) else { return };
    assert_eq!(found, [2, 3, 40, 41, 42, 43, 500]);
    for page in [5, 6, 7, 500] {
        get(&memory, page);
    }
    assert_eq!(written(&memory).unwrap(), [0_u64; 0]);
    for page in [4, 6, 500] {
        put(&memory, page, 8);
    }
    assert_eq!(written(&memory).unwrap(), [4, 6, 500]);
    // In new memory, which has to be watched as the old was.
    memory.give_back(50 * PAGE_SIZE, 2 * PAGE_SIZE).unwrap();
    assert_eq!(written(&memory).unwrap(), [50, 51]);
    put(&memory, 51, 1);
    put(&memory, 41, 1);
    assert_eq!(written(&memory).unwrap(), [41, 51]);
    assert_eq!([49, 50, 51, 52].map(|page| get(&memory, page)), [1, 0, 1, 1]);
}

#[test]
fn what_was_copied_out_of_an_image_has_not_changed() {
    let memory =
        map_image(image(1024, |page| (page % 3) as u8), Options { prefault: true, ..Options::default() });
    put(&memory, 2, 7);
    let Some(found) = written(&memory) else { return };
    assert_eq!(found, [2]);
}

#[test]
fn overlays_cover_what_is_below_them() {
    let overlay = |pages: &[Range<u64>], value: u8| {
        let pages: PageSet = pages.iter().cloned().collect();
        let file = image(1024, |page| if pages.contains(page) && page % 5 != 0 { value } else { 0 });
        Overlay { file, pages }
    };
    let layered = || {
        let overlays = vec![
            overlay(&[0..2, 10..20, 1000..1024], 101),
            overlay(&[11..13, 30..31], 102),
            overlay(&[12..13, 13..14], 103),
        ];
        Image::new(image(1024, |_| 100), overlays)
    };
    let expected = |page: u64| match page {
        12..14 => 103,
        page if page.is_multiple_of(5) && matches!(page, 0..2 | 10..20 | 30..31 | 1000..1024) => 0,
        11 => 102,
        0..2 | 10..20 | 1000..1024 => 101,
        _ => 100,
    };
    // Mapped, and copied for want of mappings.
    for most_pieces in [10_000, 2, 0] {
        let image = layered().with_most_pieces(most_pieces);
        let memory = map_image(image, Options::default());
        for page in 0..1024 {
            assert_eq!(get(&memory, page), expected(page), "{page} of {most_pieces}");
        }
        let mut found = 0;
        memory
            .each_run(|offset, run| {
                for (page, bytes) in (offset / PAGE_SIZE..).zip(run.chunks(PAGE_SIZE as usize)) {
                    assert_eq!(bytes[9], expected(page));
                    found += 1;
                }
                Ok::<_, Error>(())
            })
            .unwrap();
        assert_eq!(found, (0..1024).filter(|&page| expected(page) != 0).count());
        put(&memory, 12, 1);
        if let Some(found) = written(&memory) {
            assert_eq!(found, [12]);
        }
    }
    let mapping = map(4 * MIB, Options::default());
    mapping.mapped().iter().for_each(|region| layered().fill(region, 0).unwrap());
    assert!((0..1024).all(|page| get(&mapping, page) == expected(page)));
}
