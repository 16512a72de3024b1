//! Registers used in every order and width, by a driver that sometimes does the right thing.

use std::sync::Arc;

use super::alone::{alone, cases, watched};
use super::{Target, chains};
use crate::bus::Device as _;
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::testing::{BUFFERS, Driver, MEMORY, NEIGHBOUR, Numbers};
use crate::devices::virtio::{EVENT_INDEX, VERSION_1};

/// Where registers are, and what comes directly behind them.
const REGISTERS: [u64; 28] = [
    0x00, 0x04, 0x08, 0x0c, 0x10, 0x14, 0x20, 0x24, 0x30, 0x34, 0x38, 0x44, 0x50, 0x60, 0x64, 0x70, 0x80,
    0x84, 0x90, 0x94, 0xa0, 0xa4, 0xac, 0xb0, 0xbc, 0xc0, 0xfc, 0x100,
];
const QUEUE: u64 = 0x30;
const SIZE: u64 = 0x38;
const READY: u64 = 0x44;
const DOORBELL: u64 = 0x50;
const STATUS: u64 = 0x70;

/// Whatever the registers are used for, the device and its neighbour work once they are used rightly. `test` is the one
/// that calls this.
#[track_caller]
pub fn transport<T: Target>(test: &impl Fn(), otherwise: u64, target: impl FnOnce() -> T) {
    alone(test, || {
        let target = target();
        let mut random = Numbers(2);
        let mut guest = Some(Guest::new(&target));
        let mut misused = 0_u64;
        let count = cases(otherwise);
        for case in watched(count) {
            let mut now = guest.take().unwrap().step(&mut random);
            misused += u64::from(now.driver.needs_reset());
            match case % 256 {
                0 => now.expect_misuse(&mut random),
                64 | 128 | 192 => now.check(),
                _ => {}
            }
            guest = Some(now);
        }
        println!("after {misused} steps the device asked to be reset");
        assert!(misused > count / 100, "the cases are too good");
        drop(guest);
        target.finish();
    });
}

/// A guest with a bad driver for one device and a good one for another.
struct Guest<'a, T: Target> {
    target: &'a T,
    device: Arc<T::Device>,
    driver: Driver,
    neighbour: Driver,
    /// How much of a proper set-up was done.
    done: u16,
}

impl<'a, T: Target> Guest<'a, T> {
    fn new(target: &'a T) -> Self {
        let device = target.device();
        let driver = Driver::unready(Arc::clone(&device) as _);
        let neighbour = driver.beside(Arc::new(Rng));
        Self { target, device, driver, neighbour, done: 0 }
    }

    /// Does anything.
    fn step(mut self, random: &mut Numbers) -> Self {
        match random.below(64) {
            0..12 => self.write_register(random),
            12..18 => self.read_register(random),
            18..22 => self.configuration(random),
            22..38 => self.proceed(random),
            38..54 => self.put_and_ring(random),
            54..57 => self.target.disturb(&self.device, random),
            57..59 => self.pause(random),
            59 => return self.move_away(),
            60 => self.misplace(random),
            61 => {
                self.driver.write(STATUS, 0);
                self.done = 0;
                // Nobody is there to hear that.
                self.driver.write(DOORBELL, random.below(4) as u32);
            }
            _ => self.driver.start_again(),
        }
        self
    }

    fn write_register(&mut self, random: &mut Numbers) {
        let (offset, width) = place(random);
        let value = match offset {
            STATUS => [0, 1, 3, 4, 8, 11, 15, 64, 128, 0xff, random.below(256)][random.below(11) as usize],
            _ => value(random),
        };
        self.driver.transport.write(offset, width, value);
    }

    fn read_register(&self, random: &mut Numbers) {
        let (offset, width) = place(random);
        let value = self.driver.transport.read(offset, width);
        assert!(width == 8 || value >> (8 * width) == 0, "{offset:#x} {width}: {value:#x}");
    }

    fn configuration(&self, random: &mut Numbers) {
        let width = 1 << random.below(4);
        let offset = match random.below(4) {
            0 => 0x1000 - random.below(16),
            _ => 0x100 + random.below(80),
        };
        if random.below(2) == 0 {
            self.driver.transport.write(offset, width, random.below(u64::MAX));
        }
        let value = self.driver.transport.read(offset, width);
        assert!(width == 8 || value >> (8 * width) == 0, "{offset:#x} {width}: {value:#x}");
    }

