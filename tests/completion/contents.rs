//! What registers and memory hold: bytes, integers, text, and floating-point numbers of every awkward kind.

use crate::random::Random;

const POOL: usize = 64 << 10;

/// Pools of bytes to copy from.
pub struct Contents {
    pools: Vec<Vec<u8>>,
}

impl Contents {
    /// Pools made from `random`.
    pub fn new(random: &mut Random) -> Self {
        let makers: [fn(&mut Random) -> u64; 8] = [
            Random::next,
            Random::next,
            |random| pair(u64::from(single(random)), u64::from(single(random))),
            double,
            double,
            |random| pair(random.below(4), random.below(200)),
            text,
            |random| pair(halves(random), halves(random)),
        ];
        let fill = |make: fn(&mut Random) -> u64, random: &mut Random| {
            (0..POOL / 8).flat_map(|_| make(random).to_le_bytes()).collect()
        };
        Self { pools: makers.map(|make| fill(make, random)).into() }
    }

    /// Fills `bytes` with what belongs together.
    pub fn fill(&self, bytes: &mut [u8], random: &mut Random) {
        let pool = &self.pools[random.below(self.pools.len() as u64) as usize];
        let at = random.below((POOL - bytes.len()) as u64 / 16) as usize * 16;
        bytes.copy_from_slice(&pool[at..at + bytes.len()]);
    }
}

fn pair(low: u64, high: u64) -> u64 {
    low | high << 32
}

/// A number in single precision, as its bits.
pub fn single(random: &mut Random) -> u32 {
    let sign = (random.next() as u32) & 0x8000_0000;
    let fraction = (random.next() as u32) & 0x7f_ffff;
    sign | match random.below(12) {
        0 => 0,
        1 => fraction,
        2 => 0x7f80_0000,
        3 => 0x7fc0_0000 | fraction,
        4 => 0x7f80_0001 | fraction & 0x3f_ffff,
        5 => 0x7f7f_ffff,
        6 => 0x0080_0000 | fraction,
        7 => 0x3f80_0000,
        8 => 0x4f00_0000 | fraction,
        9 => (random.below(200) as f32).to_bits(),
        _ => random.next() as u32 & 0x7fff_ffff,
    }
}

/// A number in double precision, as its bits.
pub fn double(random: &mut Random) -> u64 {
    let sign = random.next() & 1 << 63;
    let fraction = random.next() & ((1 << 52) - 1);
    sign | match random.below(12) {
        0 => 0,
        1 => fraction,
        2 => 0x7ff0 << 48,
        3 => 0x7ff8 << 48 | fraction,
        4 => 0x7ff0 << 48 | 1 | fraction >> 2,
        5 => 0x7fef_ffff_ffff_ffff,
        6 => 0x0010 << 48 | fraction,
        7 => 0x3ff0 << 48,
        8 => 0x43e0 << 48 | fraction,
        9 => (random.below(100_000) as f64 / 8.0).to_bits(),
        _ => random.next() & !(1 << 63),
    }
}

/// A number in the x87's own precision; sometimes one that its arithmetic never makes.
pub fn extended(random: &mut Random) -> [u8; 10] {
    let sign = (random.next() & 0x8000) as u16;
    let fraction = random.next();
    let whole = 1 << 63;
    let (exponent, significand) = match random.below(12) {
        0 => (0, 0),
        1 => (0, fraction & !whole),
        2 => (0x7fff, whole),
        3 => (0x7fff, whole | 1 << 62 | fraction >> 2),
        4 => (0x7fff, whole | 1 | fraction >> 2),
        5 => (random.below(0x7fff) as u16, fraction & !whole),
        6 => (0x7ffe, u64::MAX),
        7 => (0x3fff, whole),
        8 => (0x3fff + random.below(64) as u16, whole | fraction << 20),
        9 => (1, whole | fraction),
        _ => (0x3fff - 40 + random.below(80) as u16, whole | fraction),
    };
    let mut bytes = [0; 10];
    bytes[..8].copy_from_slice(&u64::to_le_bytes(significand));
    bytes[8..].copy_from_slice(&(sign | exponent).to_le_bytes());
    bytes
}

fn text(random: &mut Random) -> u64 {
    let letters = [b'a', b'b', b'c', b'A', b'0', b' ', 0, 0xe9];
    u64::from_le_bytes(std::array::from_fn(|_| random.pick(&letters)))
}

/// Two numbers in half precision or in bfloat16.
fn halves(random: &mut Random) -> u64 {
    let mut one = || match random.below(6) {
        0 => random.pick(&[0, 0x8000, 1, 0x7c00, 0xfc00, 0x7e00, 0x7c01, 0x7bff]),
        1 => u64::from(single(random) >> 16),
        _ => random.below(0x10000),
    };
    one() | one() << 16
}
