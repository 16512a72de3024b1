//! The machine as the guest finds it.

use crate::apic;
use crate::boot::{Boot, Protocol};
use crate::clock::{self, Clock, Source};
use crate::format::{Size, Text};
use crate::machine::Machine;
use crate::processors::Socket;
use crate::{port, print, println, processors, serial};

const KEYBOARD_DATA: u16 = 0x60;
const KEYBOARD_STATUS: u16 = 0x64;
const KEYBOARD_SELF_TEST: u8 = 0xaa;
const KEYBOARD_HEALTHY: u8 = 0x55;
const ABSENT: u8 = 0xff;

/// Everything, right after the start.
pub fn all(machine: &Machine) {
    processor();
    clocks(&machine.clock);
    memory(&machine.boot);
    boot(&machine.boot);
    devices(machine);
}

/// This processor, and who runs it.
pub fn processor() {
    let (family, model, stepping) = processors::signature();
    let (brand, vendor) = (processors::brand(), processors::vendor());
    print!("  processor   ");
    if !brand.trimmed().is_empty() {
        print!("{}\n              ", Text(brand.trimmed()));
    }
    let socket = processors::Socket::find();
    print!(
        "{}, family {family:#x}, model {model:#x}, stepping {stepping}; {} by CPUID",
        Text(vendor.trimmed()),
        socket.processors()
    );
    match socket {
        Socket { cores: 1, threads: 1, .. } => println!(),
        Socket { number, cores, threads: 1 } => println!("\n              socket {number}: {cores} cores"),
        Socket { number, cores, threads } => {
            println!("\n              socket {number}: {cores} cores of {threads} threads each");
        }
    }
    match processors::hypervisor() {
        Some(name) => println!("  hypervisor  {}", Text(name.trimmed())),
        None => println!("  hypervisor  none that shows itself"),
    }
}

fn clocks(clock: &Clock) {
    let source = match clock.source {
        Source::Hypervisor => "says the hypervisor",
        Source::Pit => "measured with the PIT",
        Source::Guess => "a guess, since there is nothing to measure it with",
    };
    println!("  TSC         {}.{:03} MHz, {source}", clock.kilohertz / 1000, clock.kilohertz % 1000);
}

/// The memory map.
pub fn memory(boot: &Boot) {
    println!("  memory      {} usable", Size(boot.usable()));
    for range in boot.ranges() {
        println!(
            "              {:#014x} - {:#014x}  {:10}  {}",
            range.start,
            range.last(),
            Size(range.size),
            range.kind()
        );
    }
}

fn boot(boot: &Boot) {
    let protocol = match boot.protocol {
        Protocol::Pvh => "PVH",
        Protocol::Linux => "64-bit Linux protocol",
    };
    println!("  entered by  {protocol}");
    if !boot.command_line().is_empty() {
        println!("  cmdline     {}", Text(boot.command_line().as_bytes()));
    }
    if let Some((address, size)) = boot.initrd {
        println!("  initrd      {} at {address:#x}", Size(size));
    }
    if let Some(address) = boot.acpi {
        println!("  ACPI        tables from {address:#x}");
    }
}

/// Timers, interrupt controllers and legacy devices.
pub fn devices(machine: &Machine) {
    println!(
        "  local APIC  id {}, version {:#x}, timer {}.{:03} MHz",
        apic::id(),
        apic::version(),
        machine.apic.hertz() / 1_000_000,
        machine.apic.hertz() / 1000 % 1000
    );
    match apic::io_lines() {
        Some(lines) => println!("  IOAPIC      {lines} lines"),
        None => println!("  IOAPIC      none"),
    }
    println!("  PIT         {}", if clock::pit_counts() { "counts" } else { "does not count" });
    time();
    match serial::is_present() {
        true => println!("  serial      {} at 0x3f8", serial::model()),
        false => println!("  serial      none that answers at 0x3f8"),
    }
    println!("  keyboard    {}", keyboard());
}

/// Date and time of day.
pub fn time() {
    match clock::cmos_time() {
        Some(t) => println!(
            "  CMOS clock  {}-{:02}-{:02} {:02}:{:02}:{:02}",
            t.year, t.month, t.day, t.hour, t.minute, t.second
        ),
        None => println!("  CMOS clock  none, or it is not set"),
    }
}

/// Asks the keyboard controller to test itself.
fn keyboard() -> &'static str {
    const OUTPUT_FULL: u8 = 0x01;
    if port::read8(KEYBOARD_STATUS) == ABSENT {
        return "no controller";
    }
    port::write8(KEYBOARD_STATUS, KEYBOARD_SELF_TEST);
    for _ in 0..16 {
        if port::read8(KEYBOARD_STATUS) & OUTPUT_FULL != 0 {
            return match port::read8(KEYBOARD_DATA) {
                KEYBOARD_HEALTHY => "8042, self-test passed",
                _ => "8042, self-test failed",
            };
        }
    }
    "controller without self-test"
}
