//! Sizes as people write them: `512M`, `3.5G`, `1GiB`, `1048576`.
//!
//! One reader for memory, balloons and disks, whether the command line or a library user gives them. The way back is
//! [`memory::human`](crate::memory::human). Relies on nothing.

/// Why a text is no size.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SizeError {
    /// It is no number with a unit.
    #[error(
        "{0:?} is not a size: write a number of bytes, or one with K, M, G, T, P or E, as in 512M or 3.5G"
    )]
    NoSize(String),
    /// The fraction ends within a byte.
    #[error("{0} is no whole number of bytes")]
    Fraction(String),
    /// It has more than 64 bits.
    #[error("{0} is too large: sizes are below 16E")]
    TooLarge(String),
}

/// Reads a size in bytes, with an optional unit (powers of 1024) and then an optional fraction.
pub fn parse(text: &str) -> Result<u64, SizeError> {
    let no_size = || SizeError::NoSize(text.to_owned());
    let too_large = || SizeError::TooLarge(text.to_owned());
    let length = text.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
    let (number, unit) = text.split_at(length);
    let shift = unit_shift(unit).ok_or_else(no_size)?;
    let (whole, fraction) = match number.split_once('.') {
        None => (number, None),
        Some((whole, fraction)) => (whole, Some(fraction)),
    };
    if whole.is_empty() || fraction.is_some_and(|digits| digits.is_empty() || digits.contains('.')) {
        return Err(no_size());
    }
    let whole: u64 = whole.parse().map_err(|_| too_large())?;
    let part = fraction_of(fraction.unwrap_or_default(), shift)
        .ok_or_else(|| SizeError::Fraction(text.to_owned()))?;
    whole.checked_mul(1 << shift).and_then(|size| size.checked_add(part)).ok_or_else(too_large)
}

/// What a unit multiplies by, as a power of two.
fn unit_shift(unit: &str) -> Option<u32> {
    let unit = unit.to_ascii_lowercase();
    let letter = unit.strip_suffix("ib").or(unit.strip_suffix('b')).unwrap_or(&unit);
    Some(match letter {
        "" if unit != "ib" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        "e" => 60,
        _ => return None,
    })
}

/// The decimal digits behind a point, times `1 << shift`, if that is a whole number: doubled on paper, each time with
/// what is carried over the point as the next bit.
fn fraction_of(digits: &str, shift: u32) -> Option<u64> {
    let digits = digits.trim_end_matches('0');
    // Each doubling can make one digit of a fraction zero.
    if digits.len() > shift as usize {
        return None;
    }
    let mut digits: Vec<_> = digits.bytes().map(|digit| digit - b'0').collect();
    let mut whole = 0;
    for _ in 0..shift {
        let mut carry = 0;
        for digit in digits.iter_mut().rev() {
            let doubled = *digit * 2 + carry;
            (*digit, carry) = (doubled % 10, doubled / 10);
        }
        whole = whole << 1 | u64::from(carry);
    }
    digits.iter().all(|digit| *digit == 0).then_some(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_units() {
        assert_eq!(parse("1048576"), Ok(1 << 20));
        assert_eq!(parse("512M"), Ok(512 << 20));
        assert_eq!(parse("512m"), Ok(512 << 20));
        assert_eq!(parse("64MiB"), Ok(64 << 20));
        assert_eq!(parse("64MB"), Ok(64 << 20));
        assert_eq!(parse("2G"), Ok(2 << 30));
        assert_eq!(parse("0"), Ok(0));
        assert_eq!(parse("1E"), Ok(1 << 60));
    }

    #[test]
    fn fractions_are_read_exactly_or_refused() {
        assert_eq!(parse("3.5G"), Ok(3584 << 20));
        assert_eq!(parse("0.25GiB"), Ok(256 << 20));
        assert_eq!(parse("1.0"), Ok(1));
        assert_eq!(parse("2.50000000000000000000000000000000000000000000000M"), Ok(2560 << 10));
        assert_eq!(parse("1.0009765625M"), Ok(1025 << 10));
        // One byte beyond 1 EiB, and just short of 2^64.
        let byte = "867361737988403547205962240695953369140625";
        assert_eq!(parse(&format!("1.{byte:0>60}E")), Ok((1 << 60) + 1));
        assert_eq!(parse("15.5E"), Ok(31 << 59));
        for text in
            ["3.3G", "0.1M", "1.5", "1.00048828125K", "1.0000000000000000000000000000000000000000001E"]
        {
            assert_eq!(parse(text), Err(SizeError::Fraction(text.to_owned())), "{text}");
        }
        let endless = format!("1.{}M", "3".repeat(10_000));
        assert_eq!(parse(&endless), Err(SizeError::Fraction(endless.clone())));
        assert!(matches!(parse("16.5E"), Err(SizeError::TooLarge(_))));
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "", "M", "-1", "+1", "1.", "1.G", ".5G", ".", "1.5.5G", "1..5G", "1.-5G", "512X", "512 M", " 1M",
            "1Mi", "1ib", "0x10", "1MM", "ⅧM",
        ] {
            assert_eq!(parse(text), Err(SizeError::NoSize(text.to_owned())), "{text}");
        }
        for text in ["16E", "99999999999999999999", "18446744073709551616"] {
            assert_eq!(parse(text), Err(SizeError::TooLarge(text.to_owned())), "{text}");
        }
    }
}
