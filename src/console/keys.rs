//! The keys that speak to this program rather than to the guest: Ctrl-A and the one after it.
//!
//! Only terminals are interpreted. Ctrl-A and its key may arrive in different reads, so the state is kept
//! between them. A key that means nothing is swallowed and answered with a hint: passing it on would make
//! Ctrl-A half transparent, and which half is what nobody remembers.

const CTRL_A: u8 = 0x01;

/// What Ctrl-A h shows.
pub(super) const HELP: &str = "\r\n\
    [lodger] Ctrl-A x       leave: end the guest\r\n\
    [lodger] Ctrl-A h       this help\r\n\
    [lodger] Ctrl-A Ctrl-A  send one Ctrl-A to the guest\r\n";

/// The same where leaving ends nothing.
pub(super) const HELP_ATTACHED: &str = "\r\n\
    [lodger] Ctrl-A x       leave: the guest goes on\r\n\
    [lodger] Ctrl-A h       this help\r\n\
    [lodger] Ctrl-A Ctrl-A  send one Ctrl-A to the guest\r\n";

/// What any other key after Ctrl-A shows.
pub(super) const HINT: &str = "\r\n[lodger] Ctrl-A is the escape key; Ctrl-A h shows what it can do\r\n";

/// Whether the last key was Ctrl-A.
#[derive(Debug, Default)]
pub(super) struct Keys {
    escaped: bool,
}

/// What was found in the bytes of one read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// How many bytes, now at the front of the buffer, are for the guest.
    pub kept: usize,
    /// Help was asked for.
    pub help: bool,
    /// A key after Ctrl-A had no meaning.
    pub unknown: bool,
    /// The user wants to leave; keys after that one are discarded.
    pub leave: bool,
}

impl Keys {
    /// Takes out of `bytes` what is not for the guest.
    pub fn sift(&mut self, bytes: &mut [u8]) -> Found {
        let mut found = Found::default();
        for index in 0..bytes.len() {
            let key = bytes[index];
            let for_guest = if self.escaped {
                self.escaped = false;
                match key {
                    CTRL_A => true,
                    b'x' => {
                        found.leave = true;
                        return found;
                    }
                    b'h' => {
                        found.help = true;
                        false
                    }
                    _ => {
                        found.unknown = true;
                        false
                    }
                }
            } else {
                self.escaped = key == CTRL_A;
                !self.escaped
            };
            if for_guest {
                bytes[found.kept] = key;
                found.kept += 1;
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `typed` in the given pieces; returns what the guest gets and everything that was found.
    fn feed<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<u8>, Found) {
        let mut keys = Keys::default();
        let mut guest = Vec::new();
        let mut all = Found::default();
        for piece in pieces {
            let mut piece = piece.to_vec();
            let found = keys.sift(&mut piece);
            guest.extend_from_slice(&piece[..found.kept]);
            all.help |= found.help;
            all.unknown |= found.unknown;
            all.leave |= found.leave;
            if all.leave {
                break;
            }
        }
        all.kept = guest.len();
        (guest, all)
    }

    #[test]
    fn escapes_are_understood_however_the_input_is_split() {
        let typed = b"ab\x01\x01c\x01hd\x01qe\x01xzz";
        let expected = feed([&typed[..]]);
        assert_eq!(expected.0, b"ab\x01cde");
        assert_eq!(expected.1, Found { kept: 6, help: true, unknown: true, leave: true });
        // Bit `n` of `splits` cuts after byte `n`.
        for splits in 0..1_u32 << (typed.len() - 1) {
            let mut pieces = Vec::new();
            let mut start = 0;
            for index in 0..typed.len() {
                if splits >> index & 1 != 0 || index == typed.len() - 1 {
                    pieces.push(&typed[start..=index]);
                    start = index + 1;
                }
            }
            assert_eq!(feed(pieces), expected, "splits {splits:#x}");
        }
    }

    #[test]
    fn a_doubled_escape_is_one_for_the_guest_and_not_the_start_of_another() {
        assert_eq!(feed([&b"\x01\x01x"[..]]).0, b"\x01x");
        assert!(!feed([&b"\x01\x01x"[..]]).1.leave);
    }

    #[test]
    fn all_other_bytes_pass_unchanged() {
        let bytes: Vec<u8> = (0..=255).filter(|byte| *byte != CTRL_A).collect();
        assert_eq!(feed([&bytes[..]]).0, bytes);
    }
}
