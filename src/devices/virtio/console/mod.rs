//! A console and further ports (specification 1.2, section 5.3): streams of bytes between the guest and the host.
//!
//! The device keeps what is on its way, a bounded amount in each direction of each port, and knows nothing of where
//! it goes: the host's end of a [`Port`] takes output and offers input when it likes. So no end that does not read
//! holds up another port, a pause or a stop; its port's buffers stay with the driver until there is room.
//!
//! A console by itself is of the simple kind, without messages about ports: Linux sets it up while it looks for
//! devices, whereas messages are read at leisure, and a kernel that boots quickly has come to its first process by
//! then, which gets no terminal. Of the simple kind, Linux throws away input that comes before it has set up all, and
//! does not ask for the terminal's size. Therefore a driver that knows sizes is told at its start that the size has
//! changed, which Linux hears when it has set up all; input waits until it has read the size.

mod control;
mod port;
mod saved;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use serde::{Deserialize, Serialize};

use super::{Device, Kind, Left, Link, Misuse, Queue};
use crate::devices;
use crate::saved::Envelope;
use crate::threads::lock;
use control::Event;
pub use port::{CAPACITY, Peers, Port};
pub use saved::SavedConsole;
use saved::SavedPort;

/// The longest name of a port.
pub const LONGEST_NAME: usize = 64;
/// How many ports a device can have besides the console.
pub const MOST_PORTS: usize = 30;

const QUEUE_SIZE: u16 = 64;
/// Each port has two queues; those for messages stand between the console's and the others' (section 5.3.2).
const QUEUE_SIZES: [u16; 2 * MOST_PORTS + 4] = [QUEUE_SIZE; 2 * MOST_PORTS + 4];
const MESSAGES_IN: u16 = 2;
const MESSAGES_OUT: u16 = 3;

/// The device's own features.
mod feature {
    pub const SIZE: u64 = 1 << 0;
    pub const MULTIPORT: u64 = 1 << 1;
    pub const EMERGENCY_WRITE: u64 = 1 << 2;
}

/// Where a driver writes a byte that is to come out at once.
const EMERGENCY_WRITE: u64 = 8;

/// The device.
pub struct Console {
    /// The console, if there is one, then the others: their numbers.
    ports: Vec<Option<Arc<Port>>>,
    /// What the driver accepted; none while there is no driver.
    features: AtomicU64,
    size: Mutex<Size>,
    listens: Mutex<Listens>,
    link: OnceLock<Link>,
}

/// Whether the driver of a console of the simple kind can take input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Listens {
    /// There is none.
    Nobody,
    /// It was told that the size has changed, and has not read it.
    NotYet,
    Yes,
}

/// The size of the terminal that shows the console, in characters; zeroes if nobody knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Its width.
    pub columns: u16,
    /// Its height.
    pub rows: u16,
}

impl Console {
    /// A device with a console, or without one, and these further ports, of which at most [`MOST_PORTS`] count.
    pub fn new(console: Option<Arc<Port>>, mut ports: Vec<Arc<Port>>) -> Self {
        ports.truncate(MOST_PORTS);
        let ports = std::iter::once(console).chain(ports.into_iter().map(Some)).collect();
        Self {
            ports,
            features: AtomicU64::new(0),
            size: Mutex::default(),
            listens: Mutex::new(Listens::Nobody),
            link: OnceLock::new(),
        }
    }

    /// The port that is the console.
    pub fn console(&self) -> Option<&Arc<Port>> {
        self.ports.first()?.as_ref()
    }

    /// All ports, the console first.
    pub fn ports(&self) -> impl Iterator<Item = &Arc<Port>> {
        self.ports.iter().flatten()
    }

    /// Tells the guest how large the terminal is that shows its console.
    pub fn set_size(&self, size: Size) {
        if std::mem::replace(&mut *lock(&self.size), size) == size {
            return;
        }
        if self.has(feature::MULTIPORT) {
            self.ports.iter().take(1).flatten().for_each(|port| port.is_resized());
        } else if let Some(link) = self.link.get().filter(|_| self.has(feature::SIZE)) {
            link.configuration_changed();
        }
    }

    /// Its state. The device has to rest.
    pub fn save(&self) -> SavedConsole {
        // The features come back with the transport's state.
        let Self { ports, features: _, size, listens, link: _ } = self;
        let ports = ports.iter().map(|port| port.as_ref().map(|port| port.save())).collect();
        SavedConsole { ports, size: *lock(size), listens: *lock(listens) }
    }

    /// Puts back what [`save`](Self::save) gave, into a device with the same ports that has not been used.
    pub fn restore(&self, saved: &SavedConsole) -> Result<(), devices::Error> {
        let SavedConsole { ports, size, listens } = saved;
        let fits = |(port, saved): (&Option<Arc<Port>>, &Option<SavedPort>)| match (port, saved) {
            (Some(port), Some(saved)) => port.could_be(saved),
            (None, None) => true,
            _ => false,
        };
        if ports.len() != self.ports.len() || !self.ports.iter().zip(ports).all(fits) {
            return Err(devices::Error::Inconsistent {
                device: self.kind().name,
                reason: "it has other ports, or one that holds more than a port can",
            });
        }
        for (port, saved) in self.ports().zip(ports.iter().flatten()) {
            port.restore(saved);
        }
        *lock(&self.size) = *size;
        *lock(&self.listens) = *listens;
        Ok(())
    }

