//! Lines of bounded length out of bytes that come in pieces.

/// The longest line, its end not counted. Requests are short.
pub const LONGEST: usize = 64 << 10;

/// What came and is not a whole line yet.
#[derive(Debug, Default)]
pub struct Lines {
    bytes: Vec<u8>,
    /// How much of it was looked at.
    searched: usize,
}

/// A line without end.
#[derive(Debug, PartialEq, Eq)]
pub struct TooLong;

impl Lines {
    /// Takes what has come.
    pub fn add(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next line, without its end.
    pub fn next(&mut self) -> Result<Option<Vec<u8>>, TooLong> {
        let Some(at) = self.bytes[self.searched..].iter().position(|&byte| byte == b'\n') else {
            self.searched = self.bytes.len();
            return if self.searched > LONGEST { Err(TooLong) } else { Ok(None) };
        };
        let end = self.searched + at;
        if end > LONGEST {
            return Err(TooLong);
        }
        let rest = self.bytes.split_off(end + 1);
        let mut line = std::mem::replace(&mut self.bytes, rest);
        self.searched = 0;
        line.pop();
        Ok(Some(line))
    }

    /// Whether no more can be taken before lines are taken out.
    pub fn is_full(&self) -> bool {
        self.bytes.len() > LONGEST
    }

    /// What came behind the last line.
    pub fn rest(&mut self) -> Vec<u8> {
        self.searched = 0;
        std::mem::take(&mut self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_in_any_pieces() {
        let mut lines = Lines::default();
        let mut found = Vec::new();
        for piece in [&b"on"[..], b"e\ntw", b"", b"o\n\nthree\nfour"] {
            lines.add(piece);
            while let Some(line) = lines.next().unwrap() {
                found.push(String::from_utf8(line).unwrap());
            }
        }
        assert_eq!(found, ["one", "two", "", "three"]);
        assert_eq!(lines.rest(), b"four");
    }

    #[test]
    fn a_line_may_be_long_and_not_too_long() {
        for (length, fits) in [(LONGEST, true), (LONGEST + 1, false)] {
            let mut lines = Lines::default();
            lines.add(&vec![b'x'; length]);
            assert_eq!(lines.next().is_ok(), fits);
            lines.add(b"\n");
            assert_eq!(
                lines.next().map(|line| line.unwrap().len()),
                if fits { Ok(length) } else { Err(TooLong) }
            );
        }
    }
}
