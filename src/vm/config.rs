//! The typed description of a machine: what the command line's flags build, and what library users fill in.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::{BalloonSpec, Clock, CpusSpec, DiskSpec, Name, PortSpec};
use crate::boot::{self, Source, Symbols};
use crate::memory::{Options, human};
use crate::size::{self, SizeError};
use crate::x86::model::CpuModel;

/// What a machine is made of and what it boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// What it is called while it runs; without a name it is called by its process, if at all.
    pub name: Option<Name>,
    /// Its memory.
    pub memory: MemorySpec,
    /// How many processors it has, and how they are arranged.
    pub cpus: CpusSpec,
    /// Which features they have.
    pub cpu: CpuModel,
    /// What it boots.
    pub kernel: Kernel,
    /// How the kernel is entered, where it leaves a choice.
    pub entry: boot::Entry,
    /// Take the kernel for a flat image and load it like this, whatever it looks like.
    pub flat: Option<boot::Flat>,
    /// The kernel's command line; if there is none, Linux kernels get
    /// [`LINUX_COMMAND_LINE`](boot::LINUX_COMMAND_LINE), or with a virtio console
    /// [`LINUX_COMMAND_LINE_VIRTIO`](boot::LINUX_COMMAND_LINE_VIRTIO), and others nothing.
    pub cmdline: Option<String>,
    /// What is added to the command line, each with a space in front.
    pub append: Vec<String>,
    /// The initial file system: files that the guest sees as one, in this order.
    pub initrds: Vec<PathBuf>,
    /// Its disks, in the order in which the guest finds them.
    pub disks: Vec<DiskSpec>,
    /// Whether it has a source of random numbers.
    pub rng: bool,
    /// Its balloon, if it has one.
    pub balloon: Option<BalloonSpec>,
    /// Whether it has a virtio console, which prints where the serial port does.
    pub virtio_console: bool,
    /// Ports between guest and host.
    pub ports: Vec<PortSpec>,
    /// Whether what the host's KVM cannot do is done in its place.
    pub completion: Completion,
    /// What its clocks show when it goes on from a snapshot.
    pub clock: Clock,
}

impl Default for Config {
    /// One processor, 256 MiB, the embedded guest.
    fn default() -> Self {
        Self {
            name: None,
            memory: MemorySpec::default(),
            cpus: CpusSpec::default(),
            cpu: CpuModel::default(),
            kernel: Kernel::Embedded,
            entry: boot::Entry::Auto,
            flat: None,
            cmdline: None,
            append: Vec::new(),
            initrds: Vec::new(),
            disks: Vec::new(),
            rng: false,
            balloon: None,
            virtio_console: false,
            ports: Vec::new(),
            completion: Completion::Auto,
            clock: Clock::Host,
        }
    }
}

/// Whether what the host's KVM cannot do for a guest is done in its place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Completion {
    /// Where something is missing. It is looked for before the guest starts; on ordinary hosts nothing is. The
    /// guest's kernel is run by the software processor.
    #[default]
    Auto,
    /// The same, but all else is left to KVM, the kernel included: slow, and good to compare with.
    Missing,
    /// Nowhere: the guest has what KVM has.
    Off,
}

impl fmt::Display for Completion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Missing => "missing",
            Self::Off => "off",
        })
    }
}

/// A word that is none of those that say when to complete.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} says nothing about completion; there are auto, missing and off")]
pub struct CompletionError(String);

impl FromStr for Completion {
    type Err = CompletionError;

    fn from_str(text: &str) -> Result<Self, CompletionError> {
        match text {
            "auto" => Ok(Self::Auto),
            "missing" => Ok(Self::Missing),
            "off" => Ok(Self::Off),
            _ => Err(CompletionError(text.to_owned())),
        }
    }
}

/// What a machine boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kernel {
    /// The guest that is part of this program.
    Embedded,
    /// A file; its kind is found from its content.
    File(PathBuf),
    /// Bytes in memory; their kind is found from their content.
    Bytes(Vec<u8>),
}

impl Kernel {
    /// The same, for loading.
    pub(super) fn source(&self) -> Source<'_> {
        match self {
            Self::Embedded => {
                Source::Bytes { name: "the embedded guest", bytes: boot::embedded::EMBEDDED_GUEST }
            }
            Self::File(path) => Source::File(path),
            Self::Bytes(bytes) => Source::Bytes { name: "the kernel", bytes },
        }
    }
}

impl Config {
    /// The names of the kernel's functions, if it is an ELF file that has them. The file is read now.
    pub fn symbols(&self) -> Option<Symbols> {
        // Loaded as a flat image, it does not run where it was linked.
        self.flat.is_none().then(|| Symbols::of_kernel(self.kernel.source()))?
    }
}

/// How much memory, and how the host backs it: `512M,hugepages,prefault`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemorySpec {
    /// Bytes.
    pub size: u64,
    /// How the host backs it.
    pub options: Options,
}

