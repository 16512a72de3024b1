//! Checks of what disks do with ranges of sectors: discard and write zeroes (specification 1.2, section 5.2.6).

use super::disk::{capacity, feature};
use super::request::{DONE, FAILED, Running, UNSUPPORTED, is_filled, kind, to_read};
use super::subject::{Subject, bytes};
use super::{Failure, Outcome, holds, same};
use crate::virtio::disk::SECTOR;

/// As it is in a request.
const RANGE: u64 = 16;
/// A flag of zeroes: the sectors need no space any longer.
const UNMAP: u64 = 1 << 32;

/// Where the checks work, in sectors.
mod place {
    pub const DISCARDED: u64 = 128;
    pub const ZEROED: u64 = 300;
    pub const SEVERAL: u64 = 350;
}

/// A disk that runs, and memory for ranges.
fn start<'s, 'm>(subject: &'s mut Subject<'m>, features: u64) -> Result<(Running<'s, 'm>, u64), Failure> {
    subject.needs(features)?;
    let disk = Running::start(subject)?;
    let ranges = disk.subject.memory(4096)?;
    Ok((disk, ranges))
}

/// Puts a range there; flags stand above the number of sectors.
fn put(ranges: u64, number: u64, sector: u64, sectors: u64) {
    crate::memory::write(ranges + number * RANGE, sector, 8);
    crate::memory::write(ranges + number * RANGE + 8, sectors, 8);
}

fn is_zero(address: u64, length: u64) -> bool {
    bytes(address, length).iter().all(|&byte| byte == 0)
}

pub fn discard(subject: &mut Subject) -> Outcome {
    const SECTORS: u64 = 128;
    let (mut disk, ranges) = start(subject, feature::DISCARD)?;
    disk.write(place::DISCARDED, SECTORS)?;
    put(ranges, 0, place::DISCARDED, SECTORS);
    let (status, written) = disk.ask(kind::DISCARD, 0, &[to_read(ranges, RANGE as u32)])?;
    same("status", status, DONE)?;
    same("written", written, 1_u32)?;
    // Its contents may be anything; here they are zeroes, or what they were.
    let after = disk.read(place::DISCARDED, SECTORS)?;
    let is_sane = is_zero(after, SECTORS * SECTOR) || is_filled(after, SECTORS * SECTOR, place::DISCARDED);
    holds(is_sane, "it has neither zeroes nor what was there")
}

pub fn write_zeroes(subject: &mut Subject) -> Outcome {
    let (mut disk, ranges) = start(subject, feature::WRITE_ZEROES)?;
    for flags in [0, UNMAP] {
        disk.write(place::ZEROED, 8)?;
        put(ranges, 0, place::ZEROED + 2, 3 | flags);
        disk.does(kind::WRITE_ZEROES, 0, &[to_read(ranges, RANGE as u32)], DONE)?;
        let after = disk.read(place::ZEROED, 8)?;
        holds(is_filled(after, 2 * SECTOR, place::ZEROED), "something before it has changed")?;
        holds(is_zero(after + 2 * SECTOR, 3 * SECTOR), "it has no zeroes")?;
        holds(!is_zero(after + 5 * SECTOR, SECTOR), "something behind it has changed")?;
    }
    Ok(())
}

/// Also of odd lengths, in pieces, and none at all.
pub fn several(subject: &mut Subject) -> Outcome {
    let (mut disk, ranges) = start(subject, feature::WRITE_ZEROES)?;
    disk.write(place::SEVERAL, 16)?;
    put(ranges, 0, place::SEVERAL + 1, 1);
    put(ranges, 1, place::SEVERAL + 4, 0);
    put(ranges, 2, place::SEVERAL + 8, 2 | UNMAP);
    let pieces = [to_read(ranges, 7), to_read(ranges + 7, 40), to_read(ranges + 47, 1)];
    disk.does(kind::WRITE_ZEROES, 0, &pieces, DONE)?;
    let after = disk.read(place::SEVERAL, 16)?;
    for sector in 0..16 {
        let expected = matches!(sector, 1 | 8 | 9);
        holds(is_zero(after + sector * SECTOR, SECTOR) == expected, "other sectors were zeroed")?;
    }
    Ok(())
}

pub fn too_many(subject: &mut Subject) -> Outcome {
    let (mut disk, ranges) = start(subject, feature::DISCARD | feature::WRITE_ZEROES)?;
    for (kind, limit) in [(kind::DISCARD, 40), (kind::WRITE_ZEROES, 52)] {
        let most = disk.subject.registers.configuration(limit).min(200);
        (0..u64::from(most) + 1).for_each(|number| put(ranges, number, place::SEVERAL + 2, 0));
        let length = RANGE as u32 * most;
        disk.does(kind, 0, &[to_read(ranges, length)], DONE)?;
        disk.does(kind, 0, &[to_read(ranges, length + RANGE as u32)], FAILED)?;
    }
    Ok(())
}

pub fn too_long(subject: &mut Subject) -> Outcome {
    let (mut disk, ranges) = start(subject, feature::DISCARD | feature::WRITE_ZEROES)?;
    for (kind, limit) in [(kind::DISCARD, 36), (kind::WRITE_ZEROES, 48)] {
        let most = disk.subject.registers.configuration(limit);
        put(ranges, 0, 0, u64::from(most) + 1);
        disk.does(kind, 0, &[to_read(ranges, RANGE as u32)], FAILED)?;
    }
    Ok(())
}

pub fn behind_the_end(subject: &mut Subject) -> Outcome {
    let (mut disk, ranges) = start(subject, feature::DISCARD | feature::WRITE_ZEROES)?;
    let end = capacity(disk.subject);
    for kind in [kind::DISCARD, kind::WRITE_ZEROES] {
        for sector in [end - 1, end, 1 << 40, u64::MAX / SECTOR, u64::MAX] {
            put(ranges, 0, sector, 2);
            disk.does(kind, 0, &[to_read(ranges, RANGE as u32)], FAILED)?;
        }
    }
    Ok(())
}

pub fn flags(subject: &mut Subject) -> Outcome {
    let (mut disk, ranges) = start(subject, feature::DISCARD | feature::WRITE_ZEROES)?;
    for (kind, flags) in
        [(kind::DISCARD, UNMAP), (kind::DISCARD, UNMAP << 1), (kind::WRITE_ZEROES, UNMAP << 1)]
    {
        put(ranges, 0, 0, 1 | flags);
        disk.does(kind, 0, &[to_read(ranges, RANGE as u32)], UNSUPPORTED)?;
    }
    Ok(())
}

pub fn half(subject: &mut Subject) -> Outcome {
    for length in [0, 8, 24] {
        let (disk, ranges) = start(subject, feature::DISCARD)?;
        disk.is_misused(kind::DISCARD, &[to_read(ranges, length)][..usize::from(length > 0)])?;
        subject.renew();
    }
    Ok(())
}
