//! How often samples are taken.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A sample costs some ten microseconds: more often, a guest would do little else.
const SHORTEST: Duration = Duration::from_micros(50);
const LONGEST: Duration = Duration::from_secs(60);

/// How often a profile asks each processor where it is: from 50 µs to one minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interval(Duration);

/// Why something is no interval.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IntervalError {
    /// It does not say how long.
    #[error("{0:?} is not a time: write a whole number with us, ms or s, as in 1ms")]
    Text(String),
    /// Too short or too long.
    #[error("samples can be taken every 50us at most, and every 60s at least")]
    Range,
}

impl Interval {
    /// `duration` as an interval.
    pub fn new(duration: Duration) -> Result<Self, IntervalError> {
        let possible = (SHORTEST..=LONGEST).contains(&duration);
        possible.then_some(Self(duration)).ok_or(IntervalError::Range)
    }

    /// How long it is.
    pub fn duration(self) -> Duration {
        self.0
    }
}

impl Default for Interval {
    /// A millisecond.
    fn default() -> Self {
        Self(Duration::from_millis(1))
    }
}

impl FromStr for Interval {
    type Err = IntervalError;

    fn from_str(text: &str) -> Result<Self, IntervalError> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let of_unit = match unit {
            "us" | "µs" => Duration::from_micros,
            "ms" => Duration::from_millis,
            "s" => Duration::from_secs,
            _ => return Err(IntervalError::Text(text.to_owned())),
        };
        if number.is_empty() {
            return Err(IntervalError::Text(text.to_owned()));
        }
        // What has too many digits for a number is too long in any unit.
        let number = number.parse().map_err(|_| IntervalError::Range)?;
        Self::new(of_unit(number))
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let microseconds = self.0.as_micros();
        match microseconds {
            whole if whole % 1_000_000 == 0 => write!(f, "{}s", whole / 1_000_000),
            whole if whole % 1000 == 0 => write!(f, "{}ms", whole / 1000),
            _ => write!(f, "{microseconds}us"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_printed_as_they_are_written() {
        for text in ["1ms", "50us", "999us", "1500us", "1s", "60s"] {
            assert_eq!(text.parse::<Interval>().map(|interval| interval.to_string()).as_deref(), Ok(text));
        }
        assert_eq!("1000us".parse(), Ok(Interval::default()));
        assert_eq!("100µs".parse::<Interval>().unwrap().to_string(), "100us");
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in ["", "1", "ms", "-1ms", "1 ms", "1.5ms", "1m", "1ns", "0x1ms", "ⅧMs"] {
            assert_eq!(text.parse::<Interval>(), Err(IntervalError::Text(text.to_owned())));
        }
        for text in ["0us", "0s", "49us", "61s", "60001ms", "18446744073709551615s", "99999999999999999999s"]
        {
            assert_eq!(text.parse::<Interval>(), Err(IntervalError::Range), "{text}");
        }
    }
}
