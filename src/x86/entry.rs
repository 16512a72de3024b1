//! The bits of page table entries (Intel SDM volume 3, "Paging"): the same in tables of 32 and of 64 bits, but for the
//! last, which only the wider have.
//!
//! For all in this room that make, follow or change page tables.

/// There is something behind the entry.
pub const PRESENT: u64 = 1 << 0;
/// It may be written.
pub const WRITABLE: u64 = 1 << 1;
/// Ring 3 may use it.
pub const USER: u64 = 1 << 2;
/// It was used.
pub const ACCESSED: u64 = 1 << 5;
/// It was written.
pub const DIRTY: u64 = 1 << 6;
/// The entry is a large page and no table.
pub const LARGE: u64 = 1 << 7;
/// No instructions are fetched there.
pub const NO_EXECUTE: u64 = 1 << 63;
