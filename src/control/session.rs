//! One client: reads its requests and answers them, one after the other.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vmm_sys_util::eventfd::EventFd;

use super::line::{LONGEST, Lines};
use super::protocol::{self, Call, Diff, Failure, PROTOCOL, Status, Wanted};
use super::server::{Idle, MOST_STAYING, Room, Servable, Served};
use crate::console::LogReader;
use crate::event;
use crate::vm::SavedDescription;
use crate::vm::driver::{Order, Origin, Phase, Request, State, Step, Taken};
use crate::vm::inspect::inspect;

/// How much is read and written at once.
const PIECE: usize = 4096;
/// How soon it is tried again to give the guest what it has no room for.
const INPUT_RETRY: Duration = Duration::from_millis(10);
/// How often it is looked whether a log has grown.
const LOG_INTERVAL: Duration = Duration::from_millis(50);

/// How often at most it is told how far a request is.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// A client's session.
pub struct Session<H: Servable> {
    served: Arc<Served<H>>,
    stream: Arc<UnixStream>,
    closing: Arc<EventFd>,
    room: Arc<Room>,
    idle: Arc<Idle>,
    birth: Instant,
    lines: Lines,
}

/// How much of a flood of output is written before it is looked for input again: who floods a terminal can be told to
/// stop.
const PIECES_AT_ONCE: usize = 16;

/// Whether the session goes on after a request.
type Next = io::Result<bool>;
const LEAVE: Next = Ok(false);

impl<H: Servable> Session<H> {
    pub fn new(
        served: Arc<Served<H>>,
        stream: Arc<UnixStream>,
        closing: Arc<EventFd>,
        room: Arc<Room>,
        idle: Arc<Idle>,
        birth: Instant,
    ) -> Self {
        Self { served, stream, closing, room, idle, birth, lines: Lines::default() }
    }

    /// Serves the client until it goes, says what cannot be read, or the machine's end is told.
    pub fn serve(mut self) {
        loop {
            self.idle.since(self.birth);
            // Whatever goes wrong with the socket is the client's affair.
            let Ok(Some(line)) = self.next_line() else { break };
            self.idle.no_longer();
            let (id, call) = protocol::parse(&line);
            let next = match call {
                Ok(call) => self.answer(&id, call),
                Err(failure) => self.reply(&id, Err(failure)),
            };
            if !matches!(next, Ok(true)) {
                break;
            }
        }
        // The other holder of the socket is told by the thread's end only.
        let _: io::Result<()> = self.stream.shutdown(std::net::Shutdown::Both);
    }

