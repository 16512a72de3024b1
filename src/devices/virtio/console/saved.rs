//! What a snapshot keeps of a console and its ports.

use serde::{Deserialize, Serialize};

use super::port::Host;
use super::{Listens, Size};
use crate::saved::Saved;

/// The state of the device, with what was on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedConsole {
    pub(super) ports: Vec<Option<SavedPort>>,
    pub(super) size: Size,
    pub(super) listens: Listens,
}

/// The state of one port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SavedPort {
    pub name: String,
    pub input: Vec<u8>,
    pub output: Vec<u8>,
    pub host: Host,
    pub ready: bool,
    pub open: bool,
    pub untold: u8,
    pub taken: u64,
}

impl Saved for SavedConsole {
    const NAME: &'static str = "virtio-console";
    const VERSION: u16 = 1;
}
