//! The balloon, attacked.

use std::sync::Arc;
use std::time::Duration;

use super::{Target, queues, transport};
use crate::devices::virtio::Device;
use crate::devices::virtio::balloon::Balloon;
use crate::devices::virtio::testing::{BUFFERS, Driver, MEMORY, NEIGHBOUR, Numbers, Part};
use crate::saved::{decode, encode};

const PAGE: u64 = 4096;
const DATA: u64 = BUFFERS + 0x1_0000;

struct Held;

/// The number of a page, mostly one of those that nobody else needs.
fn page(random: &mut Numbers) -> u32 {
    let page = match random.below(40) {
        0 => random.below(NEIGHBOUR / PAGE),
        1 => MEMORY / PAGE - 1 + random.below(2),
        2 => random.below(1 << 32),
        _ => DATA / PAGE + random.below(64),
    };
    page as u32
}

impl Target for Held {
    type Device = Balloon;

    fn device(&self) -> Arc<Balloon> {
        Arc::new(Balloon::new(MEMORY, true))
    }

    fn moved(&self, old: &Balloon) -> Arc<Balloon> {
        let (saved, new) = (old.save(), self.device());
        new.restore(&decode(&encode(&saved)).unwrap()).unwrap();
        assert_eq!(new.save(), saved);
        new
    }

    fn request(&self, queue: u16, random: &mut Numbers, driver: &Driver) -> Vec<Part> {
        match queue {
            0 | 1 => {
                let pages: Vec<u8> =
                    (0..1 + random.below(32)).flat_map(|_| page(random).to_le_bytes()).collect();
                driver.put(BUFFERS, &pages);
                let (length, cut) = (pages.len() as u32, random.below(pages.len() as u64) as u32);
                match random.below(2) {
                    0 => vec![(BUFFERS, length, false)],
                    _ => vec![(BUFFERS, cut, false), (BUFFERS + u64::from(cut), length - cut, false)],
                }
            }
            2 => {
                let count = random.below(14);
                let entry = |random: &mut Numbers| {
                    [&(random.below(12) as u16).to_le_bytes()[..], &random.below(u64::MAX).to_le_bytes()]
                        .concat()
                };
                let entries: Vec<u8> = (0..count).flat_map(|_| entry(random)).collect();
                driver.put(BUFFERS, &entries);
                vec![(BUFFERS, entries.len() as u32, false)]
            }
            _ => {
                let range = |random: &mut Numbers| {
                    let length = [PAGE, 4 * PAGE, 16 * PAGE, PAGE + 1, 1][random.below(5) as usize];
                    (DATA + random.below(64) * PAGE / 2, length as u32, true)
                };
                (0..1 + random.below(4)).map(|_| range(random)).collect()
            }
        }
    }

    fn disturb(&self, balloon: &Balloon, random: &mut Numbers) {
        match random.below(4) {
            0 => balloon.write_config(random.below(20), &random.below(u64::MAX).to_le_bytes()),
            1 => balloon.set_target(random.below(MEMORY)).unwrap(),
            2 => assert!(balloon.set_target(MEMORY + random.below(MEMORY)).is_err()),
            // Asks, without waiting.
            _ => drop(balloon.statistics(Duration::ZERO)),
        }
    }

    fn check(&self, driver: &mut Driver) {
        driver.put(DATA, &[7; PAGE as usize]);
        driver.put(BUFFERS, &((DATA / PAGE) as u32).to_le_bytes());
        driver.chain(0, &[(BUFFERS, 4, false)]);
        assert_eq!(driver.finish(0), 0);
        assert_eq!(driver.get::<8>(DATA), [0; 8]);
    }

    fn finish(self) {}
}

#[test]
fn hostile_requests_end_in_an_answer_or_a_reset() {
    queues(&hostile_requests_end_in_an_answer_or_a_reset, 100_000, || Held);
}

#[test]
fn hostile_registers_leave_a_device_that_works() {
    transport(&hostile_registers_leave_a_device_that_works, 60_000, || Held);
}
