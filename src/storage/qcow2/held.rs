//! Entries of an image's first table that wait until what they lead to is in the file.
//!
//! `imago` enters a new table of the second level into the first one at once, while it keeps in memory that the new
//! table's cluster is in use. If the process died then, the next would give that cluster to something else. So the
//! entries are kept here, and go into the file when the reference counts have done so.

use crate::threads::lock;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use imago::io_buffers::IoVector;

/// What waits, by its place in the file: never more than the table.
type Blocks = BTreeMap<u64, Vec<u8>>;

/// The entries of one image.
#[derive(Debug, Clone)]
pub(in crate::storage) struct Held(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Where the table is.
    table: Range<u64>,
    /// Whether anything is held back: every write to the image asks.
    holds: AtomicBool,
    waiting: Mutex<Blocks>,
    /// One flush at a time: an older entry must not come after a newer one.
    flushing: Mutex<()>,
}

impl Held {
    pub fn new(table: Range<u64>) -> Self {
        Self(Arc::new(Shared {
            holds: AtomicBool::new(!table.is_empty()),
            table,
            waiting: Mutex::default(),
            flushing: Mutex::default(),
        }))
    }

    /// For a file in which everything may be at once.
    pub fn nothing() -> Self {
        Self::new(0..0)
    }

    /// Keeps what is to be written at `offset`, if that belongs to the table.
    pub fn take(&self, from: &IoVector<'_>, offset: u64) -> bool {
        let Some(end) = offset.checked_add(from.len()) else { return false };
        let Shared { table, holds, .. } = &*self.0;
        if !holds.load(Ordering::Relaxed) || offset < table.start || table.end < end {
            return false;
        }
        let mut bytes = vec![0; from.len() as usize];
        from.copy_into_slice(&mut bytes);
        // `imago` writes the table in blocks of one size, so none lies across another.
        self.waiting().insert(offset, bytes);
        true
    }

    /// Has `flush` write all that `imago` has in memory, and then the entries that waited for that.
    pub fn flush(&self, file: &File, flush: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let _alone = lock(&self.0.flushing);
        // What comes from now on waits for the next flush.
        let ready = self.waiting().clone();
        flush()?;
        if !ready.is_empty() {
            // The host may lose its power, too.
            file.sync_data()?;
        }
        for (offset, bytes) in ready {
            file.write_all_at(&bytes, offset)?;
            let mut waiting = self.waiting();
            if waiting.get(&offset) == Some(&bytes) {
                waiting.remove(&offset);
            }
        }
        Ok(())
    }

    /// Holds nothing back from now on: the table may move. Nothing must be waiting.
    pub fn let_go(&self) {
        self.0.holds.store(false, Ordering::Relaxed);
    }

    fn waiting(&self) -> MutexGuard<'_, Blocks> {
        lock(&self.0.waiting)
    }
}
