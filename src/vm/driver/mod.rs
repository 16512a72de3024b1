//! The one who changes a machine's state: whether it runs, stands still or ends.
//!
//! Everybody who wants something of a machine (the terminal, signals, the control socket, the owner of the library's
//! value) asks through a [`Handle`], and the guest's own end comes the same way. One thread takes the requests one
//! after the other, so that two never meet half way; [`answer`] says which are legal in which state, and nothing else
//! does. Each transition is an [`Event`].
//!
//! To pause is to bring the processors to rest between two instructions first, and to have the devices finish then what
//! they have begun; to resume goes the other way round. To stop is to ask the guest, by its power button, and to kill
//! it when its time is over. What needs a machine at rest is done by [`Handle::at_rest`]; [`Handle::snapshot`] does it
//! for a moment only, and all that takes long on the thread of whoever asks, so that nobody else waits for it.

mod events;
mod origin;
mod snapshot;
mod table;

use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use super::watch::INTERVAL;
use super::{Error, Machine};
use crate::hv::Vm;
use crate::{event, threads};
use events::Events;
pub use events::{CAPACITY as EVENTS_KEPT, Event, News, Subscription, What};
use origin::ending;
pub use origin::{Ending, Origin};
pub use snapshot::{Order, Phase, SnapshotError, Step, Taken};
pub use table::{Answer, Kind, Refusal, State, answer};

const STACK_SIZE: usize = 128 << 10;
/// How often a guest that was asked to end is asked again: one that is still booting does not hear the first time.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// What somebody wants of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Run, for the first time.
    Start,
    /// Stand still.
    Pause,
    /// Run on.
    Resume,
    /// Ask the guest to end, and end it when so much time has passed.
    Stop {
        /// How much time it has.
        patience: Duration,
    },
    /// End at once.
    Kill,
}

impl Request {
    fn kind(self) -> Kind {
        match self {
            Self::Start => Kind::Start,
            Self::Pause => Kind::Pause,
            Self::Resume => Kind::Resume,
            Self::Stop { .. } => Kind::Stop,
            Self::Kill => Kind::Kill,
        }
    }
}

type Reply<T> = SyncSender<Result<T, Refusal>>;
type Work<V> = Box<dyn FnOnce(Result<Rest<'_, V>, Refusal>) -> (After, Told) + Send>;
/// Tells whoever asked for the work, when what becomes of the machine afterwards is so.
type Told = Box<dyn FnOnce() + Send>;

/// A machine that stands still.
struct Rest<'a, V: Vm> {
    machine: &'a Machine<V>,
    /// What it does otherwise.
    state: State,
    /// Since when.
    since: Instant,
    /// How often it was let run: it has not moved between two moments at which this is the same.
    runs: u64,
}

/// What becomes of a machine that was brought to rest.
#[derive(Debug, Clone, Copy)]
enum After {
    /// It does what it did before.
    GoOn,
    /// It stays paused.
    Stay(Origin),
    /// It ends here.
    End(Origin),
}

enum Message<V: Vm> {
    Request { request: Request, origin: Origin, reply: Option<Reply<State>> },
    AtRest(Work<V>),
}

struct Shared<V: Vm> {
    sender: Sender<Message<V>>,
    /// Set when there is a message.
    bell: EventFd,
    status: Mutex<Status>,
    events: Events,
    /// Set when the machine has stopped.
    stopped: EventFd,
    /// Whether somebody is taking a snapshot.
    snapshot: AtomicBool,
    /// Where the last one is.
    last_snapshot: Mutex<Option<PathBuf>>,
}

struct Status {
    state: State,
    started: Option<Instant>,
    /// Who ended it.
    ended_by: Option<Origin>,
    ending: Option<Ending>,
}

impl<V: Vm> Shared<V> {
    fn status(&self) -> MutexGuard<'_, Status> {
        threads::lock(&self.status)
    }
}

/// Who drives a machine. Owned by one thread: [`spawn`](Self::spawn) gives it one of its own.
pub struct Driver<V: Vm> {
    machine: Arc<Machine<V>>,
    shared: Arc<Shared<V>>,
    receiver: Receiver<Message<V>>,
    /// While the guest is asked to end.
    stopping: Option<Stopping>,
    /// How often somebody has let it run.
    runs: u64,
}

