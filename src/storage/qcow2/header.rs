//! The header of a qcow2 image (QEMU's docs/interop/qcow2.txt), read and judged before anything relies on it.
//!
//! `imago` reads headers too, and allocates the tables that they promise: here it is made sure that those lie in
//! the file and are no larger than QEMU allows, so that a damaged or malicious header costs an error and no
//! memory. What the tools change in a header, the name of the image behind it, is written here.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::Held;
use crate::storage::Error;

const V2_LEN: usize = 72;
const V3_LEN: usize = 104;
const BACKING_FORMAT: u32 = 0xe279_2aca;
const ENCRYPTION: u32 = 0x0537_be77;
const BITMAPS: u32 = 0x2385_2875;
/// What QEMU allows, too.
const MOST_L1_BYTES: u64 = 32 << 20;
pub(super) const MOST_REFTABLE_BYTES: u64 = 8 << 20;
const MOST_SNAPSHOTS: u32 = 65536;
const LONGEST_NAME: u32 = 1023;

/// Bits of the incompatible features.
pub(super) const DIRTY: u64 = 1;
pub(super) const CORRUPT: u64 = 2;
const EXTERNAL_DATA: u64 = 4;
const COMPRESSION_TYPE: u64 = 8;
const EXTENDED_L2: u64 = 16;

/// What lies behind an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::storage) struct Backing {
    pub name: String,
    pub format: Option<String>,
}

/// A header that makes sense.
#[derive(Debug, Clone)]
pub(in crate::storage) struct Header {
    pub cluster_bits: u32,
    pub size: u64,
    pub l1_entries: u32,
    pub l1_offset: u64,
    pub reftable_offset: u64,
    pub reftable_clusters: u32,
    pub snapshots: u32,
    pub snapshots_offset: u64,
    pub incompatible: u64,
    pub refcount_order: u32,
    pub backing: Option<Backing>,
    pub has_bitmaps: bool,
    header_len: usize,
    extensions: Vec<(u32, Vec<u8>)>,
    start: Vec<u8>,
}

impl Header {
    /// What is held back of the image's L1 table, which fills its last cluster as far as anything is written.
    pub fn held(&self) -> Held {
        let cluster = 1_u64 << self.cluster_bits;
        let len = (u64::from(self.l1_entries) * 8).next_multiple_of(cluster);
        Held::new(self.l1_offset..self.l1_offset.saturating_add(len))
    }

    /// Reads the header and makes sure that the tables it promises can be.
    pub fn read(file: &File, path: &Path) -> Result<Self, Error> {
        let file_len = crate::storage::raw::size_of(file).map_err(Error::io("read", path))?;
        let mut start = vec![0; V3_LEN];
        let count = read_up_to(file, &mut start, 0).map_err(Error::io("read", path))?;
        let damaged = |what: String| Error::damaged(path, what);
        if count < V2_LEN || &start[..4] != b"QFI\xfb" {
            return Err(Error::refused(
                path,
                "it is no qcow2 image",
                "name one that is; if you have said its format, say raw, or nothing",
            ));
        }
        let version = be32(&start, 4);
        if !(2..=3).contains(&version) {
            return Err(Error::refused(
                path,
                format!("version {version} of qcow2 is not known here"),
                "convert it with the program that made it",
            ));
        }
        let cluster_bits = be32(&start, 20);
        if !(9..=21).contains(&cluster_bits) {
            return Err(damaged(format!("clusters of 2^{cluster_bits} bytes (9 to 21 are allowed)")));
        }
        // The header, its extensions and the name of the backing file lie in the first cluster.
        start.resize(1 << cluster_bits, 0);
        let count = read_up_to(file, &mut start, 0).map_err(Error::io("read", path))?;
        start.truncate(count);
        let mut header = Self::fixed_part(&start, version).map_err(damaged)?;
        header.read_extensions(&start).map_err(damaged)?;
        header.check_features(&start, path)?;
        header.check_tables(file_len).map_err(damaged)?;
        header.start = start;
        Ok(header)
    }

