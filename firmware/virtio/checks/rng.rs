//! Checks of sources of random numbers (specification 1.2, section 5.4).

use super::subject::{Subject, bytes};
use super::{Check, Failure, Known, Outcome, Sample, holds, same};
use crate::virtio::Kind;
use crate::virtio::queue::{Part, Queue};

pub const KNOWN: Known =
    Known { kind: Kind::RANDOM_NUMBERS, name: "rng", features: &[], queues: |_| 1, sample, checks: CHECKS };

const CHECKS: &[Check] = &[
    ("fills all lengths", lengths),
    ("fills several buffers", several),
    ("never the same twice", never_the_same),
    ("every bit of both values", every_bit),
    ("more than it gives at once", too_much),
];

fn sample(subject: &mut Subject) -> Result<Sample, Failure> {
    let address = subject.memory(16)?;
    Ok(Sample::new(0, &[filled(address, 8), filled(address + 8, 8)], 16))
}

fn filled(address: u64, length: u32) -> Part {
    Part { address, length, written: true }
}

fn start(subject: &mut Subject) -> Result<Queue, Failure> {
    subject.start(0, u16::MAX, 0)
}

/// So many bytes are not all zero by chance.
fn is_random(bytes: &[u8]) -> bool {
    bytes.chunks(32).filter(|chunk| chunk.len() >= 16).all(|chunk| chunk.iter().any(|&byte| byte != 0))
}

fn lengths(subject: &mut Subject) -> Outcome {
    let mut queue = start(subject)?;
    let address = subject.memory(0x1_1000)?;
    for length in [1, 2, 15, 16, 255, 256, 257, 4096, 5000, 0x1_0000] {
        let all = bytes(address, u64::from(length) + 16);
        all.fill(0);
        same("written", subject.ask(&mut queue, &[filled(address, length)])?, length)?;
        let (filled, behind) = all.split_at(length as usize);
        holds(is_random(filled), "a part was not filled")?;
        holds(behind.iter().all(|&byte| byte == 0), "it writes more than it was asked for")?;
    }
    Ok(())
}

fn several(subject: &mut Subject) -> Outcome {
    let mut queue = start(subject)?;
    let address = subject.memory(0x3000)?;
    let parts = [filled(address + 0x2000, 33), filled(address + 1, 100), filled(address + 0xfff, 64)];
    same("written", subject.ask(&mut queue, &parts)?, 197_u32)?;
    for part in parts {
        holds(is_random(bytes(part.address, part.length.into())), "a buffer was not filled")?;
        // A buffer ends where it ends.
        same("a byte behind", crate::memory::read8(part.address + u64::from(part.length)), 0_u8)?;
    }
    Ok(())
}

fn never_the_same(subject: &mut Subject) -> Outcome {
    const COUNT: u64 = 64;
    let mut queue = start(subject)?;
    let address = subject.memory(COUNT * 16)?;
    for number in 0..COUNT {
        subject.ask(&mut queue, &[filled(address + number * 16, 16)])?;
    }
    let (all, _) = bytes(address, COUNT * 16).as_chunks::<16>();
    let repeats = (1..all.len()).any(|number| all[..number].contains(&all[number]));
    holds(!repeats, "the same numbers came twice")
}

/// Of many bytes no bit is always the same.
fn every_bit(subject: &mut Subject) -> Outcome {
    let mut queue = start(subject)?;
    let address = subject.memory(256)?;
    subject.ask(&mut queue, &[filled(address, 256)])?;
    let all = bytes(address, 256);
    same("bits that were set", all.iter().fold(0, |all, byte| all | byte), 0xff_u8)?;
    same("bits that were always set", all.iter().fold(0xff, |all, byte| all & byte), 0_u8)
}

/// It may give less than was asked for, but says so.
fn too_much(subject: &mut Subject) -> Outcome {
    const LENGTH: u32 = 0x4_0000;
    let mut queue = start(subject)?;
    let address = subject.memory(LENGTH.into())?;
    let written = subject.ask(&mut queue, &[filled(address, LENGTH)])?;
    holds(written > 0 && written <= LENGTH, "it says that it gave nothing, or more than there was room for")?;
    let (filled, behind) = bytes(address, LENGTH.into()).split_at(written as usize);
    holds(is_random(filled), "a part was not filled")?;
    holds(behind.iter().all(|&byte| byte == 0), "it gives more than it says")
}