    /// Whether there is more than the console, so that there has to be talk about it.
    fn has_several(&self) -> bool {
        self.ports.len() > 1
    }

    fn has(&self, feature: u64) -> bool {
        self.features.load(Ordering::SeqCst) & feature != 0
    }

    fn port(&self, number: u32) -> Option<&Arc<Port>> {
        self.ports.get(usize::try_from(number).ok()?)?.as_ref()
    }

    /// Takes messages from the driver.
    fn listen(&self, queue: &mut Queue) -> Result<bool, Misuse> {
        queue.each(|chain, memory| {
            let message = control::read(chain, memory)?;
            match (message.event, self.port(message.port)) {
                (Event::DeviceReady, _) if message.value == 1 => {
                    self.ports().for_each(|port| port.announce())
                }
                (Event::PortReady, Some(port)) => port.driver_is_ready(message.value == 1),
                (Event::PortOpen, Some(port)) => port.guest_opens(message.value == 1),
                // About a port that there is not, or nothing that a driver says.
                _ => log::debug!("virtio-console: {message:?} means nothing here"),
            }
            Ok(0)
        })
    }

    /// Puts messages for the driver into the buffers that it gave for them.
    fn tell(&self, queue: &mut Queue) -> Result<bool, Misuse> {
        let size = *lock(&self.size);
        for port in self.ports() {
            if !port.tell(queue, size)? {
                break;
            }
        }
        Ok(false)
    }
}

impl Listens {
    /// The driver reads the size; gives how it was before.
    fn hear(&mut self) -> Self {
        let before = *self;
        if before == Self::NotYet {
            *self = Self::Yes;
        }
        before
    }
}

impl Device for Console {
    fn kind(&self) -> Kind {
        Kind { id: 3, name: "virtio-console" }
    }

    fn features(&self) -> u64 {
        let several = if self.has_several() { feature::MULTIPORT } else { 0 };
        feature::SIZE | feature::EMERGENCY_WRITE | several
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES[..2 * self.ports.len() + if self.has_several() { 2 } else { 0 }]
    }

    /// Columns, rows, how many ports there can be.
    fn config(&self) -> Vec<u8> {
        let before = lock(&self.listens).hear();
        if let (Listens::NotYet, Some(link)) = (before, self.link.get()) {
            link.wake(0);
        }
        let Size { columns, rows } = *lock(&self.size);
        let ports = self.ports.len() as u32;
        [&columns.to_le_bytes()[..], &rows.to_le_bytes(), &ports.to_le_bytes(), &[0; 4]].concat()
    }

    /// A byte that comes out whether or not the driver has agreed on anything (section 5.3.4).
    fn write_config(&self, offset: u64, data: &[u8]) {
        if let (EMERGENCY_WRITE, Some(port), [byte, ..]) = (offset, self.console(), data) {
            port.emit(*byte);
        }
    }

    fn connect(&self, link: Link) {
        for (number, port) in (0..).zip(&self.ports) {
            if let Some(port) = port {
                port.connect(link.clone(), number);
            }
        }
        // A device is put behind one transport.
        let _: Result<(), Link> = self.link.set(link);
    }

    fn save_state(&self) -> Envelope {
        Envelope::of(&self.save())
    }

    fn restore_state(&self, bytes: &[u8]) -> Result<(), devices::Error> {
        self.restore(&crate::saved::decode(bytes)?)
    }

    fn reset(&self) {
        self.features.store(0, Ordering::SeqCst);
        *lock(&self.listens) = Listens::Nobody;
        self.ports().for_each(|port| port.reset());
    }

    fn start(&self, features: u64) {
        self.features.store(features, Ordering::SeqCst);
        let mut listens = lock(&self.listens);
        if *listens != Listens::Nobody {
            // It is the one that was there when the state was saved.
            return;
        }
        let is_told = features & (feature::SIZE | feature::MULTIPORT) == feature::SIZE;
        *listens = if is_told { Listens::NotYet } else { Listens::Yes };
        drop(listens);
        if let Some(link) = self.link.get().filter(|_| is_told) {
            link.configuration_changed();
        }
    }

    fn serve(&self, number: u16, queue: &mut Queue) -> Result<Left, Misuse> {
        let several = self.has(feature::MULTIPORT);
        let (index, is_out) = (u32::from(number) / 2, number % 2 == 1);
        let port = match (number, several) {
            (MESSAGES_IN, true) => return self.tell(queue).map(Left::more),
            (MESSAGES_OUT, true) => return self.listen(queue).map(Left::more),
            (0 | 1, _) => self.port(0),
            (_, true) => self.port(index - 1),
            // A queue that nothing was agreed on for.
            (_, false) => return Ok(Left::Nothing),
        };
        let more = match (port, is_out) {
            (Some(port), true) => port.take_from(queue),
            (Some(_), false) if *lock(&self.listens) == Listens::NotYet => Ok(false),
            (Some(port), false) => port.give_to(queue, several),
            (None, true) => port::swallow(queue),
            (None, false) => Ok(false),
        };
        more.map(Left::more)
    }
}

#[cfg(test)]
#[path = "console_test.rs"]
mod tests;
