//! Checks of balloons (specification 1.2, section 5.5). Pages that the host got back read as zeroes when they are used
//! again.

use super::subject::{Subject, bytes};
use super::{Check, Failure, Known, Outcome, Sample, holds, same};
use crate::virtio::queue::{Part, Queue};
use crate::virtio::{Kind, register};

pub const KNOWN: Known = Known {
    kind: Kind::BALLOON,
    name: "balloon",
    features: &[(1, "STATS_VQ"), (2, "DEFLATE_ON_OOM"), (4, "PAGE_POISON"), (5, "PAGE_REPORTING")],
    queues: |_| 5,
    sample,
    checks: CHECKS,
};

mod feature {
    pub const STATISTICS: u64 = 1 << 1;
    pub const POISON: u64 = 1 << 4;
    pub const REPORTING: u64 = 1 << 5;
}

const PAGE: u64 = 4096;
const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
const STATISTICS: u16 = 2;
/// Where nothing else has a queue of its own before it, as where all have.
const REPORTS: [u16; 2] = [3, 4];

mod field {
    pub const TARGET: u64 = 0;
    pub const ACTUAL: u64 = 4;
    pub const POISON: u64 = 12;
}

const CHECKS: &[Check] = &[
    ("configuration", configuration),
    ("inflated pages are gone", inflate),
    ("inflated pages in any order", any_order),
    ("a list in odd pieces", pieces),
    ("deflated pages work", deflate),
    ("misuse: a page that is none", |subject| misused(subject, &[u32::MAX], 4)),
    ("misuse: a page of a device", |subject| misused(subject, &[0xd_0000], 4)),
    ("misuse: half a page number", |subject| misused(subject, &[0x200], 6)),
    ("statistics wait to be asked for", statistics),
    ("statistics of any tags", any_statistics),
    ("reported pages are gone", report),
    ("reports of parts of pages", parts_of_pages),
    ("poisoned pages stay", poison),
    ("misuse: a report of no memory", report_of_no_memory),
    ("misuse: a report that is to be read", report_to_read),
];

fn sample(subject: &mut Subject) -> Result<Sample, Failure> {
    let page = subject.memory(PAGE)?;
    crate::memory::write(page, page / PAGE, 4);
    // Out of a balloon that holds nothing.
    Ok(Sample::new(DEFLATE, &[given(page, 1), given(page + 1, 3)], 0))
}

fn given(address: u64, length: u32) -> Part {
    Part { address, length, written: false }
}

/// Pages with something in them.
fn pages(subject: &mut Subject, count: u64) -> Result<u64, Failure> {
    let start = subject.memory(count * PAGE)?;
    bytes(start, count * PAGE).fill(0xa5);
    Ok(start)
}

/// Which of the pages from `start` on hold zeroes, by bits; others have to be as they were.
fn gone(start: u64, count: u64) -> Result<u64, Failure> {
    let mut gone = 0;
    for number in 0..count {
        let page = bytes(start + number * PAGE, PAGE);
        if page.iter().all(|&byte| byte == 0) {
            gone |= 1 << number;
        } else {
            holds(page.iter().all(|&byte| byte == 0xa5), "a page was changed in part")?;
        }
    }
    Ok(gone)
}

/// A list of page numbers: these of the pages from `start` on.
fn list(subject: &mut Subject, start: u64, numbers: &[u64]) -> Result<Part, Failure> {
    let list = subject.memory(PAGE)?;
    for (at, number) in (list..).step_by(4).zip(numbers) {
        crate::memory::write(at, start / PAGE + number, 4);
    }
    Ok(given(list, 4 * numbers.len() as u32))
}

