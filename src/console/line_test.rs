//! Lines to sockets, pseudo-terminals, files and sinks, with a guest's end that the test holds.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread;

use super::*;
use crate::storage::testing::TempDir;

const LONG: Duration = Duration::from_secs(20);
const CAPACITY: usize = 10_000;

/// A guest's end with small buffers.
struct Guest {
    state: Mutex<Held>,
    event: EventFd,
}

#[derive(Default)]
struct Held {
    input: VecDeque<u8>,
    output: VecDeque<u8>,
    is_there: bool,
    /// How many peers have come, and left.
    sessions: (u32, u32),
    /// The next peer has to wait.
    busy: bool,
}

impl Guest {
    fn new(is_there: bool) -> Arc<Self> {
        let state = Mutex::new(Held { is_there, ..Held::default() });
        Arc::new(Self { state, event: event::create().unwrap() })
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.state.lock().unwrap()
    }

    /// Sends all of `bytes`, waiting for room.
    #[track_caller]
    fn send(&self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let mut held = self.held();
            let count = bytes.len().min(CAPACITY - held.output.len());
            held.output.extend(&bytes[..count]);
            drop(held);
            bytes = &bytes[count..];
            event::signal(&self.event);
            self.until("there is room", |held| held.output.len() < CAPACITY);
        }
    }

    /// Receives `count` bytes.
    #[track_caller]
    fn receive(&self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < count {
            self.until("there is input", |held| !held.input.is_empty());
            bytes.extend(self.held().input.drain(..));
            event::signal(&self.event);
        }
        bytes
    }

    #[track_caller]
    fn until(&self, what: &str, condition: impl Fn(&Held) -> bool) {
        let start = Instant::now();
        while !condition(&self.held()) {
            assert!(start.elapsed() < LONG, "waited in vain: {what}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn change(&self, change: impl FnOnce(&mut Held)) {
        change(&mut self.held());
        event::signal(&self.event);
    }
}

impl GuestEnd for Guest {
    fn arrive(&self) -> bool {
        let mut held = self.held();
        held.sessions.0 += 1;
        held.is_there = true;
        true
    }

    fn leave(&self) {
        let mut held = self.held();
        held.sessions.1 += 1;
        held.is_there = false;
        held.output.clear();
    }

    fn is_free(&self) -> bool {
        let held = self.held();
        !held.is_there && !held.busy
    }

    fn input_space(&self) -> usize {
        CAPACITY - self.held().input.len()
    }

    fn offer_input(&self, bytes: &[u8]) -> usize {
        let mut held = self.held();
        assert!(held.input.len() + bytes.len() <= CAPACITY, "more than there is room for");
        held.input.extend(bytes);
        bytes.len()
    }

    fn has_output(&self) -> bool {
        !self.held().output.is_empty()
    }

    fn output(&self, bytes: &mut [u8]) -> usize {
        let held = self.held();
        let count = bytes.len().min(held.output.len());
        for (to, from) in bytes.iter_mut().zip(&held.output) {
            *to = *from;
        }
        count
    }

    fn output_taken(&self, count: usize) {
        let mut held = self.held();
        let count = count.min(held.output.len());
        held.output.drain(..count);
    }

    fn event(&self) -> &EventFd {
        &self.event
    }
}

/// Bytes that show if one is missing or out of order.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index % 251) as u8).collect()
}

fn listen(scratch: &TempDir) -> (Line, Arc<Guest>, PathBuf) {
    let (guest, path) = (Guest::new(false), scratch.at("socket"));
    let line = Line::open("test", &Place::Socket(path.clone()), guest.clone()).unwrap();
    line.start();
    line.start();
    (line, guest, path)
}

fn connect(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream
}

fn read<const COUNT: usize>(from: &mut impl Read) -> [u8; COUNT] {
    let mut bytes = [0; COUNT];
    from.read_exact(&mut bytes).unwrap();
    bytes
}

#[test]
fn peers_come_one_after_another_and_each_has_its_own_bytes() {
    let scratch = TempDir::new();
    let (line, guest, path) = listen(&scratch);
    for round in 1..4_u8 {
        let mut peer = connect(&path);
        peer.write_all(&[b'i', round]).unwrap();
        assert_eq!(guest.receive(2), [b'i', round]);
        guest.send(&[b'o', round]);
        assert_eq!(read(&mut peer), [b'o', round]);
        // The next one waits for its turn.
        let mut next = connect(&path);
        next.write_all(b"next").unwrap();
        guest.send(b"for this one");
        assert_eq!(&read(&mut peer), b"for this one");
        drop(peer);
        assert_eq!(guest.receive(4), b"next");
        drop(next);
        guest.until("both have left", |held| held.sessions == (2 * u32::from(round), 2 * u32::from(round)));
    }
    line.end();
    line.end();
    assert!(!path.exists());
}

#[test]
fn the_next_peer_waits_until_the_guest_is_done_with_the_last() {
    let scratch = TempDir::new();
    let (_line, guest, path) = listen(&scratch);
    guest.change(|held| held.busy = true);
    let mut peer = connect(&path);
    peer.write_all(b"x").unwrap();
    thread::sleep(Duration::from_millis(20));
    assert_eq!(guest.held().sessions, (0, 0));
    guest.change(|held| held.busy = false);
    assert_eq!(guest.receive(1), b"x");
}