#[derive(Debug, Clone, Copy)]
struct Stopping {
    deadline: Instant,
    ask_again: Instant,
}

/// By which others ask a machine for something.
pub struct Handle<V: Vm> {
    machine: Arc<Machine<V>>,
    shared: Arc<Shared<V>>,
}

impl<V: Vm> Clone for Handle<V> {
    fn clone(&self) -> Self {
        Self { machine: Arc::clone(&self.machine), shared: Arc::clone(&self.shared) }
    }
}

/// The thread of a driver. Dropping it kills the machine, if that runs, and waits until it has stopped.
pub struct DriverThread<V: Vm> {
    handle: Handle<V>,
    thread: Option<JoinHandle<()>>,
}

impl<V: Vm> Driver<V> {
    /// Takes a machine that has not run yet.
    pub fn new(machine: Machine<V>) -> Result<Self, Error> {
        let (sender, receiver) = mpsc::channel();
        let status = Status { state: State::Created, started: None, ended_by: None, ending: None };
        let shared = Shared {
            sender,
            bell: event::create().map_err(Error::Event)?,
            status: Mutex::new(status),
            events: Events::default(),
            stopped: event::create().map_err(Error::Event)?,
            snapshot: AtomicBool::new(false),
            last_snapshot: Mutex::default(),
        };
        Ok(Self { machine: Arc::new(machine), shared: Arc::new(shared), receiver, stopping: None, runs: 0 })
    }

    /// A handle for others.
    pub fn handle(&self) -> Handle<V> {
        Handle { machine: Arc::clone(&self.machine), shared: Arc::clone(&self.shared) }
    }

    /// Lets the machine run for the first time, on this thread: a thread for the driver need not come before it.
    pub fn start(&mut self) -> Result<State, Refusal> {
        self.carry_out(Request::Start, Origin::Owner)
    }

    /// Has the machine stand still from the beginning on, in place of starting it.
    pub fn hold(&mut self) -> Result<State, Refusal> {
        self.carry_out(Request::Pause, Origin::Owner)
    }

    /// Drives the machine to its end, on a thread of its own.
    pub fn spawn(self) -> Result<DriverThread<V>, Error> {
        let handle = self.handle();
        let builder = Builder::new().name("driver".to_owned()).stack_size(STACK_SIZE);
        let thread = threads::without_signals(|| builder.spawn(move || self.run())).map_err(Error::Driver)?;
        Ok(DriverThread { handle, thread: Some(thread) })
    }

    /// Drives the machine to its end.
    pub fn run(mut self) {
        while self.state() != State::Stopped {
            self.wait();
            self.turn();
        }
    }

    fn state(&self) -> State {
        self.shared.status().state
    }

    /// Waits until there is something to do.
    fn wait(&self) {
        let state = self.state();
        let until = self.stopping.map(|stopping| {
            let next = stopping.deadline.min(stopping.ask_again);
            next.saturating_duration_since(Instant::now()) + Duration::from_millis(1)
        });
        // Only who runs can halt for good.
        let look = matches!(state, State::Running | State::Stopping).then_some(INTERVAL);
        let limit = [until, look].into_iter().flatten().min();
        let bell = event::descriptor(&self.shared.bell);
        // Whatever ends the call, `turn` looks what there is to do.
        let _: io::Result<_> = event::readable([Some(bell), Some(self.machine.end_event())], limit);
    }

    /// Does what there is to do.
    fn turn(&mut self) {
        // Before the messages are looked at: who rings later is heard at the next turn.
        let _: io::Result<u64> = self.shared.bell.read();
        self.take_note_of_end();
        while let Ok(message) = self.receiver.try_recv() {
            match message {
                Message::Request { request, origin, reply } => {
                    let result = self.carry_out(request, origin);
                    if let Some(reply) = reply {
                        // Who has gone does not want to know.
                        let _ = reply.send(result);
                    }
                }
                Message::AtRest(work) => self.at_rest(work),
            }
        }
        if matches!(self.state(), State::Running | State::Stopping) {
            self.machine.look_after();
            self.take_note_of_end();
            self.press_on();
        }
    }