fn configuration(subject: &mut Subject) -> Outcome {
    let registers = subject.registers;
    let at = |field| register::CONFIGURATION + field;
    let target = registers.configuration(field::TARGET);
    registers.write_as(at(field::TARGET), !target);
    same("target that was written to", registers.configuration(field::TARGET), target)?;
    subject.start(INFLATE, u16::MAX, 0)?;
    for field in [field::ACTUAL, field::POISON] {
        registers.write_as(at(field), 0x1122_3344_u32);
        registers.write_as(at(field) + 1, 0x55_u8);
        registers.write_as(at(field) + 2, 0x6677_u16);
        same("what was written", registers.configuration(field), 0x6677_5544_u32)?;
    }
    registers.write_as(at(field::TARGET), 0x9988_7766_0000_0000_u64);
    same("what was written at once", registers.configuration(field::ACTUAL), 0x9988_7766_u32)?;
    same("target that was written to", registers.configuration(field::TARGET), target)?;
    // What a driver said goes with it.
    registers.reset();
    same("after reset: pages", registers.configuration(field::ACTUAL), 0_u32)?;
    same("after reset: poison", registers.configuration(field::POISON), 0_u32)?;
    same("after reset: target", registers.configuration(field::TARGET), target)
}

fn inflate(subject: &mut Subject) -> Outcome {
    let mut queue = subject.start(INFLATE, u16::MAX, 0)?;
    let start = pages(subject, 8)?;
    let list = list(subject, start, &[1, 2, 3, 6])?;
    same("written", subject.ask(&mut queue, &[list])?, 0_u32)?;
    same("pages gone", gone(start, 8)?, 0b0100_1110_u64)?;
    // They are memory as before.
    bytes(start, 8 * PAGE).fill(0xa5);
    same("pages gone", gone(start, 8)?, 0_u64)
}

fn any_order(subject: &mut Subject) -> Outcome {
    let mut queue = subject.start(INFLATE, u16::MAX, 0)?;
    let start = pages(subject, 16)?;
    let list = list(subject, start, &[9, 2, 11, 10, 2, 2, 9, 0, 15])?;
    subject.ask(&mut queue, &[list])?;
    same("pages gone", gone(start, 16)?, 0b1000_1110_0000_0101_u64)
}

fn pieces(subject: &mut Subject) -> Outcome {
    let mut queue = subject.start(INFLATE, u16::MAX, 0)?;
    let start = pages(subject, 8)?;
    let Part { address, .. } = list(subject, start, &[0, 4, 5])?;
    subject.ask(&mut queue, &[given(address, 1), given(address + 1, 6), given(address + 7, 5)])?;
    same("pages gone", gone(start, 8)?, 0b11_0001_u64)
}

fn deflate(subject: &mut Subject) -> Outcome {
    let features = subject.offered;
    subject.registers.agree(features)?;
    let mut inflate = subject.queue(INFLATE, u16::MAX, features)?;
    let mut deflate = subject.queue(DEFLATE, u16::MAX, features)?;
    subject.registers.run();
    let start = pages(subject, 4)?;
    let list = list(subject, start, &[0, 1, 2, 3])?;
    subject.ask(&mut inflate, &[list])?;
    same("written", subject.ask(&mut deflate, &[list])?, 0_u32)?;
    same("pages gone", gone(start, 4)?, 0b1111_u64)?;
    bytes(start, 4 * PAGE).fill(0xa5);
    // What is out of the balloon stays what it is.
    subject.ask(&mut deflate, &[list])?;
    same("pages gone", gone(start, 4)?, 0_u64)
}

/// A list that has to be refused as a whole.
fn misused(subject: &mut Subject, numbers: &[u32], length: u32) -> Outcome {
    for number in [INFLATE, DEFLATE] {
        let queue = subject.start(number, u16::MAX, 0)?;
        let start = pages(subject, 1)?;
        let list = list(subject, start, &[0])?;
        for (at, &number) in (list.address + 4..).step_by(4).zip(numbers) {
            crate::memory::write(at, number.into(), 4);
        }
        is_misuse(subject, queue, given(list.address, 4 + length))?;
        same("pages gone", gone(start, 1)?, 0_u64)?;
        subject.renew();
    }
    Ok(())
}

fn is_misuse(subject: &mut Subject, mut queue: Queue, part: Part) -> Outcome {
    queue.describe(0, &[part]);
    queue.give(0);
    queue.show();
    subject.stops()?;
    subject.works()
}

