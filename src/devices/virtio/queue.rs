//! A virtqueue as devices see it: chains of buffers that lie in guest memory, and nothing else.
//!
//! The rings are read and written by the `virtio-queue` crate. What it leaves open is checked here: each buffer lies in
//! guest memory, a chain ends, has no more buffers than the queue, and those to be read come first (specification 1.2,
//! section 2.7).

use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_queue::{Queue as Rings, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};

use super::Interrupt;
use crate::memory::GuestMemory;

/// Something that no correct driver does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Misuse {
    /// The rings themselves are not in memory, or their indices have jumped.
    #[error("the queue's rings make no sense")]
    Rings,
    /// A chain that goes in circles, is too long, or leads out of the table.
    #[error("a chain of descriptors has no end")]
    Endless,
    /// A buffer that is empty or not in memory.
    #[error("a buffer is not in memory")]
    Buffer,
    /// A buffer to be read behind one to be written.
    #[error("a buffer to read follows one to write")]
    Order,
    /// The parts of a request are missing or have the wrong size or direction.
    #[error("a request is not one")]
    Request,
    /// The queues were not set up when the driver said it was ready.
    #[error("a queue was set up wrongly")]
    Setup,
}

/// A piece of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Where it begins.
    pub address: u64,
    /// How long it is.
    pub length: u32,
}

/// What the driver put into the queue as one: buffers for the device to read, then some for it to write.
#[derive(Debug, Default, Clone)]
pub struct Chain {
    head: u16,
    buffers: Vec<Buffer>,
    /// How many of them are to be read.
    readable: usize,
}

impl Chain {
    /// The buffers to read.
    pub fn readable(&self) -> &[Buffer] {
        &self.buffers[..self.readable]
    }

    /// The buffers to write.
    pub fn writable(&self) -> &[Buffer] {
        &self.buffers[self.readable..]
    }
}

/// What a device did with the chain that it took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// All that it asks for, and wrote so many bytes into it.
    Done(u32),
    /// It exchanged the chain for any other that it does not need, and gives it [back](Queue::give_back) later.
    Begun,
    /// Nothing: it is the first to be seen the next time, and until then the driver need not ring.
    Not,
}

/// The driver is told of so many chains together, at most: each time costs a fence, and perhaps an interrupt.
const TOLD_TOGETHER: u16 = 8;

/// The total length of some buffers.
pub fn length(buffers: &[Buffer]) -> u64 {
    buffers.iter().map(|buffer| u64::from(buffer.length)).sum()
}

/// A queue that the driver has set up.
pub struct Queue {
    rings: Rings,
    memory: Arc<GuestMemory>,
    interrupt: Arc<Interrupt>,
    chain: Chain,
    /// How many chains the driver was given back without being told.
    untold: u16,
}

impl Queue {
    pub(super) fn new(
        rings: Rings,
        memory: Arc<GuestMemory>,
        interrupt: Arc<Interrupt>,
    ) -> Result<Self, Misuse> {
        if !rings.is_valid(memory.mapped()) {
            return Err(Misuse::Setup);
        }
        Ok(Self { rings, memory, interrupt, chain: Chain::default(), untold: 0 })
    }

    /// Where the device is in it.
    pub(super) fn state(&self) -> QueueState {
        self.rings.state()
    }

    /// Has `handle` deal with each chain that waits, as many as the queue can hold. It says how many bytes it wrote
    /// into the chain, which then goes back to the driver. Returns whether more may wait: a driver that goes on and on
    /// must not keep its device from being stopped.
    pub fn each(
        &mut self,
        mut handle: impl FnMut(&Chain, &GuestMemoryMmap) -> Result<u32, Misuse>,
    ) -> Result<bool, Misuse> {
        let memory = Arc::clone(&self.memory);
        self.each_taken(|queue| {
            // What has ended does not wait for the next.
            queue.tell()?;
            handle(&queue.chain, memory.mapped()).map(Taken::Done)
        })
    }

