//! What this program knows of the x86 processor, apart from any hypervisor.

pub mod lapic;
pub mod mode;
pub mod paging;
pub mod segments;
pub mod walk;
