//! The thread that listens, and the threads of its clients.

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, Builder, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::Value;
use vmm_sys_util::eventfd::EventFd;

use super::SOCKET;
use super::protocol::{self, Failure};
use super::session::Session;
use crate::console::{Audience, LineError, Socket};
use crate::hv::Hypervisor;
use crate::vm::DirectoryError;
use crate::vm::description::Description;
use crate::vm::driver::{Handle, State};
use crate::vm::inspect::RestoredFrom;
use crate::{event, threads};

/// How many clients there can be at once.
pub const MOST_CLIENTS: usize = 64;
/// How many of them can stay for long, to wait, to listen or to be attached: others shall have room to ask for something.
pub const MOST_STAYING: usize = 48;
const STACK_SIZE: usize = 256 << 10;
/// How long a client may take nothing of what is written to it.
const WRITE_PATIENCE: Duration = Duration::from_secs(5);
/// The same at the end, when the process waits for it.
const LAST_PATIENCE: Duration = Duration::from_secs(1);
/// After how long it is tried again to take a client, where descriptors are used up.
const RETRY: Duration = Duration::from_millis(100);

/// What is served.
pub struct Served<H: Hypervisor> {
    /// By which the machine is asked for something.
    pub handle: Handle<H::Vm>,
    /// What runs it.
    pub hypervisor: Arc<H>,
    /// Who hears its console.
    pub audience: Arc<Audience>,
    /// How it was described, with absolute paths: snapshots are restored elsewhere.
    pub description: Description,
    /// The snapshot with which it began, if it did.
    pub restored_from: Option<RestoredFrom>,
    /// Whether its console's output is kept in its directory.
    pub has_log: bool,
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// There is no directory for it.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// There is a directory, but no socket can be in it.
    #[error(transparent)]
    Socket(#[from] LineError),
    /// The operating system has no thread left, or no descriptor.
    #[error("cannot serve the control socket: {0}")]
    Io(#[from] io::Error),
}

/// A hypervisor that machines can be served of: their snapshots are taken on several threads.
pub trait Servable: Hypervisor + Send + Sync + 'static {}

impl<H: Hypervisor + Send + Sync + 'static> Servable for H {}

/// A server, which ends with the value.
pub struct Server {
    closing: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

/// A client.
struct Client {
    stream: Arc<UnixStream>,
    idle: Arc<Idle>,
    thread: JoinHandle<()>,
}

/// Since when a client has asked for nothing.
#[derive(Debug, Default)]
pub(super) struct Idle(AtomicU64);

impl Idle {
    /// Zero means at work, so that the first moment counts as 1.
    pub fn since(&self, birth: Instant) {
        self.0.store(birth.elapsed().as_micros() as u64 + 1, Ordering::Relaxed);
    }

    pub fn no_longer(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    fn get(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|&since| since > 0)
    }
}

/// How many clients stay for long.
#[derive(Debug, Default)]
pub(super) struct Room(AtomicUsize);

/// The seat of one that does.
pub(super) struct Seat<'a>(&'a Room);

impl Room {
    /// Has one more stay, if there is a seat.
    pub fn stay(&self) -> Option<Seat<'_>> {
        let one_more = |staying| (staying < MOST_STAYING).then_some(staying + 1);
        let taken = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        // One that is not given out must not be given back either.
        taken.is_ok().then(|| Seat(self))
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Server {
    /// Listens in the machine's directory, which is made if there is none, before it returns.
    pub fn start<H: Servable>(served: Served<H>) -> Result<Self, ServerError> {
        let listener = listen(&served)?;
        Self::spawn(move |closing| serve(Arc::new(served), &listener, closing))
    }

    /// The same on the thread that serves, so that nobody waits for it. If it cannot be, a line in the log says why.
    pub fn start_later<H: Servable>(served: Served<H>) -> Result<Self, ServerError> {
        Self::spawn(move |closing| {
            // Of a guest that is through already nobody can want anything.
            if served.handle.state() == State::Stopped {
                return;
            }
            match listen(&served) {
                Ok(listener) => serve(Arc::new(served), &listener, closing),
                Err(error) => log::warn!("the VM has no control socket: {error}"),
            }
        })
    }

    fn spawn(work: impl FnOnce(&Arc<EventFd>) + Send + 'static) -> Result<Self, ServerError> {
        let closing = Arc::new(event::create()?);
        let heard = Arc::clone(&closing);
        let builder = Builder::new().name("control".to_owned()).stack_size(STACK_SIZE);
        let thread = threads::without_signals(|| builder.spawn(move || work(&heard)))?;
        Ok(Self { closing, thread: Some(thread) })
    }

    /// Takes no more clients, lets those that are there have what they are waiting for, and ends.
    pub fn close(&mut self) {
        event::signal(&self.closing);
        if let Some(thread) = self.thread.take() {
            // A panic was reported by the thread.
            let _: Result<(), _> = thread.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.close();
    }
}

fn listen<H: Servable>(served: &Served<H>) -> Result<Socket, ServerError> {
    let directory = served.handle.machine().make_directory()?;
    // The directory is ours, and locked by ourselves.
    Ok(Socket::listen(&directory.join(SOCKET))?)
}

/// Takes clients until it is told to end.
fn serve<H: Servable>(served: Arc<Served<H>>, listener: &Socket, closing: &Arc<EventFd>) {
    let birth = Instant::now();
    let mut clients: Vec<Client> = Vec::new();
    let room = Arc::new(Room::default());
    let told = event::descriptor(closing);
    while let Ok([false, ready]) = event::readable([Some(told), Some(listener.as_fd())], None) {
        if !ready {
            continue;
        }
        let Some(stream) = listener.accept() else {
            thread::sleep(RETRY);
            continue;
        };
        clients.retain(|client| !client.thread.is_finished());
        // Those that were hung up may take a moment to be gone.
        let is_full = clients.len() >= MOST_CLIENTS;
        if is_full && (clients.len() >= 2 * MOST_CLIENTS || !leave_the_idlest(&clients)) {
            refuse(stream.into());
            continue;
        }
        match admit(stream.into(), &served, closing, &room, birth) {
            Ok(client) => clients.push(client),
            Err(error) => log::debug!("a client of the control socket is turned away: {error}"),
        }
    }
    part(clients);
}

fn admit<H: Servable>(
    stream: UnixStream,
    served: &Arc<Served<H>>,
    closing: &Arc<EventFd>,
    room: &Arc<Room>,
    birth: Instant,
) -> io::Result<Client> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(WRITE_PATIENCE))?;
    let stream = Arc::new(stream);
    let idle = Arc::new(Idle::default());
    let (served, closing, room) = (Arc::clone(served), Arc::clone(closing), Arc::clone(room));
    let session = Session::new(served, Arc::clone(&stream), closing, room, Arc::clone(&idle), birth);
    let builder = Builder::new().name("client".to_owned()).stack_size(STACK_SIZE);
    let thread = threads::without_signals(|| builder.spawn(move || session.serve()))?;
    Ok(Client { stream, idle, thread })
}

/// Parts with the client that has asked for nothing for the longest time; whether there is one.
fn leave_the_idlest(clients: &[Client]) -> bool {
    let idle = clients.iter().filter_map(|client| Some((client.idle.get()?, client)));
    let Some((_, client)) = idle.min_by_key(|(since, _)| *since) else { return false };
    hang_up(&client.stream);
    // It is still there, but not to be parted with once more.
    client.idle.no_longer();
    true
}

/// Tells a client that there is no room. It has not written yet, so that this fits.
fn refuse(mut stream: UnixStream) {
    let failure = Failure::new("busy", format!("{MOST_CLIENTS} clients are at work; try again later"));
    // Who is gone does not want to know.
    let _: io::Result<()> = stream.write_all(&protocol::answer(&Value::Null, Err(failure)));
}

fn hang_up(stream: &UnixStream) {
    // It may be gone by itself.
    let _: io::Result<()> = stream.shutdown(Shutdown::Both);
}

/// Waits for the clients, but not for those who do not read.
fn part(clients: Vec<Client>) {
    let start = Instant::now();
    while start.elapsed() < LAST_PATIENCE && clients.iter().any(|client| !client.thread.is_finished()) {
        thread::sleep(Duration::from_micros(200));
    }
    for client in &clients {
        hang_up(&client.stream);
    }
    for client in clients {
        // A panic was reported by the thread.
        let _: Result<(), _> = client.thread.join();
    }
}
