//! Images on a file system that runs full: what is written fails, nothing is damaged, and with room again all goes on.

use std::ffi::CString;
use std::fs::File;
use std::mem;
use std::os::fd::AsRawFd;
use std::path::Path;

use lodger::storage::{Disk, DiskOptions, Storage};
use vm_memory::VolatileSlice;

use crate::small_file_system::small_file_system;
use crate::support::Place;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 20 << 10;

fn open(path: &Path) -> Disk {
    Disk::open(path, &DiskOptions::default()).unwrap()
}

/// Blocks all over a disk of 16 MiB, so that clusters and tables are made at many places.
fn place_of(number: u64) -> u64 {
    number * 37 % 400 * (40 << 10)
}

fn content_of(number: u64) -> Vec<u8> {
    (number + 1).to_le_bytes().repeat(BLOCK as usize / 8)
}

fn write(disk: &Disk, number: u64) -> std::io::Result<()> {
    disk.write(place_of(number), &[VolatileSlice::from(&mut content_of(number)[..])])
}

fn has(disk: &Disk, number: u64) -> bool {
    let mut bytes = vec![0; BLOCK as usize];
    disk.read(place_of(number), &[VolatileSlice::from(&mut bytes[..])]).unwrap();
    bytes == content_of(number)
}

/// Leaves `room` bytes, and gives the file that takes the others. To free them it is made shorter: the file itself may
/// be open for a moment in a process that another test starts.
fn fill(dir: &Path, room: u64) -> File {
    let filler = File::create(dir.join("filler")).unwrap();
    let length = room_in(dir).saturating_sub(room);
    // SAFETY: makes a file of ours longer.
    let result = unsafe { libc::posix_fallocate(filler.as_raw_fd(), 0, length as libc::off_t) };
    assert_eq!((result, room_in(dir)), (0, room));
    filler
}

fn room_in(dir: &Path) -> u64 {
    let path = CString::new(dir.to_str().unwrap()).unwrap();
    // SAFETY: all zeroes is a valid value of this structure of numbers.
    let mut status: libc::statvfs = unsafe { mem::zeroed() };
    // SAFETY: the path ends with a zero, and the structure is ours.
    assert_eq!(unsafe { libc::statvfs(path.as_ptr(), &mut status) }, 0);
    status.f_bavail * status.f_bsize
}

/// Writes blocks until one fails with the error of a file system that is full; how many there were.
fn write_until_full(disk: &Disk) -> u64 {
    for number in 0..400 {
        if let Err(error) = write(disk, number) {
            assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error:?}");
            return number;
        }
    }
    panic!("the file system is not full");
}

/// Tries it with each amount of room, so that whatever is allocated is once what does not fit.
fn run_full(format: &str, goes_on: bool, step: usize) {
    let place = Place::new();
    let dir = place.dir();
    small_file_system(dir, 4 * MIB, || {
        for room in (0..70).step_by(step).map(|pages| pages * 4096) {
            let name = format!("image.{format}");
            let (status, said) =
                when_unlocked(&place, &format!("create {name} --size 16M --format {format} --force"));
            assert_eq!(status, Some(0), "{said}");
            let filler = fill(dir, room);
            let path = dir.join(&name);
            let disk = open(&path);
            let mut written = write_until_full(&disk);
            // Other requests are none of those that need room.
            disk.read(0, &[VolatileSlice::from(&mut [0; 4096][..])]).unwrap();
            let flushed = disk.flush();
            let disk = if goes_on {
                filler.set_len(0).unwrap();
                disk
            } else {
                drop(disk);
                check(&place, &name, room);
                filler.set_len(0).unwrap();
                // What was not flushed may be lost.
                written = if flushed.is_ok() { written } else { 0 };
                open(&path)
            };
            for number in written..written + 40 {
                write(&disk, number).unwrap();
            }
            disk.flush().unwrap();
            for number in 0..written + 40 {
                assert!(has(&disk, number), "{room} {number} of {written}");
            }
            drop(disk);
            check(&place, &name, room);
        }
    });
}

fn check(place: &Place, name: &str, room: u64) {
    if name.ends_with("qcow2") {
        let (status, said) = when_unlocked(place, &format!("check {name}"));
        assert_eq!(status, Some(0), "with room for {room}: {said}");
    }
}

/// A lock may live on for a moment in a process that another test starts, until that becomes its program.
fn when_unlocked(place: &Place, line: &str) -> (Option<i32>, String) {
    (0..500)
        .map(|_| place.try_disk(line))
        .find(|(_, said)| !said.contains("is in use"))
        .expect("the lock goes away")
}

#[test]
fn a_raw_image_survives_a_full_file_system() {
    run_full("raw", true, 9);
}

#[test]
fn an_image_goes_on_when_its_file_system_is_no_longer_full() {
    run_full("qcow2", true, 2);
}

#[test]
fn an_image_that_is_closed_on_a_full_file_system_is_sound() {
    run_full("qcow2", false, 3);
}
