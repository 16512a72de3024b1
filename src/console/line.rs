//! A line between a port of the guest and the world: a Unix socket, a pseudo-terminal, a file, or a sink.
//!
//! Each line has a thread of its own, so that one whose peer is slow, or whose file is on a slow disk, holds up no
//! other. What is on its way is in the hands of the [`GuestEnd`], which bounds it; the thread keeps nothing back, so
//! that nothing is missing from a snapshot.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use super::pty::Pty;
use super::sink::{self, poll, poll_entry};
use super::socket::Socket;
use super::{explain, file};
use crate::{event, threads};

const STACK_SIZE: usize = 64 << 10;
/// How much is moved at once.
const PIECE: usize = 8192;
/// How long the end waits for a peer that takes nothing.
const PATIENCE: Duration = Duration::from_secs(1);
/// How much is carried after that: what a port holds, so that no guest makes the end endless.
const MOST_AT_THE_END: usize = 64 << 10;
/// How often it is looked whether somebody has attached to a pseudo-terminal: nothing tells.
const LOOK_MILLISECONDS: i32 = 200;

/// The guest's end of a line.
pub trait GuestEnd: Send + Sync {
    /// A peer has come; false if the one before it is not done with.
    fn arrive(&self) -> bool;

    /// The peer has left.
    fn leave(&self);

    /// Whether a peer may come.
    fn is_free(&self) -> bool;

    /// How much [`offer_input`](Self::offer_input) would take.
    fn input_space(&self) -> usize;

    /// Takes input, as much as there is room for.
    fn offer_input(&self, bytes: &[u8]) -> usize;

    /// Whether there is output.
    fn has_output(&self) -> bool;

    /// Copies the output that waits longest, and says how much.
    fn output(&self, bytes: &mut [u8]) -> usize;

    /// So much of it has reached its peer.
    fn output_taken(&self, count: usize);

    /// Signalled when one of these has changed for the better.
    fn event(&self) -> &EventFd;
}

/// Where a line goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A Unix socket, for one peer at a time.
    Socket(PathBuf),
    /// A new pseudo-terminal, for terminal programs to attach to.
    Pty,
    /// Output to a file that is created or emptied; no input.
    File(PathBuf),
}

impl Place {
    /// Whether one peer has it from the start.
    pub fn is_fixed(&self) -> bool {
        matches!(self, Self::File(_))
    }
}

/// As it is written in descriptions.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => write!(f, "socket={}", path.display()),
            Self::Pty => f.write_str("pty"),
            Self::File(path) => write!(f, "file={}", path.display()),
        }
    }
}

