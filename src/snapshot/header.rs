//! The plain part of `state`: header and section table.
//!
//! All numbers are little-endian. `docs/snapshot-format.md` has the same as tables.

use std::path::Path;

use super::{Error, Section};

/// The version of the format that is written, and the newest that is read.
pub const NEWEST_FORMAT: u32 = 1;

/// How long the header is.
pub(super) const HEADER_SIZE: usize = 128;
/// How long an entry of the section table is.
pub(super) const ENTRY_SIZE: usize = 128;
/// How many sections there can be.
pub(super) const MOST_SECTIONS: u32 = 4096;
/// How long `state` can be: a machine with 255 processors needs 2 MiB, the checksums of 1 TiB of memory 32 MiB.
pub(super) const MOST_STATE: u64 = 256 << 20;

/// How it begins.
pub(super) const MAGIC: [u8; 8] = *b"LODGSNAP";
/// `EM_X86_64`.
const ARCHITECTURE: u32 = 62;
/// Where the checksum is, and where what it covers of the header ends.
const CHECKSUM: usize = 96;

const PROGRAM_SIZE: usize = 32;
const NAME_SIZE: usize = 40;
const KIND_SIZE: usize = 32;

/// What a snapshot says of itself, without any of it being decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// The version of the format.
    pub format: u32,
    /// Told apart from all other snapshots by this.
    pub id: [u8; 16],
    /// When it was written, in seconds since 1970.
    pub created: u64,
    /// The program that wrote it, and its version.
    pub program: String,
    /// How long `state` is.
    pub state_size: u64,
    /// How much memory the machine has.
    pub memory_size: u64,
    /// What is in it.
    pub sections: Vec<Entry>,
}

/// What the table says of a section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Which part of the machine it is, as in `vcpu/0`.
    pub name: String,
    /// What it is the state of, as in `vcpu`.
    pub kind: String,
    /// The version of that kind's encoding.
    pub version: u32,
    /// Where it begins in `state`.
    pub offset: u64,
    /// How long it is.
    pub size: u64,
    pub(super) checksum: [u8; 32],
}

