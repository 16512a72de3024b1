//! Who owns which port and which guest-physical address.
//!
//! The vCPU loop hands every port and memory-mapped access to [`Bus`]; devices only ever see accesses that lie
//! wholly inside the range they claimed and have a width they declared. Relies on nothing; `devices/`
//! implement [`Device`], `vcpu/` calls [`Bus`], `vm/` puts it together.

/// A device's answer to a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Go on.
    None,
    /// The guest asked for a reset of the machine.
    Reset,
    /// The guest asked for the power to be switched off.
    PowerOff,
    /// The guest wants the process to end with this status.
    Exit(u8),
}

/// Something that answers accesses to ports or addresses.
///
/// Called by vCPU threads, several at once where there are several; what it protects and how is the device's
/// own business. It must not block for longer than a bounded moment.
pub trait Device: Send + Sync {
    /// The value of `width` bytes at `offset` from the start of the device's range.
    fn read(&self, offset: u64, width: u8) -> u64;

    /// Takes `value`, of `width` bytes, at `offset` from the start of the device's range.
    fn write(&self, offset: u64, width: u8, value: u64) -> Action;
}
