//! `--disk`: a disk of the machine.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::devices::virtio::blk::SERIAL_LENGTH;

/// The most queues that a disk can have.
const MOST_QUEUES: u16 = 16;

/// A disk: the file that holds it, and how the guest sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskSpec {
    /// The file.
    pub path: PathBuf,
    /// Whether the guest may only read it.
    pub read_only: bool,
    /// How many queues it has, each with a thread.
    pub queues: u16,
    /// The serial number that the guest can ask for.
    pub serial: Option<String>,
}

impl DiskSpec {
    /// A disk that can be written, with one queue.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), read_only: false, queues: 1, serial: None }
    }

    /// The serial number; without one, it is empty.
    pub fn serial(&self) -> &str {
        self.serial.as_deref().unwrap_or_default()
    }
}

/// Why this describes no disk.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DiskSpecError {
    /// No file.
    #[error("it begins with the path of a file, as in disk.img,ro")]
    NoPath,
    /// An option that there is not.
    #[error("{0:?} is no option of a disk: there are ro, queues=N and serial=TEXT")]
    Option(String),
    /// Not so many queues.
    #[error("{0:?} is no number of queues: 1 to {MOST_QUEUES}")]
    Queues(String),
    /// Not such a serial number.
    #[error("{0:?} is no serial number: 1 to {SERIAL_LENGTH} printable characters")]
    Serial(String),
}

impl FromStr for DiskSpec {
    type Err = DiskSpecError;

    fn from_str(text: &str) -> Result<Self, DiskSpecError> {
        let mut parts = text.split(',');
        let path = parts.next().filter(|path| !path.is_empty()).ok_or(DiskSpecError::NoPath)?;
        let mut disk = Self::new(path);
        for part in parts {
            match part.split_once('=') {
                None if part == "ro" => disk.read_only = true,
                Some(("queues", number)) => {
                    let queues = number.parse().ok().filter(|queues| (1..=MOST_QUEUES).contains(queues));
                    disk.queues = queues.ok_or_else(|| DiskSpecError::Queues(number.to_owned()))?;
                }
                Some(("serial", serial)) => {
                    let printable = serial.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
                    if serial.is_empty() || serial.len() > SERIAL_LENGTH || !printable {
                        return Err(DiskSpecError::Serial(serial.to_owned()));
                    }
                    disk.serial = Some(serial.to_owned());
                }
                _ => return Err(DiskSpecError::Option(part.to_owned())),
            }
        }
        Ok(disk)
    }
}

impl fmt::Display for DiskSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if self.read_only {
            f.write_str(",ro")?;
        }
        if self.queues != 1 {
            write!(f, ",queues={}", self.queues)?;
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
    fn what_is_described_is_described_the_same_way_again() {
        for text in ["disk.img", "/a b/c.raw,ro", "x,queues=4", "x,ro,queues=16,serial=ABC 123"] {
            assert_eq!(text.parse::<DiskSpec>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_describes_no_disk_is_refused_with_the_reason() {
        for (text, said) in [
            ("", "path of a file"),
            (",ro", "path of a file"),
            ("x,rw", "\"rw\" is no option"),
            ("x,", "\"\" is no option"),
            ("x,queues=0", "1 to 16"),
            ("x,queues=17", "1 to 16"),
            ("x,serial=", "serial number"),
            ("x,serial=012345678901234567890", "serial number"),
        ] {
            let error = text.parse::<DiskSpec>().unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
