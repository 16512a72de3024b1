//! `--balloon`: how the guest gives memory back.

use std::fmt;
use std::str::FromStr;

use crate::memory::human;
use crate::size::{self, SizeError};

/// A balloon, as the machine has it from the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BalloonSpec {
    /// What the guest is asked at first to have it hold, in bytes.
    pub target: u64,
    /// Whether the guest reports free memory without being asked.
    pub reporting: bool,
}

impl Default for BalloonSpec {
    /// Nothing is asked for, and free memory is reported.
    fn default() -> Self {
        Self { target: 0, reporting: true }
    }
}

/// Why this describes no balloon.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BalloonSpecError {
    /// The part before the first comma is no size.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// A word after a comma means nothing.
    #[error("{0:?} says nothing about a balloon; there is no-reporting")]
    Word(String),
}

impl FromStr for BalloonSpec {
    type Err = BalloonSpecError;

    fn from_str(text: &str) -> Result<Self, BalloonSpecError> {
        let mut parts = text.split(',');
        let mut spec = Self { target: size::parse(parts.next().unwrap_or_default())?, ..Self::default() };
        for word in parts {
            match word {
                "no-reporting" => spec.reporting = false,
                _ => return Err(BalloonSpecError::Word(word.to_owned())),
            }
        }
        Ok(spec)
    }
}

impl fmt::Display for BalloonSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { target, reporting } = *self;
        f.write_str(&human(target))?;
        if reporting { Ok(()) } else { f.write_str(",no-reporting") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_described_is_described_the_same_way_again() {
        for text in ["0", "64M", "1G,no-reporting", "0,no-reporting"] {
            assert_eq!(text.parse::<BalloonSpec>().unwrap().to_string(), text);
        }
        assert_eq!("0".parse(), Ok(BalloonSpec::default()));
    }

    #[test]
    fn what_describes_no_balloon_is_refused_with_the_reason() {
        for (text, said) in [
            ("", "\"\" is not a size"),
            ("much", "\"much\" is not a size"),
            ("99999999999999999999", "is too large"),
            ("64M,", "\"\" says nothing"),
            ("64M,reporting", "there is no-reporting"),
        ] {
            let error = text.parse::<BalloonSpec>().unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
