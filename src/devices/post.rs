//! The POST port: firmware and early kernels write there how far they got.
//!
//! Linux also writes to it for nothing but the time it takes, so a write must be cheap and say nothing. The last
//! code is kept for the report of a fatal exit.

use std::sync::atomic::{AtomicU16, Ordering::Relaxed};

use serde::{Deserialize, Serialize};

use crate::bus::{Action, Claim, Device, Widths};
use crate::saved::Saved;

/// The port.
pub const CLAIM: Claim<u16> = Claim { name: "post", base: 0x80, len: 1, widths: Widths::BYTE };

/// No code was written yet.
const NONE: u16 = 0x100;

/// The POST port.
#[derive(Debug)]
pub struct Post {
    last: AtomicU16,
}

impl Default for Post {
    fn default() -> Self {
        Self { last: NONE.into() }
    }
}

impl Post {
    /// The last code that the guest wrote.
    pub fn last(&self) -> Option<u8> {
        self.last.load(Relaxed).try_into().ok()
    }

    /// What a snapshot keeps of it.
    pub fn save(&self) -> SavedPost {
        let Self { last: _ } = self;
        SavedPost { last: self.last() }
    }

    /// Puts back what [`Post::save`] read.
    pub fn restore(&self, saved: &SavedPost) {
        let SavedPost { last } = saved;
        self.last.store(last.map_or(NONE, u16::from), Relaxed);
    }
}

impl Device for Post {
    /// The last code, as on a PC, where this port is a spare register of the DMA controller; all ones before
    /// the first.
    fn read(&self, _offset: u64, _width: u8) -> u64 {
        self.last().unwrap_or(0xff).into()
    }

    fn write(&self, _offset: u64, _width: u8, value: u64) -> Action {
        self.last.store(u16::from(value as u8), Relaxed);
        Action::None
    }
}

/// The POST port as a snapshot keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedPost {
    last: Option<u8>,
}

impl Saved for SavedPost {
    const NAME: &'static str = "post";
    const VERSION: u16 = 1;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::saved;

    fn assert_restorable(post: &Post) {
        let saved = post.save();
        let twin = Post::default();
        twin.restore(&saved::decode(&saved::encode(&saved)).unwrap());
        assert_eq!((twin.save(), twin.last()), (saved, post.last()));
    }

    #[test]
    fn the_last_code_is_remembered_read_back_and_saved() {
        let post = Post::default();
        assert_eq!((post.last(), post.read(0, 1)), (None, 0xff));
        assert_restorable(&post);
        for code in 0..=u8::MAX {
            assert_eq!(post.write(0, 1, code.into()), Action::None);
            assert_eq!((post.last(), post.read(0, 1)), (Some(code), code.into()));
            assert_restorable(&post);
        }
    }
}
