//! What a user says about the number of processors: `4`, `8,sockets=2,threads=2`, `cores=2,threads=2`.

use std::fmt;
use std::str::FromStr;

use crate::x86::topology::{Topology, TopologyError};

/// Sockets, cores in each, threads in each core, as somebody asked for them. Whether a machine can have them is
/// for [`CpusSpec::topology`] to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpusSpec {
    /// How many sockets.
    pub sockets: u32,
    /// How many cores in each socket.
    pub cores: u32,
    /// How many threads in each core.
    pub threads: u32,
}

impl CpusSpec {
    /// The arrangement, if a machine can have it.
    pub fn topology(&self) -> Result<Topology, TopologyError> {
        Topology::new(self.sockets, self.cores, self.threads)
    }

    /// As many as `count`, with these sockets, cores and threads; what is not given is what makes the number right.
    pub(super) fn arranged(
        count: Option<u32>,
        [sockets, cores, threads]: [Option<u32>; 3],
    ) -> Result<Self, CpusSpecError> {
        Named { sockets, cores, threads }.arranged(count)
    }

    fn product(&self) -> u128 {
        u128::from(self.sockets) * u128::from(self.cores) * u128::from(self.threads)
    }
}

/// One socket with so many cores.
impl From<u32> for CpusSpec {
    fn from(cores: u32) -> Self {
        Self { sockets: 1, cores, threads: 1 }
    }
}

/// One processor.
impl Default for CpusSpec {
    fn default() -> Self {
        1.into()
    }
}

impl fmt::Display for CpusSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.product())?;
        match self {
            Self { sockets: 1, threads: 1, .. } => Ok(()),
            Self { sockets, cores, threads } => {
                write!(f, ",sockets={sockets},cores={cores},threads={threads}")
            }
        }
    }
}

/// Why a text does not describe processors.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CpusSpecError {
    /// Not a whole number of 32 bits.
    #[error("{0:?} is not a number of processors: write a whole number, as in 4")]
    Number(String),
    /// Not one of the levels.
    #[error("{0:?} says nothing about processors; there are sockets=S, cores=C and threads=T")]
    Word(String),
    /// The same level again.
    #[error("{0} is given twice")]
    Twice(&'static str),
    /// The number is not the product of its parts.
    #[error("{count} processors cannot be arranged as {parts}: their number is sockets × cores × threads")]
    Product {
        /// How many processors were asked for.
        count: u32,
        /// The levels that were given.
        parts: String,
    },
}

/// The levels that a text names.
#[derive(Default)]
struct Named {
    sockets: Option<u32>,
    cores: Option<u32>,
    threads: Option<u32>,
}

impl FromStr for CpusSpec {
    type Err = CpusSpecError;

    /// A level that is not given is what makes the number right: the cores, or else the sockets, or else the
    /// threads. Without a number it is 1.
    fn from_str(text: &str) -> Result<Self, CpusSpecError> {
        let (first, rest) = text.split_once(',').map_or((text, None), |(first, rest)| (first, Some(rest)));
        let (count, words) =
            if first.contains('=') { (None, Some(text)) } else { (Some(number(first)?), rest) };
        let mut named = Named::default();
        for word in words.into_iter().flat_map(|words| words.split(',')) {
            named.take(word)?;
        }
        named.arranged(count)
    }
}

fn number(text: &str) -> Result<u32, CpusSpecError> {
    let wrong = || CpusSpecError::Number(text.to_owned());
    // `parse` would take a sign.
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    text.parse().map_err(|_| wrong())
}

impl Named {
    fn take(&mut self, word: &str) -> Result<(), CpusSpecError> {
        let unknown = || CpusSpecError::Word(word.to_owned());
        let (key, value) = word.split_once('=').ok_or_else(unknown)?;
        let (name, place) = match key {
            "sockets" => ("sockets", &mut self.sockets),
            "cores" => ("cores", &mut self.cores),
            "threads" => ("threads", &mut self.threads),
            _ => return Err(unknown()),
        };
        match place.replace(number(value)?) {
            Some(_) => Err(CpusSpecError::Twice(name)),
            None => Ok(()),
        }
    }

    fn arranged(&self, count: Option<u32>) -> Result<CpusSpec, CpusSpecError> {
        match count {
            None => Ok(self.or_one()),
            Some(count) => {
                self.complete(count).ok_or_else(|| CpusSpecError::Product { count, parts: self.to_string() })
            }
        }
    }

