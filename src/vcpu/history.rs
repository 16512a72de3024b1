//! The last exits of a vCPU, for the report of a fatal one.

use std::fmt;

use crate::hv::{Direction, ExitKind};

/// How many exits are remembered.
pub const DEPTH: usize = 32;

/// One exit, as far as it is worth remembering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// What it was.
    pub kind: ExitKind,
    /// Port or guest-physical address.
    pub address: u64,
    /// Bytes altogether, of all elements of string I/O.
    pub length: u32,
    /// The first up to eight bytes, as a little-endian number.
    pub value: u64,
}

impl Record {
    pub(super) fn plain(kind: ExitKind) -> Self {
        Self { kind, address: 0, length: 0, value: 0 }
    }

    /// An access, after it was answered.
    pub(super) fn access(kind: ExitKind, address: u64, data: &[u8]) -> Self {
        Self { kind, address, length: data.len() as u32, value: leading_number(data) }
    }
}

/// The first up to eight bytes as a number.
fn leading_number(data: &[u8]) -> u64 {
    match *data {
        [byte] => byte.into(),
        _ => data.iter().take(8).rev().fold(0, |number, &byte| number << 8 | u64::from(byte)),
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = match self.kind {
            ExitKind::PioRead | ExitKind::MmioRead => Direction::Read,
            ExitKind::PioWrite | ExitKind::MmioWrite => Direction::Write,
            other => return f.write_str(other.name()),
        };
        let space =
            if matches!(self.kind, ExitKind::PioRead | ExitKind::PioWrite) { "port" } else { "memory" };
        let arrow = if direction == Direction::Read { "->" } else { "<-" };
        let digits = 2 * self.length.min(8) as usize;
        write!(f, "{space} {:#x} {arrow} {:#0width$x}", self.address, self.value, width = digits + 2)?;
        match self.length {
            0..=8 => Ok(()),
            length => write!(f, "… ({length} bytes)"),
        }
    }
}

/// A ring of the last exits.
#[derive(Debug)]
pub struct History {
    ring: [Record; DEPTH],
    next: usize,
    full: bool,
}

impl History {
    pub(super) fn new() -> Self {
        Self { ring: [Record::plain(ExitKind::Interrupted); DEPTH], next: 0, full: false }
    }

    pub(super) fn push(&mut self, record: Record) {
        self.ring[self.next] = record;
        self.next += 1;
        if self.next == DEPTH {
            self.next = 0;
            self.full = true;
        }
    }

    /// The remembered exits, the oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Record> {
        let (newer, older) = self.ring.split_at(self.next);
        let older = if self.full { older } else { &[] };
        older.iter().chain(newer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(history: &History) -> Vec<u64> {
        history.iter().map(|record| record.address).collect()
    }

    #[test]
    fn the_last_exits_are_kept_in_order() {
        let mut history = History::new();
        assert_eq!(history.iter().next(), None);
        for address in 0..DEPTH as u64 * 3 + 5 {
            history.push(Record::access(ExitKind::PioRead, address, &[0]));
            let first = (address + 1).saturating_sub(DEPTH as u64);
            assert_eq!(addresses(&history), (first..=address).collect::<Vec<_>>());
        }
    }

    #[test]
    fn records_read_like_sentences() {
        let text = |kind, address, data: &[u8]| Record::access(kind, address, data).to_string();
        assert_eq!(text(ExitKind::PioWrite, 0x3f8, b"A"), "port 0x3f8 <- 0x41");
        assert_eq!(text(ExitKind::PioRead, 0x60, &[1, 2]), "port 0x60 -> 0x0201");
        assert_eq!(text(ExitKind::MmioRead, 0xd000_0000, &[0xff; 4]), "memory 0xd0000000 -> 0xffffffff");
        assert_eq!(text(ExitKind::PioWrite, 0x3f8, &[0; 9]), "port 0x3f8 <- 0x0000000000000000… (9 bytes)");
        assert_eq!(Record::plain(ExitKind::Shutdown).to_string(), "shutdown");
    }
}
