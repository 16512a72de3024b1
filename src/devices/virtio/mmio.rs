//! The transport through memory (specification 1.2, section 4.2): a page of registers for each device.
//!
//! Doorbells are eventfds that the hypervisor signals, and the interrupt is another, so that a request costs the
//! processor no exit but those for the interrupt's reason. Where a doorbell is not registered, writing the register
//! rings it. A reset waits until the device has finished the requests it is at.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue as Rings, QueueState, QueueT};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use super::complaints::Complaints;
use super::worker::{Served, Worker};
use super::{COMMON_FEATURES, Device, EVENT_INDEX, Interrupt, Link, Misuse, Queue, VERSION_1, features};
use crate::bus::{self, Action};
use crate::devices;
use crate::event;
use crate::memory::GuestMemory;
use crate::saved::Saved;
use crate::threads::lock;

/// How much room the registers take.
pub const SIZE: u64 = 0x1000;
/// The doorbell, from the start of the registers.
pub const DOORBELL: u64 = 0x50;

const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// "LODG".
const VENDOR: u32 = 0x4744_4f4c;
const CONFIGURATION: u64 = 0x100;

/// Bits of the status register (section 2.1).
mod status {
    pub const DRIVER: u32 = 2;
    pub const DRIVER_OK: u32 = 4;
    pub const FEATURES_OK: u32 = 8;
    pub const NEEDS_RESET: u32 = 64;
}

/// The registers of one device.
pub struct Mmio {
    device: Arc<dyn Device>,
    memory: Arc<GuestMemory>,
    interrupt: Arc<Interrupt>,
    doorbells: Vec<Arc<EventFd>>,
    state: Mutex<State>,
    /// Set by a thread of the device whose driver misuses it.
    misused: Arc<AtomicBool>,
    complaints: Arc<Complaints>,
}

struct State {
    registers: Registers,
    rings: Vec<Rings>,
    workers: Vec<Worker>,
}

/// What the driver has written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Registers {
    status: u32,
    /// Which half of the features is shown and set.
    features_shown: u32,
    features_set: u32,
    features: u64,
    queue: u32,
}

/// What a snapshot keeps of a device's registers and queues.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedTransport {
    registers: Registers,
    queues: Vec<SavedQueue>,
    interrupt: u32,
    generation: u32,
    misused: bool,
}

impl Saved for SavedTransport {
    const NAME: &'static str = "virtio transport";
    const VERSION: u16 = 1;
}

/// What a driver has set up, for those who look.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Look {
    /// How far the driver is.
    pub status: Stage,
    /// The features that it has accepted, as a number.
    pub features: u64,
    /// The same by their names.
    pub feature_names: Vec<String>,
    /// The queues.
    pub queues: Vec<QueueLook>,
}

/// How far a driver is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// There is none.
    NoDriver,
    /// It sets the device up.
    SettingUp,
    /// It uses the device.
    InUse,
    /// It has misused the device, which waits to be reset.
    NeedsReset,
}

/// A queue, for those who look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct QueueLook {
    /// How many entries it has.
    pub size: u16,
    /// Whether it is in use.
    pub ready: bool,
}

/// A queue's place, and how far it was served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct SavedQueue {
    size: u16,
    ready: bool,
    descriptors: u64,
    available: u64,
    used: u64,
    next_available: u16,
    next_used: u16,
}

impl From<&QueueState> for SavedQueue {
    fn from(state: &QueueState) -> Self {
        // Whether event indices are in use follows from the features, the largest size from the device.
        let QueueState { max_size: _, next_avail, next_used, event_idx_enabled: _, size, ready, .. } = *state;
        let QueueState { desc_table, avail_ring, used_ring, .. } = *state;
        Self {
            size,
            ready,
            descriptors: desc_table,
            available: avail_ring,
            used: used_ring,
            next_available: next_avail,
            next_used,
        }
    }
}

impl SavedQueue {
    /// The same as rings of at most `max_size`, if such rings can be.
    fn rings(&self, max_size: u16) -> Option<Rings> {
        let Self { size, ready, descriptors, available, used, next_available, next_used } = *self;
        Rings::try_from(QueueState {
            max_size,
            next_avail: next_available,
            next_used,
            event_idx_enabled: false,
            size,
            ready,
            desc_table: descriptors,
            avail_ring: available,
            used_ring: used,
        })
        .ok()
    }
}

