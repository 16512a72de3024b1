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
    loop {
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
            other => {
                history.push(Record::plain(kind));
                return leave(other);
            }
        };
        if action != Action::None {
            return Left::Ended(Ending::Guest(action));
        }
    }
}

/// What to do about exits that are no accesses.
fn leave(exit: Exit<'_>) -> Left {
    match exit {
        Exit::Halt => Left::Ended(Ending::Halted),
        Exit::Shutdown => Left::Fatal(Cause::TripleFault),
        Exit::InternalError(error) => Left::Fatal(Cause::InternalError(error)),
        Exit::FailedEntry { reason, cpu } => Left::Fatal(Cause::FailedEntry { reason, cpu }),
        Exit::Unexpected { reason } => Left::Fatal(Cause::Unexpected { reason }),
        Exit::Pio(_) | Exit::Mmio(_) | Exit::Interrupted => Left::Interrupted,
    }
}
