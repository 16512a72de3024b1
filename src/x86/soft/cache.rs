//! Operations that were decoded before, by address. They are compared with the code's bytes each time they are used,
//! so that code which changes is seen at once.

use super::decode::{Kind, Operation, decode};

const ENTRIES: usize = 1 << 14;

/// The bytes of an operation and where they were, with what they mean.
#[derive(Clone, Copy)]
struct Entry {
    rip: u64,
    bytes: u128,
    mask: u128,
    /// Where the bytes are in this process, and the page tables' epoch in which that was found.
    code: *const Bytes,
    epoch: u64,
    operation: Operation,
}

/// As many bytes as an instruction has at most, and one.
#[repr(C, packed)]
pub struct Bytes(u128);

// SAFETY: the pointers lead into guest memory, which is shared between threads anyway and lives as long as the holder.
unsafe impl Send for Cache {}

/// Operations that were decoded before.
pub struct Cache {
    entries: Box<[Entry]>,
}

impl Cache {
    pub fn new() -> Self {
        let none = Operation::beyond(Kind::Beyond, 0);
        // An address that is not canonical matches no code.
        let empty = Entry {
            rip: 1 << 62,
            bytes: 0,
            mask: u128::MAX,
            code: std::ptr::null(),
            epoch: 0,
            operation: none,
        };
        Self { entries: vec![empty; ENTRIES].into() }
    }

    /// The operation at `rip`, if its code was found in this epoch and has not changed.
    #[inline]
    pub fn known(&self, rip: u64, epoch: u64) -> Option<&Operation> {
        let entry = &self.entries[index(rip)];
        if entry.rip != rip || entry.epoch != epoch {
            return None;
        }
        // SAFETY: who told of the code promised that it can be read in its epoch. Any value is a valid one, and code
        // that another processor changes meanwhile is read in one of its states.
        let bytes = unsafe { entry.code.read_volatile().0 };
        ((entry.bytes ^ bytes) & entry.mask == 0).then_some(&entry.operation)
    }

    /// The operation at `rip`, where `available` of `bytes` are code; none if it needs more than that.
    pub fn get(&mut self, rip: u64, bytes: u128, available: usize) -> Option<&Operation> {
        let entry = &mut self.entries[index(rip)];
        if entry.rip != rip
            || (entry.bytes ^ bytes) & entry.mask != 0
            || usize::from(entry.operation.length) > available
        {
            let operation = decode(rip, &bytes.to_le_bytes()[..available])?;
            let mask = u128::MAX >> (128 - 8 * u32::from(operation.length));
            *entry = Entry { rip, bytes, mask, code: std::ptr::null(), epoch: 0, operation };
        }
        Some(&entry.operation)
    }

    /// Remembers where the code of an operation is that [`get`](Self::get) has just given.
    ///
    /// # Safety
    ///
    /// While [`known`](Self::known) is called with this epoch, all of the bytes can be read.
    pub unsafe fn remember(&mut self, rip: u64, code: *const Bytes, epoch: u64) {
        let entry = &mut self.entries[index(rip)];
        if entry.rip == rip {
            (entry.code, entry.epoch) = (code, epoch);
        }
    }
}

fn index(rip: u64) -> usize {
    (rip ^ rip >> 14) as usize % ENTRIES
}
