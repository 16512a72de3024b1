//! Sizes of disks as they are given: `512M`, `1.5G`, or `+2G` for so much more.

use std::str::FromStr;

use lodger::size::{SizeError, parse};

/// A size, or how much larger one shall be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// So many bytes.
    Bytes(u64),
    /// So many more than now.
    More(u64),
}

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        match text.strip_prefix('+') {
            Some(more) => parse(more).map(Self::More),
            None => parse(text).map(Self::Bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plus_says_how_much_more() {
        assert_eq!("+1.5G".parse(), Ok(Size::More(1536 << 20)));
        assert_eq!("2MiB".parse(), Ok(Size::Bytes(2 << 20)));
        for text in ["", "+", "++1", "-1", "1+"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}