impl MemorySpec {
    /// `size` bytes, backed when touched.
    pub fn of_size(size: u64) -> Self {
        Self { size, options: Options::default() }
    }

    /// The same, if its options go together.
    pub(super) fn checked(self) -> Result<Self, MemorySpecError> {
        match self.options {
            Options { hugepages: true, hugetlb: true, .. } => Err(MemorySpecError::Exclusive),
            Options { mergeable: true, hugetlb: true, .. } => Err(MemorySpecError::NeverMerged),
            _ => Ok(self),
        }
    }
}

impl Default for MemorySpec {
    fn default() -> Self {
        Self::of_size(256 << 20)
    }
}

impl fmt::Display for MemorySpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Options { hugepages, hugetlb, prefault, mergeable } = self.options;
        f.write_str(&human(self.size))?;
        let words = [
            (hugepages, "hugepages"),
            (hugetlb, "hugetlb"),
            (prefault, "prefault"),
            (mergeable, "mergeable"),
        ];
        words.iter().filter(|(set, _)| *set).try_for_each(|(_, word)| write!(f, ",{word}"))
    }
}

/// Why a text does not describe memory.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MemorySpecError {
    /// The part before the first comma is no size.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// Without a unit it is next to nothing.
    #[error("{0} is a number of bytes, and fewer than any guest can have: write {0}M if MiB are meant")]
    Bytes(String),
    /// A word after a comma means nothing.
    #[error("{0:?} says nothing about memory; there are hugepages, hugetlb, prefault and mergeable")]
    Word(String),
    /// Two ways of backing that exclude each other.
    #[error("hugepages (transparent) and hugetlb (reserved) exclude each other; choose one")]
    Exclusive,
    /// Pages from the pool are never compared.
    #[error(
        "mergeable and hugetlb exclude each other: pages of the reserved pool are not merged; choose one"
    )]
    NeverMerged,
}

/// The size of a memory, as people write it. Who forgot the unit is told so.
pub(super) fn memory_size(text: &str) -> Result<u64, MemorySpecError> {
    /// What has at least so many bytes may have been meant.
    const MEANT: u64 = 1 << 20;
    let size = size::parse(text)?;
    match text.bytes().all(|byte| byte.is_ascii_digit()) && (1..MEANT).contains(&size) {
        true => Err(MemorySpecError::Bytes(text.to_owned())),
        false => Ok(size),
    }
}

impl FromStr for MemorySpec {
    type Err = MemorySpecError;

    fn from_str(text: &str) -> Result<Self, MemorySpecError> {
        let mut parts = text.split(',');
        let size = parts.next().unwrap_or_default();
        let mut spec = Self::of_size(memory_size(size)?);
        for word in parts {
            match word {
                "hugepages" => spec.options.hugepages = true,
                "hugetlb" => spec.options.hugetlb = true,
                "prefault" => spec.options.prefault = true,
                "mergeable" => spec.options.mergeable = true,
                _ => return Err(MemorySpecError::Word(word.to_owned())),
            }
        }
        spec.checked()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_after_the_size_say_how_it_is_backed() {
        let spec: MemorySpec = "512M,hugepages,prefault".parse().unwrap();
        assert_eq!(spec.options, Options { hugepages: true, prefault: true, ..Options::default() });
        let spec: MemorySpec = "512M,mergeable".parse().unwrap();
        assert_eq!(spec.options, Options { mergeable: true, ..Options::default() });
        assert_eq!("64".parse::<MemorySpec>(), Err(MemorySpecError::Bytes("64".to_owned())));
        assert_eq!("1048576".parse(), Ok(MemorySpec::of_size(1 << 20)));
        assert_eq!("1G,huge".parse::<MemorySpec>(), Err(MemorySpecError::Word("huge".to_owned())));
        assert_eq!("1G,".parse::<MemorySpec>(), Err(MemorySpecError::Word(String::new())));
        assert_eq!("1G,mergeable,hugetlb".parse::<MemorySpec>(), Err(MemorySpecError::NeverMerged));
        assert_eq!("1G,hugetlb,hugepages".parse::<MemorySpec>(), Err(MemorySpecError::Exclusive));
        assert_eq!("much,prefault".parse::<MemorySpec>(), Err(SizeError::NoSize("much".to_owned()).into()));
    }

    #[test]
    fn completion_is_printed_as_it_is_written() {
        for completion in [Completion::Auto, Completion::Missing, Completion::Off] {
            assert_eq!(completion.to_string().parse(), Ok(completion));
        }
        assert_eq!("on".parse::<Completion>(), Err(CompletionError("on".to_owned())));
    }

    #[test]
    fn a_description_is_printed_as_it_is_written() {
        for text in [
            "512M",
            "1G,prefault",
            "1025K,hugepages,prefault",
            "1234567",
            "2T,hugetlb",
            "1G,prefault,mergeable",
        ] {
            assert_eq!(text.parse::<MemorySpec>().unwrap().to_string(), text);
        }
    }
}