    fn fixed_part(start: &[u8], version: u32) -> Result<Self, String> {
        let (incompatible, refcount_order, header_len) = if version == 2 {
            (0, 4, V2_LEN)
        } else if start.len() < V3_LEN {
            return Err("the file ends in its header".into());
        } else {
            (be64(start, 72), be32(start, 96), be32(start, 100) as usize)
        };
        if version == 3 && (header_len < V3_LEN || header_len > start.len() || !header_len.is_multiple_of(8))
        {
            return Err(format!("its header says of itself that it is {header_len} bytes long"));
        }
        if refcount_order > 6 {
            return Err(format!("reference counts of 2^{refcount_order} bits (0 to 6 are allowed)"));
        }
        Ok(Self {
            cluster_bits: be32(start, 20),
            size: be64(start, 24),
            l1_entries: be32(start, 36),
            l1_offset: be64(start, 40),
            reftable_offset: be64(start, 48),
            reftable_clusters: be32(start, 56),
            snapshots: be32(start, 60),
            snapshots_offset: be64(start, 64),
            incompatible,
            refcount_order,
            backing: None,
            has_bitmaps: false,
            header_len,
            extensions: Vec::new(),
            start: Vec::new(),
        })
    }

    fn read_extensions(&mut self, start: &[u8]) -> Result<(), String> {
        let (name_offset, name_len) = (be64(start, 8), be32(start, 16));
        let mut format = None;
        let end = if name_offset == 0 { start.len() as u64 } else { name_offset.min(start.len() as u64) };
        let mut offset = self.header_len;
        while offset + 8 <= end as usize {
            let (kind, len) = (be32(start, offset), be32(start, offset + 4) as usize);
            offset += 8;
            if kind == 0 {
                break;
            }
            let data = offset.checked_add(len).and_then(|end| start.get(offset..end));
            let Some(data) = data else {
                return Err("an extension reaches past its header's cluster".into());
            };
            match kind {
                BACKING_FORMAT => format = Some(text(data, "the format of its backing file")?),
                BITMAPS => self.has_bitmaps = true,
                _ => {}
            }
            self.extensions.push((kind, data.to_vec()));
            offset += len.next_multiple_of(8);
        }
        if name_offset != 0 && name_len != 0 {
            let range =
                name_offset.checked_add(name_len.into()).map(|end| name_offset as usize..end as usize);
            let bytes = range.and_then(|range| start.get(range)).filter(|_| name_len <= LONGEST_NAME);
            let bytes = bytes.ok_or("the name of its backing file is not in the header's cluster")?;
            self.backing = Some(Backing { name: text(bytes, "the name of its backing file")?, format });
        }
        Ok(())
    }

    fn check_features(&self, start: &[u8], path: &Path) -> Result<(), Error> {
        let refuse = |what: &str, advice: &str| Err(Error::refused(path, what, advice));
        let encrypted = self.extensions.iter().any(|(kind, _)| *kind == ENCRYPTION);
        if be32(start, 32) != 0 || encrypted {
            return refuse(
                "it is encrypted",
                "decrypt it with `qemu-img convert`, or encrypt inside the guest",
            );
        }
        if self.incompatible & EXTERNAL_DATA != 0 {
            return refuse("its data is in another file", "make it whole with `qemu-img convert`");
        }
        if self.incompatible & COMPRESSION_TYPE != 0 {
            return refuse("it is compressed with zstd", "unpack it with `qemu-img convert`");
        }
        if self.incompatible & EXTENDED_L2 != 0 {
            return refuse("it has subclusters", "make one without them with `qemu-img convert`");
        }
        let known = DIRTY | CORRUPT;
        if self.incompatible & !known != 0 {
            let what =
                format!("it needs features that are not known here ({:#x})", self.incompatible & !known);
            return refuse(&what, "convert it with the program that made it");
        }
        Ok(())
    }

