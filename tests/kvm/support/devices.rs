//! Devices that watch a guest.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use lodger::bus::{Action, Device};

/// One access as a device sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Read { offset: u64, width: u8 },
    Write { offset: u64, width: u8, value: u64 },
}

/// Remembers every access, and answers reads with [`Recorder::ANSWER`].
#[derive(Default)]
pub struct Recorder(Mutex<Vec<Access>>);

impl Recorder {
    /// What a read of eight bytes yields; narrower ones yield its low bytes.
    pub const ANSWER: u64 = 0x8877_6655_4433_2211;

    pub fn take(&self) -> Vec<Access> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Device for Recorder {
    fn read(&self, offset: u64, width: u8) -> u64 {
        self.0.lock().unwrap().push(Access::Read { offset, width });
        Self::ANSWER
    }

    fn write(&self, offset: u64, width: u8, value: u64) -> Action {
        self.0.lock().unwrap().push(Access::Write { offset, width, value });
        Action::None
    }
}

/// Expects to be written 1, 2, 3… and remembers the first value that is out of order.
#[derive(Default)]
pub struct Consecutive {
    last: AtomicU64,
    wrong: Mutex<Option<(u64, u64)>>,
}

impl Consecutive {
    /// The last value.
    pub fn last(&self) -> u64 {
        self.last.load(SeqCst)
    }

    /// Fails if a value was missing or came twice.
    pub fn check(&self) {
        if let Some((before, after)) = *self.wrong.lock().unwrap() {
            panic!("{after} was written after {before}");
        }
    }
}

impl Device for Consecutive {
    fn read(&self, _offset: u64, _width: u8) -> u64 {
        self.last()
    }

    fn write(&self, _offset: u64, _width: u8, value: u64) -> Action {
        let before = self.last.swap(value, SeqCst);
        if value != before + 1 {
            self.wrong.lock().unwrap().get_or_insert((before, value));
        }
        Action::None
    }
}

/// Expects a fixed round of accesses, in which each value that it gave has to come back: read a number from
/// the port, write it to the port, write it to memory, read its complement from memory, write that to the
/// port, then three writes of string output and three reads of string input. A lost, repeated or half-done
/// access breaks the order.
#[derive(Default)]
pub struct Ledger(Mutex<LedgerState>);

#[derive(Default)]
struct LedgerState {
    step: u64,
    wrong: Option<String>,
}

const READ: u64 = 0x1004;
const WRITE: u64 = 0x1000;

impl Ledger {
    const STEPS: u64 = 11;

    /// How many accesses there were.
    pub fn accesses(&self) -> u64 {
        self.0.lock().unwrap().step
    }

    /// Fails if an access was not the one that had to come.
    pub fn check(&self) {
        if let Some(wrong) = &self.0.lock().unwrap().wrong {
            panic!("{wrong}");
        }
    }

    fn access(&self, kind: &str, offset: u64, value: Option<u64>) -> u64 {
        let mut state = self.0.lock().unwrap();
        let number = state.step / Self::STEPS + 1;
        let complement = !number & 0xffff_ffff;
        let (expected, expected_value) = match state.step % Self::STEPS {
            0 => ("read", (4, number)),
            1 => ("write", (0, number)),
            2 => ("write", (WRITE, number)),
            3 => ("read", (READ, complement)),
            4 => ("write", (0, complement)),
            element @ 5..=7 => ("write", (0, element)),
            element => ("read", (4, element)),
        };
        let (expected_offset, answer) = expected_value;
        if kind != expected || offset != expected_offset || value.is_some_and(|value| value != answer) {
            let text = format!(
                "access {}: expected a {expected} of {answer:#x} at {expected_offset:#x}, found a {kind} of \
                 {value:x?} at {offset:#x}",
                state.step
            );
            state.wrong.get_or_insert(text);
        }
        state.step += 1;
        answer
    }
}

impl Device for Ledger {
    fn read(&self, offset: u64, _width: u8) -> u64 {
        self.access("read", offset, None)
    }

    fn write(&self, offset: u64, _width: u8, value: u64) -> Action {
        self.access("write", offset, Some(value));
        Action::None
    }
}
