//! What the guest knows of the machine it runs on; made once, passed to everything.

use crate::apic::Apic;
use crate::boot::{Boot, Protocol};
use crate::clock::Clock;

pub struct Machine {
    pub boot: Boot,
    pub clock: Clock,
    pub apic: Apic,
}

impl Machine {
    /// Reads what the loader left and sets up clock and interrupt controllers.
    pub fn find(protocol: Protocol, boot_information: u64) -> Self {
        let boot = Boot::read(protocol, boot_information);
        let clock = Clock::find();
        let apic = Apic::set_up(&clock);
        Self { boot, clock, apic }
    }
}
