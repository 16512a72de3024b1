//! Requests to a disk as fast as it takes them, at a constant depth.

use super::disk::{Action, Disk, SECTOR};
use crate::clock;

/// In which order the disk is gone through.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Random,
    Sequential,
}

/// What is to be done, and how often.
pub struct Work {
    pub action: Action,
    pub bytes: u32,
    pub order: Order,
    pub requests: u64,
}

/// What was done.
#[derive(Default)]
pub struct Done {
    pub requests: u64,
    pub failed: u64,
    pub doorbells: u64,
    pub ticks: u64,
}

/// Where the next request goes: at a multiple of its length.
struct Sectors {
    order: Order,
    sectors: u64,
    count: u64,
    state: u64,
}

impl Sectors {
    fn next(&mut self) -> u64 {
        let number = match self.order {
            Order::Random => {
                // Marsaglia's xorshift: three shifts, a period of 2^64 - 1.
                self.state ^= self.state << 13;
                self.state ^= self.state >> 7;
                self.state ^= self.state << 17;
                ((u128::from(self.state) * u128::from(self.count)) >> 64) as u64
            }
            Order::Sequential => {
                self.state += 1;
                self.state % self.count
            }
        };
        number * self.sectors
    }
}

/// Keeps the disk busy with as many requests as it has places.
pub fn run(disk: &mut Disk, work: &Work) -> Done {
    let sectors = u64::from(work.bytes) / SECTOR;
    let count = disk.size() / u64::from(work.bytes);
    let mut next = Sectors { order: work.order, sectors, count, state: 0x9e37_79b9_7f4a_7c15 };
    if work.order == Order::Sequential {
        next.state = count - 1;
    }
    let mut done = Done::default();
    let mut given = 0;
    let start = clock::now();
    for place in 0..disk.places() {
        disk.prepare(place, work.action, work.bytes);
        if given < work.requests {
            disk.give(place, next.next());
            given += 1;
        }
    }
    done.doorbells += u64::from(disk.go());
    while done.requests < work.requests {
        while let Some((place, status)) = disk.done() {
            done.requests += 1;
            done.failed += u64::from(status != 0);
            if given < work.requests {
                disk.give(place, next.next());
                given += 1;
            }
        }
        done.doorbells += u64::from(disk.go());
    }
    done.ticks = clock::now() - start;
    done
}
