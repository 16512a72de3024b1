//! The device that is checked, and what its checks do with it.

use core::ptr;
use core::sync::atomic::AtomicBool;

use super::{Failure, Known, Outcome, Sample, holds, same};
use crate::apic::Pace;
use crate::machine::Machine;
use crate::memory::Arena;
use crate::virtio::find::Place;
use crate::virtio::queue::{Part, Queue};
use crate::virtio::{Registers, feature, register, status};
use crate::{apic, clock, ring0};

/// So long something may take that has to happen, in microseconds: hosts can be busy.
const PATIENCE: u64 = 2_000_000;
/// So long a processor is kept busy with looking, in microseconds.
const SPIN: u64 = 60;
/// After so long nothing more is expected to happen.
const QUIET: u64 = 200;

/// The device that is checked.
pub struct Subject<'a> {
    machine: &'a Machine,
    place: Place,
    pub registers: Registers,
    pub known: &'static Known,
    /// All features that it offers.
    pub offered: u64,
    arena: Arena,
}

impl<'a> Subject<'a> {
    pub fn new(machine: &'a Machine, place: Place, registers: Registers, known: &'static Known) -> Self {
        let (offered, arena) = (registers.offered(), Arena::new(machine));
        Self { machine, place, registers, known, offered, arena }
    }

    /// Lets it interrupt.
    pub fn listen(&self) {
        self.place.interrupt.into_iter().for_each(apic::connect);
    }

    /// Leaves it to the next who has a use for it.
    pub fn leave(&self) {
        self.registers.reset();
        self.place.interrupt.into_iter().for_each(apic::disconnect);
    }

    /// Resets it, so that all memory is free again.
    pub fn renew(&mut self) {
        self.registers.reset();
        self.arena = Arena::new(self.machine);
    }

    /// Whole pages for so many bytes, zeroed.
    pub fn memory(&mut self, length: u64) -> Result<u64, Failure> {
        self.arena.take(length).ok_or(Failure::Said("there is not enough free memory"))
    }

    /// Ends a check of what is not offered.
    pub fn needs(&self, features: u64) -> Outcome {
        if self.offered & features == features { Ok(()) } else { Err(Failure::NotOffered) }
    }

    /// The harmless request of such devices.
    pub fn sample(&mut self) -> Result<Sample, Failure> {
        (self.known.sample)(self)
    }

    /// Sets a queue up; features have been agreed on.
    pub fn queue(&mut self, number: u16, size: u16, features: u64) -> Result<Queue, Failure> {
        Ok(Queue::set_up(self.registers, number, size, features, &mut self.arena)?)
    }

    /// Resets the device, agrees on these features and has it run with one queue, which it gives.
    pub fn start(&mut self, number: u16, size: u16, features: u64) -> Result<Queue, Failure> {
        let features = features | feature::VERSION_1;
        self.registers.agree(features)?;
        let queue = self.queue(number, size, features)?;
        self.registers.run();
        Ok(queue)
    }

    /// Waits until something holds, for as long as that may take.
    pub fn wait_until(&self, said: &'static str, mut condition: impl FnMut() -> bool) -> Outcome {
        let start = clock::now();
        let passed = |microseconds| clock::now() - start > self.machine.clock.ticks(microseconds);
        while !passed(SPIN) {
            if condition() {
                return Ok(());
            }
        }
        // Where processors are few, the host's threads need the one that this loop would keep.
        self.machine.apic.tick(Pace::Rapid);
        let mut holds_now = condition();
        while !holds_now && !passed(PATIENCE) {
            ring0::idle(&AtomicBool::new(false));
            holds_now = condition();
        }
        self.machine.apic.tick(Pace::Quick);
        holds(holds_now, said)
    }

    /// Lets what has no reason to happen happen.
    pub fn settle(&self) {
        self.machine.clock.wait(QUIET);
    }

    /// Waits for the answer to the request that begins with this descriptor; how much was written for it.
    pub fn answer(&self, queue: &mut Queue, first: u16) -> Result<u32, Failure> {
        let mut answer = None;
        self.wait_until("a request has no answer", || {
            answer = queue.take();
            answer.is_some()
        })?;
        let (head, written) = answer.unwrap_or_default();
        same("the head of what was used", head, first)?;
        Ok(written)
    }

    /// Makes a request of these parts alone; how much was written for it.
    pub fn ask(&self, queue: &mut Queue, parts: &[Part]) -> Result<u32, Failure> {
        queue.describe(0, parts);
        queue.give(0);
        queue.show();
        self.answer(queue, 0)
    }

    /// Makes the harmless request.
    pub fn ask_sample(&self, queue: &mut Queue, sample: &Sample) -> Outcome {
        sample.prepare();
        let written = self.ask(queue, sample.parts())?;
        sample.check(written)
    }

    /// The device works as if nothing had been.
    pub fn works(&mut self) -> Outcome {
        let sample = self.sample()?;
        let mut queue = self.start(sample.queue, u16::MAX, 0)?;
        self.ask_sample(&mut queue, &sample)
    }

    /// The device says that it has to be reset.
    pub fn stops(&self) -> Outcome {
        self.wait_until("it does not say that it has to be reset", || {
            self.registers.status() & status::NEEDS_RESET != 0
        })
    }

    /// Why the device has interrupted.
    pub fn reasons(&self) -> u32 {
        self.registers.read(register::REASONS)
    }

    pub fn acknowledge(&self, reasons: u32) {
        self.registers.write(register::ACKNOWLEDGE, reasons);
    }

    /// Its interrupts so far.
    pub fn interrupts(&self) -> Result<u64, Failure> {
        match self.place.interrupt {
            Some(_) => Ok(apic::interrupts_of_devices()),
            None => Err(Failure::Said("nothing says how it interrupts")),
        }
    }

    /// Waits for an interrupt beyond so many.
    pub fn interrupted(&self, before: u64) -> Outcome {
        self.wait_until(
            "it does not interrupt",
            || !matches!(self.interrupts(), Ok(count) if count == before),
        )
    }
}

/// The bytes of memory that a check took.
pub fn bytes<'a>(address: u64, length: u64) -> &'a mut [u8] {
    // SAFETY: memory of an arena, mapped and of nothing else; a device writes to it only before it gives it back, and a
    // check keeps no two of these for the same place.
    unsafe {
        core::slice::from_raw_parts_mut(ptr::with_exposed_provenance_mut(address as usize), length as usize)
    }
}
