//! A hosted hypervisor on Linux KVM: one guest, one ordinary process.
//!
//! The modules are the rooms of the program; each may use the ones listed after it, never one listed before:
//! [`control`] is the socket by which others ask a running machine for something, [`host`] finds out what this host can
//! do, [`vm`] describes, builds and runs a machine, [`vcpu`] runs its processors, [`devices`] are what the guest sees,
//! [`console`] moves the bytes of its console, [`storage`] those of its disks, [`bus`] knows who owns which address,
//! [`boot`] loads kernels, [`x86`] knows the processor, [`memory`] holds guest memory, [`hv`] is the seam to the
//! hypervisor. [`saved`] is the form in which all of them write down their state, [`snapshot`] has it in files,
//! [`size`] reads sizes.

pub mod boot;
pub mod bus;
pub mod console;
pub mod control;
pub mod devices;
mod event;
mod file_lock;
pub mod host;
pub mod hv;
mod kernel_files;
pub mod memory;
mod random;
pub mod saved;
pub mod size;
pub mod snapshot;
mod sparse;
mod spelling;
pub mod storage;
mod threads;
pub mod vcpu;
pub mod vm;
pub mod x86;
