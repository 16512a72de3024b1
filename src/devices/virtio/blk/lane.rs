//! The requests of one queue: those that are done at once, and those that are under way in the host's kernel.

use std::io;
use std::mem;
use std::sync::Arc;

use vm_memory::{GuestMemoryMmap, VolatileSlice};

use super::super::{Chain, Left, Misuse, Queue, Taken};
use super::request::{Request, Status, Task, told};
use super::{Blk, QUEUE_SIZE};
use crate::memory::GuestMemory;
use crate::storage::{Cached, Direction, Flush, Full, Place, Ring, Storage};

/// What a queue's thread knows of what it began.
pub(super) struct Lane {
    cached: Cached,
    waiting: Waiting,
    /// By number, what may be under way.
    begun: Vec<Begun>,
    /// The numbers of nothing that is under way.
    free: Vec<u16>,
    /// What carries requests out. Dropped last: what is under way is in its files.
    storage: Arc<dyn Storage>,
}

#[derive(Default)]
enum Waiting {
    /// Nothing has had to wait yet.
    #[default]
    Unused,
    /// In this ring. The guest's memory stays as long.
    In(Box<Ring>, #[expect(dead_code, reason = "to keep it is its use")] Arc<GuestMemory>),
    /// Whatever has to wait is waited for here: the host has no io_uring, or does not let this process use it.
    Here,
}

#[derive(Debug, Default, Clone)]
struct Begun {
    request: Request,
    chain: Chain,
}

impl Lane {
    pub fn new(storage: Arc<dyn Storage>) -> Self {
        let (begun, free) = (Vec::new(), Vec::new());
        Self { cached: Cached::default(), waiting: Waiting::default(), begun, free, storage }
    }

    /// How many requests the kernel has.
    pub fn under_way(&self) -> usize {
        match &self.waiting {
            Waiting::In(ring, _) => ring.under_way(),
            Waiting::Unused | Waiting::Here => 0,
        }
    }

    /// Has further requests carried out by another storage. None is under way.
    pub fn exchange(&mut self, storage: Arc<dyn Storage>) {
        self.cached = Cached::default();
        self.storage = storage;
    }

    /// Gives back what has ended, and does or begins what waits, as far as the disk's limits let it; what is left.
    pub fn serve(&mut self, disk: &Blk, number: u16, queue: &mut Queue) -> Result<Left, Misuse> {
        self.give_back(queue)?;
        self.open(disk, number, queue);
        let (guest, storage) = (Arc::clone(queue.memory()), Arc::clone(&self.storage));
        let mut slices = Vec::new();
        let mut wait = None;
        let more = queue.each_taken(|queue| {
            let memory = guest.mapped();
            let request = Request::parse(queue.taken(), memory)?;
            let task = request.task(queue.taken(), memory, &mut slices)?;
            if let Err(time) = disk.limiter.admit(request.costs(&task)) {
                wait = Some(time);
                return Ok(Taken::Not);
            }
            match self.begin_or_do((disk, &*storage), (&request, task), queue, &slices)? {
                Some(status) => request.end(queue.taken(), memory, status).map(Taken::Done),
                None => Ok(Taken::Begun),
            }
        });
        let submitted = match &mut self.waiting {
            Waiting::In(ring, _) => ring.submit(),
            _ => true,
        };
        let more = more?;
        self.give_back(queue)?;
        Ok(match wait {
            // What has ended meanwhile rings.
            Some(time) if submitted => Left::After(time),
            _ => Left::more(more || !submitted),
        })
    }

    /// Waits for all that is under way.
    pub fn finish(&mut self, queue: &mut Queue) -> Result<(), Misuse> {
        let mut result = Ok(());
        while let Waiting::In(ring, _) = &mut self.waiting
            && ring.under_way() > 0
        {
            ring.wait();
            // Whatever a driver has done to its queue, nothing stays under way.
            result = result.and(self.give_back(queue));
        }
        result
    }

    fn open(&mut self, disk: &Blk, number: u16, queue: &Queue) {
        let Waiting::Unused = self.waiting else { return };
        let Some(event) = disk.link.get().and_then(|link| link.doorbell(number)) else { return };
        self.waiting = match Ring::new(QUEUE_SIZE, event) {
            Ok(ring) => Waiting::In(Box::new(ring), Arc::clone(queue.memory())),
            Err(error) => {
                log::info!("there is no io_uring to be had, so requests wait for each other: {error}");
                Waiting::Here
            }
        };
        self.begun = vec![Begun::default(); QUEUE_SIZE.into()];
        self.free = (0..QUEUE_SIZE).collect();
    }

