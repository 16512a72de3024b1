//! `--disk`: a disk of the machine.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::rate::{self, RateError, Unit};
use crate::devices::virtio::blk::SERIAL_LENGTH;
use crate::devices::virtio::{Limits, Rate};
use crate::memory::human;
use crate::size::{self, SizeError};
use crate::storage::Format;

/// The most queues that a disk can have.
const MOST_QUEUES: u16 = 16;
/// What stands in place of a file for a disk that has none.
const EPHEMERAL: &str = "ephemeral";

/// What Linux calls a disk of a guest's, the first being number 0: behind vdz comes vdaa.
pub fn disk_name(number: usize) -> String {
    let letter = char::from(b'a' + (number % 26) as u8);
    match (number / 26).checked_sub(1) {
        None => format!("vd{letter}"),
        Some(above) => format!("{}{letter}", disk_name(above)),
    }
}

/// A disk: what holds it, and how the guest sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskSpec {
    /// Where its bytes are.
    pub source: DiskSource,
    /// Whether the guest may only read it.
    pub read_only: bool,
    /// Whether the host's page cache is passed by, where a request is aligned for that.
    pub direct: bool,
    /// How many queues it has, each with a thread.
    pub queues: u16,
    /// The serial number that the guest can ask for.
    pub serial: Option<String>,
    /// How much it does in a time, all its queues together.
    pub limits: Limits,
}

/// Where the bytes of a disk are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskSource {
    /// In an image.
    Image {
        /// The file.
        path: PathBuf,
        /// What it is; without, its content says.
        format: Option<Format>,
        /// Where the guest's changes go.
        changes: Changes,
        /// Whether what is read of the image is compared with the hashes of its blocks.
        verify: bool,
    },
    /// In a file without a name, which begins as zeroes and goes away with the machine.
    Ephemeral {
        /// How large it is.
        size: u64,
    },
}

/// Where the changes of an image go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changes {
    /// Into the image.
    Image,
    /// Into an overlay in the machine's directory, which is made when it starts and goes away with it.
    Forgotten,
    /// Into this overlay, which is made if it is not there.
    Overlay(PathBuf),
}

impl DiskSpec {
    /// An image that can be written, with one queue.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self::of(DiskSource::Image { path, format: None, changes: Changes::Image, verify: false })
    }

    /// One without a file, which has no size yet.
    pub(super) fn ephemeral() -> Self {
        Self::of(DiskSource::Ephemeral { size: 0 })
    }

    fn of(source: DiskSource) -> Self {
        Self { source, read_only: false, direct: false, queues: 1, serial: None, limits: Limits::default() }
    }

    /// The serial number; without one, it is empty.
    pub fn serial(&self) -> &str {
        self.serial.as_deref().unwrap_or_default()
    }

    /// Takes an option, as it stands between commas.
    pub(super) fn option(&mut self, option: &str) -> Result<(), DiskSpecError> {
        let unknown = || DiskSpecError::Option(option.to_owned());
        match (
            option.split_once('=').map_or((option, None), |(name, value)| (name, Some(value))),
            &mut self.source,
        ) {
            (("ro", None), _) => self.read_only = true,
            (("direct", None), _) => self.direct = true,
            (("queues", Some(number)), _) => {
                let queues = number.parse().ok().filter(|queues| (1..=MOST_QUEUES).contains(queues));
                self.queues = queues.ok_or_else(|| DiskSpecError::Queues(number.to_owned()))?;
            }
            (("serial", Some(serial)), _) => self.serial = Some(check_serial(serial)?.to_owned()),
            (("bps", Some(text)), _) => self.limits.bytes = Some(limit("bps", text, Unit::Bytes)?),
            (("iops", Some(text)), _) => {
                self.limits.operations = Some(limit("iops", text, Unit::Operations)?)
            }
            (("format", Some(name)), DiskSource::Image { format, .. }) => {
                *format = Some(name.parse().map_err(|_| DiskSpecError::Format(name.to_owned()))?);
            }
            (("verify", None), DiskSource::Image { verify, .. }) => *verify = true,
            (("overlay", None), DiskSource::Image { changes, .. }) => *changes = Changes::Forgotten,
            (("overlay", Some(path)), DiskSource::Image { changes, .. }) if !path.is_empty() => {
                *changes = Changes::Overlay(path.into());
            }
            (("size", Some(text)), DiskSource::Ephemeral { size }) => {
                *size = size::parse(text)?;
                if *size == 0 || !size.is_multiple_of(512) {
                    return Err(DiskSpecError::Sectors(text.to_owned()));
                }
            }
            _ => return Err(unknown()),
        }
        Ok(())
    }

    /// The same, if its options go together.
    pub(super) fn checked(self) -> Result<Self, DiskSpecError> {
        match &self.source {
            DiskSource::Ephemeral { size: 0 } => Err(DiskSpecError::NoSize),
            DiskSource::Image { changes, .. } if self.read_only && *changes != Changes::Image => {
                Err(DiskSpecError::ReadOnlyOverlay)
            }
            DiskSource::Image { changes: Changes::Image, verify: true, .. } if !self.read_only => {
                Err(DiskSpecError::VerifiedWrites)
            }
            _ => Ok(self),
        }
    }
}

