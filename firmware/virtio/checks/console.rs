//! Checks of consoles (specification 1.2, section 5.3). What they print begins with the same word, for who reads it on
//! the host; a port that is called "echo" has to give back what is written to it.

use super::subject::{Subject, bytes};
use super::{Check, Failure, Known, Outcome, Sample, holds, same};
use crate::virtio::queue::{Part, Queue};
use crate::virtio::{Kind, register};

pub const KNOWN: Known = Known {
    kind: Kind::CONSOLE,
    name: "console",
    features: &[(0, "SIZE"), (1, "MULTIPORT"), (2, "EMERG_WRITE")],
    queues: |subject| match subject.offered & feature::SEVERAL_PORTS {
        0 => 2,
        _ => 2 * most_ports(subject) + 2,
    },
    sample,
    checks: CHECKS,
};

mod feature {
    pub const SEVERAL_PORTS: u64 = 1 << 1;
    pub const EMERGENCY_WRITE: u64 = 1 << 2;
}

/// What a message is about.
mod event {
    pub const DEVICE_READY: u16 = 0;
    pub const PORT_ADD: u16 = 1;
    pub const PORT_READY: u16 = 3;
    pub const CONSOLE_PORT: u16 = 4;
    pub const RESIZE: u16 = 5;
    pub const PORT_OPEN: u16 = 6;
    pub const PORT_NAME: u16 = 7;
}

const MOST_PORTS: u32 = 10_000;
const MESSAGES_IN: u16 = 2;
const MESSAGES_OUT: u16 = 3;
const HEADER: u32 = 8;
/// A message with the longest name.
const LONGEST: u32 = 128;
/// How many messages can wait.
const WAITING: u16 = 8;
const ECHO: &[u8] = b"echo";

const CHECKS: &[Check] = &[
    ("configuration", configuration),
    ("emergency write", emergency_write),
    ("output", output),
    ("input waits", no_input),
    ("ports are announced", |subject| announced(subject, WAITING)),
    ("ports are announced one at a time", |subject| announced(subject, 1)),
    ("ports have names", names),
    ("output of every port", every_output),
    ("input comes back", echo),
    ("messages about nothing", about_nothing),
    ("misuse: half a message", |subject| misused(subject, MESSAGES_OUT, 4, false)),
    ("misuse: a message to be written", |subject| misused(subject, MESSAGES_OUT, 8, true)),
    ("misuse: no room for a message", |subject| misused(subject, MESSAGES_IN, 4, true)),
    ("misuse: a message to be read", |subject| misused(subject, MESSAGES_IN, 8, false)),
];

/// Zeroes, which no terminal shows.
fn sample(subject: &mut Subject) -> Result<Sample, Failure> {
    let address = subject.memory(16)?;
    Ok(Sample::new(1, &[Part { address, length: 1, written: false }, part(address + 1, 2, false)], 0))
}

fn part(address: u64, length: u32, written: bool) -> Part {
    Part { address, length, written }
}

fn most_ports(subject: &Subject) -> u32 {
    subject.registers.configuration(4)
}

/// A port's queues: input, output.
fn queues(port: u32) -> [u16; 2] {
    let first = if port == 0 { 0 } else { 2 * port as u16 + 2 };
    [first, first + 1]
}

/// A message from the device; what follows it lies in the buffer that the next message may overwrite.
#[derive(Clone, Copy)]
struct Message {
    port: u32,
    event: u16,
    value: u16,
    rest: (u64, u64),
}

/// A device whose driver knows several ports.
struct Running<'s, 'm> {
    subject: &'s mut Subject<'m>,
    heard: Queue,
    said: Queue,
    buffers: u64,
    message: u64,
    features: u64,
}

impl<'s, 'm> Running<'s, 'm> {
    /// Agrees on all features and lets the device say so many things at a time. Further queues can be set up before it
    /// runs.
    fn prepare(subject: &'s mut Subject<'m>, waiting: u16) -> Result<Self, Failure> {
        subject.needs(feature::SEVERAL_PORTS)?;
        let features = subject.offered;
        subject.registers.agree(features)?;
        let mut heard = subject.queue(MESSAGES_IN, u16::MAX, features)?;
        let said = subject.queue(MESSAGES_OUT, u16::MAX, features)?;
        let (buffers, message) = (subject.memory(u64::from(LONGEST) * 8)?, subject.memory(64)?);
        for number in 0..waiting {
            heard.describe(number, &[part(buffers + u64::from(number) * u64::from(LONGEST), LONGEST, true)]);
            heard.give(number);
        }
        heard.show();
        Ok(Self { subject, heard, said, buffers, message, features })
    }

    fn start(subject: &'s mut Subject<'m>, waiting: u16) -> Result<Self, Failure> {
        let running = Self::prepare(subject, waiting)?;
        running.subject.registers.run();
        Ok(running)
    }

    fn say(&mut self, port: u32, event: u16, value: u16) -> Outcome {
        crate::memory::write(self.message, port.into(), 4);
        crate::memory::write(self.message + 4, event.into(), 2);
        crate::memory::write(self.message + 6, value.into(), 2);
        let written = self.subject.ask(&mut self.said, &[part(self.message, HEADER, false)])?;
        same("written", written, 0_u32)
    }

