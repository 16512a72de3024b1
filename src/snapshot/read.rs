//! A snapshot that is there.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::changes::{MEMORY_CHANGES, MemoryChanges};
use super::header::HEADER_SIZE;
use super::memory::{self, MEMORY_HASHES, MemoryHashes};
use super::{Error, Info, MEMORY, PAGE, STATE, Section, Sections};
use crate::saved::Saved;

/// Opens a file that others may have put there: one that is no file does not make anybody wait.
fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    Err(io::Error::other("it is no ordinary file"))
}

/// A snapshot whose header has been read and is right.
#[derive(Debug)]
pub struct Snapshot {
    directory: PathBuf,
    path: PathBuf,
    state: File,
    info: Info,
    /// Where snapshots are that are not where they were, and which they are.
    pub(super) moved: Vec<([u8; 16], PathBuf)>,
}

impl Snapshot {
    /// Reads the header of the snapshot in `directory`, and nothing else.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let path = directory.join(STATE);
        let state = open(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                Error::NoSnapshot { path: directory.to_owned(), is_directory: directory.is_dir() }
            }
            _ => Error::Io { action: "open", path: path.clone(), source },
        })?;
        let size = state.metadata().map_err(Error::io("read", &path))?.len();
        let mut header = [0; HEADER_SIZE];
        if size < HEADER_SIZE as u64 {
            return Err(Error::NoState { path, reason: "it is shorter than a header" });
        }
        state.read_exact_at(&mut header, 0).map_err(Error::io("read", &path))?;
        let plain = Info::plain_size(&path, &header)?;
        if size < plain as u64 {
            return Err(Error::Length { path, expected: plain as u64, found: size });
        }
        let mut bytes = vec![0; plain];
        state.read_exact_at(&mut bytes, 0).map_err(Error::io("read", &path))?;
        let info = Info::decode(&path, &bytes)?;
        if size != info.state_size {
            return Err(Error::Length { path, expected: info.state_size, found: size });
        }
        Ok(Self { directory: directory.to_owned(), path, state, info, moved: Vec::new() })
    }

    /// What the header says.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// All sections that a machine is made of, as they were written.
    pub fn sections(&self) -> Result<Sections, Error> {
        let mut sections = self.all_sections()?;
        sections.take_section(MEMORY_HASHES)?;
        if self.is_diff() {
            sections.take_section(MEMORY_CHANGES)?;
        }
        Ok(sections)
    }

    /// The state in the section `name`, if there is one. The others are not read.
    pub fn section<S: Saved>(&self, name: &str) -> Result<Option<S>, Error> {
        let entry = self.info.sections.iter().find(|entry| entry.name == name);
        entry.map(|entry| self.read_section(entry)?.decode()).transpose()
    }

    /// Whether its memory has only what changed since another snapshot.
    pub fn is_diff(&self) -> bool {
        self.info.sections.iter().any(|entry| entry.name == MEMORY_CHANGES)
    }

    /// What changed since another snapshot, if this is a diff.
    pub fn changes(&self) -> Result<Option<MemoryChanges>, Error> {
        let Some(changes) = self.section::<MemoryChanges>(MEMORY_CHANGES)? else { return Ok(None) };
        changes.check(self.info.memory_size).map_err(|what| Error::damaged(&self.path, what))?;
        Ok(Some(changes))
    }

    fn all_sections(&self) -> Result<Sections, Error> {
        let read = |entry| self.read_section(entry);
        self.info.sections.iter().map(read).collect::<Result<_, _>>().map(Sections::new)
    }

    fn read_section(&self, entry: &super::Entry) -> Result<Section, Error> {
        // No longer than the file, whose length has a bound.
        let mut bytes = vec![0; entry.size as usize];
        self.state.read_exact_at(&mut bytes, entry.offset).map_err(Error::io("read", &self.path))?;
        if blake3::hash(&bytes) != entry.checksum {
            let what = format!("the checksum of its section {:?} is wrong", entry.name);
            return Err(Error::damaged(&self.path, what));
        }
        let (name, kind) = (entry.name.clone(), entry.kind.clone());
        Ok(Section { name, kind, version: entry.version, bytes })
    }

    /// Its own memory file, to be mapped privately: the memory begins with the file. Of a diff it has only the pages
    /// that changed; [`layers`](Self::layers) have all. The file is as long as it should be, and that of this snapshot;
    /// what is in it has not been looked at.
    pub fn memory(&self) -> Result<File, Error> {
        let path = self.directory.join(MEMORY);
        let file = open(&path).map_err(Error::io("open", &path))?;
        let found = file.metadata().map_err(Error::io("read", &path))?.len();
        let expected = self.info.memory_size + PAGE;
        if found != expected {
            return Err(Error::Length { path, expected, found });
        }
        let mut last = [0; PAGE as usize];
        file.read_exact_at(&mut last, self.info.memory_size).map_err(Error::io("read", &path))?;
        if last == memory::last_page(self.info.id) {
            return Ok(file);
        }
        Err(Error::OtherMemory { path })
    }

    /// Reads state and memory, and compares them with the checksums; and all that they build on. Disks are looked at by
    /// those who know what they are.
    pub fn check(&self) -> Result<(), Error> {
        let bases = self.bases()?;
        self.check_this()?;
        bases.iter().try_for_each(Self::check_this)
    }

    fn check_this(&self) -> Result<(), Error> {
        let hashes = self.all_sections()?.take::<MemoryHashes>(MEMORY_HASHES)?;
        let file = self.memory()?;
        memory::check(&file, &self.directory.join(MEMORY), self.info.memory_size, &hashes)
    }
}

#[cfg(test)]
#[path = "read_test.rs"]
mod tests;
