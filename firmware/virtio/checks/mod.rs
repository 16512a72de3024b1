//! Checks of every virtio device that is found: what the specification promises a driver, and what a device does when
//! its driver breaks the rules.
//!
//! [`transport`], [`features`], [`queues`] and [`misuse`] are the same for all devices and know one harmless request of
//! each ([`Sample`]); the other modules know one kind each. A check begins with a device that was reset and with all
//! free memory. Each prints a line, which tests read.

mod balloon;
mod console;
mod disk;
mod features;
mod misuse;
mod queues;
mod ranges;
mod request;
mod rng;
mod sample;
mod subject;
mod transport;

use core::fmt;

use super::find::Places;
use super::{Kind, Registers, Unusable};
use crate::machine::Machine;
use crate::println;
use sample::Sample;
use subject::Subject;

/// How many checks ended in which way.
#[derive(Default)]
pub struct Count {
    pub passed: u32,
    pub failed: u32,
    pub not_offered: u32,
}

/// After so many failures of a device the others of it say little, and may each take as long as a check can.
const ENOUGH: u32 = 5;

/// Why a check did not pass.
enum Failure {
    /// The device lacks what is to be checked.
    NotOffered,
    /// One number instead of another.
    Seen { what: &'static str, seen: u64, expected: u64 },
    /// What speaks for itself.
    Said(&'static str),
}

type Outcome = Result<(), Failure>;

/// A check with its name.
type Check = (&'static str, fn(&mut Subject) -> Outcome);

impl From<Unusable> for Failure {
    fn from(unusable: Unusable) -> Self {
        Self::Said(unusable.reason())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotOffered => f.write_str("not offered"),
            Self::Seen { what, seen, expected } => write!(f, "{what} {seen:#x} instead of {expected:#x}"),
            Self::Said(said) => f.write_str(said),
        }
    }
}

/// Compares numbers.
fn same(what: &'static str, seen: impl Into<u64>, expected: impl Into<u64>) -> Outcome {
    let (seen, expected) = (seen.into(), expected.into());
    if seen == expected { Ok(()) } else { Err(Failure::Seen { what, seen, expected }) }
}

/// Fails with these words unless something holds.
fn holds(condition: bool, otherwise: &'static str) -> Outcome {
    if condition { Ok(()) } else { Err(Failure::Said(otherwise)) }
}

/// What is known of a kind of device.
struct Known {
    kind: Kind,
    name: &'static str,
    /// Its own features: bit, name.
    features: &'static [(u32, &'static str)],
    /// How many queues it says that it has.
    queues: fn(&Subject) -> u32,
    sample: fn(&mut Subject) -> Result<Sample, Failure>,
    checks: &'static [Check],
}

const KNOWN: &[Known] = &[disk::KNOWN, rng::KNOWN, balloon::KNOWN, console::KNOWN];

/// Which checks are made.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Those of one kind of device alone, where several devices of a kind differ in what is behind them.
    Own,
    /// Also those of all devices.
    Usual,
    /// Also those that take their time.
    Long,
}

/// Checks all devices.
pub fn run(machine: &Machine, extent: Extent) -> Count {
    let mut count = Count::default();
    for place in Places::find(&machine.boot).iter() {
        let Some(registers) = Registers::at(place) else { continue };
        let kind = registers.kind();
        match KNOWN.iter().find(|known| known.kind == kind) {
            Some(known) => check(&mut Subject::new(machine, *place, registers, known), extent, &mut count),
            // Some machines have more places than devices.
            None if kind.0 == 0 => {}
            None => {
                count.note(kind.name(), format_args!("any"), Err(Failure::Said("there are no checks of it")))
            }
        }
    }
    if count.passed + count.failed == 0 {
        println!("there is no device; virtio lists what there is");
        count.failed += 1;
    }
    count
}

fn check(subject: &mut Subject, extent: Extent, count: &mut Count) {
    let before = count.failed;
    subject.listen();
    features::run(subject, count);
    let mut checks = [subject.known.checks, &[], &[], &[]];
    if extent != Extent::Own {
        misuse::run(subject, count);
        checks = [transport::CHECKS, queues::CHECKS, subject.known.checks, &[]];
    }
    if extent == Extent::Long {
        checks[3] = queues::LONG;
    }
    for &(what, check) in checks.into_iter().flatten() {
        if count.failed - before >= ENOUGH {
            println!("{} fails so much that the rest is left out", subject.known.name);
            break;
        }
        subject.renew();
        let outcome = check(subject);
        count.note(subject.known.name, format_args!("{what}"), outcome);
    }
    subject.leave();
}

impl Count {
    fn note(&mut self, device: &str, what: fmt::Arguments, outcome: Outcome) {
        match outcome {
            Ok(()) => {
                self.passed += 1;
                println!("ok {device} {what}");
            }
            Err(Failure::NotOffered) => {
                self.not_offered += 1;
                println!("-- {device} {what}: not offered");
            }
            Err(failure) => {
                self.failed += 1;
                println!("FAILED {device} {what}: {failure}");
            }
        }
    }
}
