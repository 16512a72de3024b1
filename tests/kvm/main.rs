//! Tests on the real KVM, with guests of a few machine instructions each.
//!
//! They need a usable `/dev/kvm` and fail without one. `support` has what they share: the guests' code is
//! assembled into this program, a [`support::Board`] runs it on bare `VcpuThread`s with devices of the test's
//! own, and whole machines are built through `lodger::vm` as a library user would build them.

mod bz_images;
mod captures;
mod clocks;
mod completion;
mod disks;
mod exchange;
mod exits;
mod fatal;
mod halting;
mod interrupts;
mod kept_disks;
mod kernel;
mod machines;
mod memory;
mod processors;
mod profile;
mod programs;
mod programs_disturbed;
mod restore;
mod snapshots;
mod stopping;
mod support;
mod syscalls;
