//! Hostile drivers: what every device is put through, by generation.
//!
//! [`queues`] puts chains into a device's queues that are noise, requests, or nearly requests, and has them served in
//! the test's own thread. [`transport`] uses the registers in every order and width while the device's threads run,
//! moves the device to another process's place and back, and looks whether it and its neighbour still work. A device
//! takes part by being a [`Target`]; both need no more than a test of one line. `LODGER_HOSTILE_CASES` says how many
//! cases there are.

mod alone;
mod balloon;
mod blk;
mod chains;
mod console;
mod queues;
mod rng;
mod transport;

use std::sync::Arc;

use super::Device;
use super::testing::{Driver, Numbers, Part};

use queues::queues;
use transport::transport;

/// A device, and what it has to bear.
trait Target {
    type Device: Device;
    /// A queue that is looked at whenever it is rung.
    const SERVED: u16 = 0;

    /// A device that was not used, all with the same backend.
    fn device(&self) -> Arc<Self::Device>;

    /// A device that goes on where `old` rests.
    fn moved(&self, old: &Self::Device) -> Arc<Self::Device> {
        let _ = old;
        self.device()
    }

    /// Puts something like a request for this queue into the driver's memory, from [`BUFFERS`](super::testing::BUFFERS)
    /// on and below [`NEIGHBOUR`](super::testing::NEIGHBOUR); where its parts are. The fewer are wrong, the deeper the
    /// suite gets.
    fn request(&self, queue: u16, random: &mut Numbers, driver: &Driver) -> Vec<Part>;

    /// What the host does at any time.
    fn disturb(&self, device: &Self::Device, random: &mut Numbers) {
        let _ = (device, random);
    }

    /// Does a request that has to succeed; the driver has just set the device up.
    fn check(&self, driver: &mut Driver);

    /// Looks at the backend, which nobody uses any longer.
    fn finish(self);
}
