//! The hot path: exit, device, entry.

use super::Ending;
use super::counters::Counters;
use super::fatal::Cause;
use super::history::{History, Record};
use crate::bus::{Action, Bus};
use crate::hv::{Exit, Vcpu};

/// Why the loop was left.
pub(super) enum Left {
    /// A signal or a request arrived; nothing is half done.
    Interrupted,
    /// The thread ends.
    Ended(Ending),
    /// The guest cannot go on; the vCPU still holds the state to report.
    Fatal(Cause),
}

/// Runs the guest and answers its exits until something else than an access happens.
pub(super) fn until_interrupted<V: Vcpu>(
    vcpu: &mut V,
    bus: &Bus,
    counters: &Counters,
    history: &mut History,
) -> Left {
    let (last, cause) = loop {
        let exit = match vcpu.run() {
            Ok(exit) => exit,
            Err(error) => return Left::Ended(Ending::Failed(error)),
        };
        let kind = exit.kind();
        counters.count(kind);
        let action = match exit {
            Exit::Pio(pio) => {
                let action = bus.port_access(pio.port, pio.width, pio.direction, pio.data);
                history.push(Record::access(kind, pio.port.into(), pio.data));
                action
            }
            Exit::Mmio(mmio) => {
                let action = bus.memory_access(mmio.address, mmio.direction, mmio.data);
                history.push(Record::access(kind, mmio.address, mmio.data));
                action
            }
            Exit::Interrupted => return Left::Interrupted,
            Exit::Halt => return Left::Ended(Ending::Halted),
            Exit::Shutdown => break (kind, Cause::TripleFault),
            Exit::InternalError(error) => break (kind, Cause::InternalError(error)),
            Exit::FailedEntry { reason, cpu } => break (kind, Cause::FailedEntry { reason, cpu }),
            Exit::Unexpected { reason } => break (kind, Cause::Unexpected { reason }),
        };
        if action != Action::None {
            return Left::Ended(Ending::Guest(action));
        }
    };
    history.push(Record::plain(last));
    Left::Fatal(cause)
}
