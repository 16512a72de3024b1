//! Where a kernel or an initrd comes from: a file, or bytes that are there already.
//!
//! A file is never read as a whole into this process: its size is asked for, headers are read on their own,
//! and contents go from the file straight into guest memory once it is known that they fit.

use std::borrow::Cow;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::memory::GuestMemory;

use super::error::{Error, Problem, Role};

/// What to load.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// A file.
    File(&'a Path),
    /// Bytes in this process.
    Bytes {
        /// What error messages call them.
        name: &'a str,
        /// The contents.
        bytes: &'a [u8],
    },
}

/// A source that has been opened.
#[derive(Debug)]
pub(super) struct Image<'a> {
    role: Role,
    name: Cow<'a, str>,
    size: u64,
    contents: Contents<'a>,
}

#[derive(Debug)]
enum Contents<'a> {
    File(File),
    Bytes(&'a [u8]),
    Unpacked(Vec<u8>),
}

impl<'a> Image<'a> {
    /// Opens `source`; there is at least one byte in it.
    pub fn open(role: Role, source: Source<'a>) -> Result<Self, Error> {
        let image = match source {
            Source::File(path) => Self::open_file(role, path)?,
            Source::Bytes { name, bytes } => {
                Self { role, name: name.into(), size: bytes.len() as u64, contents: Contents::Bytes(bytes) }
            }
        };
        match image.size {
            0 => Err(Error::Empty { role, name: image.name.into() }),
            _ => Ok(image),
        }
    }

    fn open_file(role: Role, path: &'a Path) -> Result<Self, Error> {
        let name = path.to_string_lossy();
        let failed = |source| Error::Open { role, name: path.display().to_string(), source };
        // Opening a pipe would otherwise wait for somebody to write to it.
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        let kind = metadata.file_type();
        if !kind.is_file() {
            let kind = if kind.is_dir() {
                "a directory"
            } else if kind.is_fifo() {
                "a pipe"
            } else {
                "a device"
            };
            return Err(Error::NotAFile { role, name: name.into(), kind });
        }
        Ok(Self { role, name, size: metadata.len(), contents: Contents::File(file) })
    }

    /// What was found packed in this one.
    pub fn unpacked(&self, contents: Vec<u8>) -> Self {
        let name = format!("{} (unpacked)", self.name).into();
        Self { role: self.role, name, size: contents.len() as u64, contents: Contents::Unpacked(contents) }
    }

    /// How many bytes there are.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The path or name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Fills `buffer` with what starts at `offset`; both must lie inside.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        match &self.contents {
            Contents::File(file) => file.read_exact_at(buffer, offset).map_err(|error| self.failed(error)),
            Contents::Bytes(bytes) => self.read_bytes(bytes, offset, buffer),
            Contents::Unpacked(bytes) => self.read_bytes(bytes, offset, buffer),
        }
    }

    /// Copies `size` bytes from `offset` on to guest memory at `address`.
    pub fn copy_to(&self, memory: &GuestMemory, offset: u64, size: u64, address: u64) -> Result<(), Error> {
        match &self.contents {
            Contents::File(file) => self.copy_file(file, memory, offset, size, address),
            Contents::Bytes(bytes) => self.copy_bytes(bytes, memory, offset, size, address),
            Contents::Unpacked(bytes) => self.copy_bytes(bytes, memory, offset, size, address),
        }
    }

    fn read_bytes(&self, bytes: &[u8], offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        buffer.copy_from_slice(self.part(bytes, offset, buffer.len() as u64)?);
        Ok(())
    }

    fn copy_bytes(
        &self,
        bytes: &[u8],
        memory: &GuestMemory,
        offset: u64,
        size: u64,
        address: u64,
    ) -> Result<(), Error> {
        let part = self.part(bytes, offset, size)?;
        Ok(memory.mapped().write_slice(part, GuestAddress(address))?)
    }

    fn copy_file(
        &self,
        mut file: &File,
        memory: &GuestMemory,
        offset: u64,
        size: u64,
        address: u64,
    ) -> Result<(), Error> {
        file.seek(SeekFrom::Start(offset)).map_err(|error| self.failed(error))?;
        let mut done = 0;
        while done < size {
            // One call reads at most 2 GiB. Sizes were checked against guest memory, which is mapped here.
            let left = usize::try_from(size - done).unwrap_or(usize::MAX);
            match memory.mapped().read_volatile_from(GuestAddress(address + done), &mut file, left) {
                Ok(0) => return Err(self.failed(io::ErrorKind::UnexpectedEof.into())),
                Ok(read) => done += read as u64,
                Err(GuestMemoryError::IOError(error)) => return Err(self.failed(error)),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Refuses the kernel because of `problem`.
    pub fn refuse(&self, problem: Problem) -> Error {
        Error::Kernel { name: self.name.clone().into_owned(), problem }
    }

    /// Offsets come from headers; what they were checked against is the size of these very bytes.
    fn part<'b>(&self, bytes: &'b [u8], offset: u64, size: u64) -> Result<&'b [u8], Error> {
        let range = || {
            let start = usize::try_from(offset).ok()?;
            bytes.get(start..start.checked_add(usize::try_from(size).ok()?)?)
        };
        range().ok_or_else(|| self.failed(io::ErrorKind::UnexpectedEof.into()))
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::Read { role: self.role, name: self.name.clone().into_owned(), source }
    }
}
