//! One port: what is on its way through it, and who is there on either side.
//!
//! The host's end comes and goes in sessions. What a peer sent before it left still reaches the guest, and what the
//! driver had for that peer in its queue is thrown away; then the guest hears that the port is closed, and only then
//! the next peer may come: no session sees bytes of another, but for what a guest sends before it has looked.

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, MutexGuard, OnceLock};

use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::super::queue::{self, Chain, length};
use super::super::{Link, Misuse, Queue};
use super::control::{self, Event, Message, Rest};
use super::saved::SavedPort;
use super::{MESSAGES_IN, QUEUE_SIZE, Size};
use crate::event;
use crate::threads::lock;

/// How much each direction of a port holds.
pub const CAPACITY: usize = 64 << 10;
/// With so much room again, a driver that waits to send is asked for more.
const ENOUGH_ROOM: usize = CAPACITY / 2;
/// How much is copied out of guest memory at once.
const PIECE: usize = 4096;

/// Whose the host's end of a port is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peers {
    /// One peer's from the start: output is kept for it until it takes it.
    One,
    /// That of whoever comes, one after another: while nobody is there, output is thrown away.
    Many,
}

/// One port.
pub struct Port {
    name: String,
    peers: Peers,
    state: Mutex<State>,
    event: EventFd,
    place: OnceLock<Place>,
}

/// Where a port is in its device.
struct Place {
    link: Link,
    number: u32,
}

struct State {
    /// On its way to the guest.
    input: VecDeque<u8>,
    /// On its way to the host.
    output: VecDeque<u8>,
    host: Host,
    /// The driver has set it up.
    ready: bool,
    /// Somebody has opened it in the guest.
    open: bool,
    /// What the driver is to be told; each thing once, however often there was reason to.
    untold: u8,
    /// How much of the first chain in the queue was taken, if there was no room for all of it.
    taken: u64,
    /// How many chains the driver may still have in its queue for a peer that has left.
    leftover: u16,
    /// The driver has more to send than there was room for.
    sending: bool,
    /// The host's end has more to send than there was room for.
    offering: bool,
}

/// Who is at the host's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Host {
    Nobody,
    Peer,
    /// One that has left, and the guest does not know it yet.
    Left,
}

/// Bits of what is untold, in the order of telling.
mod untold {
    pub const ADDED: u8 = 1 << 0;
    pub const CONSOLE: u8 = 1 << 1;
    pub const NAME: u8 = 1 << 2;
    pub const OPEN: u8 = 1 << 3;
    pub const SIZE: u8 = 1 << 4;
    pub const ALL: u8 = (1 << 5) - 1;
}

