//! Disk images between `lodger disk` and `qemu-img`: each reads what the other writes, and respects its locks.
//!
//! Without `qemu-img` (Debian: qemu-utils) these tests say so and do nothing.

mod command;
mod damage;
mod formats;
mod full;
mod killed;
mod small_file_system;
mod support;