/// The random number of a snapshot, as it is written where people read it.
pub fn id_in_hex(id: &[u8; 16]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Info {
    /// What tells it from all others, as it is written where people read it.
    pub fn id_in_hex(&self) -> String {
        id_in_hex(&self.id)
    }

    /// For sections that follow each other behind the table.
    pub(super) fn of(
        sections: &[Section],
        id: [u8; 16],
        created: u64,
        memory_size: u64,
    ) -> Result<Self, Error> {
        let table = HEADER_SIZE + ENTRY_SIZE * sections.len();
        let mut offset = table as u64;
        let entries = sections.iter().map(|section| {
            let Section { name, kind, version, bytes } = section;
            let size = bytes.len() as u64;
            let checksum = blake3::hash(bytes).into();
            let entry =
                Entry { name: name.clone(), kind: kind.clone(), version: *version, offset, size, checksum };
            offset += size;
            entry
        });
        let entries: Vec<_> = entries.collect();
        let program = concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION")).to_owned();
        let format = NEWEST_FORMAT;
        let info = Self { format, id, created, program, state_size: offset, memory_size, sections: entries };
        info.check().map_err(Error::Unfit)?;
        Ok(info)
    }

    /// Header and table as they are written.
    pub(super) fn encode(&self) -> Vec<u8> {
        let Self { format, id, created, program, state_size, memory_size, sections } = self;
        let mut bytes = Vec::with_capacity(HEADER_SIZE + ENTRY_SIZE * sections.len());
        bytes.extend(MAGIC);
        bytes.extend(format.to_le_bytes());
        bytes.extend(ARCHITECTURE.to_le_bytes());
        bytes.extend(id);
        bytes.extend(created.to_le_bytes());
        bytes.extend(state_size.to_le_bytes());
        bytes.extend(memory_size.to_le_bytes());
        // `check` bounds it.
        bytes.extend((sections.len() as u32).to_le_bytes());
        bytes.extend([0; 4]);
        put_text::<PROGRAM_SIZE>(&mut bytes, program);
        bytes.extend([0; HEADER_SIZE - CHECKSUM]);
        for Entry { name, kind, version, offset, size, checksum } in sections {
            put_text::<NAME_SIZE>(&mut bytes, name);
            put_text::<KIND_SIZE>(&mut bytes, kind);
            bytes.extend(version.to_le_bytes());
            bytes.extend([0; 4]);
            bytes.extend(offset.to_le_bytes());
            bytes.extend(size.to_le_bytes());
            bytes.extend(checksum);
        }
        let checksum = checksum(&bytes);
        bytes[CHECKSUM..HEADER_SIZE].copy_from_slice(&checksum);
        bytes
    }

    /// How many bytes header and table have, by the header of the file `path`. It has not been checked by then.
    pub(super) fn plain_size(path: &Path, header: &[u8; HEADER_SIZE]) -> Result<usize, Error> {
        let mut fields = Fields(header);
        if fields.array::<8>() != MAGIC {
            let reason = "it does not begin with LODGSNAP";
            return Err(Error::NoState { path: path.to_owned(), reason });
        }
        let found = fields.u32();
        if found > NEWEST_FORMAT {
            return Err(Error::Newer { path: path.to_owned(), found });
        }
        let sections = Fields(&header[56..]).u32();
        if sections > MOST_SECTIONS {
            return Err(Error::damaged(path, format!("{sections} sections are more than there can be")));
        }
        Ok(HEADER_SIZE + ENTRY_SIZE * sections as usize)
    }

    /// Reads header and table of the file `path`, as many bytes as [`plain_size`](Self::plain_size) said.
    pub(super) fn decode(path: &Path, bytes: &[u8]) -> Result<Self, Error> {
        let damaged = |what| Error::damaged(path, what);
        if bytes.len() < HEADER_SIZE || bytes[CHECKSUM..HEADER_SIZE] != checksum(bytes) {
            return Err(damaged("the checksum of its header is wrong".to_owned()));
        }
        let mut fields = Fields(&bytes[MAGIC.len()..]);
        let (format, architecture) = (fields.u32(), fields.u32());
        let (id, created) = (fields.array(), fields.u64());
        let (state_size, memory_size) = (fields.u64(), fields.u64());
        let (_sections, reserved) = (fields.u32(), fields.u32());
        if architecture != ARCHITECTURE {
            return Err(Error::Architecture { path: path.to_owned(), found: architecture });
        }
        if reserved != 0 || format == 0 {
            return Err(damaged("its header makes no sense".to_owned()));
        }
        let program = fields.text::<PROGRAM_SIZE>().map_err(damaged)?;
        let entries = bytes[HEADER_SIZE..].chunks_exact(ENTRY_SIZE);
        let sections = entries.map(Entry::decode).collect::<Result<_, _>>().map_err(damaged)?;
        let info = Self { format, id, created, program, state_size, memory_size, sections };
        info.check().map_err(damaged)?;
        Ok(info)
    }

    /// Whether there can be such a snapshot. One whose checksum is right was written by somebody, but not
    /// necessarily by this program.
    fn check(&self) -> Result<(), String> {
        let Self { program, state_size, memory_size, sections, .. } = self;
        check_text(program, PROGRAM_SIZE)?;
        if sections.len() > MOST_SECTIONS as usize {
            return Err(format!("{} sections are more than {MOST_SECTIONS}", sections.len()));
        }
        if *state_size > MOST_STATE {
            return Err(format!("its state of {state_size} bytes is longer than {MOST_STATE}"));
        }
        if !memory_size.is_multiple_of(super::PAGE) || *memory_size > i64::MAX as u64 - super::PAGE {
            return Err(format!("{memory_size} bytes of memory are not whole pages"));
        }
        let mut offset = (HEADER_SIZE + ENTRY_SIZE * sections.len()) as u64;
        for (number, section) in sections.iter().enumerate() {
            check_text(&section.name, NAME_SIZE)?;
            check_text(&section.kind, KIND_SIZE)?;
            if sections[..number].iter().any(|other| other.name == section.name) {
                return Err(format!("it has two sections {:?}", section.name));
            }
            if section.offset != offset {
                return Err(format!("its section {:?} is not where it should be", section.name));
            }
            offset = offset.checked_add(section.size).ok_or("its sections have no end")?;
        }
        if offset == *state_size { Ok(()) } else { Err("its sections are not all there is".to_owned()) }
    }
}

impl Entry {
    fn decode(bytes: &[u8]) -> Result<Self, String> {
        let mut fields = Fields(bytes);
        let name = fields.text::<NAME_SIZE>()?;
        let kind = fields.text::<KIND_SIZE>()?;
        let (version, reserved) = (fields.u32(), fields.u32());
        if reserved != 0 {
            return Err(format!("the entry of its section {name:?} makes no sense"));
        }
        Ok(Self { name, kind, version, offset: fields.u64(), size: fields.u64(), checksum: fields.array() })
    }
}

/// Of header and table, but for the checksum itself.
fn checksum(plain: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&plain[..CHECKSUM]).update(&plain[HEADER_SIZE..]);
    hasher.finalize().into()
}

fn check_text(text: &str, most: usize) -> Result<(), String> {
    let fits = !text.is_empty() && text.len() <= most;
    if fits && text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ') {
        Ok(())
    } else {
        Err(format!("{text:?} is no name of 1 to {most} printable characters"))
    }
}

/// Text that `check_text` has found to fit, and zeroes.
fn put_text<const SIZE: usize>(bytes: &mut Vec<u8>, text: &str) {
    let mut padded = [0; SIZE];
    padded.iter_mut().zip(text.bytes()).for_each(|(to, from)| *to = from);
    bytes.extend(padded);
}

/// Fields one behind the other; behind the end there are zeroes.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const SIZE: usize>(&mut self) -> [u8; SIZE] {
        let (now, later) = self.0.split_at(SIZE.min(self.0.len()));
        self.0 = later;
        let mut array = [0; SIZE];
        array[..now.len()].copy_from_slice(now);
        array
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    fn text<const SIZE: usize>(&mut self) -> Result<String, String> {
        let bytes = self.array::<SIZE>();
        let length = bytes.iter().position(|&byte| byte == 0).unwrap_or(SIZE);
        let (text, padding) = bytes.split_at(length);
        if padding.iter().any(|&byte| byte != 0) {
            return Err("a name has something behind its end".to_owned());
        }
        String::from_utf8(text.to_vec()).map_err(|_| "a name is no text".to_owned())
    }
}

#[cfg(test)]
#[path = "header_test.rs"]
mod tests;
