//! The typed description of a machine: what the command line's flags build, and what library users fill in.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::{BalloonSpec, CpusSpec, DiskSpec};
use crate::boot::{self, Source, Symbols};
use crate::memory::{Options, human};
use crate::x86::model::CpuModel;

/// What a machine is made of and what it boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
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
    /// [`LINUX_COMMAND_LINE`](boot::LINUX_COMMAND_LINE) and others nothing.
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
    /// Whether what the host's KVM cannot do is done in its place.
    pub completion: Completion,
}

impl Default for Config {
    /// One processor, 256 MiB, the embedded guest.
    fn default() -> Self {
        Self {
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
            completion: Completion::Auto,
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
    #[error(
        "{0:?} is not a size: write a number of bytes, or one with K, M, G, T, P or E, as in 512M or 3.5G"
    )]
    Size(String),
    /// The fraction ends within a byte.
    #[error("{0} is no whole number of bytes")]
    Fraction(String),
    /// The size has more than 64 bits.
    #[error("{0} is more memory than any machine can address")]
    TooLarge(String),
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

impl FromStr for MemorySpec {
    type Err = MemorySpecError;

    fn from_str(text: &str) -> Result<Self, MemorySpecError> {
        let mut parts = text.split(',');
        let mut spec = Self::of_size(parse_size(parts.next().unwrap_or_default())?);
        for word in parts {
            match word {
                "hugepages" => spec.options.hugepages = true,
                "hugetlb" => spec.options.hugetlb = true,
                "prefault" => spec.options.prefault = true,
                "mergeable" => spec.options.mergeable = true,
                _ => return Err(MemorySpecError::Word(word.to_owned())),
            }
        }
        match spec.options {
            Options { hugepages: true, hugetlb: true, .. } => Err(MemorySpecError::Exclusive),
            Options { mergeable: true, hugetlb: true, .. } => Err(MemorySpecError::NeverMerged),
            _ => Ok(spec),
        }
    }
}

/// A size in bytes, with an optional unit (powers of 1024) and then an optional fraction: `512M`, `3.5G`, `1GiB`, `1048576`.
pub(super) fn parse_size(text: &str) -> Result<u64, MemorySpecError> {
    let no_size = || MemorySpecError::Size(text.to_owned());
    let too_large = || MemorySpecError::TooLarge(text.to_owned());
    let length = text.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
    let (number, unit) = text.split_at(length);
    let shift = unit_shift(unit).ok_or_else(no_size)?;
    let (whole, fraction) = match number.split_once('.') {
        None => (number, None),
        Some((whole, fraction)) => (whole, Some(fraction)),
    };
    if whole.is_empty() || fraction.is_some_and(|digits| digits.is_empty() || digits.contains('.')) {
        return Err(no_size());
    }
    let whole: u64 = whole.parse().map_err(|_| too_large())?;
    let part = fraction_of(fraction.unwrap_or_default(), shift)
        .ok_or_else(|| MemorySpecError::Fraction(text.to_owned()))?;
    whole.checked_mul(1 << shift).and_then(|size| size.checked_add(part)).ok_or_else(too_large)
}

/// What a unit multiplies by, as a power of two.
fn unit_shift(unit: &str) -> Option<u32> {
    let unit = unit.to_ascii_lowercase();
    let letter = unit.strip_suffix("ib").or(unit.strip_suffix('b')).unwrap_or(&unit);
    Some(match letter {
        "" if unit != "ib" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        "e" => 60,
        _ => return None,
    })
}

/// The decimal digits behind a point, times `1 << shift`, if that is a whole number: doubled on paper, each time with
/// what is carried over the point as the next bit.
fn fraction_of(digits: &str, shift: u32) -> Option<u64> {
    let digits = digits.trim_end_matches('0');
    // Each doubling can make one digit of a fraction zero.
    if digits.len() > shift as usize {
        return None;
    }
    let mut digits: Vec<_> = digits.bytes().map(|digit| digit - b'0').collect();
    let mut whole = 0;
    for _ in 0..shift {
        let mut carry = 0;
        for digit in digits.iter_mut().rev() {
            let doubled = *digit * 2 + carry;
            (*digit, carry) = (doubled % 10, doubled / 10);
        }
        whole = whole << 1 | u64::from(carry);
    }
    digits.iter().all(|digit| *digit == 0).then_some(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(text: &str) -> Result<u64, MemorySpecError> {
        text.parse::<MemorySpec>().map(|spec| spec.size)
    }

    #[test]
    fn sizes_are_read_with_and_without_units() {
        assert_eq!(size("1048576"), Ok(1 << 20));
        assert_eq!(size("512M"), Ok(512 << 20));
        assert_eq!(size("512m"), Ok(512 << 20));
        assert_eq!(size("64MiB"), Ok(64 << 20));
        assert_eq!(size("64MB"), Ok(64 << 20));
        assert_eq!(size("2G"), Ok(2 << 30));
        assert_eq!(size("0"), Ok(0));
        assert_eq!(size("1E"), Ok(1 << 60));
    }

    #[test]
    fn fractions_are_read_exactly_or_refused() {
        assert_eq!(size("3.5G"), Ok(3584 << 20));
        assert_eq!(size("0.25GiB"), Ok(256 << 20));
        assert_eq!(size("1.0"), Ok(1));
        assert_eq!(size("2.50000000000000000000000000000000000000000000000M"), Ok(2560 << 10));
        assert_eq!(size("1.0009765625M"), Ok(1025 << 10));
        // One byte beyond 1 EiB, and just short of 2^64.
        let byte = "867361737988403547205962240695953369140625";
        assert_eq!(size(&format!("1.{byte:0>60}E")), Ok((1 << 60) + 1));
        assert_eq!(size("15.5E"), Ok(31 << 59));
        for text in
            ["3.3G", "0.1M", "1.5", "1.00048828125K", "1.0000000000000000000000000000000000000000001E"]
        {
            assert_eq!(size(text), Err(MemorySpecError::Fraction(text.to_owned())), "{text}");
        }
        let endless = format!("1.{}M", "3".repeat(10_000));
        assert_eq!(size(&endless), Err(MemorySpecError::Fraction(endless.clone())));
        assert!(matches!(size("16.5E"), Err(MemorySpecError::TooLarge(_))));
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "", "M", "-1", "+1", "1.", "1.G", ".5G", ".", "1.5.5G", "1..5G", "1.-5G", "512X", "512 M", " 1M",
            "1Mi", "1ib", "0x10", "1MM", "ⅧM",
        ] {
            assert_eq!(size(text), Err(MemorySpecError::Size(text.to_owned())), "{text}");
        }
        for text in ["16E", "99999999999999999999", "18446744073709551616"] {
            assert_eq!(size(text), Err(MemorySpecError::TooLarge(text.to_owned())), "{text}");
        }
    }

    #[test]
    fn words_after_the_size_say_how_it_is_backed() {
        let spec: MemorySpec = "512M,hugepages,prefault".parse().unwrap();
        assert_eq!(spec.options, Options { hugepages: true, prefault: true, ..Options::default() });
        let spec: MemorySpec = "512M,mergeable".parse().unwrap();
        assert_eq!(spec.options, Options { mergeable: true, ..Options::default() });
        assert_eq!("1G,huge".parse::<MemorySpec>(), Err(MemorySpecError::Word("huge".to_owned())));
        assert_eq!("1G,".parse::<MemorySpec>(), Err(MemorySpecError::Word(String::new())));
        assert_eq!("1G,mergeable,hugetlb".parse::<MemorySpec>(), Err(MemorySpecError::NeverMerged));
        assert_eq!("1G,hugetlb,hugepages".parse::<MemorySpec>(), Err(MemorySpecError::Exclusive));
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
            "12345",
            "2T,hugetlb",
            "1G,prefault,mergeable",
        ] {
            assert_eq!(text.parse::<MemorySpec>().unwrap().to_string(), text);
        }
    }
}
