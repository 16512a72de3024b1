//! Sizes of disks as they are given: `512M`, `1.5G`, or `+2G` for so much more.

use std::str::FromStr;

use lodger::size::{SizeError, parse};

/// Why a disk cannot have a size.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskSizeError {
    /// It is none.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// A guest would not see all of it.
    #[error("{0} is no size of a disk: it has whole sectors of 512 bytes, and one at least")]
    Sectors(String),
}

/// How large a disk shall be.
pub fn parse_whole(text: &str) -> Result<u64, DiskSizeError> {
    let size = parse(text)?;
    match size > 0 && size.is_multiple_of(512) {
        true => Ok(size),
        false => Err(DiskSizeError::Sectors(text.to_owned())),
    }
}

/// A size, or how much larger one shall be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// So many bytes.
    Bytes(u64),
    /// So many more than now.
    More(u64),
}

impl FromStr for Size {
    type Err = DiskSizeError;

    fn from_str(text: &str) -> Result<Self, DiskSizeError> {
        match text.strip_prefix('+') {
            Some(more) => parse_whole(more).map(Self::More),
            None => parse_whole(text).map(Self::Bytes),
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
        for text in ["", "+", "++1", "-1", "1+", "0", "513", "+1"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}
