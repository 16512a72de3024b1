//! Linux in the `lodger` process: what boots, what it finds, and how it ends.
//!
//! The kernels come from `scripts/linux`, which is run when the first test needs one and builds what is not in its
//! cache. Most tests boot one with a first process of their own, `guest.c`, which prints what is asked for and ends
//! the run by a status: a second each, also where KVM interprets guest kernels. Those with a shell take several.

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
mod memory;
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
