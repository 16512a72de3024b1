//! The queue between pushes and the sink, and the thread that empties it.
//!
//! One mutex guards everything; nobody writes to the sink while holding it. Whoever pushes wakes the writer
//! only if it sleeps without a time limit ([`Phase::Idle`]), and that is the only system call a push makes.
//! [`Output`](super::Output) is the public face and says what is promised.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::output::{Counters, HARD_BOUND, SOFT_BOUND, Timing};
use super::sink::Sink;
use crate::threads;

/// So many queued bytes end the gathering early.
const ENOUGH: usize = 16 << 10;
/// What the queue holds without growing: more than a guest prints by single bytes while the thread gathers.
const INITIAL_CAPACITY: usize = 2048;
/// The most that is written at once. A pipe takes that much (`PIPE_BUF`) whole as soon as it is writable.
const CHUNK: usize = 4096;
/// The same for a terminal: half a second on a line of 9600 baud, so that its progress is seen.
const TERMINAL_CHUNK: usize = 512;
const WRITER_STACK: usize = 64 << 10;

/// What the pushing threads and the writer's share.
#[derive(Debug)]
pub(super) struct Shared {
    sink: Sink,
    timing: Timing,
    state: Mutex<State>,
    /// The writer waits here, for bytes or for the end.
    wake: Condvar,
    /// Pushes wait here for room, and `finish` for the writer.
    room: Condvar,
}

#[derive(Debug)]
pub(super) struct State {
    /// Bytes stay here until the sink has taken them.
    queue: VecDeque<u8>,
    phase: Phase,
    pub flow: Flow,
    pub started: bool,
    thread: Option<JoinHandle<()>>,
    /// The first byte has had its chance to be written by the thread that pushed it.
    direct_spent: bool,
    /// And this is happening now: the writer keeps out.
    direct: bool,
    released: bool,
    finishing: bool,
    /// Threads that wait on `room`.
    pub waiting: usize,
    /// Bytes given up since the last notice of a loss.
    lost: u64,
    pub counters: Counters,
    pub failure: Option<i32>,
}

/// Who looks after queued bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nobody: a push has to wake the writer.
    Idle,
    /// Somebody who is awake: a push just appends.
    Active,
    /// The writer, before long: a push just appends, unless it is enough.
    Gathering,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    /// Bytes are taken.
    Open,
    /// The reader is stuck: bytes are lost until it takes some.
    Stalled,
    /// The sink failed or the output is finished: bytes are lost.
    Ended,
}

/// How much longer to wait for a reader that takes nothing.
///
/// Spent in portions, none at more than its nominal length: a process that was stopped together with its
/// reader (Ctrl-Z in a pipeline) has not waited for it.
struct Patience {
    whole: Duration,
    left: Duration,
}

impl Patience {
    fn new(whole: Duration) -> Self {
        Self { whole, left: whole }
    }

    fn portion(&self) -> Duration {
        self.left.min(self.whole / 10)
    }

    fn spend(&mut self, time: Duration) {
        self.left -= time.min(self.portion());
    }

    fn renew(&mut self) {
        self.left = self.whole;
    }

    fn is_over(&self) -> bool {
        self.left.is_zero()
    }
}

impl State {
    fn drop_bytes(&mut self, count: usize) {
        self.counters.bytes_dropped += count as u64;
    }

    fn lose_bytes(&mut self, count: usize) {
        self.drop_bytes(count);
        self.lost += count as u64;
    }

    /// Says in the output how much is missing at this place.
    fn note_loss(&mut self) {
        if self.lost > 0 {
            let notice = format!("\r\n[lodger: {} bytes of console output lost]\r\n", self.lost);
            self.lost = 0;
            self.queue_ours(&notice);
        }
    }

    fn queue_ours(&mut self, text: &str) {
        self.queue.extend(text.as_bytes());
        self.counters.bytes_of_ours += text.len() as u64;
    }

    /// Gives up what is queued and everything to come.
    fn end(&mut self) {
        self.flow = Flow::Ended;
        self.drop_bytes(self.queue.len());
        self.queue = VecDeque::new();
    }
}

impl Shared {
    pub fn new(sink: Sink, timing: Timing) -> Self {
        let state = State {
            queue: VecDeque::with_capacity(INITIAL_CAPACITY),
            phase: Phase::Idle,
            flow: Flow::Open,
            started: false,
            thread: None,
            direct_spent: false,
            direct: false,
            released: false,
            finishing: false,
            waiting: 0,
            lost: 0,
            counters: Counters::default(),
            failure: None,
        };
        Self { sink, timing, state: Mutex::new(state), wake: Condvar::new(), room: Condvar::new() }
    }

    pub fn is_terminal(&self) -> bool {
        self.sink.is_terminal()
    }

    pub fn begin_log(&self, directory: &Path) -> io::Result<()> {
        self.sink.begin_log(directory)
    }

