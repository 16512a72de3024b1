//! Those who read a guest's console besides the place that it is connected to.
//!
//! They come and go while the guest runs, and each has a queue of its own. The guest never waits for them: who reads
//! too slowly loses output, and finds a line that says how much.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

use vmm_sys_util::eventfd::EventFd;

use super::Output;
use crate::event;
use crate::threads::lock;

/// How many bytes wait for a listener at most.
pub const LISTENER_BOUND: usize = 256 << 10;

/// All who listen.
#[derive(Debug, Default)]
pub struct Audience {
    /// Whether there may be any: looked at for every byte that a guest prints.
    any: AtomicBool,
    seats: Mutex<Vec<Weak<Seat>>>,
}

#[derive(Debug)]
struct Seat {
    /// Set while something waits.
    bell: EventFd,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    bytes: VecDeque<u8>,
    lost: u64,
}

/// One who listens, until the value goes.
#[derive(Debug)]
pub struct Listener(Arc<Seat>);

impl Audience {
    /// One more, who hears what is printed from now on.
    pub fn join(&self) -> io::Result<Listener> {
        let seat = Arc::new(Seat { bell: event::create()?, waiting: Mutex::default() });
        let mut seats = lock(&self.seats);
        seats.push(Arc::downgrade(&seat));
        self.any.store(true, Ordering::SeqCst);
        Ok(Listener(seat))
    }

    /// Hands `bytes` to all of them.
    pub fn push(&self, bytes: &[u8]) {
        if !self.any.load(Ordering::Relaxed) {
            return;
        }
        let mut seats = lock(&self.seats);
        seats.retain(|seat| match seat.upgrade() {
            Some(seat) => {
                seat.push(bytes);
                true
            }
            None => false,
        });
        self.any.store(!seats.is_empty(), Ordering::SeqCst);
    }
}

impl Seat {
    fn push(&self, bytes: &[u8]) {
        let mut waiting = lock(&self.waiting);
        let was_empty = waiting.bytes.is_empty();
        // After a loss nothing is taken until there is room to say so.
        let room = if waiting.lost == 0 { LISTENER_BOUND.saturating_sub(waiting.bytes.len()) } else { 0 };
        let (now, lost) = bytes.split_at(room.min(bytes.len()));
        waiting.bytes.extend(now);
        waiting.lost += lost.len() as u64;
        if was_empty {
            event::signal(&self.bell);
        }
    }
}

impl Listener {
    /// Moves what has come into `buffer`; how much that was. Nothing is zero, and not the end.
    pub fn read(&self, buffer: &mut [u8]) -> usize {
        let mut waiting = lock(&self.0.waiting);
        let count = waiting.bytes.len().min(buffer.len());
        for (place, byte) in buffer.iter_mut().zip(waiting.bytes.drain(..count)) {
            *place = byte;
        }
        if waiting.bytes.is_empty() && waiting.lost > 0 {
            let notice = format!("\r\n[lodger: {} bytes of console output lost]\r\n", waiting.lost);
            waiting.bytes.extend(notice.as_bytes());
            waiting.lost = 0;
        }
        if waiting.bytes.is_empty() {
            // Nothing is there to be taken if it was not set.
            let _: io::Result<u64> = self.0.bell.read();
        }
        count
    }
}

/// Readable when there is something to read.
impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        event::descriptor(&self.0.bell)
    }
}

/// A console's output together with those who listen besides.
#[derive(Debug)]
pub struct Shown {
    /// Where the console is.
    pub output: Arc<Output>,
    /// Who else hears it.
    pub audience: Arc<Audience>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(listener: &Listener) -> String {
        let mut all = Vec::new();
        let mut buffer = [0; 1000];
        loop {
            match listener.read(&mut buffer) {
                0 => return String::from_utf8(all).unwrap(),
                count => all.extend_from_slice(&buffer[..count]),
            }
        }
    }

    fn is_set(listener: &Listener) -> bool {
        let mut entry = super::super::sink::poll_entry(&listener.as_fd(), libc::POLLIN);
        super::super::sink::poll(std::slice::from_mut(&mut entry), 0).unwrap() == 1
    }

    #[test]
    fn each_hears_what_is_printed_while_it_listens() {
        let audience = Audience::default();
        audience.push(b"before");
        let first = audience.join().unwrap();
        audience.push(b"one ");
        let second = audience.join().unwrap();
        audience.push(b"two");
        assert!(is_set(&first) && is_set(&second));
        assert_eq!((read(&first).as_str(), read(&second).as_str()), ("one two", "two"));
        assert!(!is_set(&first) && !is_set(&second));
        drop((first, second));
        audience.push(b"after");
        assert!(!audience.any.load(Ordering::SeqCst));
    }

    #[test]
    fn who_reads_too_slowly_loses_output_and_is_told_how_much() {
        let audience = Audience::default();
        let (slow, quick) = (audience.join().unwrap(), audience.join().unwrap());
        for _ in 0..LISTENER_BOUND / 1000 + 2 {
            audience.push(&[b'x'; 1000]);
            assert_eq!(read(&quick).len(), 1000);
        }
        let all = 1000 * (LISTENER_BOUND / 1000 + 2);
        let lost = all - LISTENER_BOUND;
        let heard = read(&slow);
        assert_eq!(heard.matches('x').count(), LISTENER_BOUND);
        assert!(heard.ends_with(&format!("\r\n[lodger: {lost} bytes of console output lost]\r\n")), "{lost}");
        audience.push(b"again");
        assert_eq!(read(&slow), "again");
    }
}
