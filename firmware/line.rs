//! The line editor of the prompt: bytes in, what to echo and finished lines out. Pure, so that the package's own
//! tests can include it.

/// The longest line.
pub const CAPACITY: usize = 512;

const INTERRUPT: u8 = 0x03;
const BACKSPACE: u8 = 0x08;
const KILL_LINE: u8 = 0x15;
const KILL_WORD: u8 = 0x17;
const ESCAPE: u8 = 0x1b;
const DELETE: u8 = 0x7f;

/// What a byte asks of the prompt.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing to show.
    None,
    /// Show this byte.
    Echo(u8),
    /// Take back so many characters from the screen.
    Erase(usize),
    /// The line was replaced: take back so many characters and show the line.
    Redraw(usize),
    /// The line was given up.
    Abandoned,
    /// The line is complete.
    Complete,
}

/// Where inside a key's escape sequence the input is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sequence {
    Outside,
    AfterEscape,
    Parameters,
}

/// A line being typed, and the one before it.
pub struct Line {
    bytes: [u8; CAPACITY],
    used: usize,
    previous: [u8; CAPACITY],
    previous_used: usize,
    sequence: Sequence,
    after_return: bool,
}

impl Line {
    /// An empty line.
    pub const fn new() -> Self {
        Self {
            bytes: [0; CAPACITY],
            used: 0,
            previous: [0; CAPACITY],
            previous_used: 0,
            sequence: Sequence::Outside,
            after_return: false,
        }
    }

    /// What has been typed. Only ASCII gets in.
    pub fn text(&self) -> &str {
        core::str::from_utf8(&self.bytes[..self.used]).unwrap_or_default()
    }

    /// Starts the next line; this one can be called back.
    pub fn start(&mut self) {
        if self.used > 0 {
            self.previous = self.bytes;
            self.previous_used = self.used;
        }
        self.used = 0;
    }

    /// Takes the next byte of input.
    pub fn take(&mut self, byte: u8) -> Effect {
        let after_return = core::mem::replace(&mut self.after_return, byte == b'\r');
        if self.sequence != Sequence::Outside {
            return self.take_key(byte);
        }
        match byte {
            b'\n' if after_return => Effect::None,
            b'\r' | b'\n' => Effect::Complete,
            BACKSPACE | DELETE => self.shorten(self.used.saturating_sub(1)),
            KILL_LINE => self.shorten(0),
            KILL_WORD => self.shorten(self.last_word()),
            INTERRUPT => {
                self.used = 0;
                Effect::Abandoned
            }
            ESCAPE => {
                self.sequence = Sequence::AfterEscape;
                Effect::None
            }
            b'\t' => self.append(b' '),
            b' '..=b'~' => self.append(byte),
            _ => Effect::None,
        }
    }

    fn append(&mut self, byte: u8) -> Effect {
        if self.used == CAPACITY {
            return Effect::Echo(0x07); // the bell: no room
        }
        self.bytes[self.used] = byte;
        self.used += 1;
        Effect::Echo(byte)
    }

    fn shorten(&mut self, used: usize) -> Effect {
        match self.used - used {
            0 => Effect::None,
            gone => {
                self.used = used;
                Effect::Erase(gone)
            }
        }
    }

    fn last_word(&self) -> usize {
        let line = self.bytes[..self.used].trim_ascii_end();
        line.iter().rposition(|&byte| byte == b' ').map_or(0, |blank| blank + 1)
    }

    /// Keys beyond the alphabet send ESC, `[` or `O`, parameters, and a letter or `~`. One has a meaning here.
    fn take_key(&mut self, byte: u8) -> Effect {
        match (self.sequence, byte) {
            (Sequence::AfterEscape, b'[' | b'O') => self.sequence = Sequence::Parameters,
            (Sequence::Parameters, b'0'..=b'?') => {}
            (Sequence::Parameters, b'A') => {
                self.sequence = Sequence::Outside;
                let shown = self.used;
                self.bytes = self.previous;
                self.used = self.previous_used;
                return Effect::Redraw(shown);
            }
            _ => self.sequence = Sequence::Outside,
        }
        Effect::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Types everything; gives the completed lines.
    fn lines(input: &[u8]) -> Vec<String> {
        let mut line = Line::new();
        let mut lines = Vec::new();
        for &byte in input {
            if line.take(byte) == Effect::Complete {
                lines.push(line.text().to_owned());
                line.start();
            }
        }
        lines
    }

    #[test]
    fn a_line_ends_at_return_at_newline_and_once_at_both() {
        assert_eq!(lines(b"one\rtwo\nthree\r\nfour\r"), ["one", "two", "three", "four"]);
    }

    #[test]
    fn empty_lines_are_lines() {
        assert_eq!(lines(b"\n\n\r\r"), ["", "", "", ""]);
    }

    #[test]
    fn typing_errors_can_be_taken_back() {
        assert_eq!(lines(b"halx\x7ft\r"), ["halt"]);
        assert_eq!(lines(b"\x08\x08halt\r"), ["halt"]);
        assert_eq!(lines(b"reboot\x15halt\r"), ["halt"]);
        assert_eq!(lines(b"echo wrong\x17right\r"), ["echo right"]);
        assert_eq!(lines(b"reboot\x03halt\r"), ["halt"]);
    }

    #[test]
    fn keys_that_mean_nothing_leave_nothing_behind() {
        assert_eq!(lines(b"ha\x1b[D\x1b[3~\x1bOP\x00\xc3\xa4lt\r"), ["halt"]);
    }

    #[test]
    fn the_previous_line_comes_back() {
        assert_eq!(lines(b"mem\r\x1b[A\r"), ["mem", "mem"]);
    }

    #[test]
    fn an_endless_line_is_cut_off() {
        let lines = lines(&[&[b'x'; 2 * CAPACITY][..], b"\r"].concat());
        assert_eq!(lines[0].len(), CAPACITY);
    }
}