/// The device keeps the buffer until its owner asks, which nobody does here.
fn statistics(subject: &mut Subject) -> Outcome {
    subject.needs(feature::STATISTICS)?;
    let features = subject.offered;
    subject.registers.agree(features)?;
    let mut statistics = subject.queue(STATISTICS, u16::MAX, features)?;
    let mut deflate = subject.queue(DEFLATE, u16::MAX, features)?;
    subject.registers.run();
    give_statistics(subject, &mut statistics, 10)?;
    // The others go on meanwhile.
    let sample = subject.sample()?;
    subject.ask_sample(&mut deflate, &sample)?;
    subject.settle();
    holds(statistics.take().is_none(), "it gives statistics back that nobody has asked for")
}

/// Tags that there are, tags that there are not, and half an entry at the end.
fn any_statistics(subject: &mut Subject) -> Outcome {
    subject.needs(feature::STATISTICS)?;
    for entries in [1, 100] {
        let mut queue = subject.start(STATISTICS, u16::MAX, feature::STATISTICS)?;
        give_statistics(subject, &mut queue, entries)?;
        subject.settle();
        same("status", subject.registers.status(), 0xf_u32)?;
        subject.renew();
    }
    Ok(())
}

fn give_statistics(subject: &mut Subject, queue: &mut Queue, entries: u64) -> Outcome {
    let list = subject.memory(entries * 10)?;
    for tag in 0..entries {
        crate::memory::write(list + tag * 10, tag, 2);
        crate::memory::write(list + tag * 10 + 2, tag << 20, 8);
    }
    queue.describe(0, &[given(list, entries as u32 * 10 - 5)]);
    queue.give(0);
    queue.show();
    Ok(())
}

fn free(address: u64, length: u64) -> Part {
    Part { address, length: length as u32, written: true }
}

/// Drivers count queues in two ways, and both are served.
fn report(subject: &mut Subject) -> Outcome {
    subject.needs(feature::REPORTING)?;
    for number in REPORTS {
        let mut queue = subject.start(number, u16::MAX, feature::REPORTING)?;
        let start = pages(subject, 8)?;
        subject.ask(&mut queue, &[free(start, PAGE), free(start + 4 * PAGE, 2 * PAGE)])?;
        same("pages gone", gone(start, 8)?, 0b11_0001_u64)?;
        subject.renew();
    }
    Ok(())
}

fn parts_of_pages(subject: &mut Subject) -> Outcome {
    subject.needs(feature::REPORTING)?;
    let mut queue = subject.start(REPORTS[1], u16::MAX, feature::REPORTING)?;
    let start = pages(subject, 8)?;
    subject.ask(&mut queue, &[free(start + 100, 3 * PAGE), free(start + 6 * PAGE, 17)])?;
    same("pages gone", gone(start, 8)?, 0b110_u64)
}

/// Of free pages that are expected to hold something else than zeroes, none is given back (section 5.5.6.7).
fn poison(subject: &mut Subject) -> Outcome {
    subject.needs(feature::REPORTING | feature::POISON)?;
    for (poison, expected) in [(0xa5a5_a5a5_u32, 0_u64), (0, 0b11)] {
        let features = crate::virtio::feature::VERSION_1 | feature::REPORTING | feature::POISON;
        subject.registers.agree(features)?;
        let mut queue = subject.queue(REPORTS[1], u16::MAX, features)?;
        subject.registers.write_as(register::CONFIGURATION + field::POISON, poison);
        subject.registers.run();
        let start = pages(subject, 2)?;
        subject.ask(&mut queue, &[free(start, 2 * PAGE)])?;
        same("pages gone", gone(start, 2)?, expected)?;
        subject.renew();
    }
    Ok(())
}

fn report_of_no_memory(subject: &mut Subject) -> Outcome {
    subject.needs(feature::REPORTING)?;
    let queue = subject.start(REPORTS[1], u16::MAX, feature::REPORTING)?;
    is_misuse(subject, queue, free(0xd000_0000, PAGE))
}

fn report_to_read(subject: &mut Subject) -> Outcome {
    subject.needs(feature::REPORTING)?;
    let queue = subject.start(REPORTS[1], u16::MAX, feature::REPORTING)?;
    let start = pages(subject, 1)?;
    is_misuse(subject, queue, given(start, PAGE as u32))?;
    // Only then could it be read as one.
    same("pages gone", gone(start, 1)?, 0_u64)
}