    /// The same for chains that may take their time, or have to wait for their turn. Whoever begins what may take its
    /// time [tells](Self::tell) the driver first of what has ended; else it is told of several together.
    pub fn each_taken(
        &mut self,
        handle: impl FnMut(&mut Self) -> Result<Taken, Misuse>,
    ) -> Result<bool, Misuse> {
        let memory = Arc::clone(&self.memory);
        let more = self.take_each(memory.mapped(), handle);
        // Also of what went well before a misuse.
        self.tell()?;
        more
    }

    fn take_each(
        &mut self,
        memory: &GuestMemoryMmap,
        mut handle: impl FnMut(&mut Self) -> Result<Taken, Misuse>,
    ) -> Result<bool, Misuse> {
        self.rings.disable_notification(memory).map_err(|_| Misuse::Rings)?;
        for _ in 0..self.rings.size() {
            if !self.pop(memory)? {
                return self.rings.enable_notification(memory).map_err(|_| Misuse::Rings);
            }
            let head = self.chain.head;
            match handle(self)? {
                Taken::Done(written) => {
                    self.use_up(head, written)?;
                    if self.untold >= TOLD_TOGETHER {
                        self.tell()?;
                    }
                }
                Taken::Begun => {}
                Taken::Not => {
                    self.rings.go_to_previous_position();
                    break;
                }
            }
        }
        Ok(true)
    }

    /// The chain that was taken last.
    pub fn taken(&mut self) -> &mut Chain {
        &mut self.chain
    }

    /// Gives a chain back to the driver, with so many bytes written into it. The driver can see that at once, but is
    /// not yet [told](Self::tell).
    pub fn give_back(&mut self, chain: &Chain, written: u32) -> Result<(), Misuse> {
        self.use_up(chain.head, written)
    }

    /// Interrupts the driver, if it was given something back since the last time and wants to hear of it.
    pub fn tell(&mut self) -> Result<(), Misuse> {
        if mem::take(&mut self.untold) == 0 {
            return Ok(());
        }
        let memory = self.memory.mapped();
        if self.rings.needs_notification(memory).map_err(|_| Misuse::Rings)? && !self.unheard(memory)? {
            self.interrupt.used();
        }
        Ok(())
    }

    /// Has `handle` deal with the chain that waits longest; whether there was one.
    pub fn one(
        &mut self,
        handle: impl FnOnce(&Chain, &GuestMemoryMmap) -> Result<u32, Misuse>,
    ) -> Result<bool, Misuse> {
        let memory = Arc::clone(&self.memory);
        let memory = memory.mapped();
        if !self.pop_or_be_told(memory)? {
            return Ok(false);
        }
        let written = handle(&self.chain, memory)?;
        self.use_up(self.chain.head, written)?;
        self.tell()?;
        self.rings.enable_notification(memory).map_err(|_| Misuse::Rings)?;
        Ok(true)
    }

    /// Has `look` see the chain that waits longest, which stays where it is.
    pub fn peek<T>(
        &mut self,
        look: impl FnOnce(&Chain, &GuestMemoryMmap) -> Result<T, Misuse>,
    ) -> Result<Option<T>, Misuse> {
        let memory = Arc::clone(&self.memory);
        let memory = memory.mapped();
        if !self.pop_or_be_told(memory)? {
            return Ok(None);
        }
        self.rings.go_to_previous_position();
        look(&self.chain, memory).map(Some)
    }

    /// The memory that its buffers are in.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// If there is no chain, the driver rings at the next.
    fn pop_or_be_told(&mut self, memory: &GuestMemoryMmap) -> Result<bool, Misuse> {
        Ok(self.pop(memory)?
            || (self.rings.enable_notification(memory).map_err(|_| Misuse::Rings)? && self.pop(memory)?))
    }

