//! Formats, and how one is recognised.

use std::fmt;
use std::fs::File;
use std::io;
use std::str::FromStr;

use super::qcow2::read_up_to;

/// How an image keeps a disk's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// The file's bytes are the disk's.
    Raw,
    /// QEMU's format: holds what was written, and may refer to another image for the rest.
    Qcow2,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        })
    }
}

/// A word that names no format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no format: there are raw and qcow2")]
pub struct UnknownFormat(String);

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> Result<Self, UnknownFormat> {
        match text {
            "raw" => Ok(Self::Raw),
            "qcow2" => Ok(Self::Qcow2),
            _ => Err(UnknownFormat(text.to_owned())),
        }
    }
}

/// What a file's first bytes say that it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    Qcow2,
    /// A format that is not read here.
    Foreign(&'static str),
    /// No image format: what a raw image begins with.
    Other,
}

/// How many of the first bytes decide.
pub(super) const PROBED: usize = 512;

/// Formats begin with these. LUKS is not among them: it is as ordinary on a raw disk as a partition table.
const MAGICS: [(&[u8], Content); 9] = [
    (b"QFI\xfb", Content::Qcow2),
    (b"QED\0", Content::Foreign("QED")),
    (b"KDMV", Content::Foreign("VMDK")),
    (b"COWD", Content::Foreign("VMDK")),
    (b"# Disk DescriptorFile", Content::Foreign("VMDK")),
    (b"vhdxfile", Content::Foreign("VHDX")),
    (b"conectix", Content::Foreign("VHD")),
    (b"WithoutFreeSpace", Content::Foreign("Parallels")),
    (b"WithouFreSpacExt", Content::Foreign("Parallels")),
];

/// Recognises a format by an image's first bytes.
pub(super) fn recognise(start: &[u8]) -> Content {
    // VirtualBox begins with free text.
    if start.get(0x40..0x44) == Some(&[0x7f, 0x10, 0xda, 0xbe]) {
        return Content::Foreign("VDI");
    }
    let found = MAGICS.iter().find(|(magic, _)| start.starts_with(magic));
    found.map_or(Content::Other, |(_, content)| *content)
}

/// Recognises a file's format.
pub(super) fn recognise_file(file: &File) -> io::Result<Content> {
    let mut start = [0; PROBED];
    let filled = read_up_to(file, &mut start, 0)?;
    Ok(recognise(&start[..filled]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_known_by_their_first_bytes() {
        assert_eq!(recognise(b"QFI\xfb\0\0\0\x03"), Content::Qcow2);
        assert_eq!(recognise(b"vhdxfile"), Content::Foreign("VHDX"));
        assert_eq!(recognise(b"QF"), Content::Other);
        assert_eq!(recognise(b"LUKS\xba\xbe\0\x02"), Content::Other);
        assert_eq!(recognise(&[]), Content::Other);
    }

    #[test]
    fn formats_are_named_as_they_are_shown() {
        for format in [Format::Raw, Format::Qcow2] {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        assert!("vmdk".parse::<Format>().unwrap_err().to_string().contains("raw and qcow2"));
    }
}
