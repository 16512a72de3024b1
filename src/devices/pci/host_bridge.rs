//! The host bridge: what a guest finds first on a bus, and by which it believes that there is one.
//!
//! Linux takes configuration mechanism #1 for working only if a host bridge or a display answers (`pci_sanity_check` in
//! arch/x86/pci/direct.c). This one has nothing else to it: no address ranges, no interrupts, no capabilities, nothing
//! that could be written.

use super::Function;

/// Red Hat's number for "a PCI host bridge that exists only in software", from the range that it keeps for QEMU (QEMU,
/// docs/specs/pci-ids.rst), is what this is. The bridges of real chipsets, which others pretend to be, have registers
/// that a guest knows by their identity and programs.
const VENDOR: u16 = 0x1b36;
const DEVICE: u16 = 0x0008;
/// It answers memory accesses and is a master of the bus, as host bridges are for good.
const COMMAND: u32 = 0x0006;
/// A bridge (06) to the host (00), without a programming interface, revision 0.
const CLASS: u32 = 0x0600_0000;

/// The host bridge.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostBridge;

impl Function for HostBridge {
    fn read(&self, offset: u8) -> u32 {
        match offset {
            0x00 => u32::from(DEVICE) << 16 | u32::from(VENDOR),
            0x04 => COMMAND,
            0x08 => CLASS,
            _ => 0,
        }
    }

    fn write(&self, _offset: u8, _value: u32, _mask: u32) {}
}