    pub fn pipe(&self) -> Option<BorrowedFd<'_>> {
        self.sink.pipe()
    }

    pub fn start(self: &Arc<Self>) {
        let mut state = self.lock();
        if !state.started && state.flow != Flow::Ended {
            state.started = true;
            drop(state);
            self.spawn();
        }
    }

    pub fn push(self: &Arc<Self>, bytes: &[u8]) {
        let mut state = self.lock();
        let fits = bytes.len() <= SOFT_BOUND.saturating_sub(state.queue.len());
        if fits && state.flow == Flow::Open && state.lost == 0 && !state.finishing {
            state.queue.extend(bytes);
            drop(self.kick(state));
        } else {
            self.push_slowly(state, bytes);
        }
    }

    /// Queues a text of this program's own, if there is room for it.
    pub fn insert(self: &Arc<Self>, text: &str) {
        let mut state = self.lock();
        let fits = text.len() <= SOFT_BOUND.saturating_sub(state.queue.len());
        if fits && state.flow == Flow::Open && !state.finishing {
            state.note_loss();
            state.queue_ours(text);
            drop(self.kick(state));
        }
    }

    pub fn release_waiters(&self, released: bool) {
        let mut state = self.lock();
        state.released = released;
        if state.waiting > 0 {
            self.room.notify_all();
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing between a lock and its release can panic half way through a change.
        threads::lock(&self.state)
    }

    fn wait<'a>(&self, on: &Condvar, state: MutexGuard<'a, State>, time: Duration) -> MutexGuard<'a, State> {
        on.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Sees to it that somebody looks after the bytes just queued.
    fn kick<'a>(self: &'a Arc<Self>, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        match state.phase {
            Phase::Active => return state,
            Phase::Gathering if state.queue.len() < ENOUGH => return state,
            Phase::Gathering => {}
            Phase::Idle if state.direct_spent => {}
            Phase::Idle => {
                state = self.write_directly(state);
                if state.queue.is_empty() {
                    state.phase = Phase::Idle;
                    return state;
                }
            }
        }
        state.phase = Phase::Active;
        state.counters.wakes += 1;
        let started = std::mem::replace(&mut state.started, true);
        drop(state);
        if started {
            self.wake.notify_one();
        } else {
            self.spawn();
        }
        self.lock()
    }

    /// Writes the first bytes on the thread that pushes them, as far as that is possible without waiting.
    fn write_directly<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        state.direct_spent = true;
        state.direct = true;
        state.phase = Phase::Active;
        let mut buffer = [0; TERMINAL_CHUNK];
        let length = copy_front(&state.queue, &mut buffer);
        drop(state);
        let result = self.sink.write_now(&buffer[..length]);
        let mut state = self.lock();
        state.direct = false;
        self.account(&mut state, result);
        if state.finishing {
            // The end, and the writer if there is one, have waited for this.
            self.wake.notify_one();
            self.room.notify_all();
        }
        state
    }

    fn spawn(self: &Arc<Self>) {
        let shared = Arc::clone(self);
        let writer = thread::Builder::new().name("console".to_owned()).stack_size(WRITER_STACK);
        match threads::without_signals(|| writer.spawn(move || shared.run())) {
            Ok(thread) => {
                let mut state = self.lock();
                if state.flow != Flow::Ended {
                    state.thread = Some(thread);
                }
            }
            Err(error) => {
                let mut state = self.lock();
                state.started = false;
                self.account(&mut state, Err(error));
            }
        }
    }

    /// The push that finds no room, a stuck reader, or the end.
    fn push_slowly<'a>(self: &'a Arc<Self>, mut state: MutexGuard<'a, State>, mut bytes: &[u8]) {
        if state.finishing {
            return state.drop_bytes(bytes.len());
        }
        let mut patience = Patience::new(self.timing.patience);
        loop {
            match state.flow {
                Flow::Ended => return state.drop_bytes(bytes.len()),
                Flow::Stalled => return state.lose_bytes(bytes.len()),
                Flow::Open => {}
            }
            let in_a_hurry = state.released || state.finishing;
            let bound = if in_a_hurry { HARD_BOUND } else { SOFT_BOUND };
            let room = bound.saturating_sub(state.queue.len());
            if room > 0 {
                // The notice may go beyond the bound; it is short, and there is none without a loss.
                state.note_loss();
                let (now, later) = bytes.split_at(room.min(bytes.len()));
                state.queue.extend(now);
                bytes = later;
                state = self.kick(state);
                if bytes.is_empty() {
                    return;
                }
                continue;
            }
            if in_a_hurry {
                return state.lose_bytes(bytes.len());
            }
            if patience.is_over() {
                state.flow = Flow::Stalled;
                continue;
            }
            state = self.wait_for_room(state, &mut patience);
        }
    }

    /// Waits a while for the reader to take something, which renews the patience.
    fn wait_for_room<'a>(
        &self,
        mut state: MutexGuard<'a, State>,
        patience: &mut Patience,
    ) -> MutexGuard<'a, State> {
        let written = state.counters.bytes_written;
        let start = Instant::now();
        state.waiting += 1;
        let mut state = self.wait(&self.room, state, patience.portion());
        state.waiting -= 1;
        if state.counters.bytes_written == written {
            patience.spend(start.elapsed());
        } else {
            patience.renew();
        }
        state
    }

    /// Writes down what the sink said to the bytes at the front of the queue.
    fn account(&self, state: &mut State, result: io::Result<usize>) {
        if state.flow == Flow::Ended {
            // Given up meanwhile; the bytes are counted already.
            return;
        }
        match result {
            Ok(0) => return,
            Ok(written) => {
                state.queue.drain(..written.min(state.queue.len()));
                state.counters.bytes_written += written as u64;
                state.counters.writes += 1;
                state.flow = Flow::Open;
            }
            Err(error) => {
                state.failure = Some(error.raw_os_error().unwrap_or(libc::EIO));
                state.end();
            }
        }
        if state.waiting > 0 {
            self.room.notify_all();
        }
    }

    pub fn finish(&self) {
        let mut state = self.lock();
        state.finishing = true;
        self.wake.notify_all();
        self.room.notify_all();
        let mut patience = Patience::new(self.timing.patience);
        while state.flow != Flow::Ended {
            if !state.started && !state.direct && state.queue.is_empty() {
                state.end();
                break;
            }
            if patience.is_over() {
                state.end();
                // A writer inside a blocking write cannot be ended, so it is not waited for: it ends with the
                // reader or with the process.
                state.thread = None;
                drop(state);
                return self.sink.interrupt();
            }
            state = self.wait_for_room(state, &mut patience);
        }
        let thread = state.thread.take();
        drop(state);
        if let Some(thread) = thread {
            // The writer does not panic, and if it had there would be nothing to add.
            let _ = thread.join();
        }
    }

    /// Whether nothing is left to be written, or nothing can be.
    pub fn is_drained(&self) -> bool {
        let state = self.lock();
        state.flow == Flow::Ended
            || (state.queue.is_empty() && !state.direct && (state.phase == Phase::Idle || !state.started))
    }

    /// The writer's thread.
    fn run(&self) {
        let chunk = if self.sink.is_terminal() { TERMINAL_CHUNK } else { CHUNK };
        let mut gather = self.timing.first_gather;
        let mut state = self.lock();
        while state.flow != Flow::Ended {
            if state.direct || (state.phase == Phase::Idle && !state.finishing) {
                state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.phase = Phase::Active;
            if state.queue.is_empty() {
                state.note_loss();
            }
            if state.queue.is_empty() {
                if state.finishing {
                    state.end();
                }
                state.phase = Phase::Idle;
                gather = self.timing.first_gather;
                continue;
            }
            state = self.write_queued(state, chunk);
            if state.flow != Flow::Ended && !state.finishing {
                state = self.gather(state, gather);
                gather = (gather * 2).min(self.timing.longest_gather);
            }
        }
        self.room.notify_all();
    }

    /// Writes what is queued now, and not what comes meanwhile: that is better gathered.
    fn write_queued<'a>(&'a self, mut state: MutexGuard<'a, State>, chunk: usize) -> MutexGuard<'a, State> {
        let mut due = state.queue.len();
        let mut buffer = [0; CHUNK];
        while due > 0 && state.flow != Flow::Ended {
            let length = copy_front(&state.queue, &mut buffer[..chunk.min(due)]);
            drop(state);
            let result = self.sink.write(&buffer[..length]);
            due -= result.as_ref().map_or(due, |written| (*written).min(due));
            state = self.lock();
            self.account(&mut state, result);
        }
        state
    }

    /// Lets bytes come together for a while, or until there are enough of them.
    fn gather<'a>(&self, mut state: MutexGuard<'a, State>, time: Duration) -> MutexGuard<'a, State> {
        let start = Instant::now();
        if state.queue.len() < ENOUGH {
            state.phase = Phase::Gathering;
        }
        while state.phase == Phase::Gathering && !state.finishing && state.flow != Flow::Ended {
            let left = time.saturating_sub(start.elapsed());
            if left.is_zero() {
                break;
            }
            state = self.wait(&self.wake, state, left);
        }
        state.phase = Phase::Active;
        state
    }
}

/// Copies as much of the front of `queue` as fits into `buffer`; returns how much that is.
fn copy_front(queue: &VecDeque<u8>, buffer: &mut [u8]) -> usize {
    let (first, second) = queue.as_slices();
    let from_first = first.len().min(buffer.len());
    buffer[..from_first].copy_from_slice(&first[..from_first]);
    let from_second = second.len().min(buffer.len() - from_first);
    buffer[from_first..from_first + from_second].copy_from_slice(&second[..from_second]);
    from_first + from_second
}
