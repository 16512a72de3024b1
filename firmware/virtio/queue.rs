//! A split queue as its driver sees it (specification 1.2, section 2.7).

use core::ptr;
use core::sync::atomic::{Ordering, fence};

use super::{Registers, Unusable, register};
use crate::memory::Arena;

const DESCRIPTOR: u64 = 16;
/// Flags of a descriptor.
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;
/// In the ring of what is available: the driver wants no interrupt.
const NO_INTERRUPT: u16 = 1;
/// In the ring of what is used: the device wants no doorbell.
const NO_DOORBELL: u16 = 1;
/// With event indices: the index at which an interrupt is wanted is as far away as can be.
const NEVER: u16 = 1 << 15;
/// Behind flags and index.
const RING: u64 = 4;

/// A buffer of a chain.
#[derive(Clone, Copy)]
pub struct Part {
    pub address: u64,
    pub length: u32,
    /// Whether the device writes it.
    pub written: bool,
}

/// A queue that is set up.
pub struct Queue {
    registers: Registers,
    number: u16,
    size: u16,
    descriptors: u64,
    available: u64,
    used: u64,
    event_index: bool,
    /// No interrupt is wanted.
    polled: bool,
    /// The index of what is available: as it is here, and as the device has been shown it.
    given: u16,
    shown: u16,
    /// How many used ones were taken.
    taken: u16,
}

fn write<T>(address: u64, value: T) {
    // SAFETY: an address in the rings, which lie in memory that the arena gave for them.
    unsafe { ptr::write_volatile(ptr::with_exposed_provenance_mut(address as usize), value) };
}

fn read<T>(address: u64) -> T {
    // SAFETY: as for `write`; only numbers are read, for which any bytes will do.
    unsafe { ptr::read_volatile(ptr::with_exposed_provenance(address as usize)) }
}

impl Queue {
    /// Sets up the queue with this number, with at most `size` descriptors. Features have been agreed on.
    pub fn set_up(
        registers: Registers,
        number: u16,
        size: u16,
        features: u64,
        arena: &mut Arena,
    ) -> Result<Self, Unusable> {
        registers.write(register::QUEUE, number.into());
        let size = size.min(registers.read(register::QUEUE_MOST) as u16);
        if size == 0 {
            return Err(Unusable::NoQueue);
        }
        let mut take = |length| arena.take(length).ok_or(Unusable::NoMemory);
        let count = u64::from(size);
        let descriptors = take(DESCRIPTOR * count)?;
        // Each ring ends with an event index.
        let available = take(RING + 2 * count + 2)?;
        let used = take(RING + 8 * count + 2)?;
        registers.write(register::QUEUE_SIZE, size.into());
        registers.write_address(register::DESCRIPTORS, descriptors);
        registers.write_address(register::AVAILABLE, available);
        registers.write_address(register::USED, used);
        registers.write(register::QUEUE_READY, 1);
        let event_index = features & super::feature::EVENT_INDEX != 0;
        let mut queue = Self {
            registers,
            number,
            size,
            descriptors,
            available,
            used,
            event_index,
            polled: true,
            given: 0,
            shown: 0,
            taken: 0,
        };
        queue.interrupt_after(None);
        Ok(queue)
    }

    pub fn size(&self) -> u16 {
        self.size
    }

    /// Describes a chain in descriptors from `first` on, one for each part.
    pub fn describe(&self, first: u16, parts: &[Part]) {
        describe(self.descriptors, first, parts);
    }

    /// Writes one descriptor as it is.
    pub fn descriptor(&self, index: u16, (address, length): (u64, u32), flags: u16, next: u16) {
        descriptor(self.descriptors, index, (address, length), flags, next);
    }

    /// Describes a chain in a table at `table`, which one descriptor refers to.
    pub fn describe_in_table(&self, index: u16, table: u64, parts: &[Part]) {
        describe(table, 0, parts);
        self.descriptor(index, (table, DESCRIPTOR as u32 * parts.len() as u32), INDIRECT, 0);
    }

    /// Puts a chain into the ring; the device sees it with the next [`Queue::show`].
    pub fn give(&mut self, head: u16) {
        write(self.available + RING + 2 * u64::from(self.given % self.size), head);
        self.given = self.given.wrapping_add(1);
    }

    /// Shows the device all that was given, and rings if it wants that. Returns whether it rang.
    pub fn show(&mut self) -> bool {
        let before = self.shown;
        if before == self.given {
            return false;
        }
        fence(Ordering::Release);
        write(self.available + 2, self.given);
        self.shown = self.given;
        fence(Ordering::SeqCst);
        let wanted = match self.event_index {
            true => {
                let event = read::<u16>(self.used + RING + 8 * u64::from(self.size));
                self.given.wrapping_sub(event).wrapping_sub(1) < self.given.wrapping_sub(before)
            }
            false => read::<u16>(self.used) & NO_DOORBELL == 0,
        };
        if wanted {
            self.ring();
        }
        wanted
    }

    /// Rings, whether or not there is a reason to.
    pub fn ring(&self) {
        self.registers.write(register::DOORBELL, self.number.into());
    }

    /// Pretends that so many more were given than there are, and rings.
    pub fn jump(&self, by: u16) {
        write(self.available + 2, self.given.wrapping_add(by));
        self.ring();
    }

    /// The next chain that the device has used, if there is one: its first descriptor, and how much was written.
    pub fn take(&mut self) -> Option<(u16, u32)> {
        if read::<u16>(self.used + 2) == self.taken {
            return None;
        }
        fence(Ordering::Acquire);
        let at = self.used + RING + 8 * u64::from(self.taken % self.size);
        self.taken = self.taken.wrapping_add(1);
        if self.polled && self.event_index {
            self.interrupt_at(NEVER);
        }
        Some((read::<u32>(at) as u16, read(at + 4)))
    }

    /// Wants an interrupt when so many more have been used, or none. Without event indices each one interrupts, or
    /// none.
    pub fn interrupt_after(&mut self, count: Option<u16>) {
        self.polled = count.is_none();
        match self.event_index {
            true => self.interrupt_at(count.map_or(NEVER, |count| count.wrapping_sub(1))),
            false => write(self.available, if self.polled { NO_INTERRUPT } else { 0 }),
        }
        fence(Ordering::SeqCst);
    }

    fn interrupt_at(&self, further: u16) {
        write(self.available + RING + 2 * u64::from(self.size), self.taken.wrapping_add(further));
    }
}

fn describe(table: u64, first: u16, parts: &[Part]) {
    for (index, (part, number)) in (first..).zip(parts.iter().zip(1..)) {
        let next = if number < parts.len() { NEXT } else { 0 };
        let flags = next | if part.written { WRITE } else { 0 };
        descriptor(table, index, (part.address, part.length), flags, index + 1);
    }
}

fn descriptor(table: u64, index: u16, (address, length): (u64, u32), flags: u16, next: u16) {
    let at = table + DESCRIPTOR * u64::from(index);
    write(at, address);
    write(at + 8, length);
    write(at + 12, flags);
    write(at + 14, next);
}
