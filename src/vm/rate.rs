//! How limits are written: `20M`, so much a second, or `20M+100M`, with what may come at once after a rest.

use std::num::NonZeroU64;

use crate::devices::virtio::Rate;
use crate::memory::human;
use crate::size::{self, SizeError};

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// Written as sizes are.
    Bytes,
    /// Written as plain numbers: in thousands or in 1024s, opinions differ.
    Operations,
}

/// Why this is no limit.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RateError {
    /// Not a number of bytes.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// Not a number of operations.
    #[error("{0:?} is no number of operations: write it in digits, as in 500 or 500+2000")]
    Number(String),
    /// What lets nothing through is no use.
    #[error("nothing a second would leave every request waiting; without the option there is no limit")]
    Nothing,
    /// Nor is this.
    #[error(
        "a burst of nothing would leave every request waiting; without one it is a tenth of a second's worth"
    )]
    NoBurst,
}

pub(super) fn parse(text: &str, unit: Unit) -> Result<Rate, RateError> {
    let (per_second, burst) = match text.split_once('+') {
        Some((per_second, burst)) => (per_second, Some(burst)),
        None => (text, None),
    };
    let mut rate = Rate::new(NonZeroU64::new(number(per_second, unit)?).ok_or(RateError::Nothing)?);
    if let Some(burst) = burst {
        rate.burst = NonZeroU64::new(number(burst, unit)?).ok_or(RateError::NoBurst)?;
    }
    Ok(rate)
}

fn number(text: &str, unit: Unit) -> Result<u64, RateError> {
    match unit {
        Unit::Bytes => Ok(size::parse(text)?),
        // `parse` takes a sign.
        Unit::Operations if text.bytes().all(|byte| byte.is_ascii_digit()) => {
            text.parse().map_err(|_| RateError::Number(text.to_owned()))
        }
        Unit::Operations => Err(RateError::Number(text.to_owned())),
    }
}

/// The way back.
pub(super) fn text(rate: Rate, unit: Unit) -> String {
    let number = |number: NonZeroU64| match unit {
        Unit::Bytes => human(number.get()),
        Unit::Operations => number.to_string(),
    };
    let Rate { per_second, burst } = rate;
    match Rate::new(per_second) == rate {
        true => number(per_second),
        false => format!("{}+{}", number(per_second), number(burst)),
    }
}