/// Why a line cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// No socket can be made there.
    #[error("cannot listen at {}: {}", path.display(), explain(path, source))]
    Socket {
        /// Its path.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The path has an owner.
    #[error("another process listens at {}: choose another path, or end that one", path.display())]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// Something else is there.
    #[error("{} is there already and is no socket: remove it or choose another path", path.display())]
    NoSocket {
        /// The path.
        path: PathBuf,
    },
    /// The kernel has no room for it.
    #[error("the path {path:?} is empty or too long for a socket: 1 to 107 bytes")]
    PathTooLong {
        /// The path.
        path: PathBuf,
    },
    /// The file cannot be written.
    #[error("cannot write {}: {}", path.display(), explain(path, source))]
    File {
        /// Its path.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// There is no pseudo-terminal to be had.
    #[error("cannot make a pseudo-terminal: {0}; is /dev/pts mounted, and are some left?")]
    Pty(io::Error),
    /// The operating system has no event descriptor left.
    #[error("cannot create an event descriptor: {0}")]
    Event(io::Error),
}

/// A line, which carries bytes from its [`start`](Self::start) to its end.
pub struct Line {
    name: String,
    pty: Option<PathBuf>,
    guest: Arc<dyn GuestEnd>,
    stop: Arc<EventFd>,
    state: Mutex<State>,
}

enum State {
    Opened(World),
    Runs(JoinHandle<()>),
    Ended,
}

/// What is at the other end.
enum World {
    Socket(Socket),
    Pty(OwnedFd),
    File(OwnedFd),
    Sink(Box<Pour>),
}

type Pour = dyn Fn(&[u8]) + Send;

impl Line {
    /// Opens a line to `place`; `name` is for messages.
    pub fn open(name: &str, place: &Place, guest: Arc<dyn GuestEnd>) -> Result<Self, LineError> {
        let (world, pty) = match place {
            Place::Socket(path) => (World::Socket(Socket::listen(path)?), None),
            Place::File(path) => (World::File(open_file(path)?), None),
            Place::Pty => {
                // The users' end is theirs alone, so that one can see whether there are any.
                let Pty { master, slave, path } = Pty::open().map_err(LineError::Pty)?;
                drop(slave);
                (World::Pty(master), Some(path))
            }
        };
        Self::new(name, world, pty, guest)
    }

    /// A line whose output goes into `sink`, which may wait for a bounded moment. Its input comes by another way.
    pub fn into_sink(
        name: &str,
        sink: impl Fn(&[u8]) + Send + 'static,
        guest: Arc<dyn GuestEnd>,
    ) -> Result<Self, LineError> {
        Self::new(name, World::Sink(Box::new(sink)), None, guest)
    }

    fn new(
        name: &str,
        world: World,
        pty: Option<PathBuf>,
        guest: Arc<dyn GuestEnd>,
    ) -> Result<Self, LineError> {
        let stop = Arc::new(event::create().map_err(LineError::Event)?);
        let state = Mutex::new(State::Opened(world));
        Ok(Self { name: name.to_owned(), pty, guest, stop, state })
    }

    /// What it was called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What to attach a terminal program to, if it is a pseudo-terminal.
    pub fn pty_path(&self) -> Option<&Path> {
        self.pty.as_deref()
    }

    /// Begins to carry bytes, if it has not begun yet.
    pub fn start(&self) {
        let mut state = self.state();
        *state = match std::mem::replace(&mut *state, State::Ended) {
            State::Opened(world) => self.spawn(world),
            other => other,
        };
    }

    fn spawn(&self, world: World) -> State {
        let carrier =
            Carrier { name: self.name.clone(), guest: Arc::clone(&self.guest), stop: Arc::clone(&self.stop) };
        let builder = Builder::new().name("port".to_owned()).stack_size(STACK_SIZE);
        match threads::without_signals(|| builder.spawn(move || carrier.run(world))) {
            Ok(thread) => State::Runs(thread),
            Err(error) => {
                log::error!("the port {} has no thread and stays still: {error}", self.name);
                self.guest.leave();
                State::Ended
            }
        }
    }

    /// Asks it to end; what the guest has sent is still carried, if the peer takes it.
    pub fn ask_to_end(&self) {
        event::signal(&self.stop);
    }

    /// Ends it, and waits until it has ended: a second at most for a peer that takes nothing.
    pub fn end(&self) {
        self.ask_to_end();
        let before = std::mem::replace(&mut *self.state(), State::Ended);
        if let State::Runs(thread) = before {
            // The thread does not panic, and if it had there would be nothing to add.
            let _ = thread.join();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        threads::lock(&self.state)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.end();
    }
}

fn open_file(path: &Path) -> Result<OwnedFd, LineError> {
    let opened = file::open(path).and_then(|file| file::empty(&file).map(|()| file));
    opened.map(OwnedFd::from).map_err(|source| LineError::File { path: path.to_owned(), source })
}

/// What the thread of a line works with.
struct Carrier {
    name: String,
    guest: Arc<dyn GuestEnd>,
    stop: Arc<EventFd>,
}

/// Somebody at the other end.
struct Peer<'a> {
    fd: PeerFd<'a>,
    /// There may be input.
    reads: bool,
    /// Output is taken.
    writes: bool,
    /// There is nobody any more; input may be left.
    gone: bool,
}

enum PeerFd<'a> {
    Own(OwnedFd),
    Shared(BorrowedFd<'a>),
}

impl AsFd for PeerFd<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Own(fd) => fd.as_fd(),
            Self::Shared(fd) => fd.as_fd(),
        }
    }
}

impl Carrier {
    fn run(self, world: World) {
        match world {
            World::Sink(sink) => self.pour(&*sink),
            World::File(file) => {
                // When it can take no more the guest may go on to print, for nobody.
                self.converse(Peer { reads: false, ..Peer::new(PeerFd::Own(file)) });
            }
            World::Socket(socket) => {
                let accept = || socket.accept().map(PeerFd::Own);
                self.receive_peers(accept, Some(socket.as_fd()), -1);
            }
            World::Pty(master) => {
                let attached = || (!is_hung_up(&master)).then(|| PeerFd::Shared(master.as_fd()));
                self.receive_peers(attached, None, LOOK_MILLISECONDS);
            }
        }
    }

