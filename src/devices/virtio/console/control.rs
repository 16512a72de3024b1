//! The messages by which a device and its driver tell each other of ports (specification 1.2, section 5.3.6.2).

use vm_memory::GuestMemoryMmap;

use super::super::queue::{self, Chain, Misuse};
use super::{LONGEST_NAME, Size};

/// Port, event, value.
const HEADER: usize = 8;

/// What a message is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// The driver is there.
    DeviceReady,
    /// There is such a port.
    PortAdd,
    /// The driver has set the port up.
    PortReady,
    /// The port is a console.
    ConsolePort,
    /// The console's size.
    Resize,
    /// Somebody has opened the port on the other side, or closed it.
    PortOpen,
    /// What the port is called.
    PortName,
    /// One that there is not.
    Other(u16),
}

impl From<u16> for Event {
    fn from(number: u16) -> Self {
        match number {
            0 => Self::DeviceReady,
            1 => Self::PortAdd,
            3 => Self::PortReady,
            4 => Self::ConsolePort,
            5 => Self::Resize,
            6 => Self::PortOpen,
            7 => Self::PortName,
            other => Self::Other(other),
        }
    }
}

impl From<Event> for u16 {
    fn from(event: Event) -> Self {
        match event {
            Event::DeviceReady => 0,
            Event::PortAdd => 1,
            Event::PortReady => 3,
            Event::ConsolePort => 4,
            Event::Resize => 5,
            Event::PortOpen => 6,
            Event::PortName => 7,
            Event::Other(number) => number,
        }
    }
}

/// A message, without what may follow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Message {
    pub port: u32,
    pub event: Event,
    pub value: u16,
}

/// A message of the driver's; what follows it is passed over.
pub(super) fn read(chain: &Chain, memory: &GuestMemoryMmap) -> Result<Message, Misuse> {
    if !chain.writable().is_empty() {
        return Err(Misuse::Request);
    }
    let mut bytes = [0; HEADER];
    queue::read(memory, chain.readable(), &mut bytes).ok_or(Misuse::Request)?;
    let [a, b, c, d, e, f, g, h] = bytes;
    Ok(Message {
        port: u32::from_le_bytes([a, b, c, d]),
        event: u16::from_le_bytes([e, f]).into(),
        value: u16::from_le_bytes([g, h]),
    })
}

/// What follows a message.
pub(super) enum Rest<'a> {
    Nothing,
    Name(&'a str),
    Size(Size),
}

/// Writes a message for the driver, and says how long it is.
pub(super) fn write(
    chain: &Chain,
    memory: &GuestMemoryMmap,
    message: Message,
    rest: &Rest<'_>,
) -> Result<u32, Misuse> {
    if !chain.readable().is_empty() {
        return Err(Misuse::Request);
    }
    let Message { port, event, value } = message;
    let mut bytes = [0; HEADER + LONGEST_NAME];
    bytes[..4].copy_from_slice(&port.to_le_bytes());
    bytes[4..6].copy_from_slice(&u16::from(event).to_le_bytes());
    bytes[6..8].copy_from_slice(&value.to_le_bytes());
    let length = match rest {
        Rest::Nothing => 0,
        Rest::Name(name) => {
            let length = name.len().min(LONGEST_NAME);
            bytes[HEADER..HEADER + length].copy_from_slice(&name.as_bytes()[..length]);
            length
        }
        Rest::Size(Size { columns, rows }) => {
            // In the order of the specification. Linux read the rows first until 6.15, and its long-term kernels until
            // early 2026; nothing tells a device which kind its driver is.
            bytes[HEADER..HEADER + 2].copy_from_slice(&columns.to_le_bytes());
            bytes[HEADER + 2..HEADER + 4].copy_from_slice(&rows.to_le_bytes());
            4
        }
    };
    let bytes = &bytes[..HEADER + length];
    queue::write(memory, chain.writable(), bytes).ok_or(Misuse::Request)?;
    Ok(bytes.len() as u32)
}