#[test]
fn a_million_bytes_go_through_a_socket_in_both_directions() {
    let scratch = TempDir::new();
    let (_line, guest, path) = listen(&scratch);
    let bytes = pattern(1_000_000);
    let peer = connect(&path);
    let (mut reader, mut writer, sent) = (peer.try_clone().unwrap(), peer, bytes.clone());
    let writing = thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    assert!(guest.receive(bytes.len()) == bytes);
    writing.join().unwrap();
    // Who has said all still listens.
    let reading = thread::spawn(move || {
        let mut back = vec![0; 1_000_000];
        reader.read_exact(&mut back).unwrap();
        back
    });
    guest.send(&bytes);
    assert!(reading.join().unwrap() == bytes);
    guest.until("it has left", |held| held.sessions == (1, 1));
}

#[test]
fn what_a_peer_sent_before_it_left_arrives_even_if_the_guest_has_no_room_yet() {
    let scratch = TempDir::new();
    let (_line, guest, path) = listen(&scratch);
    let mut peer = connect(&path);
    peer.write_all(&pattern(3 * CAPACITY)).unwrap();
    drop(peer);
    guest.until("it is full", |held| held.input.len() == CAPACITY);
    guest.send(b"to nobody");
    thread::sleep(Duration::from_millis(20));
    assert_eq!(guest.held().sessions, (1, 0));
    assert!(guest.receive(3 * CAPACITY) == pattern(3 * CAPACITY));
    guest.until("it has left", |held| held.sessions == (1, 1));
}

#[test]
fn the_end_waits_for_a_slow_peer_but_not_for_one_that_takes_nothing() {
    let scratch = TempDir::new();
    let (line, guest, path) = listen(&scratch);
    let mut peer = connect(&path);
    guest.until("it is there", |held| held.is_there);
    guest.change(|held| held.output.extend(pattern(CAPACITY)));
    line.end();
    assert!(read::<CAPACITY>(&mut peer) == pattern(CAPACITY)[..]);
    assert_eq!(peer.read(&mut [0; 1]).unwrap(), 0);

    let (line, guest, path) = listen(&scratch);
    let _peer = connect(&path);
    guest.until("it is there", |held| held.is_there);
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(100) {
        guest.change(|held| held.output.resize(CAPACITY, b'x'));
    }
    let start = Instant::now();
    line.end();
    assert!(start.elapsed() < 5 * PATIENCE, "{:?}", start.elapsed());
}

#[test]
fn a_pseudo_terminal_notices_who_attaches_and_who_leaves() {
    let guest = Guest::new(false);
    let line = Line::open("test", &Place::Pty, guest.clone()).unwrap();
    line.start();
    let path = line.pty_path().unwrap().to_owned();
    for round in 1..3 {
        let mut user = File::options().read(true).write(true).open(&path).unwrap();
        user.write_all(b"\x01in\r").unwrap();
        assert_eq!(guest.receive(4), b"\x01in\r");
        guest.send(b"out\n");
        assert_eq!(&read(&mut user), b"out\n");
        drop(user);
        guest.until("it has left", |held| held.sessions == (round, round));
    }
    line.end();
}

#[test]
fn a_file_has_all_that_the_guest_sends() {
    let scratch = TempDir::new();
    let (guest, path) = (Guest::new(true), scratch.at("log"));
    fs::write(&path, "what was there before").unwrap();
    let line = Line::open("test", &Place::File(path.clone()), guest.clone()).unwrap();
    line.start();
    guest.send(&pattern(100_000));
    line.end();
    assert!(fs::read(&path).unwrap() == pattern(100_000));
    let nowhere = Place::File(scratch.at("none/log"));
    let said = Line::open("test", &nowhere, guest).err().unwrap().to_string();
    assert!(said.contains("cannot write") && said.contains("none does not exist"), "{said}");
}

#[test]
fn a_file_that_cannot_grow_is_given_up() {
    let guest = Guest::new(true);
    let line = Line::open("test", &Place::File("/dev/full".into()), guest.clone()).unwrap();
    line.start();
    guest.change(|held| held.output.extend(b"lost"));
    guest.until("it is given up", |held| !held.is_there);
}

#[test]
fn a_sink_has_all_that_the_guest_sends() {
    let (guest, collected) = (Guest::new(true), Arc::new(Mutex::new(Vec::<u8>::new())));
    let sink = Arc::clone(&collected);
    let line =
        Line::into_sink("test", move |bytes| sink.lock().unwrap().extend(bytes), guest.clone()).unwrap();
    line.start();
    guest.send(&pattern(100_000));
    guest.change(|held| held.output.extend(b"the end"));
    line.end();
    let collected = collected.lock().unwrap();
    assert!(collected[..] == [pattern(100_000), b"the end".to_vec()].concat());
}

#[test]
fn a_line_that_was_never_started_ends_at_once() {
    let scratch = TempDir::new();
    let path = scratch.at("socket");
    drop(Line::open("test", &Place::Socket(path.clone()), Guest::new(false)).unwrap());
    assert!(!path.exists());
}
