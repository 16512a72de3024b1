//! The devices that every machine has, and where they are on its bus.

use std::sync::Arc;

use super::Error;
use super::machine::Board;
use super::wire::Wire;
use crate::bus::BusBuilder;
use crate::devices::cmos::{self, Cmos, HostClock};
use crate::devices::debug_exit::{self, DebugExit};
use crate::devices::generation_id::{self, GenerationId};
use crate::devices::i8042::{self, I8042};
use crate::devices::pci::{self, HostBridge, Pci};
use crate::devices::post::{self, Post};
use crate::devices::power_button::{self, PowerButton};
use crate::devices::pvpanic::{self, PvPanic};
use crate::devices::reset::Reset;
use crate::devices::serial::{self, Serial};
use crate::devices::sleep::{self, Sleep};
use crate::devices::{ByteSink, InterruptLine};
use crate::hv::Vm;

/// The devices that every machine has and that have a state, which is part of the machine's.
pub struct Devices {
    /// The serial port, to which console input is given.
    pub serial: Arc<Serial>,
    /// Clock and CMOS memory.
    pub cmos: Arc<Cmos>,
    /// The keyboard controller.
    pub i8042: Arc<I8042>,
    /// The PCI bus.
    pub pci: Arc<Pci>,
    /// The port for progress codes.
    pub post: Arc<Post>,
    /// The power button.
    pub power_button: PowerButton,
    /// What tells the guest that it goes on from a snapshot.
    pub generation_id: GenerationId,
}

impl Devices {
    /// Those of a machine that was switched on just now.
    pub(super) fn new<V: Vm>(board: &Arc<Board<V>>, console: Arc<dyn ByteSink>) -> Self {
        let line = |number| -> Arc<dyn InterruptLine> { Arc::new(Wire::new(Arc::clone(board), number)) };
        Self {
            serial: Arc::new(Serial::new(line(serial::IRQ), console)),
            cmos: Arc::new(Cmos::new(board.memory.layout().size(), Arc::new(HostClock))),
            i8042: Arc::new(I8042::new(line(i8042::KEYBOARD_IRQ), line(i8042::MOUSE_IRQ))),
            pci: Arc::new(Pci::new([(pci::Place::FIRST, Arc::new(HostBridge) as _)])),
            post: Arc::new(Post::default()),
            power_button: PowerButton::new(line(power_button::IRQ)),
            generation_id: GenerationId::new(line(generation_id::IRQ)),
        }
    }

    /// Puts them on the bus, and with them those that have no state.
    pub(super) fn claim(&self, builder: &mut BusBuilder) -> Result<(), Error> {
        builder.claim_ports(serial::CLAIM, Arc::clone(&self.serial) as _)?;
        builder.claim_ports(cmos::CLAIM, Arc::clone(&self.cmos) as _)?;
        builder.claim_ports(debug_exit::CLAIM, Arc::new(DebugExit))?;
        builder.claim_ports(sleep::CLAIM, Arc::new(Sleep))?;
        builder.claim_ports(pvpanic::CLAIM, Arc::new(PvPanic))?;
        builder.claim_ports(post::CLAIM, Arc::clone(&self.post) as _)?;
        for (claim, port) in self.i8042.ports() {
            builder.claim_ports(claim, port)?;
        }
        for (claim, port) in self.pci.ports(Reset::default()) {
            builder.claim_ports(claim, port)?;
        }
        Ok(())
    }
}