    fn or_one(&self) -> CpusSpec {
        let [sockets, cores, threads] =
            [self.sockets, self.cores, self.threads].map(|level| level.unwrap_or(1));
        CpusSpec { sockets, cores, threads }
    }

    fn complete(&self, count: u32) -> Option<CpusSpec> {
        let CpusSpec { sockets, cores, threads } = self.or_one();
        let spec = match (self.sockets, self.cores, self.threads) {
            (_, None, _) => CpusSpec { sockets, cores: share(count, sockets, threads)?, threads },
            (None, Some(_), _) => CpusSpec { sockets: share(count, cores, threads)?, cores, threads },
            (Some(_), Some(_), None) => CpusSpec { sockets, cores, threads: share(count, sockets, cores)? },
            (Some(_), Some(_), Some(_)) => CpusSpec { sockets, cores, threads },
        };
        (spec.product() == count.into()).then_some(spec)
    }
}

/// How many are left for each of `one` × `other`.
fn share(count: u32, one: u32, other: u32) -> Option<u32> {
    let each = u64::from(count).checked_div(u64::from(one) * u64::from(other))?;
    // No more than `count`.
    u32::try_from(each).ok()
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let levels = [(self.sockets, "sockets"), (self.cores, "cores"), (self.threads, "threads")];
        let given = levels.into_iter().filter_map(|(count, name)| Some((count?, name)));
        for (at, (count, name)) in given.enumerate() {
            write!(f, "{}{count} {name}", if at == 0 { "" } else { " × " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<(u32, u32, u32), CpusSpecError> {
        text.parse::<CpusSpec>().map(|CpusSpec { sockets, cores, threads }| (sockets, cores, threads))
    }

    #[test]
    fn a_number_alone_is_so_many_cores() {
        assert_eq!(parse("1"), Ok((1, 1, 1)));
        assert_eq!(parse("6"), Ok((1, 6, 1)));
        // Whether a machine can have them is another question.
        assert_eq!(parse("0"), Ok((1, 0, 1)));
        assert_eq!(parse("4294967295"), Ok((1, u32::MAX, 1)));
    }

    #[test]
    fn the_level_that_is_not_given_makes_the_number_right() {
        assert_eq!(parse("8,sockets=2"), Ok((2, 4, 1)));
        assert_eq!(parse("8,threads=2"), Ok((1, 4, 2)));
        assert_eq!(parse("8,cores=2"), Ok((4, 2, 1)));
        assert_eq!(parse("8,cores=2,threads=2"), Ok((2, 2, 2)));
        assert_eq!(parse("8,sockets=2,cores=2"), Ok((2, 2, 2)));
        assert_eq!(parse("8,threads=2,sockets=4"), Ok((4, 1, 2)));
        assert_eq!(parse("8,sockets=2,cores=4,threads=1"), Ok((2, 4, 1)));
        assert_eq!(parse("sockets=2,threads=2"), Ok((2, 1, 2)));
        assert_eq!(parse("cores=3"), Ok((1, 3, 1)));
    }

    #[test]
    fn a_number_that_is_not_the_product_is_refused() {
        for (text, parts) in [
            ("8,sockets=3", "3 sockets"),
            ("8,sockets=2,cores=3,threads=2", "2 sockets × 3 cores × 2 threads"),
            ("4,cores=8", "8 cores"),
            ("1,sockets=0", "0 sockets"),
            ("4,sockets=4294967295,cores=4294967295,threads=4294967295", "× 4294967295 cores ×"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(parts), "{error}");
        }
    }

    #[test]
    fn what_means_nothing_is_refused() {
        for text in ["", "two", "-1", "+1", "1.5", "4294967296", "2,", " 2", "2x"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
        assert_eq!(parse("2,dies=2"), Err(CpusSpecError::Word("dies=2".to_owned())));
        assert_eq!(parse("2,cores"), Err(CpusSpecError::Word("cores".to_owned())));
        assert_eq!(parse("2,cores=x"), Err(CpusSpecError::Number("x".to_owned())));
        assert_eq!(parse("cores=2,cores=2"), Err(CpusSpecError::Twice("cores")));
        assert_eq!(parse("sockets=2,4"), Err(CpusSpecError::Word("4".to_owned())));
    }

    #[test]
    fn a_description_is_printed_as_it_is_written() {
        for text in ["1", "12", "8,sockets=2,cores=2,threads=2", "4,sockets=1,cores=2,threads=2"] {
            assert_eq!(text.parse::<CpusSpec>().unwrap().to_string(), text);
        }
    }
}
