//! Linux in the `lodger` process: what boots, what it finds, and how it ends.
//!
//! The kernels come from `scripts/linux`, which is run when the first test needs one and builds what is not in its
//! cache. A test of booting boots one with a first process of its own, `guest.c`, which prints what is asked for and
//! ends the run by a status. Other tests restore a guest that is at its shell already: `support` says when to do which.

mod bad_files;
mod balloon;
mod clocks;
mod completion;
mod consoles;
mod disk_errors;
mod disks;
mod endings;
mod formats;
mod handed;
mod journeys;
mod memory;
mod pauses;
mod pci;
mod power_loss;
mod processors;
mod profile;
mod root;
mod shell;
#[path = "../storage/small_file_system.rs"]
mod small_file_system;
mod snapshots;
mod stop;
mod support;
