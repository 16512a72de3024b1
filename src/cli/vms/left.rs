//! What is left of a machine that is no longer there, and how long ago that was.

use std::time::{Duration, SystemTime};

use lodger::control::ClientError;
use lodger::vm::{self, Found, Name};

/// A machine that cannot be asked, as it has ended or is dead; what else went wrong is the error.
pub fn instead(error: ClientError, name: &Name) -> Result<Found, ClientError> {
    match error {
        ClientError::Dead(_) | ClientError::Ended { .. } => vm::find(name)?.ok_or(error),
        _ => Err(error),
    }
}

/// How long ago a time was, for people.
pub fn ago(unix_ms: u64) -> String {
    let then = SystemTime::UNIX_EPOCH + Duration::from_millis(unix_ms);
    // The clock may have been set back meanwhile.
    age(then.elapsed().unwrap_or_default().as_secs_f64())
}

/// A duration for people, be it short or long.
pub fn duration(seconds: f64) -> String {
    let (value, unit) = match seconds {
        0.0..0.001 => (seconds * 1e6, "us"),
        0.001..1.0 => (seconds * 1e3, "ms"),
        1.0..120.0 => (seconds, "s"),
        _ => return age(seconds),
    };
    let text = format!("{value:.1}");
    format!("{} {unit}", text.strip_suffix(".0").unwrap_or(&text))
}

/// How long something has been there, for people.
pub fn age(seconds: f64) -> String {
    let seconds = seconds as u64;
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_short() {
        for (seconds, said) in
            [(0.0, "0 us"), (0.25, "250 ms"), (3.0, "3 s"), (3.4, "3.4 s"), (600.0, "10 min")]
        {
            assert_eq!(duration(seconds), said);
        }
    }

    #[test]
    fn ages_are_short() {
        for (seconds, said) in
            [(0.0, "0 s"), (119.9, "119 s"), (120.0, "2 min"), (7200.0, "2 h"), (1e6, "11 days")]
        {
            assert_eq!(age(seconds), said);
        }
    }
}