fn check_serial(serial: &str) -> Result<&str, DiskSpecError> {
    let printable = serial.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
    if serial.is_empty() || serial.len() > SERIAL_LENGTH || !printable {
        return Err(DiskSpecError::Serial(serial.to_owned()));
    }
    Ok(serial)
}

fn limit(name: &'static str, text: &str, unit: Unit) -> Result<Rate, DiskSpecError> {
    let error = |reason| DiskSpecError::Limit { name, text: text.to_owned(), reason };
    rate::parse(text, unit).map_err(error)
}

/// The limits as they are written: of bytes, and of operations.
pub(super) fn limit_texts(limits: &Limits) -> [Option<String>; 2] {
    let Limits { bytes, operations } = *limits;
    [
        bytes.map(|rate| rate::text(rate, Unit::Bytes)),
        operations.map(|rate| rate::text(rate, Unit::Operations)),
    ]
}

/// Why this describes no disk.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DiskSpecError {
    /// No file.
    #[error("it begins with the path of an image, as in disk.img,ro, or is {EPHEMERAL},size=SIZE")]
    NoPath,
    /// An option that there is not.
    #[error(
        "{0:?} is no option of such a disk: images have format=raw|qcow2, overlay, overlay=FILE, verify, those without a \
         file size=SIZE, and all have ro, direct, queues=N, serial=TEXT, bps=SIZE[+BURST], iops=N[+BURST]"
    )]
    Option(String),
    /// An option that was there already.
    #[error("{0:?} is said twice: say once what you mean")]
    Twice(String),
    /// A format that there is not.
    #[error("{0:?} is no format of images: there are raw and qcow2")]
    Format(String),
    /// Not so many queues.
    #[error("{0:?} is no number of queues: 1 to {MOST_QUEUES}")]
    Queues(String),
    /// Not such a serial number.
    #[error("{0:?} is no serial number: 1 to {SERIAL_LENGTH} printable characters")]
    Serial(String),
    /// Not such a limit.
    #[error("{name}={text} is no limit: {reason}")]
    Limit {
        /// The option.
        name: &'static str,
        /// What it was given.
        text: String,
        /// Why that is none.
        reason: RateError,
    },
    /// No size at all.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// Not a size that a disk can have.
    #[error("{0} is no size of a disk: it has whole sectors of 512 bytes, and one at least")]
    Sectors(String),
    /// A disk without a file needs a size.
    #[error("a disk without a file has a size, as in {EPHEMERAL},size=1G")]
    NoSize,
    /// What is only read changes nowhere.
    #[error("a disk that is only read (ro) has no changes that an overlay could hold")]
    ReadOnlyOverlay,
    /// What is written has no hash.
    #[error(
        "what a guest writes has no hash that it could be verified by (verify): let it only read the image (ro), or \
         write to an overlay (overlay or overlay=FILE)"
    )]
    VerifiedWrites,
}

impl FromStr for DiskSpec {
    type Err = DiskSpecError;

    fn from_str(text: &str) -> Result<Self, DiskSpecError> {
        let mut parts = text.split(',');
        let mut disk = match parts.next() {
            None | Some("") => return Err(DiskSpecError::NoPath),
            Some(EPHEMERAL) => Self::ephemeral(),
            Some(path) => Self::new(path),
        };
        let mut given = Vec::new();
        for option in parts {
            let name = option.split_once('=').map_or(option, |(name, _)| name);
            disk.option(option)?;
            if given.contains(&name) {
                return Err(DiskSpecError::Twice(name.to_owned()));
            }
            given.push(name);
        }
        disk.checked()
    }
}