impl Port {
    /// A port; a name that is empty is none.
    pub fn new(name: &str, peers: Peers) -> io::Result<Self> {
        let host = match peers {
            Peers::One => Host::Peer,
            Peers::Many => Host::Nobody,
        };
        let state = State {
            input: VecDeque::new(),
            output: VecDeque::new(),
            host,
            ready: false,
            open: false,
            untold: 0,
            taken: 0,
            leftover: 0,
            sending: false,
            offering: false,
        };
        let (state, place) = (Mutex::new(state), OnceLock::new());
        Ok(Self { name: name.to_owned(), peers, state, event: event::create()?, place })
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Signalled when there is output, when there is room for input again, and when the next peer may come.
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// A peer has come; false if the guest is still busy with the one before.
    pub fn arrive(&self) -> bool {
        let mut state = self.state();
        if state.host == Host::Nobody {
            state.host = Host::Peer;
            self.tell_later(&mut state, untold::OPEN);
        }
        state.host == Host::Peer
    }

    /// The peer has left. Output that it did not take is nobody's; its input goes on to the guest.
    pub fn leave(&self) {
        let mut state = self.state();
        if state.host == Host::Peer {
            self.part(&mut state);
            self.settle(&mut state);
        }
    }

    /// Begins the end of a session.
    fn part(&self, state: &mut State) {
        state.host = Host::Left;
        state.output.clear();
        // More are not in the queue at any moment.
        state.leftover = QUEUE_SIZE;
        if state.taken > 0 {
            // Of the chain that was begun, nothing is left for anybody.
            state.taken = u64::MAX;
        }
        state.sending = false;
        self.wake(|number| receiving(number) + 1);
    }

    /// Whether a peer may come.
    pub fn is_free(&self) -> bool {
        self.state().host == Host::Nobody
    }

    /// How much [`offer_input`](Self::offer_input) would take; if nothing, the event tells when that has changed.
    pub fn input_space(&self) -> usize {
        let mut state = self.state();
        let space = CAPACITY - state.input.len();
        state.offering |= space == 0;
        space
    }

    /// Takes input for the guest, as much as there is room for.
    pub fn offer_input(&self, bytes: &[u8]) -> usize {
        let mut state = self.state();
        let count = bytes.len().min(CAPACITY - state.input.len());
        state.input.extend(&bytes[..count]);
        state.offering |= count < bytes.len();
        drop(state);
        if count > 0 {
            self.wake(receiving);
        }
        count
    }

    /// Copies the output that waits longest, as much as there is room for in `bytes`, and says how much that is.
    pub fn output(&self, bytes: &mut [u8]) -> usize {
        let state = self.state();
        let mut done = 0;
        for part in <[&[u8]; 2]>::from(state.output.as_slices()) {
            let count = part.len().min(bytes.len() - done);
            bytes[done..done + count].copy_from_slice(&part[..count]);
            done += count;
        }
        done
    }

    /// Whether output waits.
    pub fn has_output(&self) -> bool {
        !self.state().output.is_empty()
    }

    /// So much of the output has reached its peer.
    pub fn output_taken(&self, count: usize) {
        let mut state = self.state();
        let count = count.min(state.output.len());
        state.output.drain(..count);
        if CAPACITY - state.output.len() >= ENOUGH_ROOM {
            self.ask_for_more(&mut state);
        }
    }

    pub(super) fn connect(&self, link: Link, number: u32) {
        let _: Result<(), Place> = self.place.set(Place { link, number });
    }

    /// The driver's side is forgotten. What is on its way is the host's and stays.
    pub(super) fn reset(&self) {
        let mut state = self.state();
        (state.ready, state.open, state.untold) = (false, false, 0);
        (state.taken, state.leftover, state.sending) = (0, 0, false);
        self.settle(&mut state);
    }

    /// The driver is to hear that there is such a port.
    pub(super) fn announce(&self) {
        self.tell_later(&mut self.state(), untold::ADDED);
    }

    /// The driver has set it up, or could not.
    pub(super) fn driver_is_ready(&self, ready: bool) {
        let mut state = self.state();
        state.ready = ready;
        state.open &= ready;
        let mut untold = if self.name.is_empty() { 0 } else { untold::NAME };
        if self.number() == Some(0) {
            untold |= untold::CONSOLE | untold::SIZE;
        }
        if state.host != Host::Nobody {
            untold |= untold::OPEN;
        }
        if ready {
            self.tell_later(&mut state, untold);
        }
        self.settle(&mut state);
    }

    /// Somebody in the guest has opened or closed it.
    pub(super) fn guest_opens(&self, open: bool) {
        self.state().open = open;
        self.wake(receiving);
    }

    /// The size of the console has changed.
    pub(super) fn is_resized(&self) {
        let mut state = self.state();
        if state.ready {
            self.tell_later(&mut state, untold::SIZE);
        }
    }

    /// A byte that does not come through the queue; lost if there is no room.
    pub(super) fn emit(&self, byte: u8) {
        let mut state = self.state();
        if state.host == Host::Peer && state.output.len() < CAPACITY {
            self.put_out(&mut state, &[byte]);
        }
    }

    /// Fills buffers of the driver's with input.
    pub(super) fn give_to(&self, queue: &mut Queue, several: bool) -> Result<bool, Misuse> {
        for _ in 0..QUEUE_SIZE {
            let mut state = self.state();
            // Where ports are opened, the driver throws away what comes before.
            if state.input.is_empty() || several && !state.open {
                return Ok(false);
            }
            let input = &mut state.input;
            if !queue.one(|chain, memory| fill(chain, memory, input))? {
                return Ok(false);
            }
            if std::mem::take(&mut state.offering) {
                event::signal(&self.event);
            }
            self.settle(&mut state);
        }
        Ok(true)
    }

    /// Takes output out of the driver's buffers, as much as there is room for.
    pub(super) fn take_from(&self, queue: &mut Queue) -> Result<bool, Misuse> {
        for _ in 0..QUEUE_SIZE {
            let mut state = self.state();
            let Some(whole) = queue.peek(|chain, memory| self.take(&mut state, chain, memory))? else {
                self.has_swallowed(&mut state, QUEUE_SIZE);
                return Ok(false);
            };
            if !whole {
                state.sending = true;
                return Ok(false);
            }
            state.taken = 0;
            queue.one(|_, _| Ok(0))?;
            self.has_swallowed(&mut state, 1);
        }
        Ok(true)
    }

    /// So many chains, or more than there are, were not for the next peer.
    fn has_swallowed(&self, state: &mut State, count: u16) {
        if state.leftover > 0 {
            state.leftover = state.leftover.saturating_sub(count);
            self.settle(state);
        }
    }

    /// Takes what there is room for; whether that was all of the chain.
    fn take(&self, state: &mut State, chain: &Chain, memory: &GuestMemoryMmap) -> Result<bool, Misuse> {
        if !chain.writable().is_empty() {
            return Err(Misuse::Request);
        }
        if state.host != Host::Peer {
            return Ok(true);
        }
        let left = length(chain.readable()).saturating_sub(state.taken);
        let now = left.min((CAPACITY - state.output.len()) as u64);
        let (mut skip, mut wanted) = (state.taken, now);
        for buffer in chain.readable() {
            let from = skip.min(buffer.length.into());
            let count = (u64::from(buffer.length) - from).min(wanted);
            (skip, wanted) = (skip - from, wanted - count);
            self.copy_out(state, memory, buffer.address + from, count)?;
        }
        state.taken += now;
        Ok(now == left)
    }

    fn copy_out(
        &self,
        state: &mut State,
        memory: &GuestMemoryMmap,
        mut address: u64,
        mut count: u64,
    ) -> Result<(), Misuse> {
        let mut piece = [0; PIECE];
        while count > 0 {
            let now = count.min(PIECE as u64) as usize;
            memory.read_slice(&mut piece[..now], GuestAddress(address)).map_err(|_| Misuse::Buffer)?;
            self.put_out(state, &piece[..now]);
            address += now as u64;
            count -= now as u64;
        }
        Ok(())
    }

    fn put_out(&self, state: &mut State, bytes: &[u8]) {
        let is_first = state.output.is_empty();
        state.output.extend(bytes);
        if is_first {
            event::signal(&self.event);
        }
    }

    /// Puts what is untold into the driver's buffers; whether there were enough of them.
    pub(super) fn tell(&self, queue: &mut Queue, size: Size) -> Result<bool, Misuse> {
        let mut state = self.state();
        while state.untold != 0 {
            let what = 1 << state.untold.trailing_zeros();
            if !self.tell_one(what, &mut state, queue, size)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn tell_one(&self, what: u8, state: &mut State, queue: &mut Queue, size: Size) -> Result<bool, Misuse> {
        let open = state.host == Host::Peer || state.host == Host::Left && state.is_busy();
        let (event, value, rest) = match what {
            untold::ADDED => (Event::PortAdd, 1, Rest::Nothing),
            untold::CONSOLE => (Event::ConsolePort, 1, Rest::Nothing),
            untold::NAME => (Event::PortName, 1, Rest::Name(&self.name)),
            untold::OPEN => (Event::PortOpen, open.into(), Rest::Nothing),
            _ => (Event::Resize, 1, Rest::Size(size)),
        };
        let nothing_to_say = what == untold::SIZE && size == Size::default();
        let message = Message { port: self.number().unwrap_or_default(), event, value };
        let told =
            nothing_to_say || queue.one(|chain, memory| control::write(chain, memory, message, &rest))?;
        if told {
            state.untold &= !what;
            if what == untold::OPEN && !open {
                self.make_free(state);
            }
        }
        Ok(told)
    }

    /// Ends the session of a peer that has left, once the guest has its input and knows. A driver that has not set the
    /// port up knows of nobody, and has sent nothing.
    fn settle(&self, state: &mut State) {
        if state.host != Host::Left || !state.input.is_empty() {
            return;
        }
        if !state.ready {
            self.make_free(state);
        } else if !state.is_busy() {
            self.tell_later(state, untold::OPEN);
        }
    }

    fn make_free(&self, state: &mut State) {
        if state.host == Host::Left {
            (state.host, state.leftover) = (Host::Nobody, 0);
            event::signal(&self.event);
        }
    }

    fn tell_later(&self, state: &mut State, what: u8) {
        // Before the driver has set the port up it hears of nothing else.
        state.untold |= if state.ready { what } else { what & untold::ADDED };
        if state.untold != 0 {
            self.wake(|_| MESSAGES_IN);
        }
    }

    fn ask_for_more(&self, state: &mut State) {
        if std::mem::take(&mut state.sending) {
            self.wake(|number| receiving(number) + 1);
        }
    }

    fn wake(&self, queue: impl FnOnce(u32) -> u16) {
        if let Some(Place { link, number }) = self.place.get() {
            link.wake(queue(*number));
        }
    }

    fn number(&self) -> Option<u32> {
        self.place.get().map(|place| place.number)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub(super) fn save(&self) -> SavedPort {
        let Self { name, peers: _, state, event: _, place: _ } = self;
        let State { input, output, host, ready, open, untold, taken, leftover: _, sending: _, offering: _ } =
            &*lock(state);
        SavedPort {
            name: name.clone(),
            input: input.iter().copied().collect(),
            output: output.iter().copied().collect(),
            host: *host,
            ready: *ready,
            open: *open,
            untold: *untold,
            taken: *taken,
        }
    }

    /// Whether it could ever be in that state.
    pub(super) fn could_be(&self, saved: &SavedPort) -> bool {
        saved.name == self.name
            && saved.input.len() <= CAPACITY
            && saved.output.len() <= CAPACITY
            && saved.untold & !untold::ALL == 0
    }

    pub(super) fn restore(&self, saved: &SavedPort) {
        let SavedPort { name: _, input, output, host, ready, open, untold, taken } = saved;
        let mut state = self.state();
        state.input = input.iter().copied().collect();
        state.output = output.iter().copied().collect();
        (state.ready, state.open, state.untold, state.taken) = (*ready, *open, *untold, *taken);
        if self.peers == Peers::Many {
            // Whoever was there is not here, and the driver may have more for him.
            state.output.clear();
            if *host != Host::Nobody {
                self.part(&mut state);
            }
        } else if *host != Host::Peer {
            self.tell_later(&mut state, untold::OPEN);
        }
        self.settle(&mut state);
        event::signal(&self.event);
    }
}

/// The queue of a port in which the driver waits for input; the next one is that of its output.
fn receiving(number: u32) -> u16 {
    // A device has no number beyond a few dozen.
    match number as u16 {
        0 => 0,
        other => 2 * other + 2,
    }
}

impl State {
    /// Whether something is on its way from or to a peer that has left.
    fn is_busy(&self) -> bool {
        self.leftover > 0 || !self.input.is_empty()
    }
}

/// Fills a chain with the beginning of `input`.
fn fill(chain: &Chain, memory: &GuestMemoryMmap, input: &mut VecDeque<u8>) -> Result<u32, Misuse> {
    if !chain.readable().is_empty() {
        return Err(Misuse::Request);
    }
    let count = length(chain.writable()).min(input.len() as u64) as usize;
    // What lies behind the end of the ring goes into the next chain.
    let front = input.as_slices().0;
    let front = &front[..count.min(front.len())];
    queue::write(memory, chain.writable(), front).ok_or(Misuse::Request)?;
    let count = front.len();
    input.drain(..count);
    Ok(count as u32)
}

/// Takes output of a port that there is not.
pub(super) fn swallow(queue: &mut Queue) -> Result<bool, Misuse> {
    queue.each(|chain, _| if chain.writable().is_empty() { Ok(0) } else { Err(Misuse::Request) })
}
