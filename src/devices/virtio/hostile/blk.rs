//! Disks of each kind, attacked.

use std::fs;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Target, queues, transport};
use crate::devices::virtio::blk::Blk;
use crate::devices::virtio::testing::{BUFFERS, Driver, Numbers, Part};
use crate::devices::virtio::{Limits, Rate};
use crate::storage::testing::TempDir;
use crate::storage::{Disk, DiskOptions, Format, Repair, Storage, tools};

const HEADER: u64 = BUFFERS;
const STATUS: u64 = BUFFERS + 0x800;
const DATA: u64 = BUFFERS + 0x1000;
const SIZE: u64 = 1 << 20;
const SECTORS: u64 = SIZE / 512;

struct Attacked {
    storage: Arc<dyn Storage>,
    queues: u16,
    limits: Limits,
    /// Its image, if that has a name.
    image: Option<(TempDir, PathBuf)>,
}

impl Attacked {
    fn raw(queues: u16) -> Self {
        let storage = Disk::ephemeral(&std::env::temp_dir(), SIZE, &DiskOptions::default()).unwrap();
        Self { storage: Arc::new(storage), queues, limits: Limits::default(), image: None }
    }
}

/// A sector, mostly one that there is.
fn sector(random: &mut Numbers) -> u64 {
    match random.below(16) {
        0 => SECTORS - 1 + random.below(2),
        1 => [u64::MAX, u64::MAX / 512, u64::MAX / 512 + 1, 1 << 55][random.below(4) as usize],
        2 => 0,
        _ => random.below(SECTORS),
    }
}

/// A list of ranges, as large as may be, or too large.
fn ranges(random: &mut Numbers) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..[1, 1, 1, 2, 3, 16, 17, 0][random.below(8) as usize] {
        let sectors = [0, 1, 7, 8, 128, 2048, 1 << 21, (1 << 21) + 1, u32::MAX][random.below(9) as usize];
        let flags = [0, 0, 0, 1, 1, 2][random.below(6) as usize];
        bytes.extend(sector(random).to_le_bytes());
        bytes.extend(u32::to_le_bytes(sectors));
        bytes.extend(u32::to_le_bytes(flags));
    }
    bytes
}

impl Target for Attacked {
    type Device = Blk;

    fn device(&self) -> Arc<Blk> {
        let disk = Blk::new(Arc::clone(&self.storage), "hostile", self.queues);
        disk.set_limits(self.limits);
        Arc::new(disk)
    }

    fn disturb(&self, device: &Blk, random: &mut Numbers) {
        // Limits come and go, on disks that have any.
        if self.limits != Limits::default() {
            device.set_limits([Limits::default(), self.limits][random.below(2) as usize]);
        }
    }

    fn request(&self, _queue: u16, random: &mut Numbers, driver: &Driver) -> Vec<Part> {
        let kind = match random.below(16) {
            0 => random.below(1 << 32) as u32,
            1 => random.below(16) as u32,
            2 => 8,
            // Makes the disk wait.
            3 if random.below(8) == 0 => 4,
            4..8 => 0,
            8..12 => 1,
            12 | 13 => 11,
            _ => 13,
        };
        driver.put(HEADER, &[&kind.to_le_bytes()[..], &[0; 4], &sector(random).to_le_bytes()].concat());
        let mut parts = vec![(HEADER, 16, false)];
        match kind {
            8 => parts.push((DATA, 20, true)),
            11 | 13 => {
                let ranges = ranges(random);
                driver.put(DATA, &ranges);
                parts.push((DATA, ranges.len() as u32, false));
            }
            _ => {
                for part in 0..random.below(4) {
                    let length = [512, 512, 1024, 4096, 4096, 65536, 500, 12][random.below(8) as usize];
                    parts.push((DATA + part * 0x1_0000, length, kind != 1));
                }
            }
        }
        parts.push((STATUS, 1, true));
        parts
    }

    fn check(&self, driver: &mut Driver) {
        let queue = self.queues - 1;
        let mut done = |kind: u32, length: u32, write: bool| {
            driver.put(HEADER, &[&kind.to_le_bytes()[..], &[0; 4], &7_u64.to_le_bytes()].concat());
            driver.put(STATUS, &[0xee]);
            driver.chain(queue, &[(HEADER, 16, false), (DATA, length, write), (STATUS, 1, true)]);
            driver.finish(queue);
            assert_eq!(driver.get::<1>(STATUS), [0]);
            driver.get::<8>(DATA)
        };
        if !self.storage.read_only() {
            done(1, 512, false);
        }
        let first = done(0, 512, true);
        assert_eq!(done(0, 512, true), first);
    }

    fn finish(self) {
        drop(self.storage);
        if let Some((_dir, path)) = self.image {
            let report = tools::check(&path, Repair::No, &mut |_, _| {}).unwrap();
            assert_eq!((report.corruptions, report.leaks), (0, 0));
        }
    }
}

/// An overlay over a disk with bytes everywhere.
fn image(read_only: bool) -> Attacked {
    let dir = TempDir::new();
    let (base, overlay) = (dir.path().join("base"), dir.path().join("overlay.qcow2"));
    fs::write(&base, vec![7; SIZE as usize]).unwrap();
    tools::create_overlay(&overlay, &base, Some(Format::Raw), None, false).unwrap();
    let options = DiskOptions { read_only, ..DiskOptions::default() };
    let storage = Arc::new(Disk::open(&overlay, &options).unwrap());
    Attacked { storage, queues: 1, limits: Limits::default(), image: Some((dir, overlay)) }
}

#[test]
fn hostile_requests_to_a_raw_disk_end_in_an_answer_or_a_reset() {
    queues(&hostile_requests_to_a_raw_disk_end_in_an_answer_or_a_reset, 60_000, || Attacked::raw(3));
}

#[test]
fn hostile_requests_to_a_disk_with_limits_end_in_an_answer_or_a_reset() {
    let rate = |number| Some(Rate { per_second: number, burst: NonZeroU64::MIN });
    let limits = Limits {
        bytes: NonZeroU64::new(10 << 30).and_then(rate),
        operations: NonZeroU64::new(50_000).and_then(rate),
    };
    let target = || Attacked { limits, ..Attacked::raw(3) };
    queues(&hostile_requests_to_a_disk_with_limits_end_in_an_answer_or_a_reset, 20_000, target);
}

#[test]
fn hostile_requests_to_an_image_end_in_an_answer_or_a_reset() {
    queues(&hostile_requests_to_an_image_end_in_an_answer_or_a_reset, 30_000, || image(false));
}

#[test]
fn hostile_requests_to_a_disk_that_is_read_only_end_in_an_answer_or_a_reset() {
    queues(&hostile_requests_to_a_disk_that_is_read_only_end_in_an_answer_or_a_reset, 30_000, || image(true));
}

#[test]
fn hostile_registers_leave_a_disk_that_works() {
    transport(&hostile_registers_leave_a_disk_that_works, 60_000, || Attacked::raw(2));
}

#[test]
fn hostile_registers_leave_an_image_that_works() {
    transport(&hostile_registers_leave_an_image_that_works, 60_000, || image(false));
}
