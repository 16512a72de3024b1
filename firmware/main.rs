//! The guest that `lodger` boots when it is given no kernel: a small kernel of our own.
//!
//! It finds out what machine it is on, measures what leaving the guest costs, and offers a prompt on the serial
//! port (the command `help` lists what can be asked). The package's `build.rs` compiles it with the ordinary host
//! toolchain; `boot/embedded.rs` holds the result.
//!
//! Everything written in Rust runs in ring 3 with access to all ports and all memory, because there are hosts
//! that interpret ring 0 (about 0.6 us for an instruction) and run ring 3 natively. Ring 0 is assembly only:
//! `entry.s` gets from the loader to ring 3, `traps.s` holds interrupt handlers, exception entries and the gate
//! through which ring 3 asks for what only ring 0 can do (`ring0.rs`).

#![no_std]
#![no_main]
#![allow(clippy::result_large_err)] // there is no heap to put a fault in

mod apic;
mod boot;
mod clock;
mod commands;
mod exits;
mod format;
mod line;
mod machine;
mod memory;
mod paging;
mod parse;
mod port;
mod power;
mod processors;
mod prompt;
mod report;
mod ring0;
mod runtime;
mod samples;
mod serial;
mod traps;
mod virtio;

use core::arch::global_asm;

use boot::Protocol;
use machine::Machine;

// In one piece: the files use each other's constants, and `entry.s` has to come first in its section.
global_asm!(
    include_str!("entry.s"),
    include_str!("traps.s"),
    include_str!("stacks.s"),
    // What entry.s prints.
    ".section .text.entry",
    concat!("first_line: .ascii \"lodger guest ", env!("CARGO_PKG_VERSION"), "\\r\\n\""),
    ".set first_line_length, . - first_line",
    options(raw)
);

/// Called by entry.s in ring 3, interrupts off.
#[unsafe(no_mangle)]
extern "sysv64" fn guest_main(boot_information: u64, linux_protocol: u32) -> ! {
    let protocol = if linux_protocol == 0 { Protocol::Pvh } else { Protocol::Linux };
    let machine = Machine::find(protocol, boot_information);
    serial::listen();
    traps::enable_interrupts();
    let wishes = parse::wishes(machine.boot.command_line());
    if !wishes.quiet {
        report::all(&machine);
    }
    prompt::run_all(&machine, wishes.run);
    println!("Type help for the commands.");
    prompt::serve(&machine)
}
