//! Hashes of a disk's blocks, kept in a file beside its image.
//!
//! What is hashed is what a guest sees, whatever the format and whatever lies behind, so that images of different
//! formats can be compared. The file says in which state the images were; if one has changed since, the hashes are
//! made anew.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::new_file::NewFile;
use super::{CHUNK, Progress, read};
use crate::storage::disk::open_file;
use crate::storage::qcow2::read_up_to;
use crate::storage::{Disk, Error, Storage};

/// How large a block is.
pub const BLOCK_SIZE: u64 = 64 << 10;

type Hash = [u8; 32];

const MAGIC: &[u8; 16] = b"lodger blocks 1\n";
const HEADER_LEN: usize = 16 + 8 + 8 + 32;

/// A disk's hashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockHashes {
    size: u64,
    /// Of the state of all images of the chain.
    state: Hash,
    hashes: Vec<Hash>,
}

/// A run of bytes that two disks have different.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Difference {
    /// Where it begins.
    pub offset: u64,
    /// How long it is.
    pub len: u64,
}

impl BlockHashes {
    /// Reads the disk and hashes every block.
    pub fn compute(disk: &Disk, progress: Progress<'_>) -> Result<Self, Error> {
        wait_for_the_clock(disk);
        let size = disk.size();
        let mut hashes = Vec::new();
        let count = usize::try_from(size.div_ceil(BLOCK_SIZE)).unwrap_or(usize::MAX);
        hashes.try_reserve_exact(count).map_err(|_| {
            Error::refused(disk.path(), "there is no memory for so many hashes", "free some memory")
        })?;
        let zero = hash(&[0; BLOCK_SIZE as usize]);
        let mut buffer = vec![0; CHUNK];
        let mut offset = 0;
        while offset < size {
            progress(offset, size);
            let found = disk.reads_as_zero(offset, size - offset);
            let (is_zero, len) = found.map_err(Error::io("read", disk.path()))?;
            let whole = len / BLOCK_SIZE;
            if is_zero && whole > 0 {
                hashes.resize(hashes.len() + whole as usize, zero);
                offset += whole * BLOCK_SIZE;
                continue;
            }
            // At least a block, and not far into what may be a hole.
            let count = len.next_multiple_of(BLOCK_SIZE).min(CHUNK as u64).min(size - offset) as usize;
            read(disk, offset, &mut buffer[..count])?;
            hashes.extend(buffer[..count].chunks(BLOCK_SIZE as usize).map(hash));
            offset += count as u64;
        }
        progress(size, size);
        Ok(Self { size, state: state(disk), hashes })
    }

    /// The hashes that are kept beside the image if they are those of its present state, else new ones.
    pub fn current(disk: &Disk, progress: Progress<'_>) -> Result<Self, Error> {
        match Self::load(disk.path())? {
            Some(kept) if kept.are_current(disk) => Ok(kept),
            _ => Self::compute(disk, progress),
        }
    }

    /// Whether they were made of the disk as it is, by what can be seen without reading it.
    pub fn are_current(&self, disk: &Disk) -> bool {
        self.size == disk.size() && self.state == state(disk)
    }

    /// The same hashes for another disk that has the same content.
    pub(super) fn of(&self, disk: &Disk) -> Self {
        wait_for_the_clock(disk);
        Self { size: self.size, state: state(disk), hashes: self.hashes.clone() }
    }

    /// Where the hashes of an image are kept.
    pub fn path_for(image: &Path) -> PathBuf {
        let mut name = image.as_os_str().to_owned();
        name.push(".blocks");
        PathBuf::from(name)
    }