    fn closing(&self) -> BorrowedFd<'_> {
        event::descriptor(&self.closing)
    }

    /// The next line; nothing if there will be none.
    fn next_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            match self.lines.next() {
                Ok(Some(line)) => return Ok(Some(line)),
                Ok(None) => {}
                Err(_) => {
                    let failure = Failure::new("parse", format!("a line has at most {LONGEST} bytes"));
                    self.reply(&Value::Null, Err(failure))?;
                    return Ok(None);
                }
            }
            let [closing, ready] = event::readable([Some(self.closing()), Some(self.stream.as_fd())], None)?;
            if ready {
                let mut buffer = [0; PIECE];
                match (&*self.stream).read(&mut buffer)? {
                    0 => return Ok(None),
                    count => self.lines.add(&buffer[..count]),
                }
            } else if closing {
                return Ok(None);
            }
        }
    }

    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        (&*self.stream).write_all(bytes)
    }

    fn reply(&self, id: &Value, result: Result<Value, Failure>) -> Next {
        self.write(&protocol::answer(id, result)).map(|()| true)
    }

    fn answer(&mut self, id: &Value, call: Call) -> Next {
        match call {
            Call::Version => self.reply(
                id,
                Ok(json!({ "protocol": PROTOCOL, "program": "lodger", "version": env!("CARGO_PKG_VERSION") })),
            ),
            Call::Status => self.reply(id, Ok(json!(self.status()))),
            Call::Inspect => self.reply(id, Ok(self.inspect())),
            Call::Pause => self.request(id, Request::Pause),
            Call::Resume => self.request(id, Request::Resume),
            Call::Stop { patience } => self.request(id, Request::Stop { patience }),
            Call::Kill => self.request(id, Request::Kill),
            Call::Balloon { target } => self.reply(id, self.balloon(target)),
            // Who has had it stopped waits for that, whoever else is there.
            Call::Wait if matches!(self.served.handle.state(), State::Stopping | State::Stopped) => self.wait(id),
            Call::Wait => self.stay(id, Self::wait),
            Call::Events => self.stay(id, Self::events),
            Call::Attach => self.stay(id, Self::attach),
            Call::Logs { follow: true } => self.stay(id, |session, id| session.logs(id, true)),
            Call::Logs { follow: false } => self.logs(id, false),
            Call::Snapshot(wanted) => self.snapshot(id, wanted),
        }
    }

    /// Does what may last as long as the machine, if not too many others do that.
    fn stay(&mut self, id: &Value, work: impl FnOnce(&mut Self, &Value) -> Next) -> Next {
        let room = Arc::clone(&self.room);
        match room.stay() {
            Some(_seat) => work(self, id),
            None => {
                let why = format!("{MOST_STAYING} clients wait, listen or are attached; try again later");
                self.reply(id, Err(Failure::new("busy", why)))
            }
        }
    }

    fn request(&self, id: &Value, request: Request) -> Next {
        let done = self.served.handle.request(request, Origin::Control);
        self.reply(id, done.map(protocol::state).map_err(|refusal| Failure::new("state", refusal)))
    }

    fn status(&self) -> Status {
        let handle = &self.served.handle;
        let machine = handle.machine();
        Status {
            name: machine.name().map(ToString::to_string).unwrap_or_default(),
            pid: process::id(),
            state: handle.state().to_string(),
            cpus: machine.vcpus().len(),
            memory: machine.memory().layout().size(),
            uptime: handle.age().map(|age| age.as_secs_f64()),
            restored_from: self.served.restored_from.clone(),
        }
    }

    fn inspect(&self) -> Value {
        let machine = self.served.handle.machine();
        let mut tree = json!(self.status());
        let mut look = json!(inspect(machine, &self.served.description));
        if let (Some(tree), Some(look)) = (tree.as_object_mut(), look.as_object_mut()) {
            tree.insert("directory".to_owned(), json!(machine.directory()));
            tree.append(look);
        }
        tree
    }

    fn balloon(&self, target: Option<u64>) -> Result<Value, Failure> {
        let balloon = self.served.handle.machine().balloon();
        let balloon = balloon
            .ok_or_else(|| Failure::new("state", "this VM has no balloon: start it with --balloon"))?;
        if let Some(target) = target {
            balloon.set_target(target).map_err(|error| Failure::new("params", error))?;
        }
        Ok(json!({ "target": balloon.target(), "actual": balloon.actual() }))
    }

    /// Answers when the snapshot is on the disk, and tells meanwhile how far it is. It is completed for a client that
    /// goes away as well: whoever asked for the machine's end with it has to know that nothing is lost.
    fn snapshot(&self, id: &Value, wanted: Wanted) -> Next {
        let mut listens = true;
        let mut last: Option<(Phase, Instant)> = None;
        let tell = &mut |step: Step| {
            let is_due =
                last.is_none_or(|(phase, told)| phase != step.phase || told.elapsed() >= PROGRESS_INTERVAL);
            if listens && (is_due || step.done == step.total) {
                listens = self.write(&protocol::progress(id, step)).is_ok();
                last = Some((step.phase, Instant::now()));
            }
        };
        let taken = self.take_snapshot(wanted, tell);
        if listens { self.reply(id, taken.map(|taken| protocol::taken(&taken))) } else { LEAVE }
    }

    fn take_snapshot(&self, wanted: Wanted, tell: &mut dyn FnMut(Step)) -> Result<Taken, Failure> {
        let Wanted { directory: place, diff, disks, stop } = wanted;
        let Served { handle, hypervisor, description, .. } = &*self.served;
        let text = description.to_toml().map_err(|error| Failure::new("failed", error))?;
        let base = match diff {
            Some(Diff::Last) => Some(self.last_snapshot()?),
            Some(Diff::On(base)) => Some(base),
            None => None,
        };
        let order = Order { place, base, disks, description: Some(SavedDescription { text }), stop };
        handle.snapshot(hypervisor, &order, tell).map_err(Failure::from)
    }

    /// Where the snapshot is on which a diff can build.
    fn last_snapshot(&self) -> Result<PathBuf, Failure> {
        let began_with = || self.served.restored_from.as_ref().map(|from| PathBuf::from(&from.directory));
        let none = "this VM has no snapshot that a diff could build on: take a full one first";
        self.served.handle.last_snapshot().or_else(began_with).ok_or_else(|| Failure::new("state", none))
    }

    /// Answers when the machine has stopped.
    fn wait(&mut self, id: &Value) -> Next {
        loop {
            if let Some(ending) = self.served.handle.ending() {
                return self.reply(id, Ok(protocol::ending(&ending)));
            }
            let stopped = self.served.handle.stopped_event();
            let [stopped, closing, ready] =
                event::readable([Some(stopped), Some(self.closing()), Some(self.stream.as_fd())], None)?;
            if ready && self.is_gone()? || closing && !stopped {
                return LEAVE;
            }
        }
    }

    /// Whether the client has gone. What it says meanwhile is kept, and nothing more than a line of it.
    fn is_gone(&mut self) -> io::Result<bool> {
        let mut buffer = [0; PIECE];
        let count = (&*self.stream).read(&mut buffer)?;
        self.lines.add(&buffer[..count]);
        Ok(count == 0 || self.lines.is_full())
    }

    /// Tells events until the client goes or the machine has ended.
    fn events(&mut self, id: &Value) -> Next {
        let (state, subscription) = self.served.handle.subscribe()?;
        self.reply(id, Ok(protocol::state(state)))?;
        loop {
            let [_, closing, ready] = event::readable(
                [Some(subscription.as_fd()), Some(self.closing()), Some(self.stream.as_fd())],
                None,
            )?;
            if ready && self.is_gone()? {
                return LEAVE;
            }
            while let Some(news) = subscription.next() {
                self.write(&protocol::event(&news))?;
            }
            if closing {
                return LEAVE;
            }
        }
    }

    /// Carries bytes between the client and the guest's console, in place of lines.
    fn attach(&mut self, id: &Value) -> Next {
        let listener = self.served.audience.join()?;
        self.reply(id, Ok(json!({})))?;
        let mut held = self.lines.rest();
        let mut buffer = [0; PIECE];
        loop {
            let ear = self.served.handle.machine().ear();
            let taken = ear.offer(&held);
            held.drain(..taken);
            // A client's input waits there until the guest has room for what came before.
            let input = held.is_empty().then_some(self.stream.as_fd());
            let limit = (!held.is_empty()).then_some(INPUT_RETRY);
            let [_, closing, ready] =
                event::readable([Some(listener.as_fd()), Some(self.closing()), input], limit)?;
            for _ in 0..if closing { usize::MAX } else { PIECES_AT_ONCE } {
                match listener.read(&mut buffer) {
                    0 => break,
                    count => self.write(&buffer[..count])?,
                }
            }
            if ready {
                match (&*self.stream).read(&mut buffer)? {
                    0 => return LEAVE,
                    count => held.extend_from_slice(&buffer[..count]),
                }
            } else if closing {
                return LEAVE;
            }
        }
    }

    /// Sends what the console has printed, in place of lines, and goes on if the client wants that.
    fn logs(&mut self, id: &Value, follow: bool) -> Next {
        let directory = self.served.handle.machine().directory().filter(|_| self.served.has_log);
        let Some(directory) = directory else {
            let failure =
                Failure::new("state", "this VM keeps no log of its console: those with --detach do");
            return self.reply(id, Err(failure));
        };
        let mut reader = LogReader::open(directory)?;
        self.reply(id, Ok(json!({})))?;
        let mut buffer = [0; PIECE];
        let mut last_round = !follow;
        loop {
            loop {
                match reader.read(&mut buffer)? {
                    0 => break,
                    count => self.write(&buffer[..count])?,
                }
            }
            if last_round {
                return LEAVE;
            }
            let [closing, ready] =
                event::readable([Some(self.closing()), Some(self.stream.as_fd())], Some(LOG_INTERVAL))?;
            if ready && self.is_gone()? {
                return LEAVE;
            }
            last_round = closing;
        }
    }
}