    fn check_tables(&self, file_len: u64) -> Result<(), String> {
        let cluster = self.cluster_size();
        let table = |what: &str, offset: u64, bytes: u64, most: u64| {
            if bytes > most {
                return Err(format!("its {what} of {bytes} bytes is larger than {most}"));
            }
            if !offset.is_multiple_of(cluster) || (offset == 0 && bytes > 0) {
                return Err(format!("its {what} begins at {offset:#x}, where none can be"));
            }
            match offset.checked_add(bytes) {
                Some(end) if end <= file_len => Ok(()),
                _ => Err(format!("its {what} at {offset:#x} reaches past the end of the file")),
            }
        };
        let l1_bytes = u64::from(self.l1_entries) * 8;
        table("L1 table", self.l1_offset, l1_bytes, MOST_L1_BYTES)?;
        let reftable_bytes = u64::from(self.reftable_clusters) * cluster;
        table("refcount table", self.reftable_offset, reftable_bytes, MOST_REFTABLE_BYTES)?;
        if self.reftable_clusters == 0 {
            return Err("it has no refcount table".into());
        }
        if self.snapshots > MOST_SNAPSHOTS {
            return Err(format!("it has {} snapshots", self.snapshots));
        }
        // One L1 entry stands for a cluster full of L2 entries.
        let covered = u128::from(self.l1_entries) << (self.cluster_bits + self.cluster_bits - 3);
        if u128::from(self.size) > covered {
            return Err(format!("its L1 table is too small for a disk of {} bytes", self.size));
        }
        Ok(())
    }

    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Fails if the image must be repaired before it is used.
    pub fn check_usable(&self, path: &Path) -> Result<(), Error> {
        let problem = match self.incompatible {
            bits if bits & CORRUPT != 0 => "it is marked as corrupt",
            bits if bits & DIRTY != 0 => "it was not closed well, and its reference counts may be wrong",
            _ => return Ok(()),
        };
        Err(Error::refused(path, problem, "repair it with `lodger disk check --repair`"))
    }

    /// The first cluster with another backing file.
    pub fn encode_with_backing(&self, backing: Option<&Backing>) -> Result<Vec<u8>, &'static str> {
        let mut bytes = self.start[..self.header_len].to_vec();
        let format = backing.and_then(|backing| backing.format.as_ref());
        let format = format.map(|format| (BACKING_FORMAT, format.clone().into_bytes()));
        let others = self.extensions.iter().filter(|(kind, _)| *kind != BACKING_FORMAT);
        for (kind, data) in format.iter().chain(others) {
            bytes.extend(kind.to_be_bytes());
            bytes.extend((data.len() as u32).to_be_bytes());
            bytes.extend(data);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        bytes.extend([0; 8]);
        let (offset, name) = match backing {
            Some(backing) => (bytes.len() as u64, backing.name.as_bytes()),
            None => (0, &[][..]),
        };
        bytes.extend(name);
        if bytes.len() as u64 > self.cluster_size() || name.len() > LONGEST_NAME as usize {
            return Err("the name of the backing file is too long");
        }
        bytes[8..16].copy_from_slice(&offset.to_be_bytes());
        bytes[16..20].copy_from_slice(&(name.len() as u32).to_be_bytes());
        // Nothing of the old one is to be left behind.
        bytes.resize(bytes.len().max(self.start.len().min(4096)), 0);
        Ok(bytes)
    }
}

fn text(bytes: &[u8], what: &str) -> Result<String, String> {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text.to_owned()),
        _ => Err(format!("{what} is no text")),
    }
}

pub(super) fn be32(bytes: &[u8], offset: usize) -> u32 {
    bytes.get(offset..offset + 4).map_or(0, |bytes| u32::from_be_bytes(bytes.try_into().unwrap_or_default()))
}

pub(super) fn be64(bytes: &[u8], offset: usize) -> u64 {
    bytes.get(offset..offset + 8).map_or(0, |bytes| u64::from_be_bytes(bytes.try_into().unwrap_or_default()))
}

/// Reads until the buffer is full or the file at its end; returns how much.
pub(in crate::storage) fn read_up_to(file: &File, to: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < to.len() {
        match file.read_at(&mut to[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