    fn pop(&mut self, memory: &GuestMemoryMmap) -> Result<bool, Misuse> {
        let next = self.rings.iter(memory).map_err(|_| Misuse::Rings)?.next();
        let Some(descriptors) = next else { return Ok(false) };
        let most = usize::from(self.rings.size());
        let chain = &mut self.chain;
        chain.head = descriptors.head_index();
        chain.buffers.clear();
        chain.readable = 0;
        let mut goes_on = true;
        for descriptor in descriptors {
            if chain.buffers.len() == most {
                return Err(Misuse::Endless);
            }
            goes_on = descriptor.has_next();
            let buffer = Buffer { address: descriptor.addr().0, length: descriptor.len() };
            if buffer.length == 0
                || !GuestMemoryBackend::check_range(memory, descriptor.addr(), buffer.length as usize)
            {
                return Err(Misuse::Buffer);
            }
            match (descriptor.is_write_only(), chain.readable == chain.buffers.len()) {
                (true, _) => {}
                (false, true) => chain.readable += 1,
                (false, false) => return Err(Misuse::Order),
            }
            chain.buffers.push(buffer);
        }
        // The crate ends a chain without a word where it leads nowhere.
        if goes_on { Err(Misuse::Endless) } else { Ok(true) }
    }

    fn use_up(&mut self, head: u16, written: u32) -> Result<(), Misuse> {
        self.rings.add_used(self.memory.mapped(), head, written).map_err(|_| Misuse::Rings)?;
        self.untold = self.untold.saturating_add(1);
        Ok(())
    }

    /// Whether the driver says that it wants no interrupt (section 2.7.7). With event indices that flag means nothing,
    /// and the crate has looked at those.
    fn unheard(&self, memory: &GuestMemoryMmap) -> Result<bool, Misuse> {
        const NO_INTERRUPT: u16 = 1;
        if self.rings.event_idx_enabled() {
            return Ok(false);
        }
        let flags: u16 = memory
            .load(GuestAddress(self.rings.avail_ring()), Ordering::Relaxed)
            .map_err(|_| Misuse::Rings)?;
        Ok(u16::from_le(flags) & NO_INTERRUPT != 0)
    }
}

/// Copies the beginning of `buffers` to `bytes`; none if they are shorter.
pub fn read(memory: &GuestMemoryMmap, buffers: &[Buffer], bytes: &mut [u8]) -> Option<()> {
    let mut left = bytes;
    for buffer in buffers {
        let (now, later) = left.split_at_mut(left.len().min(buffer.length as usize));
        memory.read_slice(now, GuestAddress(buffer.address)).ok()?;
        left = later;
    }
    left.is_empty().then_some(())
}

/// Copies `bytes` to the beginning of `buffers`; none, and nothing written, if they are shorter.
pub fn write(memory: &GuestMemoryMmap, buffers: &[Buffer], bytes: &[u8]) -> Option<()> {
    if length(buffers) < bytes.len() as u64 {
        return None;
    }
    let mut left = bytes;
    for buffer in buffers {
        let (now, later) = left.split_at(left.len().min(buffer.length as usize));
        memory.write_slice(now, GuestAddress(buffer.address)).ok()?;
        left = later;
    }
    Some(())
}

/// Where `length` bytes from `skip` on in `buffers` are in this process.
pub fn slices<'a>(
    memory: &'a GuestMemoryMmap,
    buffers: &[Buffer],
    mut skip: u64,
    mut length: u64,
    slices: &mut Vec<VolatileSlice<'a>>,
) -> Result<(), Misuse> {
    slices.clear();
    for buffer in buffers {
        let here = u64::from(buffer.length);
        let from = skip.min(here);
        skip -= from;
        let count = (here - from).min(length);
        length -= count;
        if count > 0 {
            let pieces =
                GuestMemoryBackend::get_slices(memory, GuestAddress(buffer.address + from), count as usize);
            for piece in pieces {
                slices.push(piece.map_err(|_| Misuse::Buffer)?);
            }
        }
    }
    if length == 0 { Ok(()) } else { Err(Misuse::Request) }
}
