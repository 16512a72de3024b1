//! How numbers are shown. Pure, so that the package's own tests can include it.

use core::fmt;

/// A size in the largest unit that leaves something before the point.
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(bytes) = *self;
        let (unit, name) = match bytes {
            0..0x400 => (0, "B"),
            0x400..0x10_0000 => (10, "KiB"),
            0x10_0000..0x4000_0000 => (20, "MiB"),
            0x4000_0000..0x100_0000_0000 => (30, "GiB"),
            _ => (40, "TiB"),
        };
        let whole = bytes >> unit;
        let tenths = ((bytes & ((1 << unit) - 1)) * 10) >> unit;
        // A width is kept by the number, so that units stand below each other.
        let width = f.width().unwrap_or(0).saturating_sub(name.len() + 1);
        match tenths {
            0 => write!(f, "{whole:>width$} {name}"),
            _ => write!(f, "{whole:>0$}.{tenths} {name}", width.saturating_sub(2)),
        }
    }
}

/// A duration given in picoseconds, as nanoseconds to seconds with three digits behind the point, in a column
/// of twelve.
pub struct Picoseconds(pub u64);

impl fmt::Display for Picoseconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(picoseconds) = *self;
        let (divisor, name) = match picoseconds {
            0..1_000_000 => (1, "ns"),
            1_000_000..1_000_000_000 => (1_000, "us"),
            1_000_000_000..1_000_000_000_000 => (1_000_000, "ms"),
            _ => (1_000_000_000, "s "),
        };
        let thousandths = picoseconds / divisor;
        write!(f, "{:>5}.{:03} {name}", thousandths / 1000, thousandths % 1000)
    }
}

/// A rate in events per second.
pub struct Rate(pub u64);

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(rate) = *self;
        let (divisor, name) = match rate {
            0..1_000_000 => return write!(f, "{rate}"),
            1_000_000..1_000_000_000 => (1_000_000, "million"),
            _ => (1_000_000_000, "billion"),
        };
        let hundredths = rate / (divisor / 100);
        write!(f, "{}.{:02} {name}", hundredths / 100, hundredths % 100)
    }
}

/// Bytes that should be text; what is not shows as a dot.
pub struct Text<'a>(pub &'a [u8]);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for &byte in self.0 {
            let shown = if byte.is_ascii_graphic() || byte == b' ' { byte as char } else { '.' };
            fmt::Write::write_char(f, shown)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_show_at_most_one_digit_behind_the_point() {
        assert_eq!(Size(0).to_string(), "0 B");
        assert_eq!(Size(1023).to_string(), "1023 B");
        assert_eq!(Size(639 << 10).to_string(), "639 KiB");
        assert_eq!(Size(133_824_512).to_string(), "127.6 MiB");
        assert_eq!(Size(u64::MAX).to_string(), "16777215.9 TiB");
    }

    #[test]
    fn sizes_stand_below_each_other() {
        assert_eq!(format!("{:10}|", Size(127 << 20)), "   127 MiB|");
        assert_eq!(format!("{:10}|", Size(133_824_512)), " 127.6 MiB|");
    }

    #[test]
    fn durations_keep_their_column() {
        assert_eq!(Picoseconds(0).to_string(), "    0.000 ns");
        assert_eq!(Picoseconds(7_654_321).to_string(), "    7.654 us");
        assert_eq!(Picoseconds(999_999_999).to_string(), "  999.999 us");
        assert_eq!(Picoseconds(2_500_000_000_000).to_string(), "    2.500 s ");
    }

    #[test]
    fn rates_are_shown_in_words() {
        assert_eq!(Rate(999).to_string(), "999");
        assert_eq!(Rate(1_754_321).to_string(), "1.75 million");
        assert_eq!(Rate(2_999_000_000).to_string(), "2.99 billion");
    }

    #[test]
    fn text_from_outside_cannot_steer_the_terminal() {
        assert_eq!(Text(b"a b\x1b[2J\n").to_string(), "a b.[2J.");
    }
}
