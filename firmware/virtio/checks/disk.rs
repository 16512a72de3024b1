//! Checks of disks (specification 1.2, section 5.2). Those that write leave what they wrote, for who looks from
//! outside.

use super::request::{
    DONE, FAILED, HEADER, Running, UNSUPPORTED, fill, is_filled, kind, misused, to_read, to_write,
};
use super::subject::{Subject, bytes};
use super::{Check, Failure, Known, Outcome, Sample, holds, same};
use crate::virtio::Kind;
use crate::virtio::disk::SECTOR;
use crate::virtio::queue::{Part, Queue};

pub const KNOWN: Known = Known {
    kind: Kind::DISK,
    name: "disk",
    features: &[
        (2, "SEG_MAX"),
        (5, "RO"),
        (6, "BLK_SIZE"),
        (9, "FLUSH"),
        (12, "MQ"),
        (13, "DISCARD"),
        (14, "WRITE_ZEROES"),
    ],
    queues: |subject| u32::from(queues(subject)),
    sample,
    checks: CHECKS,
};

/// The device's own features, as far as checks depend on them.
pub mod feature {
    pub const SEGMENTS: u64 = 1 << 2;
    pub const READ_ONLY: u64 = 1 << 5;
    pub const BLOCK_SIZE: u64 = 1 << 6;
    pub const FLUSH: u64 = 1 << 9;
    pub const SEVERAL_QUEUES: u64 = 1 << 12;
    pub const DISCARD: u64 = 1 << 13;
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// How long the identity string is.
const ID: u32 = 20;

/// Where checks write, in sectors; no two of them at the same place.
mod place {
    pub const ID: u64 = 2;
    pub const ONE: u64 = 8;
    pub const PIECES: u64 = 100;
    pub const QUEUES: u64 = 400;
    pub const MANY: u64 = 512;
    pub const LARGE: u64 = 1024;
}

const CHECKS: &[Check] = &[
    ("configuration", configuration),
    ("read", read),
    ("write", write),
    ("data in odd pieces", pieces),
    ("header and status in pieces", split_ends),
    ("a large request", large),
    ("nothing to read or write", nothing),
    ("the last sector", last),
    ("requests behind the end", behind_the_end),
    ("identity string", identity),
    ("flush", flush),
    ("unknown request", unknown),
    ("refuses writes if read-only", read_only),
    ("many requests at once", many),
    ("every queue", every_queue),
    ("misuse: half a sector", half_a_sector),
    ("misuse: half a header", half_a_header),
    ("misuse: no status", no_status),
    ("discard", super::ranges::discard),
    ("write zeroes", super::ranges::write_zeroes),
    ("several ranges", super::ranges::several),
    ("too many ranges", super::ranges::too_many),
    ("ranges that are too long", super::ranges::too_long),
    ("ranges behind the end", super::ranges::behind_the_end),
    ("ranges with unknown flags", super::ranges::flags),
    ("misuse: half a range", super::ranges::half),
];

fn sample(subject: &mut Subject) -> Result<Sample, Failure> {
    let header = subject.memory(64)?;
    let (id, end) = (header + 16, header + 48);
    crate::memory::write(header, kind::GET_ID.into(), 4);
    let parts = [to_read(header, HEADER), to_write(id, ID), to_write(end, 1)];
    Ok(Sample::new(0, &parts, ID + 1).zeroing(end))
}

pub fn writable(subject: &Subject) -> Outcome {
    if subject.offered & feature::READ_ONLY == 0 { Ok(()) } else { Err(Failure::NotOffered) }
}

pub fn capacity(subject: &Subject) -> u64 {
    subject.registers.wide_configuration(0)
}

fn queues(subject: &Subject) -> u16 {
    // Beside the cache's mode.
    (subject.registers.configuration(32) >> 16) as u16
}

fn configuration(subject: &mut Subject) -> Outcome {
    let read = |offset| subject.registers.configuration(offset);
    holds(capacity(subject) >= 4096, "it is smaller than the 2 MiB that the checks need")?;
    subject.needs(feature::SEGMENTS | feature::BLOCK_SIZE)?;
    holds((1..=1 << 15).contains(&read(12)), "no sensible number of segments")?;
    same("size of a block", u64::from(read(20)), SECTOR)?;
    same("several queues", queues(subject) > 1, subject.offered & feature::SEVERAL_QUEUES != 0)?;
    if subject.offered & feature::DISCARD != 0 {
        holds(read(36) > 0 && read(40) > 0 && read(44) > 0, "no limit of what is discarded")?;
    }
    if subject.offered & feature::WRITE_ZEROES != 0 {
        holds(read(48) > 0 && read(52) > 0, "no limit of what is zeroed")?;
    }
    let before = capacity(subject);
    subject.registers.write_as(crate::virtio::register::CONFIGURATION, 1_u32);
    same("capacity that was written to", capacity(subject), before)
}

fn read(subject: &mut Subject) -> Outcome {
    let mut disk = Running::start(subject)?;
    let one = disk.read(0, 8)?;
    let pieces = disk.read(4, 4)?;
    // The same sectors are the same.
    holds(bytes(one, 4096)[2048..] == *bytes(pieces, 2048), "it does not read the same twice")
}

fn write(subject: &mut Subject) -> Outcome {
    writable(subject)?;
    let mut disk = Running::start(subject)?;
    disk.write(place::ONE, 8)?;
    disk.has(place::ONE, 8)?;
    // Into the middle of what was written, and what is around it stays.
    disk.write(place::ONE + 3, 1)?;
    disk.has(place::ONE + 3, 1)?;
    let before = disk.read(place::ONE, 3)?;
    holds(is_filled(before, 3 * SECTOR, place::ONE), "something before it has changed")
}

fn pieces(subject: &mut Subject) -> Outcome {
    const LENGTHS: [u32; 9] = [1, 511, 3, 509, 1024, 7, 1, 2032, 8];
    const TOTAL: u64 = 4096;
    let is_writable = writable(subject).is_ok();
    let mut disk = Running::start(subject)?;
    // Far apart and at odd addresses, so that each stays a piece.
    let scattered = disk.subject.memory(LENGTHS.len() as u64 * 8192)?;
    let whole = disk.subject.memory(TOTAL)?;
    let mut parts = [to_read(0, 0); LENGTHS.len()];
    for ((part, length), number) in parts.iter_mut().zip(LENGTHS).zip(0..) {
        *part = to_read(scattered + number * 8192 + 4091, length);
    }
    if is_writable {
        fill(whole, TOTAL, place::PIECES);
        let mut rest: &[u8] = bytes(whole, TOTAL);
        for part in &parts {
            let (now, later) = rest.split_at(part.length as usize);
            bytes(part.address, part.length.into()).copy_from_slice(now);
            rest = later;
        }
        disk.does(kind::WRITE, place::PIECES, &parts, DONE)?;
        disk.has(place::PIECES, 8)?;
    }
    let read = disk.read(place::PIECES, 8)?;
    parts.iter_mut().for_each(|part| part.written = true);
    bytes(scattered, LENGTHS.len() as u64 * 8192).fill(0);
    let (status, written) = disk.ask(kind::READ, place::PIECES, &parts)?;
    same("status", status, DONE)?;
    same("written", written, TOTAL as u32 + 1)?;
    let mut rest: &[u8] = bytes(read, TOTAL);
    for part in &parts {
        let (now, later) = rest.split_at(part.length as usize);
        holds(bytes(part.address, part.length.into()) == now, "a piece has other data")?;
        same("a byte behind a piece", crate::memory::read8(part.address + u64::from(part.length)), 0_u8)?;
        rest = later;
    }
    Ok(())
}

/// Where one part ends and the next begins is the driver's (section 2.7.4.1).
fn split_ends(subject: &mut Subject) -> Outcome {
    let mut disk = Running::start(subject)?;
    let expected = disk.read(1, 1)?;
    disk.prepare(kind::READ, 1);
    let data = disk.subject.memory(1024)?;
    let end = data + SECTOR;
    crate::memory::write(end, 0xee, 1);
    // The header in three parts; the status right behind the data, in the same part.
    let parts = [
        to_read(disk.ends, 3),
        to_read(disk.ends + 3, 12),
        to_read(disk.ends + 15, 1),
        to_write(data, SECTOR as u32 + 1),
    ];
    let written = disk.subject.ask(&mut disk.queue, &parts)?;
    same("written", written, SECTOR as u32 + 1)?;
    same("status", crate::memory::read8(end), DONE)?;
    holds(bytes(data, SECTOR) == bytes(expected, SECTOR), "it has other data")
}

fn large(subject: &mut Subject) -> Outcome {
    const PARTS: usize = 60;
    const LENGTH: u64 = 8704;
    const SECTORS: u64 = PARTS as u64 * LENGTH / SECTOR;
    let is_writable = writable(subject).is_ok();
    let mut disk = Running::start(subject)?;
    let address = disk.subject.memory(PARTS as u64 * LENGTH)?;
    let mut parts = [to_read(0, LENGTH as u32); PARTS];
    parts.iter_mut().zip(0..).for_each(|(part, number)| part.address = address + number * LENGTH);
    if is_writable {
        fill(address, PARTS as u64 * LENGTH, place::LARGE);
        disk.does(kind::WRITE, place::LARGE, &parts, DONE)?;
        disk.has(place::LARGE, SECTORS)?;
    }
    let whole = disk.read(place::LARGE, SECTORS)?;
    parts.iter_mut().for_each(|part| part.written = true);
    bytes(address, PARTS as u64 * LENGTH).fill(0xcc);
    disk.does(kind::READ, place::LARGE, &parts, DONE)?;
    holds(bytes(whole, SECTORS * SECTOR) == bytes(address, SECTORS * SECTOR), "parts have other data")
}

fn nothing(subject: &mut Subject) -> Outcome {
    let is_writable = writable(subject).is_ok();
    let mut disk = Running::start(subject)?;
    disk.does(kind::READ, 0, &[], DONE)?;
    if is_writable {
        disk.does(kind::WRITE, 0, &[], DONE)?;
    }
    Ok(())
}

fn last(subject: &mut Subject) -> Outcome {
    let last = capacity(subject) - 1;
    let is_writable = writable(subject).is_ok();
    let mut disk = Running::start(subject)?;
    if is_writable {
        disk.write(last, 1)?;
        return disk.has(last, 1);
    }
    disk.read(last, 1).map(drop)
}

fn behind_the_end(subject: &mut Subject) -> Outcome {
    let end = capacity(subject);
    let mut disk = Running::start(subject)?;
    let address = disk.subject.memory(4096)?;
    for sector in [end, end - 1, end + 1, 1 << 40, 1 << 55, u64::MAX / SECTOR, u64::MAX] {
        disk.does(kind::READ, sector, &[to_write(address, 1024)], FAILED)?;
        disk.does(kind::WRITE, sector, &[to_read(address, 1024)], FAILED)?;
    }
    // All else goes on.
    disk.read(0, 1).map(drop)
}

fn identity(subject: &mut Subject) -> Outcome {
    let is_writable = writable(subject).is_ok();
    let mut disk = Running::start(subject)?;
    let address = disk.subject.memory(SECTOR)?;
    let (status, written) = disk.ask(kind::GET_ID, 0, &[to_write(address, ID)])?;
    same("status", status, DONE)?;
    same("written", written, ID + 1)?;
    let id = bytes(address, ID.into());
    let length = id.iter().position(|&byte| byte == 0).unwrap_or(id.len());
    let is_text = id[..length].iter().all(|&byte| byte.is_ascii_graphic() || byte == b' ');
    holds(is_text && id[length..].iter().all(|&byte| byte == 0), "it is no text followed by zeroes")?;
    if is_writable {
        disk.does(kind::WRITE, place::ID, &[to_read(address, SECTOR as u32)], DONE)?;
    }
    Ok(())
}

fn flush(subject: &mut Subject) -> Outcome {
    subject.needs(feature::FLUSH)?;
    let mut disk = Running::start(subject)?;
    let (status, written) = disk.ask(kind::FLUSH, 0, &[])?;
    same("status", status, DONE)?;
    same("written", written, 1_u32)
}

fn unknown(subject: &mut Subject) -> Outcome {
    let mut disk = Running::start(subject)?;
    let address = disk.subject.memory(SECTOR)?;
    for kind in [2, 3, 5, 14, 99, u32::MAX] {
        let (status, written) = disk.ask(kind, 0, &[])?;
        same("status", status, UNSUPPORTED)?;
        same("written", written, 1_u32)?;
        disk.does(kind, 0, &[to_read(address, 512)], UNSUPPORTED)?;
        disk.does(kind, 0, &[to_write(address, 512)], UNSUPPORTED)?;
    }
    same("what nothing was written to", crate::memory::read8(address), 0_u8)
}

fn read_only(subject: &mut Subject) -> Outcome {
    subject.needs(feature::READ_ONLY)?;
    let mut disk = Running::start(subject)?;
    let before = disk.read(place::ONE, 1)?;
    let address = disk.subject.memory(SECTOR)?;
    disk.does(kind::WRITE, place::ONE, &[to_read(address, SECTOR as u32)], FAILED)?;
    for kind in [kind::DISCARD, kind::WRITE_ZEROES] {
        crate::memory::write(address, place::ONE, 8);
        crate::memory::write(address + 8, 1, 8);
        disk.does(kind, 0, &[to_read(address, 16)], FAILED)?;
    }
    let after = disk.read(place::ONE, 1)?;
    holds(bytes(before, SECTOR) == bytes(after, SECTOR), "it was written to all the same")
}

/// As many as there is room for, each of a sector of its own.
fn many(subject: &mut Subject) -> Outcome {
    let is_writable = writable(subject).is_ok();
    let mut disk = Running::start(subject)?;
    let count = u64::from(disk.queue.size() / 3);
    let memory = disk.subject.memory(count * 1024)?;
    for kind in [kind::WRITE, kind::READ].into_iter().skip(usize::from(!is_writable)) {
        for number in 0..count {
            let (data, header) = (memory + number * 1024, memory + number * 1024 + SECTOR);
            fill(data, SECTOR, if kind == kind::WRITE { place::MANY + number } else { 0 });
            crate::memory::write(header, kind.into(), 8);
            crate::memory::write(header + 8, place::MANY + number, 8);
            crate::memory::write(header + 16, 0xee, 1);
            let data = Part { address: data, length: SECTOR as u32, written: kind == kind::READ };
            let first = number as u16 * 3;
            disk.queue.describe(first, &[to_read(header, HEADER), data, to_write(header + 16, 1)]);
            disk.queue.give(first);
        }
        disk.queue.show();
        for _ in 0..count {
            let Running { subject, queue, .. } = &mut disk;
            subject.wait_until("a request has no answer", || queue.take().is_some())?;
        }
        for number in 0..count {
            same("status", crate::memory::read8(memory + number * 1024 + SECTOR + 16), DONE)?;
        }
    }
    let is_right = |number| is_filled(memory + number * 1024, SECTOR, place::MANY + number);
    holds(!is_writable || (0..count).all(is_right), "what is read is not what was written")
}

/// Each works alone, and all of them together.
fn every_queue(subject: &mut Subject) -> Outcome {
    let is_writable = writable(subject).is_ok();
    for number in 0..queues(subject) {
        let mut disk = Running::start_with(subject, number)?;
        if is_writable {
            disk.write(place::QUEUES + u64::from(number), 1)?;
        }
        disk.read(place::QUEUES, 1)?;
        subject.renew();
    }
    let (sample, count) = (subject.sample()?, queues(subject));
    let features = subject.offered;
    subject.registers.agree(features)?;
    let mut set_up: [Option<Queue>; 16] = [const { None }; 16];
    for (place, number) in set_up.iter_mut().zip(0..count) {
        *place = Some(subject.queue(number, u16::MAX, features)?);
    }
    subject.registers.run();
    for queue in set_up.iter_mut().flatten() {
        queue.describe(0, sample.parts());
        queue.give(0);
        queue.show();
    }
    for queue in set_up.iter_mut().flatten() {
        let written = subject.answer(queue, 0)?;
        sample.check(written)?;
    }
    Ok(())
}

fn half_a_sector(subject: &mut Subject) -> Outcome {
    let disk = Running::start(subject)?;
    let address = disk.subject.memory(SECTOR)?;
    disk.is_misused(kind::READ, &[to_write(address, 256)])
}

fn half_a_header(subject: &mut Subject) -> Outcome {
    let Running { subject, queue, ends } = Running::start(subject)?;
    misused(subject, queue, &[to_read(ends, 8), to_write(ends + 16, 1)])
}

fn no_status(subject: &mut Subject) -> Outcome {
    let Running { subject, queue, ends } = Running::start(subject)?;
    misused(subject, queue, &[to_read(ends, HEADER)])
}
