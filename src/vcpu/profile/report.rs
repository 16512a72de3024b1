//! A profile as text that explains itself.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Write};

use super::{MOST_SAMPLES, Profile, Sample};
use crate::boot::Symbols;

/// What samples are counted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Place<'s> {
    Function(&'s str),
    User,
    NotStarted,
    Address(u64),
}

/// Where a processor is that waits to be started by another one.
const RESET_VECTOR: u64 = 0xffff_fff0;

impl<'s> Place<'s> {
    fn of(sample: &Sample, symbols: Option<&'s Symbols>) -> (Self, u64) {
        let &Sample { address, ring, .. } = sample;
        let find = if ring == 0 { Symbols::find } else { Symbols::find_linked };
        match symbols.and_then(|symbols| find(symbols, address)) {
            Some((name, offset)) => (Self::Function(name), offset),
            None if ring == 3 => (Self::User, 0),
            None if address == RESET_VECTOR => (Self::NotStarted, 0),
            None => (Self::Address(address), 0),
        }
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Function(name) => f.write_str(name),
            Self::User => f.write_str("[user]"),
            Self::NotStarted => f.write_str("[not started]"),
            Self::Address(address) => write!(f, "{address:#x}"),
        }
    }
}

impl Profile {
    /// Writes all of it to `out`: what was sampled, a table by function, and every sample.
    pub fn write(&self, symbols: Option<&Symbols>, out: &mut impl Write) -> io::Result<()> {
        self.write_header(symbols, out)?;
        self.write_table(symbols, out)?;
        self.write_samples(symbols, out)
    }

    /// What is said in one line: how many samples in how long, and where most of them are.
    pub fn summary(&self, symbols: Option<&Symbols>) -> String {
        let counted = format!("{} samples in {:.1} s", self.samples.len(), self.duration.as_secs_f64());
        match self.by_place(symbols).first() {
            Some(&(place, count)) => format!("{counted}, top: {place} {:.0} %", self.percent(count)),
            None => counted,
        }
    }

    fn percent(&self, count: u64) -> f64 {
        count as f64 * 100.0 / self.samples.len().max(1) as f64
    }

    /// Each place with its samples, the most frequent first.
    fn by_place<'s>(&self, symbols: Option<&'s Symbols>) -> Vec<(Place<'s>, u64)> {
        let mut counts = HashMap::new();
        for sample in &self.samples {
            *counts.entry(Place::of(sample, symbols).0).or_insert(0) += 1;
        }
        let mut counts: Vec<_> = counts.into_iter().collect();
        counts.sort_unstable_by(|(one, more), (other, less)| less.cmp(more).then(one.cmp(other)));
        counts
    }

    fn write_header(&self, symbols: Option<&Symbols>, out: &mut impl Write) -> io::Result<()> {
        let Self { samples, interval, duration, vcpus, dropped, late } = self;
        writeln!(out, "# lodger profile: where the guest's processors were, sampled from outside")?;
        writeln!(out, "# samples:  {} of {vcpus} vCPUs in {:.3} s", samples.len(), duration.as_secs_f64())?;
        writeln!(out, "# interval: {interval} for each vCPU, on average")?;
        writeln!(out, "# late:     {late} times a vCPU still owed a sample when the next one was due")?;
        writeln!(out, "# dropped:  {dropped} samples, as at most {MOST_SAMPLES} are kept")?;
        match symbols {
            Some(symbols) => {
                writeln!(out, "# symbols:  {} functions in {}", symbols.count(), symbols.source())?;
            }
            None => writeln!(out, "# symbols:  none; --symbols names a vmlinux or System.map that has them")?,
        }
        writeln!(out, "# A vCPU that halts counts where it halts; one that is paused is not sampled.")?;
        writeln!(out, "# [user] is ring 3, [not started] a vCPU that no other has started yet.")?;
        writeln!(out, "# Code without a symbol stands there by its address.")
    }

    fn write_table(&self, symbols: Option<&Symbols>, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "#\n# By function:\n#  share  samples  symbol")?;
        for (place, count) in self.by_place(symbols) {
            writeln!(out, "{:>6.2} % {count:>8}  {place}", self.percent(count))?;
        }
        Ok(())
    }

    fn write_samples(&self, symbols: Option<&Symbols>, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "#\n# Every sample:\n# seconds vcpu ring address symbol+offset")?;
        for sample in &self.samples {
            let &Sample { nanoseconds, address, vcpu, ring } = sample;
            let (seconds, rest) = (nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000 / 1000);
            write!(out, "{seconds}.{rest:06} {vcpu} {ring} {address:#018x} ")?;
            match Place::of(sample, symbols) {
                (place @ Place::Function(_), offset) => writeln!(out, "{place}+{offset:#x}")?,
                (place, _) => writeln!(out, "{place}")?,
            }
        }
        Ok(())
    }
}
