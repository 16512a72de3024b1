//! A driver for tests, which can also be a bad one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::mmio::Mmio;
use super::{Device, EVENT_INDEX, VERSION_1};
use crate::bus::Device as _;
use crate::event;
use crate::memory::{GuestMemory, Layout, Options};

/// How much memory the guest has.
pub const MEMORY: u64 = 4 << 20;
/// Where buffers can be.
pub const BUFFERS: u64 = 0x10_0000;
/// Where a second device's driver has what it needs.
pub const NEIGHBOUR: u64 = 0x30_0000;
/// The rings of each queue lie in so many bytes: descriptors, what is available, what is used.
const RINGS: u64 = 0x8000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x4000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// A part of a chain: where, how long, and whether the device writes it.
pub type Part = (u64, u32, bool);

pub struct Driver {
    pub transport: Mmio,
    pub memory: Arc<GuestMemory>,
    pub interrupt: EventFd,
    /// Where its rings begin.
    base: u64,
    size: u16,
    /// How many chains each queue has been given.
    given: Vec<u16>,
    next_descriptor: u16,
}

impl Driver {
    /// Has found the device, and agreed on all of its features but the event index.
    pub fn new(device: Arc<dyn Device>) -> Self {
        let mut driver = Self::unready(device);
        driver.agree(!EVENT_INDEX);
        driver.set_up_all();
        driver.write(0x70, 15);
        assert_eq!(driver.read(0x70), 15);
        driver
    }

    /// Has done nothing yet.
    pub fn unready(device: Arc<dyn Device>) -> Self {
        let layout = Layout::new(MEMORY, 48).unwrap();
        Self::with_memory(device, Arc::new(GuestMemory::map(layout, Options::default()).unwrap()), RINGS)
    }

    /// Has found another device in the same memory.
    pub fn beside(&self, device: Arc<dyn Device>) -> Self {
        let mut driver = Self::with_memory(device, Arc::clone(&self.memory), NEIGHBOUR);
        driver.start_again();
        driver
    }

    fn with_memory(device: Arc<dyn Device>, memory: Arc<GuestMemory>, base: u64) -> Self {
        let interrupt = event::create().unwrap();
        let given = vec![0; device.queue_sizes().len()];
        let transport = Mmio::new(device, Arc::clone(&memory), interrupt.try_clone().unwrap()).unwrap();
        Self { transport, memory, interrupt, base, size: 16, given, next_descriptor: 0 }
    }

    pub fn queues(&self) -> u16 {
        self.given.len() as u16
    }

    pub fn read(&self, offset: u64) -> u32 {
        self.transport.read(offset, 4) as u32
    }

    pub fn write(&self, offset: u64, value: u32) {
        self.transport.write(offset, 4, value.into());
    }

    pub fn offered(&self) -> u64 {
        [0, 1]
            .map(|half| {
                self.write(0x14, half);
                u64::from(self.read(0x10)) << (32 * half)
            })
            .iter()
            .sum()
    }

    /// Accepts the offered features that are in `mask`, and returns the status.
    pub fn agree(&self, mask: u64) -> u32 {
        self.write(0x70, 0);
        self.write(0x70, 3);
        let features = self.offered() & mask | VERSION_1 & mask;
        for half in 0..2 {
            self.write(0x24, half);
            self.write(0x20, (features >> (32 * half)) as u32);
        }
        self.write(0x70, 11);
        self.read(0x70)
    }

    /// Says where the rings of all queues are.
    pub fn set_up_all(&mut self) {
        for queue in 0..self.given.len() {
            self.set_up(queue as u32, self.rings(queue as u16));
            self.given[queue] = 0;
        }
    }

    /// Says where the rings of a queue are.
    pub fn set_up(&self, queue: u32, rings: [u64; 3]) {
        self.write(0x30, queue);
        self.write(0x38, self.size.into());
        for (register, address) in [0x80, 0x90, 0xa0].into_iter().zip(rings) {
            self.write(register, address as u32);
            self.write(register + 4, (address >> 32) as u32);
        }
        self.write(0x44, 1);
    }

