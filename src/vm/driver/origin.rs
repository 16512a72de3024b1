//! Who wanted something of a machine, and how one has ended by that.

use std::fmt;

use serde::Serialize;

use crate::vm::Outcome;

/// The exit status of a machine that was killed, as a shell shows it of a process.
const STATUS_KILLED: u8 = 128 + 9;
/// The exit status when lodger itself could not go on.
const STATUS_FAILED: u8 = 1;

/// Who wanted something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Whoever started the machine.
    Owner,
    /// Whoever sits at its terminal.
    Terminal,
    /// Somebody who sent a signal to the process.
    Signal(i32),
    /// The reader of its console, by going away.
    Reader,
    /// A client of the control socket.
    Control,
    /// The guest.
    Guest,
    /// The clock: the guest's time to end was over.
    Timeout,
    /// A snapshot with which it was to end.
    Snapshot,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Owner => f.write_str("owner"),
            Self::Terminal => f.write_str("terminal"),
            Self::Signal(number) => write!(f, "signal {number}"),
            Self::Reader => f.write_str("reader"),
            Self::Control => f.write_str("control"),
            Self::Guest => f.write_str("guest"),
            Self::Timeout => f.write_str("timeout"),
            Self::Snapshot => f.write_str("snapshot"),
        }
    }
}

/// How a machine ended, for those who have only words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Ending {
    /// The exit status of the process that ran it.
    pub status: u8,
    /// Why it ended, with registers and all if the guest could not go on.
    pub reason: String,
}

/// How a machine has ended that `by` ended, and that has this outcome.
pub(super) fn ending(by: Origin, outcome: Option<&Outcome>) -> Ending {
    let killed = |reason: &str| Ending { status: STATUS_KILLED, reason: reason.to_owned() };
    match (by, outcome) {
        (Origin::Guest, Some(outcome)) => {
            Ending { status: outcome.status(), reason: outcome.to_string().trim_end().to_owned() }
        }
        (Origin::Terminal, _) => Ending { status: 0, reason: "its user left it".to_owned() },
        (Origin::Signal(number), _) => Ending {
            status: u8::try_from(128 + number).unwrap_or(u8::MAX),
            reason: format!("signal {number} ended it"),
        },
        (Origin::Reader, _) => {
            Ending { status: STATUS_FAILED, reason: "nobody reads its console any longer".to_owned() }
        }
        (Origin::Snapshot, _) => {
            Ending { status: 0, reason: "its snapshot was taken, and it ended there".to_owned() }
        }
        (Origin::Timeout, _) => killed("it was killed: the guest did not end in the time that it had"),
        _ => killed("it was killed"),
    }
}
