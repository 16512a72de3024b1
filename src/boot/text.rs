//! How choices of this room are written on a command line.

use std::fmt;
use std::str::FromStr;

use super::{Entry, Flat, Mode};

/// Why a text names no choice.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TextError {
    /// No protocol.
    #[error("{0:?} is no boot protocol; there are auto, pvh, linux64 and image")]
    Entry(String),
    /// No address.
    #[error("{0:?} is no address; write a number such as 0x100000, and after a comma the mode: real or long")]
    Address(String),
    /// No mode.
    #[error("{0:?} is no mode in which a flat image can start; there are real and long")]
    Mode(String),
}

impl FromStr for Entry {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        match text {
            "auto" => Ok(Self::Auto),
            "pvh" => Ok(Self::Pvh),
            "linux64" => Ok(Self::Linux64),
            "image" => Ok(Self::Image),
            _ => Err(TextError::Entry(text.to_owned())),
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Pvh => "pvh",
            Self::Linux64 => "linux64",
            Self::Image => "image",
        })
    }
}

impl FromStr for Flat {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        let (address, mode) = text.split_once(',').unwrap_or((text, "long"));
        let number = match address.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => address.parse(),
        };
        let mode = match mode {
            "real" => Mode::Real,
            "long" => Mode::Long,
            _ => return Err(TextError::Mode(mode.to_owned())),
        };
        Ok(Self { address: number.map_err(|_| TextError::Address(address.to_owned()))?, mode })
    }
}

impl fmt::Display for Flat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = match self.mode {
            Mode::Long => "long",
            Mode::Real => "real",
        };
        write!(f, "{:#x},{mode}", self.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read_as_they_are_printed() {
        for text in ["auto", "pvh", "linux64", "image"] {
            assert_eq!(text.parse::<Entry>().unwrap().to_string(), text);
        }
        for text in ["0x7c00,real", "0x100000,long"] {
            assert_eq!(text.parse::<Flat>().unwrap().to_string(), text);
        }
        assert_eq!("4096".parse(), Ok(Flat { address: 4096, mode: Mode::Long }));
    }

    #[test]
    fn other_texts_are_refused_with_the_part_that_is_wrong() {
        assert_eq!("xen".parse::<Entry>(), Err(TextError::Entry("xen".to_owned())));
        for text in ["", "0x", "1M", "-1", "0x1ffffffffffffffff"] {
            assert_eq!(text.parse::<Flat>(), Err(TextError::Address(text.to_owned())));
        }
        assert_eq!("0x7c00,16".parse::<Flat>(), Err(TextError::Mode("16".to_owned())));
    }
}