    pub fn put(&self, address: u64, bytes: &[u8]) {
        self.memory.mapped().write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub fn get<const COUNT: usize>(&self, address: u64) -> [u8; COUNT] {
        let mut bytes = [0; COUNT];
        self.memory.mapped().read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    /// Descriptors, what is available, what is used.
    pub fn rings(&self, queue: u16) -> [u64; 3] {
        [0, AVAILABLE, USED].map(|part| self.base + RINGS * u64::from(queue) + part)
    }

    /// Makes a queue's rings as they are when nothing was ever put into them.
    pub fn clear(&mut self, queue: u16) {
        self.put(self.rings(queue)[0], &[0; USED as usize + 0x100]);
        self.given[usize::from(queue)] = 0;
    }

    /// Writes a descriptor as it is, whatever that may be.
    pub fn describe(&self, queue: u16, index: u16, (address, length): (u64, u32), flags: u16, next: u16) {
        let at = self.rings(queue)[0] + u64::from(index) * 16;
        self.put(at, &descriptor((address, length), flags, next));
    }

    /// Makes a descriptor available, without ringing.
    pub fn offer(&mut self, queue: u16, head: u16) {
        let [_, at, _] = self.rings(queue);
        let given = &mut self.given[usize::from(queue)];
        let slot = at + 4 + u64::from(*given % self.size) * 2;
        *given = given.wrapping_add(1);
        let index = *given;
        self.put(slot, &head.to_le_bytes());
        self.put(at + 2, &index.to_le_bytes());
    }

    /// Sets the flags beside what is available.
    pub fn flag_available(&self, queue: u16, flags: u16) {
        self.put(self.rings(queue)[1], &flags.to_le_bytes());
    }

    /// Sets the index of what is available to anything.
    pub fn jump(&self, queue: u16, index: u16) {
        self.put(self.rings(queue)[1] + 2, &index.to_le_bytes());
    }

    pub fn ring(&self, queue: u16) {
        self.write(0x50, queue.into());
    }

    /// Describes a chain and makes it available.
    pub fn chain(&mut self, queue: u16, parts: &[Part]) {
        let head = self.next_descriptor;
        for (number, (address, length, write)) in (1..).zip(parts) {
            let index = self.next_descriptor;
            self.next_descriptor = (index + 1) % self.size;
            let next = if number < parts.len() { NEXT } else { 0 };
            let flags = next | if *write { WRITE } else { 0 };
            self.describe(queue, index, (*address, *length), flags, self.next_descriptor);
        }
        self.offer(queue, head);
    }

    /// The same by a table at `table`.
    pub fn indirect(&mut self, queue: u16, table: u64, parts: &[Part]) {
        for (number, (address, length, write)) in (1_u16..).zip(parts) {
            let next = if usize::from(number) < parts.len() { NEXT } else { 0 };
            let flags = next | if *write { WRITE } else { 0 };
            self.put(table + u64::from(number - 1) * 16, &descriptor((*address, *length), flags, number));
        }
        let index = self.next_descriptor;
        self.next_descriptor = (index + 1) % self.size;
        self.describe(queue, index, (table, parts.len() as u32 * 16), INDIRECT, 0);
        self.offer(queue, index);
    }

    /// How many chains the device has used.
    pub fn used(&self, queue: u16) -> u16 {
        u16::from_le_bytes(self.get(self.rings(queue)[2] + 2))
    }

    /// The length that the device gave for the last chain it used.
    pub fn last_length(&self, queue: u16) -> u32 {
        let last = self.used(queue).wrapping_sub(1) % self.size;
        u32::from_le_bytes(self.get(self.rings(queue)[2] + 4 + u64::from(last) * 8 + 4))
    }

    /// Rings, and waits until all chains were used; the length of the last.
    #[track_caller]
    pub fn finish(&self, queue: u16) -> u32 {
        self.ring(queue);
        let given = self.given[usize::from(queue)];
        self.until("the device uses what it was given", || self.used(queue) == given);
        self.last_length(queue)
    }

    #[track_caller]
    pub fn until(&self, what: &str, condition: impl Fn() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < Duration::from_secs(20), "waited in vain: {what}");
            std::thread::yield_now();
        }
    }

    /// The same driver with a new device, which goes on where the old one was.
    pub fn move_to(mut self, device: Arc<dyn Device>) -> Self {
        self.transport.pause();
        let saved = self.transport.save();
        let bytes = crate::saved::encode(&saved);
        let interrupt = self.interrupt.try_clone().unwrap();
        let transport = Mmio::new(device, Arc::clone(&self.memory), interrupt).unwrap();
        transport.restore(&crate::saved::decode(&bytes).unwrap()).unwrap();
        assert_eq!(transport.save(), saved);
        transport.resume();
        self.transport = transport;
        self
    }

    pub fn needs_reset(&self) -> bool {
        self.read(0x70) & 64 != 0
    }

    /// Rings, and waits until the device asks to be reset; checks that it works after that.
    #[track_caller]
    pub fn expect_misuse(&mut self, queue: u16) {
        self.ring(queue);
        self.until("the device asks to be reset", || self.needs_reset());
        self.until("it says so by an interrupt", || self.read(0x60) & 2 != 0);
        self.start_again();
    }

    /// Resets the device and sets it up once more.
    pub fn start_again(&mut self) {
        self.write(0x70, 0);
        assert_eq!((self.read(0x70), self.read(0x60)), (0, 0));
        for queue in 0..self.queues() {
            self.clear(queue);
        }
        self.next_descriptor = 0;
        self.agree(!EVENT_INDEX);
        self.set_up_all();
        self.write(0x70, 15);
        assert_eq!(self.read(0x70), 15);
    }
}

fn descriptor((address, length): (u64, u32), flags: u16, next: u16) -> Vec<u8> {
    [&address.to_le_bytes()[..], &length.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()].concat()
}

/// A generator that gives the same numbers each time.
pub struct Numbers(pub u64);

impl Numbers {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // The low bits of such a generator repeat soon.
        (self.0 ^ self.0 >> 29).rotate_left(32) % limit
    }
}
