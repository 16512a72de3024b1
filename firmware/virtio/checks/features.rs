//! Agreeing on features (specification 1.2, section 2.2): each alone, all together, and what is not offered.

use super::subject::Subject;
use super::{Count, Failure, Outcome, same};
use crate::virtio::{feature, register, status};

/// Features of all devices.
const COMMON: &[(u32, &str)] = &[(28, "INDIRECT_DESC"), (29, "EVENT_IDX"), (32, "VERSION_1")];

/// A driver asks whether the features that it chose will do.
const TRIES: u32 = status::ACKNOWLEDGED | status::DRIVER | status::FEATURES_OK;

pub fn run(subject: &mut Subject, count: &mut Count) {
    let (known, offered) = (subject.known, subject.offered);
    let named = || known.features.iter().chain(COMMON);
    for &(bit, name) in named() {
        let feature = 1 << bit;
        let outcome = match offered & feature {
            0 => Err(Failure::NotOffered),
            _ => accepted(subject, feature | feature::VERSION_1),
        };
        count.note(known.name, format_args!("feature {name} alone"), outcome);
    }
    let all_named = named().fold(0, |all, (bit, _)| all | 1 << bit);
    let mut note = |what, outcome| count.note(known.name, format_args!("{what}"), outcome);
    note("features all known", same("unknown", offered & !all_named, 0_u64));
    note("features all together", accepted(subject, offered));
    note("features not offered", not_offered(subject));
    note("features without VERSION_1", refused(subject, offered & !feature::VERSION_1));
}

fn accepted(subject: &Subject, features: u64) -> Outcome {
    subject.registers.agree(features)?;
    subject.registers.run();
    same("status", subject.registers.status(), 0xf_u32)?;
    subject.registers.reset();
    Ok(())
}

/// One after another, without a reset between them: a driver may try with fewer.
fn not_offered(subject: &Subject) -> Outcome {
    let registers = subject.registers;
    refused(subject, feature::VERSION_1 | !subject.offered)?;
    for bit in (0..64).filter(|bit| subject.offered & 1 << bit == 0) {
        registers.accept(feature::VERSION_1 | 1 << bit);
        registers.write(register::STATUS, TRIES);
        if registers.status() & status::FEATURES_OK != 0 {
            return Err(Failure::Seen { what: "it accepts", seen: 1 << bit, expected: subject.offered });
        }
    }
    registers.accept(feature::VERSION_1);
    registers.write(register::STATUS, TRIES);
    same("status", registers.status(), TRIES)
}

/// A device that refuses says so by a bit that stays clear, and does not begin.
fn refused(subject: &Subject, features: u64) -> Outcome {
    let registers = subject.registers;
    if registers.agree(features).is_ok() {
        return Err(Failure::Seen { what: "it accepts", seen: features, expected: subject.offered });
    }
    registers.write(register::STATUS, registers.status() | status::FEATURES_OK | status::RUNNING);
    same("status", registers.status(), status::ACKNOWLEDGED | status::DRIVER)
}
