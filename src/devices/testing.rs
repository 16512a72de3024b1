//! What the tests of several devices need: wires and sinks that remember.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::{ByteSink, InterruptLine};

/// Counts its edges and insists on pulses.
#[derive(Default)]
pub(super) struct CountingLine {
    edges: AtomicUsize,
    high: AtomicUsize,
}

impl CountingLine {
    /// How many edges there were since the last call.
    pub(super) fn take(&self) -> usize {
        assert_eq!(self.high.load(Relaxed), 0, "the wire was left high");
        self.edges.swap(0, Relaxed)
    }
}

impl InterruptLine for CountingLine {
    fn set(&self, high: bool) {
        let before = self.high.swap(usize::from(high), Relaxed);
        if high && before == 0 {
            self.edges.fetch_add(1, Relaxed);
        }
    }
}

/// Keeps what was pushed, push by push.
#[derive(Default)]
pub(super) struct KeepingSink(Mutex<Vec<Vec<u8>>>);

impl KeepingSink {
    pub(super) fn take(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl ByteSink for KeepingSink {
    fn push(&self, bytes: &[u8]) {
        self.0.lock().unwrap().push(bytes.to_vec());
    }
}
