//! What a user says about the clocks of a machine that goes on from a snapshot: `host` or `stopped`.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::hv::SavedClock;
use crate::saved::Saved;
use crate::snapshot::{self, Snapshot};

/// What the clocks of a machine show that goes on from a snapshot.
///
/// This is about the clock that KVM gives a guest and the time stamp counter; the CMOS clock always shows the host's
/// time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Clock {
    /// They have gone on meanwhile: the guest knows what time it is, and what was to happen meanwhile is overdue.
    #[default]
    Host,
    /// They have stood still: for the guest no time has passed, and its wall clock is late by as much as it was stored.
    Stopped,
}

/// Neither of them.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a way for clocks to go on: it is host or stopped")]
pub struct ClockError(String);

impl FromStr for Clock {
    type Err = ClockError;

    fn from_str(text: &str) -> Result<Self, ClockError> {
        match text {
            "host" => Ok(Self::Host),
            "stopped" => Ok(Self::Stopped),
            _ => Err(ClockError(text.to_owned())),
        }
    }
}

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::Stopped => "stopped",
        })
    }
}

/// By how much the clocks of a machine are put forward that goes on from a snapshot now, if they [go on](Clock::Host).
pub fn stored_for(snapshot: &Snapshot) -> Result<Duration, snapshot::Error> {
    let saved: Option<SavedClock> = snapshot.section(SavedClock::NAME)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // A host's clock that shows an earlier time does not set them back.
    Ok(saved.map_or(Duration::ZERO, |saved| now.saturating_sub(Duration::from_nanos(saved.host))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_printed_as_it_is_written() {
        for text in ["host", "stopped"] {
            assert_eq!(text.parse::<Clock>().unwrap().to_string(), text);
        }
        let said = "utc".parse::<Clock>().unwrap_err().to_string();
        assert_eq!(said, "\"utc\" is not a way for clocks to go on: it is host or stopped");
    }
}
