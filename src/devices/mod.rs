//! The devices that a guest sees.
//!
//! A device answers accesses ([`bus::Device`](crate::bus::Device)) and raises interrupts through a handle it
//! was given ([`InterruptLine`]); it knows neither KVM nor the virtual machine it is part of.

/// A wire into the guest's interrupt controller.
pub trait InterruptLine: Send + Sync {
    /// Raises or lowers the wire.
    fn set(&self, high: bool);

    /// Raises and lowers it: one edge, as ISA devices give.
    fn pulse(&self) {
        self.set(true);
        self.set(false);
    }
}

impl<L: InterruptLine + ?Sized> InterruptLine for std::sync::Arc<L> {
    fn set(&self, high: bool) {
        (**self).set(high);
    }
}
