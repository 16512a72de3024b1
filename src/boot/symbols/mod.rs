//! The names of a kernel's functions: which one an address lies in.
//!
//! They come from the symbol table of an ELF file, such as Linux's vmlinux, or from the text file that Linux's
//! build calls System.map. Kernels are started at the addresses they were linked for, so an address is looked
//! up as it is; one at which a kernel runs before it has paging is found by the physical addresses of the ELF's
//! segments. Either file may be damaged or hostile: what is kept of it is bounded, and names are made of
//! printable characters whatever it says.
//!
//! Profiles and the report of a fatal exit rely on it. It relies on `image` for reading.

mod elf;
mod map;

use super::error::{Error, Role};
use super::image::{Image, Source};

/// Linux has some hundred thousand.
const MOST_FUNCTIONS: usize = 1 << 20;
/// The names of the largest kernels take a fraction of it.
const MOST_NAMES: u64 = 64 << 20;
/// Longer names are cut.
const LONGEST_NAME: usize = 200;
/// How many functions that start in front of an address are looked at: labels inside a function lie between it
/// and the rest of its code.
const LOOK_BACK: usize = 16;

/// Why there are no symbols.
#[derive(Debug, thiserror::Error)]
pub enum SymbolsError {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] Error),
    /// Its contents are not what they should be.
    #[error("cannot read symbols from {name}: {problem}")]
    Contents {
        /// Its path or name.
        name: String,
        /// What is wrong with it.
        problem: SymbolsProblem,
    },
}

/// What is wrong with a file that should hold symbols.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SymbolsProblem {
    /// An ELF file of another kind.
    #[error("it is no 64-bit little-endian ELF file, as kernels for this processor are")]
    OtherElf,
    /// Something lies outside the file.
    #[error("its {what} reaches beyond the end of the file; it may be truncated")]
    Outside {
        /// What the headers say is there.
        what: &'static str,
    },
    /// Something is larger than any kernel's.
    #[error("its {what} has {size} bytes, and at most {most} are read")]
    TooLarge {
        /// What it is.
        what: &'static str,
        /// Its size.
        size: u64,
        /// The most that is read.
        most: u64,
    },
    /// More functions than any kernel has.
    #[error("it has more than {MOST_FUNCTIONS} functions")]
    TooMany,
    /// A stripped file.
    #[error("it has no symbol table; a kernel's build leaves one in vmlinux, and a list in System.map")]
    Stripped,
    /// A symbol table in which no code is named.
    #[error("it names no functions")]
    NoFunctions,
    /// Neither an ELF file nor a list.
    #[error("it is no ELF file, and line {line} does not read \"address type name\", as in a System.map")]
    Line {
        /// The line, counted from 1.
        line: usize,
    },
}

/// The functions of a kernel, by address.
#[derive(Debug)]
pub struct Symbols {
    source: String,
    /// Printable characters, and zeros behind the names.
    names: String,
    /// In the order of their addresses, of which each occurs once.
    functions: Vec<Function>,
    physical: Vec<Segment>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Function {
    start: u64,
    /// The first address behind it.
    end: u64,
    /// Where its name starts in the names.
    name: u32,
}

/// Where the kernel lies in physical memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    linked: u64,
    physical: u64,
    size: u64,
}

impl Symbols {
    /// Reads the symbols of an ELF file, or a list like System.map.
    pub fn read(source: Source<'_>) -> Result<Self, SymbolsError> {
        let image = Image::open(Role::Symbols, source)?;
        match elf::is_elf(&image)? {
            true => elf::read(&image),
            false => map::read(&image),
        }
    }

    /// The symbols that `kernel` brings along: none if it is no ELF file or has none.
    pub fn of_kernel(kernel: Source<'_>) -> Option<Self> {
        let image = Image::open(Role::Symbols, kernel).ok()?;
        elf::is_elf(&image).ok()?.then(|| elf::read(&image).ok())?
    }

    /// The path or name of the file that they come from.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// How many functions there are.
    pub fn count(&self) -> usize {
        self.functions.len()
    }

    /// The function in which `address` lies, and how far from its start.
    ///
    /// An address that is nowhere in the linked kernel may be one of the physical memory where it is loaded.
    pub fn find(&self, address: u64) -> Option<(&str, u64)> {
        self.find_linked(address).or_else(|| {
            let linked = self.physical.iter().find_map(|segment| segment.linked_address(address))?;
            self.find_linked(linked)
        })
    }

