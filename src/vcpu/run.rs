//! The hot path: exit, device, entry.

use super::Ending;
use super::completion::Help;
use super::counters::Counters;
use super::fatal::Cause;
use super::history::{History, Record};
use crate::bus::{Action, Bus};
use crate::hv::{self, Exit, ExitKind, Vcpu};

/// Why the loop was left.
pub(super) enum Left {
    /// A signal or a request arrived; nothing is half done.
    Interrupted,
    /// The thread ends.
    Ended(Ending),
    /// The guest cannot go on; the vCPU still holds the state to report.
    Fatal(Cause),
}

/// What came of entering the guest once.
pub(super) enum Entered {
    /// The exit was answered, and the guest can be entered again.
    Answered,
    /// The guest is at a breakpoint, or has made one step.
    Stopped,
    /// The loop is to be left.
    Left(Left),
}

/// What exits are answered with.
pub(super) struct Context<'a, H> {
    pub bus: &'a Bus,
    pub counters: &'a Counters,
    pub history: &'a mut History,
    pub help: H,
}

/// Runs the guest and answers its exits until something else than an access happens that nobody can help with.
pub(super) fn until_interrupted<V: Vcpu, H: Help<V>>(
    vcpu: &mut V,
    context: &mut Context<'_, H>,
) -> hv::Result<Left> {
    loop {
        match context.enter(vcpu)? {
            Entered::Answered => {}
            Entered::Stopped => {
                context.history.push(Record::plain(ExitKind::Breakpoint));
                if let Err(cause) = context.help.breakpoint(vcpu)? {
                    return Ok(Left::Fatal(cause));
                }
            }
            Entered::Left(left) => return Ok(left),
        }
    }
}

impl<H> Context<'_, H> {
    /// Enters the guest and answers its exit.
    #[inline(always)]
    pub fn enter<V: Vcpu>(&mut self, vcpu: &mut V) -> hv::Result<Entered>
    where
        H: Help<V>,
    {
        let exit = vcpu.run()?;
        let kind = exit.kind();
        self.counters.count(kind);
        let helped = match exit {
            Exit::Pio(pio) => {
                let action = self.bus.port_access(pio.port, pio.width, pio.direction, pio.data);
                self.history.push(Record::access(kind, pio.port.into(), pio.data));
                self.help.accessed(vcpu)?;
                return Ok(action.into());
            }
            Exit::Mmio(mmio) => {
                let action = self.bus.memory_access(mmio.address, mmio.direction, mmio.data);
                self.history.push(Record::access(kind, mmio.address, mmio.data));
                self.help.accessed(vcpu)?;
                return Ok(action.into());
            }
            Exit::Interrupted => return Ok(Entered::Left(Left::Interrupted)),
            Exit::Halt => return Ok(Entered::Left(Left::Ended(Ending::Halted))),
            Exit::Breakpoint => return Ok(Entered::Stopped),
            Exit::MsrWrite(msr) => self.help.msr_write(vcpu, msr),
            Exit::InternalError(error) => self.help.internal_error(vcpu, error),
            Exit::Shutdown => Ok(Err(Cause::TripleFault)),
            Exit::FailedEntry { reason, cpu } => Ok(Err(Cause::FailedEntry { reason, cpu })),
            Exit::Unexpected { reason } => Ok(Err(Cause::Unexpected { reason })),
        };
        self.history.push(Record::plain(kind));
        Ok(match helped? {
            Ok(()) => Entered::Answered,
            Err(cause) => Entered::Left(Left::Fatal(cause)),
        })
    }
}

impl From<Action> for Entered {
    fn from(action: Action) -> Self {
        match action {
            Action::None => Self::Answered,
            action => Self::Left(Left::Ended(Ending::Guest(action))),
        }
    }
}