    /// What the device says next.
    fn hear(&mut self) -> Result<Message, Failure> {
        let mut next = None;
        let Self { subject, heard, .. } = self;
        subject.wait_until("it does not say anything", || {
            next = heard.take();
            next.is_some()
        })?;
        let (head, written) = next.unwrap_or_default();
        self.read(head, written)
    }

    fn read(&mut self, head: u16, written: u32) -> Result<Message, Failure> {
        holds((HEADER..=LONGEST).contains(&written) && head < WAITING, "a message of no sensible length")?;
        let at = self.buffers + u64::from(head) * u64::from(LONGEST);
        let &[a, b, c, d, e, f, g, h] = bytes(at, 8).first_chunk::<8>().unwrap_or(&[0; 8]);
        self.heard.give(head);
        self.heard.show();
        Ok(Message {
            port: u32::from_le_bytes([a, b, c, d]),
            event: u16::from_le_bytes([e, f]),
            value: u16::from_le_bytes([g, h]),
            rest: (at + 8, u64::from(written - HEADER)),
        })
    }

    /// Tells that a driver is there, and hears which ports there are: a bit for each.
    fn ports(&mut self) -> Result<u64, Failure> {
        let most = most_ports(self.subject);
        self.say(u32::MAX, event::DEVICE_READY, 1)?;
        let mut ports: u64 = 0;
        // All numbers have ports, but that of the console if there is none.
        while ports.count_ones() + u32::from(ports & 1 == 0) < most || ports == 0 {
            let Message { port, event, value, .. } = self.hear()?;
            same("event", event, event::PORT_ADD)?;
            same("value", value, 1_u16)?;
            holds(port < most && port < 64 && ports & 1 << port == 0, "a port of no sensible number")?;
            ports |= 1 << port;
        }
        Ok(ports)
    }

    /// Sets all ports up until the device has told what each is; the number of the one with this name, if there is one.
    fn find(&mut self, name: &[u8]) -> Result<Option<u32>, Failure> {
        let ports = self.ports()?;
        let (mut introduced, mut found) = (0, None);
        for port in (0..64).filter(|port| ports & 1 << port != 0) {
            self.say(port, event::PORT_READY, 1)?;
        }
        while introduced != ports {
            let Message { port, event, value, rest: (at, length) } = self.hear()?;
            same("value", value, 1_u16)?;
            holds(port < 64 && ports & 1 << port != 0, "it speaks of a port that it has not announced")?;
            let rest = bytes(at, length);
            let is_sensible = match event {
                event::CONSOLE_PORT => port == 0 && length == 0,
                event::PORT_NAME => length > 0 && rest.iter().all(u8::is_ascii_graphic),
                event::RESIZE => port == 0 && length == 4,
                event::PORT_OPEN => length == 0,
                _ => false,
            };
            holds(is_sensible, "it says what makes no sense")?;
            // The first is the console, and all others have names.
            if matches!((port, event), (0, event::CONSOLE_PORT) | (1.., event::PORT_NAME)) {
                introduced |= 1 << port;
            }
            if event == event::PORT_NAME && rest == name {
                found = Some(port);
            }
        }
        Ok(found)
    }
}

fn configuration(subject: &mut Subject) -> Outcome {
    let registers = subject.registers;
    holds((1..MOST_PORTS).contains(&most_ports(subject)), "no sensible number of ports")?;
    for field in [0, 4] {
        let before = registers.configuration(field);
        registers.write_as(register::CONFIGURATION + field, !before);
        same("what was written to", registers.configuration(field), before)?;
    }
    Ok(())
}

/// Needs no driver (section 5.3.4).
fn emergency_write(subject: &mut Subject) -> Outcome {
    subject.needs(feature::EMERGENCY_WRITE)?;
    for byte in *b"lodger: emergency\n" {
        subject.registers.write_as(register::CONFIGURATION + 8, u32::from(byte));
    }
    same("what is read there", subject.registers.configuration(8), 0_u32)?;
    subject.works()
}

/// Puts text into memory; its parts.
fn text(subject: &mut Subject, text: &[u8]) -> Result<[Part; 3], Failure> {
    let at = subject.memory(4096)?;
    bytes(at, text.len() as u64).copy_from_slice(text);
    let rest = text.len() as u32 - 6;
    Ok([part(at, 1, false), part(at + 1, 5, false), part(at + 6, rest, false)])
}

fn output(subject: &mut Subject) -> Outcome {
    let mut queue = subject.start(1, u16::MAX, 0)?;
    let parts = text(subject, b"lodger: one port\n")?;
    same("written", subject.ask(&mut queue, &parts)?, 0_u32)
}

fn no_input(subject: &mut Subject) -> Outcome {
    let mut queue = subject.start(0, u16::MAX, 0)?;
    let at = subject.memory(64)?;
    queue.describe(0, &[part(at, 64, true)]);
    queue.give(0);
    queue.show();
    subject.settle();
    holds(queue.take().is_none(), "there is input that nobody typed")?;
    same("status", subject.registers.status(), 0xf_u32)
}