    /// The same for addresses of the linked kernel alone. What runs in user mode is nowhere else in a kernel.
    pub fn find_linked(&self, address: u64) -> Option<(&str, u64)> {
        let behind = self.functions.partition_point(|function| function.start <= address);
        let mut candidates = self.functions[..behind].iter().rev().take(LOOK_BACK);
        let function = candidates.find(|function| address < function.end)?;
        Some((name_at(&self.names, function.name), address - function.start))
    }

    /// What a processor in `ring` executes at `address`, as `function+0x12`.
    pub fn describe(&self, ring: u8, address: u64) -> Option<String> {
        let (name, offset) = if ring == 0 { self.find(address) } else { self.find_linked(address) }?;
        Some(format!("{name}+{offset:#x}"))
    }
}

impl Segment {
    fn linked_address(&self, physical: u64) -> Option<u64> {
        let offset = physical.checked_sub(self.physical)?;
        (offset < self.size).then(|| self.linked.wrapping_add(offset))
    }
}

/// The name that starts at `start`. Names are ASCII, so they may be cut anywhere.
fn name_at(names: &str, start: u32) -> &str {
    let rest = names.get(start as usize..).unwrap_or_default();
    let most = rest.len().min(LONGEST_NAME);
    let length = rest.bytes().take(most).position(|byte| byte == 0).unwrap_or(most);
    &rest[..length]
}

/// Something found in a file that may become a function, or bounds one.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    start: u64,
    /// Where it ends, if that is known, else where it ends at the latest.
    end: u64,
    ends_there: bool,
    name: u32,
    /// Of several at one address the one with the lowest is taken.
    rank: u8,
}

/// Not a function, but the function in front of it ends here.
const BOUNDARY: u8 = u8::MAX;

/// What a file was found to hold.
struct Found {
    /// Each name ends with a zero or with the whole.
    names: Vec<u8>,
    candidates: Vec<Candidate>,
    physical: Vec<Segment>,
}

impl Found {
    fn into_symbols(self, image: &Image<'_>) -> Result<Symbols, SymbolsError> {
        let names = printable(self.names);
        let functions = functions(self.candidates, &names);
        if functions.is_empty() {
            return Err(refuse(image, SymbolsProblem::NoFunctions));
        }
        Ok(Symbols { source: image.name().to_owned(), names, functions, physical: self.physical })
    }
}

/// Names go to terminals and files of lines: whatever could do harm there is replaced.
fn printable(mut names: Vec<u8>) -> String {
    for byte in &mut names {
        if *byte != 0 && !byte.is_ascii_graphic() {
            *byte = b'?';
        }
    }
    String::from_utf8(names).unwrap_or_default()
}

fn functions(mut candidates: Vec<Candidate>, names: &str) -> Vec<Function> {
    candidates.sort_unstable_by_key(|candidate| (candidate.start, candidate.rank));
    candidates.dedup_by(|other, kept| {
        if other.start != kept.start {
            return false;
        }
        if other.ends_there && !kept.ends_there {
            (kept.end, kept.ends_there) = (other.end, true);
        }
        if other.rank == kept.rank && preference(names, other) < preference(names, kept) {
            kept.name = other.name;
        }
        true
    });
    let next = candidates.iter().skip(1).map(|candidate| candidate.start).chain([u64::MAX]);
    let with_next = candidates.iter().zip(next).filter(|(candidate, _)| candidate.rank != BOUNDARY);
    let functions = with_next.map(|(candidate, next)| {
        let end = if candidate.ends_there { candidate.end } else { candidate.end.min(next) };
        Function { start: candidate.start, end, name: candidate.name }
    });
    functions.collect()
}

/// Of several names for one thing the one without underscores in front is the plain one.
fn preference<'n>(names: &'n str, candidate: &Candidate) -> (usize, &'n str) {
    let name = name_at(names, candidate.name);
    (name.len() - name.trim_start_matches('_').len(), name)
}

fn refuse(image: &Image<'_>, problem: SymbolsProblem) -> SymbolsError {
    SymbolsError::Contents { name: image.name().to_owned(), problem }
}

#[cfg(test)]
#[path = "symbols_test.rs"]
mod tests;
