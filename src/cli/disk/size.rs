//! Sizes of disks as they are given: `512M`, `1GiB`, `+2G`, `1048576`.

use std::str::FromStr;

/// A size, or how much larger one shall be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// So many bytes.
    Bytes(u64),
    /// So many more than now.
    More(u64),
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix('+') {
            Some(more) => bytes(more).map(Self::More),
            None => bytes(text).map(Self::Bytes),
        }
    }
}

/// Reads a size in bytes with an optional unit, a power of 1024.
pub fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = unit.to_ascii_lowercase();
    let letter = if unit.len() > 1 { unit.trim_end_matches('b').trim_end_matches('i') } else { &unit };
    let power = match letter {
        "" | "b" => Some(0),
        letter => ["k", "m", "g", "t", "p", "e"].iter().position(|known| *known == letter).map(|at| at + 1),
    };
    let value = power.zip(number.parse::<u64>().ok());
    let value = value.and_then(|(power, number)| number.checked_mul(1 << (10 * power)));
    value.ok_or_else(|| format!("{text:?} is no size: give a number with K, M, G or T behind it, as in 20G"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_of_1024() {
        for (text, expected) in [("0", 0), ("512", 512), ("1K", 1024), ("2MiB", 2 << 20), ("3gb", 3 << 30)] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        assert_eq!("+1G".parse(), Ok(Size::More(1 << 30)));
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "G", "-1", "1X", "1.5G", "99999999999999999999", "16E", "++1"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}
