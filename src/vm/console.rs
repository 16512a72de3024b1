//! `--console` and `--port`: where the guest's console is, and further ports between guest and host.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::{Config, Error};
use crate::console::{self, GuestEnd, Line, Place, SpecError};
use crate::devices::ByteSink;
use crate::devices::virtio::console::{Console, LONGEST_NAME, MOST_PORTS, Peers, Port};

/// In front of a place: the console is the virtio one.
const VIRTIO: &str = "virtio";

/// Which console of the guest is shown, and where.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConsoleSpec {
    /// Whether it is the virtio console, in place of the serial port.
    pub virtio: bool,
    /// Where it is.
    pub place: console::Spec,
}

/// Why this describes no console.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}; or virtio, or virtio and one of these, as in virtio,pty")]
pub struct ConsoleSpecError(#[from] SpecError);

impl FromStr for ConsoleSpec {
    type Err = ConsoleSpecError;

    fn from_str(text: &str) -> Result<Self, ConsoleSpecError> {
        if text == VIRTIO {
            return Ok(Self { virtio: true, ..Self::default() });
        }
        match text.split_once(',') {
            Some((VIRTIO, place)) => Ok(Self { virtio: true, place: place.parse()? }),
            _ => Ok(Self { virtio: false, place: text.parse()? }),
        }
    }
}

impl fmt::Display for ConsoleSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { virtio, place } = self;
        match (virtio, place) {
            (false, place) => place.fmt(f),
            (true, console::Spec::Stdio) => f.write_str(VIRTIO),
            (true, place) => write!(f, "{VIRTIO},{place}"),
        }
    }
}

/// A port between guest and host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortSpec {
    /// What the guest finds it by.
    pub name: String,
    /// Where it leads.
    pub place: Place,
}

/// Why this describes no port.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PortSpecError {
    /// Not such a name.
    #[error(
        "{0:?} is no name of a port: 1 to {LONGEST_NAME} letters, digits and characters such as . _ -, as in \
         agent,socket=agent.sock"
    )]
    Name(String),
    /// Not such a place.
    #[error("{0:?} is no place that a port leads to: there are socket=PATH, pty and file=PATH")]
    Place(String),
    /// A place without the path it needs.
    #[error("a port to a {0} needs its path, as in agent,{0}=PATH")]
    NoPath(&'static str),
}

/// Whether a port can be called that.
pub(super) fn check_name(name: &str) -> Result<(), PortSpecError> {
    let is_printable = name.bytes().all(|byte| byte.is_ascii_graphic() && !b"/=\"'".contains(&byte));
    if name.is_empty() || name.len() > LONGEST_NAME || !is_printable {
        return Err(PortSpecError::Name(name.to_owned()));
    }
    Ok(())
}

impl FromStr for PortSpec {
    type Err = PortSpecError;

    fn from_str(text: &str) -> Result<Self, PortSpecError> {
        let (name, place) = text.split_once(',').unwrap_or((text, ""));
        check_name(name)?;
        let place = match place.split_once('=').unwrap_or((place, "")) {
            ("pty", "") if place == "pty" => Place::Pty,
            ("socket", "") => return Err(PortSpecError::NoPath("socket")),
            ("file", "") => return Err(PortSpecError::NoPath("file")),
            ("socket", path) => Place::Socket(path.into()),
            ("file", path) => Place::File(path.into()),
            _ => return Err(PortSpecError::Place(place.to_owned())),
        };
        Ok(Self { name: name.to_owned(), place })
    }
}

impl fmt::Display for PortSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, place } = self;
        write!(f, "{name},{place}")
    }
}

/// The guest's end of a line is a port of its console.
impl GuestEnd for Port {
    fn arrive(&self) -> bool {
        self.arrive()
    }

    fn leave(&self) {
        self.leave();
    }

    fn is_free(&self) -> bool {
        self.is_free()
    }

    fn input_space(&self) -> usize {
        self.input_space()
    }

    fn offer_input(&self, bytes: &[u8]) -> usize {
        self.offer_input(bytes)
    }

    fn has_output(&self) -> bool {
        self.has_output()
    }

    fn output(&self, bytes: &mut [u8]) -> usize {
        self.output(bytes)
    }

    fn output_taken(&self, count: usize) {
        self.output_taken(count);
    }

    fn event(&self) -> &EventFd {
        self.event()
    }
}

/// What `config` asks for: a device each, because a console by itself is there earlier in a guest's boot.
#[derive(Default)]
pub(super) struct Opened {
    pub console: Option<Arc<Console>>,
    /// One that has the further ports and no console.
    pub ports: Option<Arc<Console>>,
    /// From the further ports to the world.
    pub lines: Vec<Line>,
}