impl fmt::Display for DiskSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            DiskSource::Ephemeral { size } => write!(f, "{EPHEMERAL},size={}", human(*size))?,
            DiskSource::Image { path, format, changes, verify } => {
                write!(f, "{}", path.display())?;
                if let Some(format) = format {
                    write!(f, ",format={format}")?;
                }
                match changes {
                    Changes::Image => {}
                    Changes::Forgotten => f.write_str(",overlay")?,
                    Changes::Overlay(path) => write!(f, ",overlay={}", path.display())?,
                }
                if *verify {
                    f.write_str(",verify")?;
                }
            }
        }
        for (flag, name) in [(self.read_only, "ro"), (self.direct, "direct")] {
            if flag {
                write!(f, ",{name}")?;
            }
        }
        if self.queues != 1 {
            write!(f, ",queues={}", self.queues)?;
        }
        for (name, text) in ["bps", "iops"].into_iter().zip(limit_texts(&self.limits)) {
            if let Some(text) = text {
                write!(f, ",{name}={text}")?;
            }
        }
        match &self.serial {
            Some(serial) => write!(f, ",serial={serial}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_called_what_linux_calls_them() {
        for (number, name) in [(0, "vda"), (25, "vdz"), (26, "vdaa"), (701, "vdzz"), (702, "vdaaa")] {
            assert_eq!(disk_name(number), name);
        }
    }

    #[test]
    fn what_is_described_is_described_the_same_way_again() {
        for text in [
            "disk.img",
            "/a b/c.raw,ro",
            "x,queues=4",
            "x,ro,direct,queues=16,serial=ABC 123",
            "x,format=qcow2,overlay",
            "x,overlay=/tmp/y.qcow2,direct",
            "x,overlay,verify,queues=2",
            "x,verify,ro",
            "ephemeral,size=1G",
            "ephemeral,size=512,serial=a",
            "x,bps=20M",
            "x,iops=500+2000",
            "x,direct,queues=2,bps=20M+100M,iops=1,serial=a",
            "x,bps=18446744073709551615+18446744073709551615,iops=18446744073709551615+1",
        ] {
            assert_eq!(text.parse::<DiskSpec>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_describes_no_disk_is_refused_with_the_reason() {
        for (text, said) in [
            ("", "path of an image"),
            (",ro", "path of an image"),
            ("x,rw", "\"rw\" is no option"),
            ("x,", "\"\" is no option"),
            ("x,size=1G", "\"size=1G\" is no option"),
            ("x,ro=1", "\"ro=1\" is no option"),
            ("x,overlay=", "\"overlay=\" is no option"),
            ("ephemeral,size=1G,overlay", "\"overlay\" is no option"),
            ("x,ro,overlay", "only read"),
            ("x,verify", "no hash that it could be verified by"),
            ("x,verify=1,ro", "\"verify=1\" is no option"),
            ("ephemeral,size=1G,verify", "\"verify\" is no option"),
            ("x,queues=1,queues=2", "\"queues\" is said twice"),
            ("x,ro,direct,ro", "\"ro\" is said twice"),
            ("x,overlay,overlay=y", "\"overlay\" is said twice"),
            ("ephemeral,size=1M,size=1M", "\"size\" is said twice"),
            ("x,format=vdi", "raw and qcow2"),
            ("x,queues=0", "1 to 16"),
            ("x,queues=17", "1 to 16"),
            ("x,serial=", "serial number"),
            ("x,serial=012345678901234567890", "serial number"),
            ("x,bps", "\"bps\" is no option"),
            ("x,bps=", "bps= is no limit: \"\" is not a size"),
            ("x,bps=fast", "\"fast\" is not a size"),
            ("x,bps=0", "bps=0 is no limit: nothing a second"),
            ("x,bps=-1", "\"-1\" is not a size"),
            ("x,bps=16E", "too large"),
            ("x,bps=1M+", "\"\" is not a size"),
            ("x,bps=1M+0", "bps=1M+0 is no limit: a burst of nothing"),
            ("x,bps=1M+-1", "\"-1\" is not a size"),
            ("x,bps=1M+2M+3M", "\"2M+3M\" is not a size"),
            ("x,bps=1.1K", "whole number of bytes"),
            ("x,iops=0", "iops=0 is no limit: nothing a second"),
            ("x,iops=1K", "\"1K\" is no number"),
            ("x,iops=+1", "\"\" is no number"),
            ("x,iops=1++1", "\"+1\" is no number"),
            ("x,iops=1+0", "a burst of nothing"),
            ("x,iops=18446744073709551616", "\"18446744073709551616\" is no number"),
            ("ephemeral", "has a size"),
            ("ephemeral,size=0", "size of a disk"),
            ("ephemeral,size=513", "size of a disk"),
            ("ephemeral,size=x", "\"x\" is not a size"),
        ] {
            let error = text.parse::<DiskSpec>().unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