    /// Takes the next step of a proper set-up, or of one with a mistake in it.
    fn proceed(&mut self, random: &mut Numbers) {
        let driver = &self.driver;
        let (first, queues) = (2, self.driver.queues());
        match self.done {
            0 => driver.write(STATUS, 0),
            1 => {
                let event_index = if random.below(2) == 0 { 0 } else { EVENT_INDEX };
                let accepted = random.below(u64::MAX) | VERSION_1 | event_index;
                // Devices do not insist on any other.
                assert_eq!(driver.agree(accepted), 11);
            }
            done if done < first + queues => {
                let queue = done - first;
                self.driver.clear(queue);
                let mut rings = self.driver.rings(queue);
                if random.below(16) == 0 {
                    rings[random.below(3) as usize] = wrong_place(random);
                }
                self.driver.set_up(queue.into(), rings);
            }
            _ => driver.write(STATUS, 15),
        }
        self.done = if self.done == first + queues { 0 } else { self.done + 1 };
        // Some forget one.
        if random.below(64) == 0 {
            self.done = self.done.wrapping_add(1) % (first + queues + 1);
        }
    }

    fn put_and_ring(&mut self, random: &mut Numbers) {
        let queue = random.below(self.driver.queues().into()) as u16;
        chains::put(self.target, &mut self.driver, queue, random);
        let rung = if random.below(16) == 0 { value(random) as u32 } else { queue.into() };
        self.driver.write(DOORBELL, rung);
    }

    /// What is asked for in a pause waits.
    fn pause(&mut self, random: &mut Numbers) {
        self.driver.transport.pause();
        let before = self.driver.transport.save();
        self.put_and_ring(random);
        assert_eq!(self.driver.transport.save(), before);
        self.driver.transport.resume();
    }

    fn move_away(mut self) -> Self {
        self.driver.transport.pause();
        let device = self.target.moved(&self.device);
        self.driver = self.driver.move_to(Arc::clone(&device) as _);
        self.device = device;
        self
    }

    /// A queue that is not in memory, and a driver that says that it is ready.
    fn misplace(&mut self, random: &mut Numbers) {
        assert_eq!(self.driver.agree(u64::MAX), 11);
        let mut rings = self.driver.rings(0);
        rings[random.below(3) as usize] = wrong_place(random);
        self.driver.set_up(0, rings);
        self.driver.write(STATUS, 15);
        assert!(self.driver.needs_reset(), "{rings:x?}");
        self.driver.ring(0);
        self.done = 0;
    }

    fn expect_misuse(&mut self, random: &mut Numbers) {
        self.driver.start_again();
        match random.below(3) {
            0 => self.driver.jump(T::SERVED, 17 + random.below(0xffff - 17) as u16),
            1 => self.driver.offer(T::SERVED, 16 + random.below(0xffff - 16) as u16),
            _ => self.driver.chain(T::SERVED, &[(MEMORY, 16, random.below(2) == 0)]),
        }
        self.driver.expect_misuse(T::SERVED);
        self.target.check(&mut self.driver);
        self.done = 0;
    }

    fn check(&mut self) {
        let buffer = NEIGHBOUR + 0x8_0000;
        self.neighbour.chain(0, &[(buffer, 32, true)]);
        assert_eq!(self.neighbour.finish(0), 32);
        assert!(!self.neighbour.needs_reset());
        self.driver.start_again();
        self.target.check(&mut self.driver);
        self.done = 0;
    }
}

/// Somewhere in the page, and a width that buses have.
fn place(random: &mut Numbers) -> (u64, u8) {
    let offset = match random.below(8) {
        0 => random.below(0x1000),
        1 => REGISTERS[random.below(28) as usize] + random.below(4),
        2 => [QUEUE, SIZE, READY, DOORBELL, STATUS][random.below(5) as usize],
        _ => REGISTERS[random.below(28) as usize],
    };
    let width = if random.below(4) == 0 { 1 << random.below(4) } else { 4 };
    (offset, width)
}

fn value(random: &mut Numbers) -> u64 {
    match random.below(8) {
        0 => random.below(u64::MAX),
        1 => 1 << random.below(64),
        2 => (1 << random.below(33)) - 1,
        3 => BUFFERS + random.below(0x1000),
        4 => [MEMORY, MEMORY - 16, 0xd000_0000, 0xffff_fff0][random.below(4) as usize],
        _ => random.below(20),
    }
}

/// Where no part of a queue can be: behind the end of memory or over it, in a device's registers, or not aligned.
fn wrong_place(random: &mut Numbers) -> u64 {
    let inside = BUFFERS + random.below(0x1000) * 16;
    match random.below(8) {
        0 => MEMORY,
        1 => MEMORY - 16,
        2 => 0xd000_0000 + random.below(16) * 0x1000,
        3 => 0xfee0_0000,
        4 => u64::MAX - 15,
        5 => 1 << (32 + random.below(32)),
        6 => (1 << 63) + inside,
        _ => inside + 1,
    }
}
