//! What a decoder makes, never more than was announced.

use std::io;

/// How much room a decoder is given at once: enough to make calls rare, little enough to stay in the cache
/// between its being cleared and its being filled.
const CHUNK: usize = 256 << 10;

/// Why unpacking ended early.
#[derive(Debug, PartialEq, Eq)]
pub enum Stop {
    /// There is more than was announced.
    Full,
    /// The decoder does not understand its input, in its words.
    Damaged(String),
}

impl Stop {
    /// Damage that something can say of itself.
    pub fn damaged(why: impl ToString) -> Self {
        Self::Damaged(why.to_string())
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::damaged("it ends too early"),
            _ => Self::damaged(error),
        }
    }
}

/// Collects unpacked bytes.
#[derive(Debug)]
pub struct Output {
    bytes: Vec<u8>,
    made: usize,
    announced: usize,
}

impl Output {
    /// Room for `announced` bytes, if this process can have it. The host pays for it as it is filled.
    pub fn new(announced: usize) -> Option<Self> {
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(announced).ok()?;
        Some(Self { bytes, made: 0, announced })
    }

    /// How many bytes were made.
    pub fn made(&self) -> usize {
        self.made
    }

    /// How many bytes are still to come.
    pub fn left(&self) -> usize {
        self.announced - self.made
    }

    /// Whether as many bytes were made as were announced.
    pub fn is_complete(&self) -> bool {
        self.made == self.announced
    }

    /// Everything made from `start` on.
    pub fn since(&self, start: usize) -> &[u8] {
        &self.bytes[start..self.made]
    }

    /// Everything that was made.
    pub fn into_bytes(mut self) -> Vec<u8> {
        self.bytes.truncate(self.made);
        self.bytes
    }

    /// Lets `fill` write up to `most` bytes; it returns how many it wrote.
    pub fn append<E>(
        &mut self,
        most: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        let end = self.made + most.min(self.left());
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        let room = &mut self.bytes[self.made..end];
        let written = fill(room)?.min(end - self.made);
        self.made += written;
        Ok(written)
    }

    /// Takes everything that `read` gives, until it gives nothing.
    pub fn read_from(&mut self, mut read: impl FnMut(&mut [u8]) -> Result<usize, Stop>) -> Result<(), Stop> {
        while self.left() > 0 {
            if self.append(CHUNK, &mut read)? == 0 {
                return Ok(());
            }
        }
        // Decoders check what they made when they are asked for more and have come to their end.
        match read(&mut [0])? {
            0 => Ok(()),
            _ => Err(Stop::Full),
        }
    }
}
