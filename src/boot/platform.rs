//! What a machine has besides its memory, as its tables tell the guest.
//!
//! `vm/` fills this in from the devices that it puts on the bus; [`acpi`](super::acpi) and [`mp`](super::mp)
//! write it down in their formats. Numbers only: this room knows none of the devices.

use std::borrow::Cow;

/// Where every local APIC is.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Where the IOAPIC is; its first input is interrupt 0.
pub const IOAPIC: u32 = 0xfec0_0000;
/// The inputs that interrupts of ISA devices arrive at.
pub const ISA_INTERRUPTS: u8 = 16;
/// The line between the two old interrupt controllers, which no device can use.
pub const CASCADE: u8 = 2;

/// What a machine has.
///
/// An interrupt's number is that of its IOAPIC input, for the ISA's as well: KVM connects the timer to input 0,
/// not to 2 as most PCs do.
#[derive(Debug, Clone)]
pub struct Platform<'a> {
    /// The numbers of the processors' local APICs, ascending. The first boots.
    pub processors: Cow<'a, [u8]>,
    /// The serial port.
    pub serial: SerialPort,
    /// How the guest switches the power off.
    pub sleep: SleepPorts,
    /// How the guest resets the machine.
    pub reset: ResetPort,
    /// What the code at the place where a PC's firmware starts does to the machine.
    pub reset_code: ResetPort,
    /// The port at which the guest tells that it panicked.
    pub panic_port: u16,
    /// The interrupt of the power button, an edge.
    pub power_button: u8,
    /// The interrupt that tells of a new generation, an edge.
    pub generation: u8,
    /// Virtio devices that are reached through memory.
    pub virtio: &'a [VirtioMmio],
}

impl Platform<'_> {
    /// The IOAPIC's number: the first that no local APIC has.
    pub(super) fn ioapic_id(&self) -> u8 {
        self.processors.last().map_or(0, |last| last.saturating_add(1))
    }
}

/// A 16550 and its eight ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SerialPort {
    /// The first port.
    pub base: u16,
    /// Its interrupt.
    pub interrupt: u8,
}

/// The sleep registers of hardware-reduced ACPI (ACPI 6.5, section 4.8.3.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SleepPorts {
    /// The sleep control register.
    pub control: u16,
    /// The sleep status register.
    pub status: u16,
    /// The sleep type that means off.
    pub off: u8,
}

/// A port, and what has to be written to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResetPort {
    /// The port.
    pub port: u16,
    /// What resets the machine.
    pub value: u8,
}

/// A virtio device that is reached through memory. Its interrupt is an edge, as eventfds give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VirtioMmio {
    /// Where its registers are.
    pub base: u32,
    /// How much room they take.
    pub size: u32,
    /// Its interrupt.
    pub interrupt: u8,
}

/// A machine with so many processors, for tests.
#[cfg(test)]
pub(super) fn platform(cpus: u8, virtio: &[VirtioMmio]) -> Platform<'_> {
    Platform {
        processors: (0..cpus).collect(),
        serial: SerialPort { base: 0x3f8, interrupt: 4 },
        sleep: SleepPorts { control: 0x600, status: 0x601, off: 5 },
        reset: ResetPort { port: 0x64, value: 0xfe },
        reset_code: ResetPort { port: 0xcf9, value: 6 },
        panic_port: 0x505,
        power_button: 13,
        generation: 23,
        virtio,
    }
}