impl Mmio {
    /// The transport of `device`, whose buffers are in `memory`. `interrupt` raises its interrupt.
    pub fn new(device: Arc<dyn Device>, memory: Arc<GuestMemory>, interrupt: EventFd) -> io::Result<Self> {
        let sizes = device.queue_sizes();
        let doorbell = |_: &u16| event::create().map(Arc::new);
        let doorbells = sizes.iter().map(doorbell).collect::<io::Result<Vec<_>>>()?;
        let state = State { registers: Registers::default(), rings: rings(sizes)?, workers: Vec::new() };
        let interrupt = Arc::new(Interrupt::new(interrupt));
        device.connect(Link::new(Arc::clone(&interrupt), &doorbells));
        let complaints = Arc::new(Complaints::of(device.kind().name));
        let (state, misused) = (Mutex::new(state), Arc::default());
        Ok(Self { device, memory, interrupt, doorbells, state, misused, complaints })
    }

    /// What rings for each queue: to be signalled by writes of the queue's number to [`DOORBELL`].
    pub fn doorbells(&self) -> impl Iterator<Item = (u32, &EventFd)> {
        (0..).zip(self.doorbells.iter().map(|event| &**event))
    }

    /// The device behind it.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// Tells the driver that the configuration has changed.
    pub fn configuration_changed(&self) {
        self.interrupt.configuration_changed();
    }

    /// Has the device rest: when this returns, no request is under way. What the driver asks for waits.
    pub fn pause(&self) {
        stop(&mut self.state());
    }

    /// Ends a pause.
    pub fn resume(&self) {
        let mut state = self.state();
        let in_use = state.registers.status & status::DRIVER_OK != 0;
        if in_use && state.workers.is_empty() && !self.misused.load(Ordering::SeqCst) {
            self.start_or_give_up(&mut state);
        }
    }

    /// What the driver has set up, and how far its queues were served. The device has to rest.
    pub fn save(&self) -> SavedTransport {
        let State { registers, rings, workers: _ } = &*self.state();
        SavedTransport {
            registers: registers.clone(),
            queues: rings.iter().map(|rings| SavedQueue::from(&rings.state())).collect(),
            interrupt: self.interrupt.reasons(),
            generation: self.interrupt.generation(),
            misused: self.misused.load(Ordering::SeqCst),
        }
    }

    /// Puts back what [`save`](Self::save) gave, into a device of the same kind that has not been used. It rests.
    pub fn restore(&self, saved: &SavedTransport) -> Result<(), devices::Error> {
        let SavedTransport { registers, queues, interrupt, generation, misused } = saved;
        let name = self.device.kind().name;
        let inconsistent = |reason| devices::Error::Inconsistent { device: name, reason };
        let mut state = self.state();
        if queues.len() != state.rings.len() {
            return Err(inconsistent("it has another number of queues"));
        }
        if registers.status & status::FEATURES_OK != 0 && registers.features & !self.offered() != 0 {
            return Err(inconsistent("its driver uses features that are not offered here"));
        }
        let made = queues.iter().zip(&state.rings).map(|(queue, rings)| queue.rings(rings.max_size()));
        let rings =
            made.collect::<Option<Vec<_>>>().ok_or(inconsistent("a queue has a size that none has"))?;
        if registers.status & status::DRIVER_OK != 0 {
            self.device.start(registers.features);
        }
        *state = State { registers: registers.clone(), rings, workers: Vec::new() };
        self.misused.store(*misused, Ordering::SeqCst);
        self.interrupt.restore(*interrupt, *generation);
        Ok(())
    }

