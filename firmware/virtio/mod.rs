//! Virtio devices behind the transport through memory, as a driver sees them (specification 1.2, section 4.2).
//!
//! [`find`] tells where they are, [`queue`] exchanges buffers with them, [`disk`] and the others know one kind each.
//! All of it polls, but for [`checks`] of what interrupts: those have to go through ring 0, which some hosts interpret.

pub mod bench;
pub mod checks;
pub mod disk;
pub mod find;
pub mod queue;

use core::ptr;

use crate::paging;
use find::Place;

/// "virt", read as a number.
const MAGIC: u32 = 0x7472_6976;
const MODERN: u32 = 2;

mod register {
    pub const MAGIC: u64 = 0x00;
    pub const VERSION: u64 = 0x04;
    pub const KIND: u64 = 0x08;
    pub const VENDOR: u64 = 0x0c;
    pub const OFFERED: u64 = 0x10;
    pub const OFFERED_HALF: u64 = 0x14;
    pub const ACCEPTED: u64 = 0x20;
    pub const ACCEPTED_HALF: u64 = 0x24;
    pub const QUEUE: u64 = 0x30;
    pub const QUEUE_MOST: u64 = 0x34;
    pub const QUEUE_SIZE: u64 = 0x38;
    pub const QUEUE_READY: u64 = 0x44;
    pub const DOORBELL: u64 = 0x50;
    pub const REASONS: u64 = 0x60;
    pub const ACKNOWLEDGE: u64 = 0x64;
    pub const STATUS: u64 = 0x70;
    pub const DESCRIPTORS: u64 = 0x80;
    pub const AVAILABLE: u64 = 0x90;
    pub const USED: u64 = 0xa0;
    pub const SHARED_MEMORY: u64 = 0xb0;
    pub const GENERATION: u64 = 0xfc;
    pub const CONFIGURATION: u64 = 0x100;
}

/// Bits of the status register.
pub mod status {
    pub const ACKNOWLEDGED: u32 = 1;
    pub const DRIVER: u32 = 2;
    pub const RUNNING: u32 = 4;
    pub const FEATURES_OK: u32 = 8;
    pub const NEEDS_RESET: u32 = 64;
}

/// Why a device interrupted.
pub mod reason {
    pub const USED: u32 = 1;
    pub const CONFIGURATION: u32 = 2;
}

/// Features of all devices.
pub mod feature {
    pub const INDIRECT_DESCRIPTORS: u64 = 1 << 28;
    pub const EVENT_INDEX: u64 = 1 << 29;
    pub const VERSION_1: u64 = 1 << 32;
}

/// A device's registers.
#[derive(Clone, Copy)]
pub struct Registers {
    base: u64,
}

/// A kind of device, as its register tells it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Kind(pub u32);

impl Kind {
    pub const DISK: Self = Self(2);
    pub const CONSOLE: Self = Self(3);
    pub const RANDOM_NUMBERS: Self = Self(4);
    pub const BALLOON: Self = Self(5);

    pub fn name(self) -> &'static str {
        match self.0 {
            0 => "nothing",
            1 => "network",
            2 => "disk",
            3 => "console",
            4 => "random numbers",
            5 => "balloon",
            16 => "graphics",
            18 => "input",
            19 => "socket",
            26 => "file system",
            _ => "unknown device",
        }
    }
}

/// Why a device cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unusable {
    /// It does not accept what was chosen of its features.
    Features,
    /// A queue is missing.
    NoQueue,
    /// There is no memory for what it is to exchange.
    NoMemory,
}

impl Unusable {
    pub fn reason(self) -> &'static str {
        match self {
            Self::Features => "it does not accept a driver that knows version 1 and what it offers",
            Self::NoQueue => "it has no queue of that number",
            Self::NoMemory => "there is not enough free memory for its queues",
        }
    }
}

impl Registers {
    /// The registers at this place, if a device of version 2 of the transport answers there.
    pub fn at(place: &Place) -> Option<Self> {
        paging::reach(place.base, 0x200).ok()?;
        let registers = Self { base: place.base };
        let answers = registers.read(register::MAGIC) == MAGIC && registers.read(register::VERSION) == MODERN;
        answers.then_some(registers)
    }

    fn read(self, offset: u64) -> u32 {
        self.read_as(offset)
    }

    /// A number of any width.
    fn read_as<T>(self, offset: u64) -> T {
        // SAFETY: a register, mapped when this value was made. Reading none of them disturbs the guest's memory.
        unsafe { ptr::read_volatile(ptr::with_exposed_provenance((self.base + offset) as usize)) }
    }

    fn write(self, offset: u64, value: u32) {
        self.write_as(offset, value);
    }

    fn write_as<T>(self, offset: u64, value: T) {
        // SAFETY: as for `read_as`; what a device then does to memory is bounded by the queues that it was given.
        unsafe {
            ptr::write_volatile(ptr::with_exposed_provenance_mut((self.base + offset) as usize), value);
        }
    }

    fn write_address(self, offset: u64, address: u64) {
        self.write(offset, address as u32);
        self.write(offset + 4, (address >> 32) as u32);
    }

    pub fn kind(self) -> Kind {
        Kind(self.read(register::KIND))
    }

    /// All features that it offers.
    pub fn offered(self) -> u64 {
        let half = |number| {
            self.write(register::OFFERED_HALF, number);
            u64::from(self.read(register::OFFERED)) << (32 * number)
        };
        half(0) | half(1)
    }

    pub fn status(self) -> u32 {
        self.read(register::STATUS)
    }

    /// Resets it, and waits until that is done; not for ever, as some never are.
    pub fn reset(self) {
        const PATIENCE: u32 = 10_000;
        self.write(register::STATUS, 0);
        for _ in 0..PATIENCE {
            if self.status() == 0 {
                break;
            }
        }
    }

    /// Resets it, and accepts exactly these of its features.
    pub fn agree(self, features: u64) -> Result<(), Unusable> {
        use status::{ACKNOWLEDGED, DRIVER, FEATURES_OK};
        self.reset();
        self.propose(features);
        self.write(register::STATUS, ACKNOWLEDGED | DRIVER | FEATURES_OK);
        if self.status() & FEATURES_OK == 0 { Err(Unusable::Features) } else { Ok(()) }
    }

    /// Says that a driver is there, and what it would accept.
    fn propose(self, features: u64) {
        use status::{ACKNOWLEDGED, DRIVER};
        // One after the other, as section 3.1.1 has it and some devices insist.
        self.write(register::STATUS, ACKNOWLEDGED);
        self.write(register::STATUS, ACKNOWLEDGED | DRIVER);
        self.accept(features);
    }

    /// Chooses features; whether they will do shows when the driver says that these are all.
    fn accept(self, features: u64) {
        for half in 0..2 {
            self.write(register::ACCEPTED_HALF, half);
            self.write(register::ACCEPTED, (features >> (32 * half)) as u32);
        }
    }

    /// Says that everything is set up.
    pub fn run(self) {
        self.write(register::STATUS, self.status() | status::RUNNING);
    }

    /// Four bytes of its configuration.
    pub fn configuration(self, offset: u64) -> u32 {
        self.read(register::CONFIGURATION + offset)
    }

    /// Eight bytes of its configuration, both halves from the same generation of it.
    pub fn wide_configuration(self, offset: u64) -> u64 {
        loop {
            let generation = self.read(register::GENERATION);
            let [low, high] = [0, 4].map(|half| u64::from(self.configuration(offset + half)));
            if self.read(register::GENERATION) == generation {
                return low | high << 32;
            }
        }
    }
}