    /// How the request that was taken last ended, if it has.
    fn begin_or_do(
        &mut self,
        (disk, storage): (&Blk, &dyn Storage),
        (request, task): (&Request, Task),
        queue: &mut Queue,
        slices: &[VolatileSlice<'_>],
    ) -> Result<Option<Status>, Misuse> {
        let place = match task {
            Task::Transfer { direction, offset } => storage.place(direction, offset, slices),
            _ => None,
        };
        if let (Task::Transfer { direction: Direction::Read, .. }, Some(place)) = (&task, &place)
            && self.cached.read(place, slices)
        {
            return Ok(Some(Status::Done));
        }
        // What has ended must not wait for all that follows, which may take its time.
        queue.tell()?;
        match task {
            Task::Transfer { direction, offset } => {
                let request = (request, queue.taken());
                if place.is_some_and(|place| self.begin_transfer(direction, &place, slices, request)) {
                    return Ok(None);
                }
                Ok(Some(told(transfer(storage, direction, offset, slices))))
            }
            Task::Flush => Ok(self.flush(storage, (request, queue.taken()))),
            Task::Ranges(ranges) => Ok(Some(request.carry_out_ranges(&ranges, storage))),
            Task::Other => {
                let memory = Arc::clone(queue.memory());
                request.carry_out(queue.taken(), &disk.serial, memory.mapped()).map(Some)
            }
        }
    }

    /// Leaves a transfer to the kernel; whether that takes it.
    fn begin_transfer(
        &mut self,
        direction: Direction,
        place: &Place<'_>,
        slices: &[VolatileSlice<'_>],
        request: (&Request, &mut Chain),
    ) -> bool {
        // What is written goes into the page cache at once.
        if direction == Direction::Write && !place.direct {
            return false;
        }
        // SAFETY: the lane has the file open as long as anything is under way, and keeps the memory.
        self.begin(request, |ring, number| unsafe { ring.transfer(number, direction, place, slices) })
    }

    /// How a flush ended, if it has.
    fn flush(&mut self, storage: &dyn Storage, request: (&Request, &mut Chain)) -> Option<Status> {
        let result = match storage.begin_flush() {
            Ok(Flush::File(file)) => {
                // SAFETY: the lane has the file open as long as anything is under way.
                if self.begin(request, |ring, number| unsafe { ring.flush(number, file) }) {
                    return None;
                }
                Flush::File(file).finish()
            }
            Ok(Flush::Done) => Ok(()),
            Err(error) => Err(error),
        };
        Some(told(result))
    }

    /// Takes a request and its chain, if the kernel takes it; whether it does.
    fn begin(
        &mut self,
        (request, chain): (&Request, &mut Chain),
        begin: impl FnOnce(&mut Ring, u16) -> Result<(), Full>,
    ) -> bool {
        let Waiting::In(ring, _) = &mut self.waiting else { return false };
        let Some(&number) = self.free.last() else { return false };
        if begin(ring, number).is_err() {
            return false;
        }
        self.free.pop();
        let begun = &mut self.begun[usize::from(number)];
        begun.request = *request;
        mem::swap(&mut begun.chain, chain);
        true
    }

    /// Tells the driver of what has ended.
    fn give_back(&mut self, queue: &mut Queue) -> Result<(), Misuse> {
        let Waiting::In(ring, _) = &mut self.waiting else { return Ok(()) };
        let guest = Arc::clone(queue.memory());
        let mut result = Ok(());
        while let Some(ended) = ring.ended() {
            let Some(Begun { request, chain }) = self.begun.get(usize::from(ended.number)) else { continue };
            self.free.push(ended.number);
            let written = end(&*self.storage, request, chain, guest.mapped(), ended.result);
            result = result.and(written.and_then(|written| queue.give_back(chain, written)));
        }
        result.and(queue.tell())
    }
}

fn transfer(
    storage: &dyn Storage,
    direction: Direction,
    offset: u64,
    slices: &[VolatileSlice<'_>],
) -> io::Result<()> {
    match direction {
        Direction::Read => storage.read(offset, slices),
        Direction::Write => storage.write(offset, slices),
    }
}

/// Sees to it that a request is done as a whole: how the kernel ended it tells only that it is, or that it is not.
fn end(
    storage: &dyn Storage,
    request: &Request,
    chain: &Chain,
    memory: &GuestMemoryMmap,
    result: io::Result<usize>,
) -> Result<u32, Misuse> {
    let mut slices = Vec::new();
    let status = match request.task(chain, memory, &mut slices)? {
        Task::Transfer { direction, offset } => match result {
            Ok(moved) if moved as u64 == request.moves() => Status::Done,
            _ => told(transfer(storage, direction, offset, &slices)),
        },
        // A failure is told once, so this is not tried again.
        _ => told(result.map(drop)),
    };
    request.end(chain, memory, status)
}

#[cfg(test)]
#[path = "lane_test.rs"]
mod tests;
