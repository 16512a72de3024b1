//! Reaching addresses that the tables of the image do not map.
//!
//! The image maps the first GiB and the one below 4 GiB. Everything else is added here a GiB at a time, natively:
//! tables are filled before they are hooked in, and an entry that was not present needs no flush.

use core::ptr;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

const ENTRIES: usize = 512;
const PRESENT_WRITABLE_USER: u64 = 0x27;
const LARGE_PAGE: u64 = 0xe7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const GIB: u64 = 1 << 30;
const LARGE_PAGE_SIZE: u64 = 2 << 20;
/// Where the lower half of the canonical addresses ends.
const REACHABLE_END: u64 = 1 << 47;
const SPARE_TABLES: usize = 24;

#[repr(C, align(4096))]
struct Table([AtomicU64; ENTRIES]);

unsafe extern "C" {
    static top_table: Table;
}

static SPARES: [Table; SPARE_TABLES] =
    [const { Table([const { AtomicU64::new(0) }; ENTRIES]) }; SPARE_TABLES];
static SPARES_USED: AtomicUsize = AtomicUsize::new(0);

/// Why an address cannot be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreachable {
    /// It lies outside of what page tables of four levels identity-map.
    OutOfRange,
    /// All spare tables are used.
    NoTables,
}

impl Unreachable {
    pub fn reason(self) -> &'static str {
        match self {
            Self::OutOfRange => "lies beyond 2^47, outside of this guest's page tables",
            Self::NoTables => "would need another page table, and all are used: reboot to start again",
        }
    }
}

/// Makes `size` bytes at `address` accessible, whether or not anything answers there.
pub fn reach(address: u64, size: u64) -> Result<(), Unreachable> {
    let end = address.checked_add(size.max(1)).filter(|&end| end <= REACHABLE_END);
    let last = end.ok_or(Unreachable::OutOfRange)? - 1;
    for gib in address / GIB..=last / GIB {
        reach_gib(gib)?;
    }
    Ok(())
}

fn reach_gib(gib: u64) -> Result<(), Unreachable> {
    // SAFETY: the table is part of the image; atomics make sharing it with the processor sound.
    let top = unsafe { &*ptr::addr_of!(top_table) };
    let pointers = below(&top.0[gib as usize / ENTRIES], |_| {})?;
    below(&pointers.0[gib as usize % ENTRIES], |directory| {
        for (entry, page) in directory.0.iter().zip(0..) {
            entry.store((gib * GIB + page * LARGE_PAGE_SIZE) | LARGE_PAGE, Ordering::Relaxed);
        }
    })?;
    Ok(())
}

/// The table below an entry, taken from the spares and filled if there is none yet.
fn below(entry: &AtomicU64, fill: impl FnOnce(&Table)) -> Result<&'static Table, Unreachable> {
    let present = entry.load(Ordering::Relaxed);
    if present != 0 {
        // SAFETY: tables lie in the image, which is mapped at its physical address and never goes away.
        return Ok(unsafe { &*ptr::with_exposed_provenance((present & ADDRESS) as usize) });
    }
    let spare = SPARES.get(SPARES_USED.fetch_add(1, Ordering::Relaxed)).ok_or(Unreachable::NoTables)?;
    fill(spare);
    entry.store(ptr::from_ref(spare).expose_provenance() as u64 | PRESENT_WRITABLE_USER, Ordering::Release);
    Ok(spare)
}
