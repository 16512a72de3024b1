//! What this program knows of the x86 processor, apart from any hypervisor.
//!
//! [`segments`] and [`mode`] make the register values a processor starts with, [`paging`] builds identity page
//! tables, [`walk`] follows the guest's own, [`cpuid`] decides what the guest's `cpuid` instruction answers, [`lapic`]
//! fills in what PC firmware leaves in the local APIC. Everything is a function from plain data to plain data:
//! `boot/` and `vm/` call them and carry the results over the hypervisor's seam, whose register types are all
//! that this room uses besides guest memory.

pub mod cpuid;
pub mod lapic;
pub mod mode;
pub mod paging;
pub mod segments;
pub mod walk;
