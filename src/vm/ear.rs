//! Where a guest listens to what is typed: its serial port, or its virtio console.

use crate::devices::serial::Serial;
use crate::devices::virtio::console::Port;

/// A guest's ear.
pub enum Ear<'a> {
    /// The serial port.
    Serial(&'a Serial),
    /// The virtio console. The serial port hears of the end of the input: a virtio console has no word for it that
    /// reaches programs.
    Virtio(&'a Port, &'a Serial),
}

impl Ear<'_> {
    /// Whether it takes something now.
    pub fn has_room(&self) -> bool {
        match self {
            Self::Serial(serial) => serial.input_space() > 0,
            Self::Virtio(port, _) => port.input_space() > 0,
        }
    }

    /// Takes what there is room for, and says how much.
    pub fn offer(&self, bytes: &[u8]) -> usize {
        match self {
            Self::Serial(serial) => serial.offer_input(bytes),
            Self::Virtio(port, _) => port.offer_input(bytes),
        }
    }

    /// There will be no more input.
    pub fn end(&self) {
        match self {
            Self::Serial(serial) | Self::Virtio(_, serial) => serial.end_input(),
        }
    }
}