    /// Loads what is kept beside an image; `None` if nothing is.
    pub fn load(image: &Path) -> Result<Option<Self>, Error> {
        let path = Self::path_for(image);
        let file = match open_file(&path, true) {
            Ok(file) => file,
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let refused = |what| Error::refused(&path, what, "remove it; `lodger disk hash` makes it anew");
        let broken = || refused("it is damaged");
        let len = file.metadata().map_err(Error::io("read", &path))?.len();
        let mut header = [0; HEADER_LEN];
        let count = read_up_to(&file, &mut header, 0).map_err(Error::io("read", &path))?;
        let number = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().unwrap_or_default());
        let (block_size, size) = (number(16), number(24));
        // The file's length bounds what is allocated.
        let expected = size.div_ceil(BLOCK_SIZE).checked_mul(32).and_then(|len| len.checked_add(96));
        if &header[..16] != MAGIC {
            return Err(refused("it holds no hashes"));
        }
        if count < HEADER_LEN || block_size != BLOCK_SIZE || expected != Some(len) {
            return Err(broken());
        }
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len as usize).map_err(|_| broken())?;
        bytes.resize(len as usize, 0);
        read_up_to(&file, &mut bytes, 0).map_err(Error::io("read", &path))?;
        let (content, checksum) = bytes.split_at(bytes.len() - 32);
        if hash(content) != checksum {
            return Err(broken());
        }
        let mut state = Hash::default();
        state.copy_from_slice(&content[32..HEADER_LEN]);
        let hashes = content[HEADER_LEN..].chunks_exact(32);
        let hashes = hashes.map(|bytes| bytes.try_into().unwrap_or_default()).collect();
        Ok(Some(Self { size, state, hashes }))
    }

    /// Keeps the hashes beside the image.
    pub fn save(&self, image: &Path) -> Result<(), Error> {
        let path = Self::path_for(image);
        let mut bytes = Vec::with_capacity(HEADER_LEN + self.hashes.len() * 32 + 32);
        bytes.extend(MAGIC);
        bytes.extend(BLOCK_SIZE.to_le_bytes());
        bytes.extend(self.size.to_le_bytes());
        bytes.extend(self.state);
        self.hashes.iter().for_each(|hash| bytes.extend(hash));
        let checksum = hash(&bytes);
        bytes.extend(checksum);
        let new = NewFile::replacing(&path)?;
        new.file()?.write_all(&bytes).map_err(Error::io("write", &path))?;
        new.finish(true, false)
    }

    /// How large the disk is.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// How many blocks it has.
    pub fn blocks(&self) -> usize {
        self.hashes.len()
    }

    /// The hash of one block.
    pub fn block(&self, index: usize) -> Option<&Hash> {
        self.hashes.get(index)
    }

    /// One hash of the whole disk: of its size and all blocks' hashes. In hexadecimal.
    pub fn whole(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.size.to_le_bytes());
        self.hashes.iter().for_each(|hash| {
            hasher.update(hash);
        });
        hasher.finalize().to_hex().to_string()
    }

    /// Where the two disks differ; what only one of them has differs too.
    pub fn differences(&self, other: &Self) -> Vec<Difference> {
        let size = self.size.max(other.size);
        let mut differences: Vec<Difference> = Vec::new();
        for index in 0..self.hashes.len().max(other.hashes.len()) {
            if self.hashes.get(index) == other.hashes.get(index) {
                continue;
            }
            let offset = index as u64 * BLOCK_SIZE;
            let len = BLOCK_SIZE.min(size - offset);
            match differences.last_mut() {
                Some(last) if last.offset + last.len == offset => last.len += len,
                _ => differences.push(Difference { offset, len }),
            }
        }
        differences
    }
}

pub(in crate::storage) fn hash(bytes: &[u8]) -> Hash {
    *blake3::hash(bytes).as_bytes()
}

/// The state of all images that the disk is made of.
fn state(disk: &Disk) -> Hash {
    let mut hasher = blake3::Hasher::new();
    for layer in disk.layers() {
        let id = &layer.identity;
        let numbers = [id.modified.0, id.modified.1, id.changed.0, id.changed.1];
        hasher.update(&[id.device, id.inode, id.len].map(u64::to_le_bytes).concat());
        hasher.update(&numbers.map(i64::to_le_bytes).concat());
    }
    *hasher.finalize().as_bytes()
}

/// The clock of file systems moves in steps of some milliseconds. A file that was changed just now could change once
/// more within the same step, and look the same.
fn wait_for_the_clock(disk: &Disk) {
    const STEP: Duration = Duration::from_millis(20);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let recent = disk.layers().iter().any(|layer| {
        let (seconds, nanoseconds) = layer.identity.changed;
        let changed = Duration::new(seconds.max(0) as u64, nanoseconds.clamp(0, 999_999_999) as u32);
        now.saturating_sub(changed) < STEP
    });
    if recent {
        std::thread::sleep(STEP);
    }
}