    /// The guest's own end is a request like others.
    fn take_note_of_end(&mut self) {
        if self.machine.outcome().is_some() && answer(self.state(), Kind::End) == Answer::Go(State::Stopped) {
            self.end(Origin::Guest);
        }
    }

    fn carry_out(&mut self, request: Request, origin: Origin) -> Result<State, Refusal> {
        // Whoever ends a guest that has just ended comes too late.
        self.take_note_of_end();
        let state = self.state();
        let to = match answer(state, request.kind()) {
            Answer::Go(to) => to,
            Answer::Already => return Ok(state),
            Answer::Refused => return Err(Refusal { state, request: request.kind() }),
        };
        match to {
            State::Running => {
                self.let_run();
                self.shared.status().started.get_or_insert_with(Instant::now);
                self.change(to, origin);
            }
            State::Paused => {
                self.machine.pause();
                self.change(to, origin);
            }
            State::Stopping => self.ask_to_end(request, origin),
            State::Stopped => self.end(origin),
            State::Created => {}
        }
        Ok(self.state())
    }

    fn let_run(&mut self) {
        self.runs += 1;
        self.machine.resume();
    }

    /// Asks the guest, which has to run to hear it.
    fn ask_to_end(&mut self, request: Request, origin: Origin) {
        let Request::Stop { patience } = request else { return };
        let now = Instant::now();
        // Who waits for centuries waits for ever.
        let deadline = now.checked_add(patience).unwrap_or(now + Duration::from_hours(24 * 365));
        let deadline = self.stopping.map_or(deadline, |stopping| stopping.deadline.min(deadline));
        self.stopping = Some(Stopping { deadline, ask_again: now });
        match self.state() {
            State::Stopping => {}
            State::Paused => {
                self.let_run();
                self.change(State::Stopping, origin);
            }
            _ => self.change(State::Stopping, origin),
        }
        self.press_on();
    }

    /// Asks a guest once more that was asked to end, or ends it.
    fn press_on(&mut self) {
        let Some(stopping) = &mut self.stopping else { return };
        let now = Instant::now();
        if now >= stopping.deadline {
            self.end(Origin::Timeout);
        } else if now >= stopping.ask_again {
            stopping.ask_again = now + ASK_AGAIN;
            self.machine.press_power_button();
        }
    }

    fn at_rest(&mut self, work: Work<V>) {
        self.take_note_of_end();
        let state = self.state();
        if answer(state, Kind::AtRest) == Answer::Refused {
            let (_, tell) = work(Err(Refusal { state, request: Kind::AtRest }));
            return tell();
        }
        let since = Instant::now();
        // For a moment only, so that nobody is told.
        if state == State::Running {
            self.machine.pause();
        }
        let (after, tell) = work(Ok(Rest { machine: &self.machine, state, since, runs: self.runs }));
        match (after, state) {
            (After::End(by), _) => self.end(by),
            (After::Stay(by), State::Running) => self.change(State::Paused, by),
            (After::GoOn, State::Running) => self.machine.resume(),
            _ => {}
        }
        tell();
    }

    fn end(&mut self, by: Origin) {
        self.stopping = None;
        // Stopping the processors gives a machine an outcome that has none.
        let by_itself = self.machine.outcome().is_some();
        self.machine.stop();
        let by = if by_itself { Origin::Guest } else { by };
        let ending = ending(by, self.machine.outcome());
        let mut status = self.shared.status();
        status.ended_by = Some(by);
        status.ending = Some(ending);
        drop(status);
        self.change(State::Stopped, by);
        event::signal(&self.shared.stopped);
    }

    fn change(&self, to: State, by: Origin) {
        let mut status = self.shared.status();
        let from = std::mem::replace(&mut status.state, to);
        let end = status.ending.clone();
        // Under the lock: who subscribes and asks for the state then has all that follows it.
        self.shared.events.tell(What::State { from, to, by: by.to_string(), end });
    }
}