    /// What its driver has set up; nothing while the device is being stopped or started, which may take its time.
    pub fn look(&self) -> Option<Look> {
        let state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(state)) => state.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        let Registers { status, features, .. } = state.registers;
        let stage = match status {
            _ if self.needs_reset() != 0 => Stage::NeedsReset,
            0 => Stage::NoDriver,
            _ if status & status::DRIVER_OK != 0 => Stage::InUse,
            _ => Stage::SettingUp,
        };
        let feature_names = features::names(self.device.kind().id, features);
        let queues = state.rings.iter().map(|rings| QueueLook { size: rings.size(), ready: rings.ready() });
        Some(Look { status: stage, features, feature_names, queues: queues.collect() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn offered(&self) -> u64 {
        self.device.features() | COMMON_FEATURES
    }

    fn register(&self, offset: u64) -> u32 {
        match offset {
            0x00 => return MAGIC,
            0x04 => return VERSION,
            0x08 => return self.device.kind().id,
            0x0c => return VENDOR,
            0x60 => return self.interrupt.reasons(),
            0xfc => return self.interrupt.generation(),
            _ => {}
        }
        let state = self.state();
        let queue = state.rings.get(state.registers.queue as usize);
        match offset {
            0x10 if state.registers.features_shown < 2 => {
                (self.offered() >> (32 * state.registers.features_shown)) as u32
            }
            0x34 => queue.map_or(0, |queue| queue.max_size().into()),
            0x44 => queue.is_some_and(QueueT::ready).into(),
            0x70 => state.registers.status | self.needs_reset(),
            // A queue of shared memory that there is not (section 4.2.2).
            0xb0..=0xbc => u32::MAX,
            _ => 0,
        }
    }

    fn needs_reset(&self) -> u32 {
        if self.misused.load(Ordering::SeqCst) { status::NEEDS_RESET } else { 0 }
    }

    fn write_register(&self, offset: u64, value: u32) {
        match offset {
            DOORBELL => return self.ring(value),
            0x64 => return self.interrupt.acknowledge(value),
            _ => {}
        }
        let mut state = self.state();
        let registers = &mut state.registers;
        let agreeing = registers.status & (status::DRIVER | status::FEATURES_OK) == status::DRIVER;
        match offset {
            0x14 => registers.features_shown = value,
            0x20 if agreeing && registers.features_set < 2 => {
                let shift = 32 * registers.features_set;
                registers.features =
                    registers.features & !(u64::from(u32::MAX) << shift) | u64::from(value) << shift;
            }
            0x24 => registers.features_set = value,
            0x30 => registers.queue = value,
            0x70 => self.set_status(&mut state, value),
            _ => {
                if let Err(misuse) = set_up(&mut state, offset, value) {
                    self.give_up(&mut state, misuse);
                }
            }
        }
    }

    fn ring(&self, queue: u32) {
        if let Some(doorbell) = self.doorbells.get(queue as usize) {
            event::signal(doorbell);
        }
    }

    fn set_status(&self, state: &mut State, value: u32) {
        if value == 0 {
            return self.reset(state);
        }
        // A driver only ever adds to it.
        let mut status = state.registers.status | value & 0x8f;
        let added = status & !state.registers.status;
        let features = state.registers.features;
        if added & status::FEATURES_OK != 0 && (features & !self.offered() != 0 || features & VERSION_1 == 0)
        {
            status &= !status::FEATURES_OK;
        }
        if status & status::FEATURES_OK == 0 {
            status &= !status::DRIVER_OK;
        }
        let starts = status & added & status::DRIVER_OK != 0;
        state.registers.status = status;
        if starts && !self.misused.load(Ordering::SeqCst) {
            self.device.start(features);
            self.start_or_give_up(state);
        }
    }

    fn start_or_give_up(&self, state: &mut State) {
        if let Err(misuse) = self.start(state) {
            self.give_up(state, misuse);
        }
    }

    /// Stops all of the device, which asks to be reset.
    fn give_up(&self, state: &mut State, misuse: Misuse) {
        stop(state);
        if !self.misused.swap(true, Ordering::SeqCst) {
            self.complaints.add(misuse);
            self.interrupt.configuration_changed();
        }
    }

    /// Gives every queue that is ready to a thread.
    fn start(&self, state: &mut State) -> Result<(), Misuse> {
        let event_index = state.registers.features & EVENT_INDEX != 0;
        let numbers: Vec<_> = (0_u16..).take(state.rings.len()).collect();
        for numbers in numbers.chunks(self.device.queues_per_thread()) {
            let mut served = Vec::new();
            for &number in numbers {
                let rings = &state.rings[usize::from(number)];
                if !rings.ready() {
                    continue;
                }
                // The state of one's own rings is always valid.
                let mut rings = Rings::try_from(rings.state()).map_err(|_| Misuse::Setup)?;
                rings.set_event_idx(event_index);
                let queue = Queue::new(rings, Arc::clone(&self.memory), Arc::clone(&self.interrupt))?;
                let doorbell = Arc::clone(&self.doorbells[usize::from(number)]);
                served.push(Served { number, queue, doorbell });
            }
            if served.is_empty() {
                continue;
            }
            let (complaints, misused) = (Arc::clone(&self.complaints), Arc::clone(&self.misused));
            let interrupt = Arc::clone(&self.interrupt);
            let on_misuse = move |misuse| {
                complaints.add(misuse);
                misused.store(true, Ordering::SeqCst);
                interrupt.configuration_changed();
            };
            match Worker::spawn(Arc::clone(&self.device), served, on_misuse) {
                Ok(worker) => state.workers.push(worker),
                Err(error) => {
                    let name = self.device.kind().name;
                    log::error!("{name} has no thread and stays still: {error}");
                    self.misused.store(true, Ordering::SeqCst);
                }
            }
        }
        Ok(())
    }

    fn reset(&self, state: &mut State) {
        stop(state);
        self.device.reset();
        state.registers = Registers::default();
        state.rings.iter_mut().for_each(QueueT::reset);
        self.misused.store(false, Ordering::SeqCst);
        self.interrupt.acknowledge(u32::MAX);
        for doorbell in &self.doorbells {
            // Nothing to take back if nobody rang.
            let _: io::Result<u64> = doorbell.read();
        }
    }
}

impl Drop for Mmio {
    fn drop(&mut self) {
        stop(&mut self.state());
    }
}

fn rings(sizes: &[u16]) -> io::Result<Vec<Rings>> {
    let make = |&size: &u16| Rings::new(size).map_err(|error| io::Error::other(error.to_string()));
    sizes.iter().map(make).collect()
}

/// Ends the threads, and takes note of where they are in the rings.
fn stop(state: &mut State) {
    for worker in state.workers.drain(..) {
        for served in worker.stop() {
            if let Ok(rings) = Rings::try_from(served.queue.state()) {
                state.rings[usize::from(served.number)] = rings;
            }
        }
    }
}

/// Writes to the registers of the selected queue, which count only until the device is in use. What the rings cannot be
/// is no set-up: a queue that stayed where it was would be one that the driver knows nothing of.
fn set_up(state: &mut State, offset: u64, value: u32) -> Result<(), Misuse> {
    let status = state.registers.status & (status::FEATURES_OK | status::DRIVER_OK);
    let Some(rings) = state.rings.get_mut(state.registers.queue as usize) else { return Ok(()) };
    if status != status::FEATURES_OK {
        return Ok(());
    }
    let low = |address: u64| GuestAddress(address & !u64::from(u32::MAX) | u64::from(value));
    let high = |address: u64| GuestAddress(address & u64::from(u32::MAX) | u64::from(value) << 32);
    let result = match offset {
        0x44 => {
            rings.set_ready(value == 1);
            Ok(())
        }
        // Its size and place are settled.
        _ if rings.ready() => Ok(()),
        0x38 => rings.try_set_size(value.try_into().unwrap_or(0)),
        0x80 => rings.try_set_desc_table_address(low(rings.desc_table())),
        0x84 => rings.try_set_desc_table_address(high(rings.desc_table())),
        0x90 => rings.try_set_avail_ring_address(low(rings.avail_ring())),
        0x94 => rings.try_set_avail_ring_address(high(rings.avail_ring())),
        0xa0 => rings.try_set_used_ring_address(low(rings.used_ring())),
        0xa4 => rings.try_set_used_ring_address(high(rings.used_ring())),
        _ => Ok(()),
    };
    result.map_err(|_| Misuse::Setup)
}

impl bus::Device for Mmio {
    fn read(&self, offset: u64, width: u8) -> u64 {
        if offset < CONFIGURATION {
            // Registers are read as a whole.
            return if width == 4 { self.register(offset).into() } else { 0 };
        }
        let configuration = self.device.config();
        let byte = |index: u64| {
            let at = usize::try_from(offset - CONFIGURATION + index).ok();
            at.and_then(|at| configuration.get(at)).copied().unwrap_or(0)
        };
        (0..width.into()).fold(0, |value, index| value | u64::from(byte(index)) << (8 * index))
    }

    fn write(&self, offset: u64, width: u8, value: u64) -> Action {
        if offset >= CONFIGURATION {
            let bytes = value.to_le_bytes();
            self.device.write_config(offset - CONFIGURATION, &bytes[..usize::from(width).min(8)]);
        } else if width == 4 {
            self.write_register(offset, value as u32);
        }
        Action::None
    }
}

#[cfg(test)]
#[path = "mmio_test.rs"]
mod tests;
