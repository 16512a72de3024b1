//! What a snapshot keeps of a balloon.

use serde::{Deserialize, Serialize};

use super::Statistics;
use crate::saved::Saved;

/// A balloon's state. What its pages are to the host follows from the memory that is restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedBalloon {
    pub(super) target: u32,
    pub(super) actual: u32,
    pub(super) poison: u32,
    pub(super) inflated: u64,
    pub(super) reported: u64,
    pub(super) statistics: Option<Statistics>,
}

impl Saved for SavedBalloon {
    const NAME: &'static str = "virtio-balloon";
    const VERSION: u16 = 1;
}