impl<V: Vm> Drop for Driver<V> {
    /// Nobody shall wait for a driver that is gone, whatever took it away.
    fn drop(&mut self) {
        event::signal(&self.shared.stopped);
    }
}

impl<V: Vm> Handle<V> {
    /// The machine, to be looked at.
    pub fn machine(&self) -> &Machine<V> {
        &self.machine
    }

    /// What it is doing.
    pub fn state(&self) -> State {
        self.shared.status().state
    }

    /// How long ago it ran for the first time.
    pub fn age(&self) -> Option<Duration> {
        self.shared.status().started.map(|started| started.elapsed())
    }

    /// Asks for something, and waits until it is done; what the machine does then. A [`Request::Stop`] is done when the
    /// guest has been asked.
    pub fn request(&self, request: Request, origin: Origin) -> Result<State, Refusal> {
        let (reply, answered) = mpsc::sync_channel(1);
        self.send(Message::Request { request, origin, reply: Some(reply) });
        // Who drives it no longer has seen its end.
        answered.recv().unwrap_or_else(|_| self.too_late(request.kind()).map(|()| State::Stopped))
    }

    /// Asks for something, and does not wait.
    pub fn post(&self, request: Request, origin: Origin) {
        self.send(Message::Request { request, origin, reply: None });
    }

    /// Does `work` while the machine stands still, on the driver's thread, and gives what came of it. A machine that
    /// runs is held for so long, and all other requests wait.
    pub fn at_rest<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Machine<V>) -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        self.while_at_rest(|rest| (work(rest.machine), After::GoOn))
    }

    /// The same for work that says what becomes of the machine afterwards.
    fn while_at_rest<T: Send + 'static>(
        &self,
        work: impl FnOnce(Rest<'_, V>) -> (T, After) + Send + 'static,
    ) -> Result<T, Refusal> {
        let (reply, answered) = mpsc::sync_channel(1);
        self.send(Message::AtRest(Box::new(move |rest: Result<Rest<'_, V>, Refusal>| {
            let (result, after) = match rest.map(work) {
                Ok((result, after)) => (Ok(result), after),
                Err(refusal) => (Err(refusal), After::GoOn),
            };
            // Who has gone does not want to know.
            let tell = move || drop(reply.send(result));
            (after, Box::new(tell) as Told)
        })));
        let gone = || Refusal { state: State::Stopped, request: Kind::AtRest };
        answered.recv().unwrap_or_else(|_| Err(gone()))
    }

    fn send(&self, message: Message<V>) {
        // Without a driver the message is dropped, and whoever waits for its answer hears of that.
        let _ = self.shared.sender.send(message);
        event::signal(&self.shared.bell);
    }

    fn too_late(&self, request: Kind) -> Result<(), Refusal> {
        match answer(State::Stopped, request) {
            Answer::Already => Ok(()),
            _ => Err(Refusal { state: State::Stopped, request }),
        }
    }

    /// A subscription to its events, and what it is doing at the moment with which they begin.
    pub fn subscribe(&self) -> io::Result<(State, Subscription)> {
        let status = self.shared.status();
        Ok((status.state, self.shared.events.subscribe()?))
    }

    /// Readable when the machine has stopped.
    pub fn stopped_event(&self) -> BorrowedFd<'_> {
        event::descriptor(&self.shared.stopped)
    }

    /// How it ended, if it has.
    pub fn ending(&self) -> Option<Ending> {
        self.shared.status().ending.clone()
    }

    /// Who ended it, if it has ended.
    pub fn ended_by(&self) -> Option<Origin> {
        self.shared.status().ended_by
    }
}

impl<V: Vm> DriverThread<V> {
    /// A handle for others.
    pub fn handle(&self) -> &Handle<V> {
        &self.handle
    }

    /// Waits until the machine has stopped.
    pub fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            // A panic was reported by the thread.
            let _: Result<(), _> = thread.join();
        }
    }
}

impl<V: Vm> Drop for DriverThread<V> {
    fn drop(&mut self) {
        self.handle.post(Request::Kill, Origin::Owner);
        self.join();
    }
}

#[cfg(test)]
#[path = "driver_test.rs"]
mod tests;