fn announced(subject: &mut Subject, waiting: u16) -> Outcome {
    let first = Running::start(subject, waiting)?.ports()?;
    // A driver that comes later hears the same.
    subject.renew();
    same("ports", Running::start(subject, waiting)?.ports()?, first)
}

fn names(subject: &mut Subject) -> Outcome {
    let found = Running::start(subject, WAITING)?.find(b"nobody's name")?;
    holds(found.is_none(), "it has a port of a name that nobody gave it")
}

fn every_output(subject: &mut Subject) -> Outcome {
    let ports = Running::start(subject, WAITING)?.ports()?;
    for port in (0..10).filter(|port| ports & 1 << port != 0) {
        subject.renew();
        let mut device = Running::prepare(subject, WAITING)?;
        let mut queue = device.subject.queue(queues(port)[1], u16::MAX, device.features)?;
        device.subject.registers.run();
        device.ports()?;
        device.say(port, event::PORT_READY, 1)?;
        device.say(port, event::PORT_OPEN, 1)?;
        let mut line = *b"lodger: port 0\n";
        line[13] += port as u8;
        let parts = text(device.subject, &line)?;
        same("written", device.subject.ask(&mut queue, &parts)?, 0_u32)?;
        device.say(port, event::PORT_OPEN, 0)?;
    }
    Ok(())
}

fn echo(subject: &mut Subject) -> Outcome {
    const LENGTH: u64 = 3000;
    const ROOM: u64 = 8192;
    let port = Running::start(subject, WAITING)?.find(ECHO)?.ok_or(Failure::NotOffered)?;
    subject.renew();
    let mut device = Running::prepare(subject, WAITING)?;
    let [input, output] = queues(port);
    let mut input = device.subject.queue(input, u16::MAX, device.features)?;
    let mut output = device.subject.queue(output, u16::MAX, device.features)?;
    device.subject.registers.run();
    device.ports()?;
    device.say(port, event::PORT_READY, 1)?;
    device.say(port, event::PORT_OPEN, 1)?;
    // Whoever is to answer has to be there.
    let is_open = |said: Message| (said.port, said.event, said.value) == (port, event::PORT_OPEN, 1);
    while !is_open(device.hear()?) {}
    let at = device.subject.memory(2 * ROOM)?;
    let (sent, received) = (bytes(at, LENGTH), at + ROOM);
    sent.iter_mut().zip((0_u8..=250).cycle()).for_each(|(byte, value)| *byte = value);
    same("written", device.subject.ask(&mut output, &[part(at, LENGTH as u32, false)])?, 0_u32)?;
    let (mut start, mut count) = (0, 0);
    while count < start + LENGTH {
        holds(count + 520 <= ROOM, "more comes back than was sent")?;
        // In odd pieces, and as it comes.
        let buffers = [part(received + count, 7, true), part(received + count + 7, 513, true)];
        let written = u64::from(device.subject.ask(&mut input, &buffers)?);
        holds((1..=520).contains(&written), "it gives nothing, or more than there was room for")?;
        count += written;
        // Lines that other checks have sent may come first; they have no zeroes.
        start = bytes(received, count).iter().take_while(|&&byte| byte != 0).count() as u64;
    }
    holds(bytes(received + start, LENGTH) == &*sent, "other bytes came back")
}

fn about_nothing(subject: &mut Subject) -> Outcome {
    let mut device = Running::start(subject, WAITING)?;
    let ports = device.ports()?;
    let none = most_ports(device.subject);
    for (port, event) in [
        (none, event::PORT_READY),
        (u32::MAX, event::PORT_OPEN),
        (0, event::PORT_ADD),
        (0, event::PORT_NAME),
        (0, 99),
        (u32::MAX, u16::MAX),
    ] {
        device.say(port, event, 1)?;
    }
    // A driver that could not set itself up wants to hear of no ports.
    device.say(0, event::DEVICE_READY, 0)?;
    device.subject.settle();
    holds(device.heard.take().is_none(), "it has something to say about that")?;
    same("ports", device.ports()?, ports)?;
    same("status", device.subject.registers.status(), 0xf_u32)
}

/// A buffer for messages that is none.
fn misused(subject: &mut Subject, number: u16, length: u32, written: bool) -> Outcome {
    let Running { subject, mut heard, mut said, message, .. } = Running::start(subject, 0)?;
    let wrong = part(message, length, written);
    if number == MESSAGES_IN {
        // It only shows when there is something to tell.
        heard.describe(0, &[wrong]);
        heard.give(0);
        heard.show();
        crate::memory::write(message + 16, 0, 4);
        crate::memory::write(message + 20, 1 << 16 | u64::from(event::DEVICE_READY), 4);
        said.describe(0, &[part(message + 16, HEADER, false)]);
    } else {
        said.describe(0, &[wrong]);
    }
    said.give(0);
    said.show();
    subject.stops()?;
    subject.works()
}
