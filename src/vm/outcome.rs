//! How a machine ended, and which status the process ends with.

use std::fmt;

use crate::bus::Action;
use crate::hv;
use crate::vcpu::{Cause, Ending, FatalReport};

/// How a machine ended.
#[derive(Debug)]
pub enum Outcome {
    /// Somebody outside told it to.
    Stopped,
    /// The guest reset the machine.
    Reset,
    /// The guest switched the power off.
    PoweredOff,
    /// The guest ended the process with a status of its own, through the debug-exit port.
    Exited(u8),
    /// The guest told that its kernel panicked, through the panic port.
    GuestPanicked,
    /// Every processor halted with nothing that could wake it.
    Halted,
    /// The guest cannot go on.
    Fatal(Box<FatalReport>),
    /// The hypervisor did not do what it was asked.
    Failed(hv::Error),
    /// A bug of this program.
    Panicked,
}

impl Outcome {
    /// The process's exit status. These numbers are documented in `lodger run --help` and the README.
    pub fn status(&self) -> u8 {
        match self {
            Self::Stopped | Self::Reset | Self::PoweredOff | Self::Halted => 0,
            Self::Exited(status) => *status,
            Self::Failed(_) | Self::Panicked => 1,
            Self::GuestPanicked => 105,
            Self::Fatal(report) => match report.cause {
                Cause::TripleFault => 101,
                Cause::InternalError(_) | Cause::Beyond { .. } => 102,
                Cause::FailedEntry { .. } => 103,
                Cause::Unexpected { .. } => 104,
            },
        }
    }
}

impl From<Ending> for Outcome {
    fn from(ending: Ending) -> Self {
        match ending {
            Ending::Stopped | Ending::Guest(Action::None) => Self::Stopped,
            Ending::Guest(Action::Reset) => Self::Reset,
            Ending::Guest(Action::PowerOff) => Self::PoweredOff,
            Ending::Guest(Action::Panicked) => Self::GuestPanicked,
            Ending::Guest(Action::Exit(status)) => Self::Exited(status),
            Ending::Halted => Self::Halted,
            Ending::Fatal(report) => Self::Fatal(report),
            Ending::Failed(error) => Self::Failed(error),
            Ending::Panicked => Self::Panicked,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped => f.write_str("the machine was stopped"),
            Self::Reset => f.write_str("the guest reset the machine"),
            Self::PoweredOff => f.write_str("the guest switched the power off"),
            Self::Exited(status) => write!(f, "the guest ended the process with status {status}"),
            Self::GuestPanicked => f.write_str("the guest's kernel panicked"),
            Self::Halted => f.write_str("the guest halted for good"),
            Self::Fatal(report) => report.fmt(f),
            Self::Failed(error) => error.fmt(f),
            Self::Panicked => f.write_str("a thread of lodger panicked; this is a bug of lodger"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_end_has_its_documented_status() {
        let status = |action| Outcome::from(Ending::Guest(action)).status();
        assert_eq!(status(Action::Reset), 0);
        assert_eq!(status(Action::PowerOff), 0);
        assert_eq!(status(Action::Exit(0)), 0);
        assert_eq!(status(Action::Exit(42)), 42);
        assert_eq!(status(Action::Panicked), 105);
        assert_eq!(Outcome::from(Ending::Halted).status(), 0);
        assert_eq!(Outcome::from(Ending::Stopped).status(), 0);
        assert_eq!(Outcome::from(Ending::Panicked).status(), 1);
    }
}
