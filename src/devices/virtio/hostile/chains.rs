//! Chains of descriptors that no driver should make, and some that look as if one did.

use super::Target;
use crate::devices::virtio::testing::{BUFFERS, Driver, MEMORY, Numbers, Part};

/// Where tables of descriptors are.
const TABLE: u64 = 0xf_0000;
const WRITE: u16 = 2;

/// Puts something into a queue, which is not rung.
pub fn put(target: &impl Target, driver: &mut Driver, queue: u16, random: &mut Numbers) {
    match random.below(8) {
        0..3 => noise(driver, queue, random),
        kind => {
            let mut parts = target.request(queue, random, driver);
            if random.below(3) == 0 {
                alter(&mut parts, random);
            }
            match kind {
                3 => driver.indirect(queue, TABLE, &parts),
                _ => driver.chain(queue, &parts),
            }
        }
    }
    match random.below(200) {
        0 => driver.jump(queue, random.below(1 << 16) as u16),
        1 => driver.offer(queue, random.below(1 << 16) as u16),
        // Where the driver wants to be told.
        2 => driver.put(driver.rings(queue)[1] + 4 + 2 * 16, &(random.below(1 << 16) as u16).to_le_bytes()),
        _ => {}
    }
}

/// An address where a buffer may be, or not.
fn address(random: &mut Numbers, driver: &Driver, queue: u16) -> u64 {
    match random.below(16) {
        0 => random.below(u64::MAX),
        1 => MEMORY - random.below(1024),
        2 => driver.rings(queue)[random.below(3) as usize] + random.below(0x100),
        3 => 0xd000_0000,
        4..8 => BUFFERS + random.below(0x2000),
        _ => BUFFERS,
    }
}

fn length(random: &mut Numbers) -> u32 {
    [0, 1, 4, 10, 16, 32, 64, 512, 4096, 8192, 0x1_0004, u32::MAX][random.below(12) as usize]
}

fn noise(driver: &mut Driver, queue: u16, random: &mut Numbers) {
    for index in 0..1 + random.below(3) {
        let at = (address(random, driver, queue), length(random));
        // Half of them one buffer in one direction.
        let flags =
            if random.below(2) == 0 { random.below(2) as u16 * WRITE } else { random.below(8) as u16 };
        driver.describe(queue, index as u16, at, flags, random.below(4) as u16);
    }
    driver.offer(queue, random.below(3) as u16);
}

/// Makes something wrong with what was right.
fn alter(parts: &mut Vec<Part>, random: &mut Numbers) {
    if parts.is_empty() {
        return;
    }
    let chosen = random.below(parts.len() as u64) as usize;
    let (address, length, write) = &mut parts[chosen];
    match random.below(8) {
        0 => *write = !*write,
        1 => *length = 0,
        2 => *length = (*length).wrapping_add(random.below(3) as u32).wrapping_sub(1),
        3 => *length = self::length(random),
        4 => *address = MEMORY - random.below(64),
        5 => *address = address.wrapping_sub(random.below(4096)),
        6 => {
            parts.remove(chosen);
        }
        _ => {
            let again = parts[chosen];
            parts.push(again);
        }
    }
}