/// Opens what `config` asks for.
pub(super) fn open(config: &Config) -> Result<Opened, Error> {
    let mut opened = Opened::default();
    if config.virtio_console {
        let port = Port::new("", Peers::One).map_err(Error::Event)?;
        opened.console = Some(Arc::new(Console::new(Some(Arc::new(port)), Vec::new())));
    }
    if config.ports.len() > MOST_PORTS {
        return Err(Error::TooManyPorts { asked: config.ports.len() });
    }
    let mut ports: Vec<Arc<Port>> = Vec::new();
    for PortSpec { name, place } in &config.ports {
        if ports.iter().any(|port| port.name() == name) {
            return Err(Error::PortTwice(name.clone()));
        }
        let peers = if place.is_fixed() { Peers::One } else { Peers::Many };
        let port = Arc::new(Port::new(name, peers).map_err(Error::Event)?);
        let line = Line::open(name, place, Arc::clone(&port) as _);
        opened.lines.push(line.map_err(|source| Error::Port { name: name.clone(), source })?);
        ports.push(port);
    }
    if !ports.is_empty() {
        opened.ports = Some(Arc::new(Console::new(None, ports)));
    }
    Ok(opened)
}

/// The line from the console itself to where the serial port prints as well.
pub(super) fn line_to(sink: Arc<dyn ByteSink>, console: &Console) -> Result<Option<Line>, Error> {
    let Some(port) = console.console() else { return Ok(None) };
    let line = Line::into_sink("console", move |bytes| sink.push(bytes), Arc::clone(port) as _);
    line.map(Some).map_err(|source| Error::Port { name: "console".to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_described_is_described_the_same_way_again() {
        for text in
            ["stdio", "virtio", "pty", "virtio,pty", "virtio,file=a,b", "file=virtio,x", "virtio,none"]
        {
            assert_eq!(text.parse::<ConsoleSpec>().unwrap().to_string(), text);
        }
        assert_eq!("virtio,stdio".parse(), "virtio".parse::<ConsoleSpec>());
        assert_eq!("stdio".parse(), Ok(ConsoleSpec::default()));
        for text in ["agent,socket=/run/a b,c=d", "org.lodger.0,pty", "log,file=log.txt"] {
            assert_eq!(text.parse::<PortSpec>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_describes_no_console_or_port_is_refused_with_the_reason() {
        for text in ["", "virtio,", "virtio,tty", "hvc0", "pty,virtio", "virtio,virtio"] {
            let error = text.parse::<ConsoleSpec>().unwrap_err().to_string();
            assert!(error.contains("stdio, pty, file=PATH or none"), "{text}: {error}");
        }
        let long = format!("{},pty", "x".repeat(65));
        for (text, said) in [
            ("", "no name of a port"),
            (",pty", "no name of a port"),
            ("a b,pty", "no name of a port"),
            ("a/b,pty", "no name of a port"),
            ("socket=x", "no name of a port"),
            (&long, "no name of a port"),
            ("agent", "\"\" is no place"),
            ("agent,", "\"\" is no place"),
            ("agent,pty=1", "\"pty=1\" is no place"),
            ("agent,pty=", "\"pty=\" is no place"),
            ("agent,tcp=1", "there are socket=PATH, pty and file=PATH"),
            ("agent,socket", "a port to a socket needs its path"),
            ("agent,socket=", "a port to a socket needs its path"),
            ("agent,file=", "a port to a file needs its path"),
        ] {
            let error = text.parse::<PortSpec>().unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn ports_are_told_apart_by_their_names_and_are_not_too_many() {
        let pty = |name: &str| PortSpec { name: name.to_owned(), place: Place::Pty };
        let config = Config { ports: vec![pty("a"), pty("b"), pty("a")], ..Config::default() };
        let said = open(&config).err().unwrap().to_string();
        assert!(said.contains("two ports are called a"), "{said}");
        let ports = (0..31).map(|number| pty(&number.to_string())).collect();
        let said = open(&Config { ports, ..Config::default() }).err().unwrap().to_string();
        assert!(said.contains("31 ports are too many"), "{said}");
        let Opened { console, ports, lines } =
            open(&Config { ports: vec![pty("a")], ..Config::default() }).unwrap();
        assert!(console.is_none() && ports.unwrap().console().is_none() && lines.len() == 1);
        let both = Config { virtio_console: true, ports: vec![pty("a")], ..Config::default() };
        let Opened { console, ports, lines } = open(&both).unwrap();
        assert_eq!(
            (console.unwrap().ports().count(), ports.unwrap().ports().count(), lines.len()),
            (1, 1, 1)
        );
    }
}
