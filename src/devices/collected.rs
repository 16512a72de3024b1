//! Output that stays in memory, for whoever wants to look at it: tests, and programs that embed a guest.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::ByteSink;
use crate::threads::lock;

/// How much is kept. A guest may print without end, so what comes after that is counted and forgotten.
pub const CAPACITY: usize = 16 << 20;

/// A sink that keeps what a guest prints.
#[derive(Debug, Default)]
pub struct Collected {
    state: Mutex<State>,
    grown: Condvar,
}

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    dropped: u64,
}

impl Collected {
    /// Everything printed so far, up to [`CAPACITY`].
    pub fn bytes(&self) -> Vec<u8> {
        self.lock().bytes.clone()
    }

    /// The same as text; what is no UTF-8 is replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.lock().bytes).into_owned()
    }

    /// How many bytes there was no room for.
    pub fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    /// Waits until `text` was printed, or for `limit`; says whether it was.
    pub fn wait_for(&self, text: &str, limit: Duration) -> bool {
        let needle = text.as_bytes();
        let deadline = Instant::now() + limit;
        let mut searched = 0;
        let mut state = self.lock();
        loop {
            if contains(&state.bytes[searched..], needle) {
                return true;
            }
            // The next bytes may complete a beginning that is already there.
            searched = (state.bytes.len() + 1).saturating_sub(needle.len()).max(searched);
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.grown.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    needle.is_empty() || bytes.windows(needle.len()).any(|window| window == needle)
}

impl ByteSink for Collected {
    fn push(&self, bytes: &[u8]) {
        let mut state = self.lock();
        let (kept, dropped) = bytes.split_at(bytes.len().min(CAPACITY - state.bytes.len()));
        state.bytes.extend_from_slice(kept);
        state.dropped += dropped.len() as u64;
        drop(state);
        self.grown.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    const LONG: Duration = Duration::from_secs(10);

    #[test]
    fn what_was_pushed_is_kept_in_order() {
        let output = Collected::default();
        output.push(b"one ");
        output.push(b"two\xff");
        assert_eq!(output.bytes(), b"one two\xff");
        assert_eq!(output.text(), "one two\u{fffd}");
    }

    #[test]
    fn a_text_is_waited_for_even_if_it_comes_in_pieces() {
        let output = Arc::new(Collected::default());
        let writer = Arc::clone(&output);
        let writer = thread::spawn(move || {
            for piece in ["rea", "d", "", "y> "] {
                writer.push(piece.as_bytes());
                thread::yield_now();
            }
        });
        assert!(output.wait_for("ready>", LONG));
        assert!(output.wait_for("", Duration::ZERO));
        assert!(!output.wait_for("never", Duration::from_millis(5)));
        writer.join().unwrap();
    }

    #[test]
    fn a_guest_that_prints_without_end_does_not_fill_the_hosts_memory() {
        let output = Collected::default();
        let chunk = vec![b'x'; CAPACITY / 4 + 1];
        (0..5).for_each(|_| output.push(&chunk));
        assert_eq!(output.bytes().len(), CAPACITY);
        assert_eq!(output.dropped(), (5 * chunk.len() - CAPACITY) as u64);
    }
}