    /// Takes one peer after another, until the end. `bell` tells that one may have come, or else `timeout`.
    fn receive_peers<'a>(
        &self,
        mut next: impl FnMut() -> Option<PeerFd<'a>>,
        bell: Option<BorrowedFd<'_>>,
        timeout: i32,
    ) {
        let mut in_vain = false;
        loop {
            let _: io::Result<u64> = self.guest.event().read();
            let is_free = self.guest.is_free();
            if is_free && let Some(fd) = next() {
                self.guest.arrive();
                if self.converse(Peer::new(fd)) {
                    return;
                }
                in_vain = false;
                continue;
            }
            // A peer that cannot be taken, for want of descriptors as a rule, rings on and on.
            let (bell, timeout) = if in_vain { (None, LOOK_MILLISECONDS) } else { (bell, timeout) };
            let bell = bell.filter(|_| is_free).map_or(-1, |fd| fd.as_raw_fd());
            let mut entries = [
                poll_entry(&*self.stop, libc::POLLIN),
                poll_entry(self.guest.event(), libc::POLLIN),
                poll_entry(&bell, libc::POLLIN),
            ];
            let _: io::Result<usize> = poll(&mut entries, if is_free { timeout } else { -1 });
            if entries[0].revents != 0 {
                return;
            }
            in_vain = entries[2].revents != 0;
        }
    }

    /// Carries bytes between the guest and a peer until that leaves; whether the line is to end.
    fn converse(&self, mut peer: Peer<'_>) -> bool {
        loop {
            let _: io::Result<u64> = self.guest.event().read();
            if peer.gone && !peer.reads {
                self.guest.leave();
                return false;
            }
            let space = if peer.reads { self.guest.input_space() } else { 0 };
            let mut wanted = if space > 0 { libc::POLLIN } else { 0 };
            match (self.guest.has_output(), peer.writes) {
                (true, true) => wanted |= libc::POLLOUT,
                (true, false) => self.guest.output_taken(usize::MAX),
                (false, _) => {}
            }
            // That it is gone is reported again and again.
            let fd = if peer.gone && space == 0 { -1 } else { peer.fd.as_fd().as_raw_fd() };
            let mut entries = [
                poll_entry(&*self.stop, libc::POLLIN),
                poll_entry(self.guest.event(), libc::POLLIN),
                poll_entry(&fd, wanted),
            ];
            let _: io::Result<usize> = poll(&mut entries, -1);
            let [stop, _, found] = entries.map(|entry| entry.revents);
            if stop != 0 {
                self.finish(&mut peer);
                return true;
            }
            if found & libc::POLLOUT != 0 {
                self.write(&mut peer);
            }
            if found & (libc::POLLHUP | libc::POLLERR | libc::POLLNVAL) != 0 {
                (peer.gone, peer.writes) = (true, false);
            }
            if space > 0 && found != 0 {
                self.read(&mut peer, space);
            }
        }
    }

    fn read(&self, peer: &mut Peer<'_>, space: usize) {
        let mut buffer = [0; PIECE];
        match sink::read(peer.fd.as_fd(), &mut buffer[..space.min(PIECE)]) {
            // A peer that has said all may still listen.
            Ok(0) => peer.reads = false,
            Ok(count) => {
                // Nobody else has taken the room.
                self.guest.offer_input(&buffer[..count]);
            }
            Err(error) if is_momentary(&error) => {}
            Err(_) => (peer.reads, peer.gone) = (false, true),
        }
    }

    /// Writes some of the output, and says how much.
    fn write(&self, peer: &mut Peer<'_>) -> usize {
        let mut buffer = [0; PIECE];
        let count = self.guest.output(&mut buffer);
        match sink::write(peer.fd.as_fd(), &buffer[..count]) {
            Ok(written) => {
                self.guest.output_taken(written);
                return written;
            }
            Err(error) if is_momentary(&error) => {}
            Err(error) => {
                peer.writes = false;
                // Who is gone is expected to be gone.
                if !matches!(error.raw_os_error(), Some(libc::EPIPE | libc::ECONNRESET | libc::EIO)) {
                    log::warn!("output of the port {} is lost from here on: {error}", self.name);
                }
                if !peer.reads {
                    peer.gone = true;
                }
            }
        }
        0
    }

    /// Lets a peer have what the guest has sent.
    fn finish(&self, peer: &mut Peer<'_>) {
        let (mut last, mut left) = (Instant::now(), MOST_AT_THE_END);
        while left > 0 && self.guest.has_output() && peer.writes && last.elapsed() < PATIENCE {
            let mut entry = [poll_entry(&peer.fd.as_fd(), libc::POLLOUT)];
            let _: io::Result<usize> = poll(&mut entry, PATIENCE.as_millis() as i32 / 10);
            let written = match entry[0].revents {
                0 => 0,
                found if found & libc::POLLOUT != 0 => self.write(peer),
                _ => return,
            };
            if written > 0 {
                (last, left) = (Instant::now(), left.saturating_sub(written));
            }
        }
    }

    /// Pours output into a sink, until the end.
    fn pour(&self, sink: &dyn Fn(&[u8])) {
        let mut buffer = [0; PIECE];
        let mut left = MOST_AT_THE_END;
        loop {
            let timeout = if self.guest.has_output() { 0 } else { -1 };
            let mut entries =
                [poll_entry(&*self.stop, libc::POLLIN), poll_entry(self.guest.event(), libc::POLLIN)];
            let _: io::Result<usize> = poll(&mut entries, timeout);
            let _: io::Result<u64> = self.guest.event().read();
            let count = self.guest.output(&mut buffer);
            if count > 0 {
                sink(&buffer[..count]);
                self.guest.output_taken(count);
            }
            if entries[0].revents != 0 {
                left = left.saturating_sub(count);
                if left == 0 || count == 0 {
                    return;
                }
            }
        }
    }
}

impl<'a> Peer<'a> {
    fn new(fd: PeerFd<'a>) -> Self {
        Self { fd, reads: true, writes: true, gone: false }
    }
}

/// Whether nobody has the users' end of a pseudo-terminal open.
fn is_hung_up(master: &OwnedFd) -> bool {
    let mut entry = [poll_entry(master, 0)];
    let _: io::Result<usize> = poll(&mut entry, 0);
    entry[0].revents & libc::POLLHUP != 0
}

fn is_momentary(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

#[cfg(test)]
#[path = "line_test.rs"]
pub(super) mod tests;
