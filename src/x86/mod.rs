//! What this program knows of the x86 processor, apart from any hypervisor.
//!
//! [`segments`] and [`mode`] make the register values a processor starts with, [`paging`] builds identity page
//! tables, [`walk`] follows the guest's own, [`topology`] arranges the processors, [`model`] chooses
//! their features, [`cpuid`] makes of both what the guest's `cpuid` instruction answers, [`lapic`] and [`msrs`] are
//! what PC firmware leaves in the local APIC and in model-specific registers, and what the guest made of it. On
//! hosts whose KVM interprets guest kernels [`complete`] executes what it cannot, and [`soft`] whole stretches of
//! kernel code. Everything else is a function from plain data to plain data: `boot/` and `vm/` call them and
//! carry the results over the hypervisor's seam, whose register types are all that this room uses besides guest
//! memory.

pub mod complete;
pub mod cpuid;
mod entry;
mod flags;
pub mod lapic;
pub mod mode;
pub mod model;
pub mod msrs;
pub mod paging;
pub mod segments;
pub mod soft;
mod state_components;
pub mod topology;
pub mod walk;
