//! The arithmetic against the processor's own, on generated operands.

use std::arch::asm;

use super::flag::{ADJUST, CARRY, OVERFLOW, PARITY, SIGN, STATUS, ZERO};
use super::*;

/// Runs one instruction on the processor: operand `a` in RAX, `b` in RDX, a count in CL, flags before and after.
macro_rules! native {
    ($instruction:expr, $a:expr, $b:expr, $count:expr, $flags:expr) => {{
        let (mut a, mut b, mut flags): (u64, u64, u64) = ($a, $b, $flags);
        // SAFETY: it changes only the registers that are named; the flags it loads are status flags.
        unsafe {
            asm!(
                "push {flags}",
                "popfq",
                $instruction,
                "pushfq",
                "pop {flags}",
                flags = inout(reg) flags,
                inout("rax") a,
                inout("rdx") b,
                in("rcx") $count,
            );
        }
        (a, b, flags & STATUS)
    }};
}

/// Numbers with long runs of equal bits and edges, as arithmetic goes wrong on those.
struct Numbers(u64);

impl Numbers {
    fn random(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn next(&mut self) -> u64 {
        let random = self.random();
        match random % 4 {
            0 => random >> (random >> 8 & 63),
            1 => 1_u64.rotate_left((random >> 8) as u32).wrapping_sub(random >> 20 & 1),
            2 => !(random >> (random >> 8 & 63)),
            _ => random,
        }
    }
}

const ROUNDS: usize = 4000;
const SIZES: [Size; 4] = [Size(1), Size(2), Size(4), Size(8)];

fn check(
    name: &str,
    size: Size,
    operands: (u64, u64, u64),
    found: (u64, u64),
    expected: (u64, u64),
    defined: u64,
) {
    let found = (found.0, found.1 & defined);
    let expected = (expected.0 & size.mask(), expected.1 & defined);
    assert_eq!(found, expected, "{name} of {} bytes on {operands:x?}: (result, flags)", size.0);
}

macro_rules! binary_against_native {
    ($numbers:expr, $operation:expr, $name:literal, $defined:expr) => {
        for _ in 0..ROUNDS {
            let (a, b, before) = ($numbers.next(), $numbers.next(), $numbers.next() & STATUS | 2);
            for size in SIZES {
                let (result, _, after) = match size.0 {
                    1 => native!(concat!($name, " al, dl"), a, b, 0_u64, before),
                    2 => native!(concat!($name, " ax, dx"), a, b, 0_u64, before),
                    4 => native!(concat!($name, " eax, edx"), a, b, 0_u64, before),
                    _ => native!(concat!($name, " rax, rdx"), a, b, 0_u64, before),
                };
                let mut flags = before;
                let found = binary($operation, &mut flags, a & size.mask(), b & size.mask(), size);
                check($name, size, (a, b, before), (found, flags), (result, after), $defined);
            }
        }
    };
}

#[test]
fn additions_and_logic_are_the_processors_own() {
    let mut numbers = Numbers(0x1234_5678_9abc_def1);
    binary_against_native!(numbers, Binary::Add, "add", STATUS);
    binary_against_native!(numbers, Binary::Adc, "adc", STATUS);
    binary_against_native!(numbers, Binary::Sub, "sub", STATUS);
    binary_against_native!(numbers, Binary::Sbb, "sbb", STATUS);
    binary_against_native!(numbers, Binary::And, "and", STATUS & !ADJUST);
    binary_against_native!(numbers, Binary::Or, "or", STATUS & !ADJUST);
    binary_against_native!(numbers, Binary::Xor, "xor", STATUS & !ADJUST);
}

macro_rules! unary_against_native {
    ($numbers:expr, $operation:expr, $name:literal) => {
        for _ in 0..ROUNDS {
            let (a, before) = ($numbers.next(), $numbers.next() & STATUS | 2);
            for size in SIZES {
                let (result, _, after) = match size.0 {
                    1 => native!(concat!($name, " al"), a, 0_u64, 0_u64, before),
                    2 => native!(concat!($name, " ax"), a, 0_u64, 0_u64, before),
                    4 => native!(concat!($name, " eax"), a, 0_u64, 0_u64, before),
                    _ => native!(concat!($name, " rax"), a, 0_u64, 0_u64, before),
                };
                let mut flags = before;
                let found = unary($operation, &mut flags, a & size.mask(), size);
                check($name, size, (a, 0, before), (found, flags), (result, after), STATUS);
            }
        }
    };
}

#[test]
fn counting_and_negating_is_the_processors_own() {
    let mut numbers = Numbers(0x2234_5678_9abc_def1);
    unary_against_native!(numbers, Unary::Inc, "inc");
    unary_against_native!(numbers, Unary::Dec, "dec");
    unary_against_native!(numbers, Unary::Neg, "neg");
    unary_against_native!(numbers, Unary::Not, "not");
}

/// Which flags a shift defines: all but AF if the count is one, without OF if it is more, and CF only up to the
/// operand's width.
fn defined_by_shift(count: u64, size: Size, rotation: bool) -> u64 {
    let count = size.count(count);
    let overflow = if count <= 1 { OVERFLOW } else { 0 };
    let carry = if count <= size.bits() { CARRY } else { 0 };
    match (count, rotation) {
        (0, _) => STATUS,
        (_, true) => STATUS & !OVERFLOW | overflow,
        (_, false) => ZERO | SIGN | PARITY | carry | overflow,
    }
}

macro_rules! shift_against_native {
    ($numbers:expr, $operation:expr, $name:literal, $rotation:literal) => {
        for _ in 0..ROUNDS {
            let (a, count, before) =
                ($numbers.next(), $numbers.random() & 0xff, $numbers.next() & STATUS | 2);
            let count = if count & 0x40 != 0 { 1 } else { count };
            for size in SIZES {
                let (result, _, after) = match size.0 {
                    1 => native!(concat!($name, " al, cl"), a, 0_u64, count, before),
                    2 => native!(concat!($name, " ax, cl"), a, 0_u64, count, before),
                    4 => native!(concat!($name, " eax, cl"), a, 0_u64, count, before),
                    _ => native!(concat!($name, " rax, cl"), a, 0_u64, count, before),
                };
                let mut flags = before;
                let found = shift($operation, &mut flags, a & size.mask(), count, size);
                let defined = defined_by_shift(count, size, $rotation);
                check($name, size, (a, count, before), (found, flags), (result, after), defined);
            }
        }
    };
}

#[test]
fn shifts_and_rotations_are_the_processors_own() {
    let mut numbers = Numbers(0x3234_5678_9abc_def1);
    shift_against_native!(numbers, Shift::Left, "shl", false);
    shift_against_native!(numbers, Shift::Right, "shr", false);
    shift_against_native!(numbers, Shift::Arithmetic, "sar", false);
    shift_against_native!(numbers, Shift::RotateLeft, "rol", true);
    shift_against_native!(numbers, Shift::RotateRight, "ror", true);
}

#[test]
fn double_shifts_are_the_processors_own() {
    let mut numbers = Numbers(0x4234_5678_9abc_def1);
    for _ in 0..ROUNDS {
        let (a, b, before) = (numbers.next(), numbers.next(), numbers.next() & STATUS | 2);
        let count = numbers.random() & 0xff;
        for (left, size) in [(true, Size(4)), (true, Size(8)), (false, Size(4)), (false, Size(8))] {
            let (result, _, after) = match (left, size.0) {
                (true, 4) => native!("shld eax, edx, cl", a, b, count, before),
                (true, _) => native!("shld rax, rdx, cl", a, b, count, before),
                (false, 4) => native!("shrd eax, edx, cl", a, b, count, before),
                (false, _) => native!("shrd rax, rdx, cl", a, b, count, before),
            };
            let mut flags = before;
            let (first, second) = (a & size.mask(), b & size.mask());
            let found = double_shift(left, &mut flags, first, second, count, size);
            let defined = defined_by_shift(count, size, false);
            check("shld/shrd", size, (a, b, count), (found, flags), (result, after), defined);
        }
    }
}

#[test]
fn products_are_the_processors_own() {
    let mut numbers = Numbers(0x5234_5678_9abc_def1);
    for _ in 0..ROUNDS {
        let (a, b) = (numbers.next(), numbers.next());
        for (signed, size) in [(false, Size(4)), (false, Size(8)), (true, Size(4)), (true, Size(8))] {
            let (low, high, after) = match (signed, size.0) {
                (false, 4) => native!("mul edx", a, b, 0_u64, 2),
                (false, _) => native!("mul rdx", a, b, 0_u64, 2),
                (true, 4) => native!("imul edx", a, b, 0_u64, 2),
                (true, _) => native!("imul rdx", a, b, 0_u64, 2),
            };
            let mut flags = 2;
            let found = multiply(signed, &mut flags, a & size.mask(), b & size.mask(), size);
            assert_eq!(found, (low & size.mask(), high & size.mask()), "{signed} {size:?} {a:x} {b:x}");
            assert_eq!(
                flags & (CARRY | OVERFLOW),
                after & (CARRY | OVERFLOW),
                "{signed} {size:?} {a:x} {b:x}"
            );
        }
    }
}

#[test]
fn quotients_times_divisors_are_the_dividends() {
    let mut numbers = Numbers(0x6234_5678_9abc_def1);
    let mut quotients = 0;
    for _ in 0..ROUNDS {
        let (high, low, divisor) = (numbers.next(), numbers.next(), numbers.next());
        for size in SIZES {
            let (low, divisor) = (low & size.mask(), divisor & size.mask());
            let high = if divisor == 0 { 0 } else { high % divisor };
            if let Some((quotient, remainder)) = divide(false, high, low, divisor, size) {
                let wide = u128::from(high) << size.bits() | u128::from(low);
                assert_eq!(u128::from(quotient) * u128::from(divisor) + u128::from(remainder), wide);
                assert!(remainder < divisor);
                quotients += 1;
            } else {
                assert_eq!(divisor, 0, "a quotient that fits is found");
            }
            let sign = if low & size.sign() != 0 { size.mask() } else { 0 };
            if let Some((quotient, remainder)) = divide(true, sign, low, divisor, size) {
                let signed = |value| i128::from(size.sign_extend(value) as i64);
                assert_eq!(signed(quotient) * signed(divisor) + signed(remainder), signed(low));
                assert!(signed(remainder) == 0 || (signed(remainder) < 0) == (signed(low) < 0));
            }
        }
    }
    assert!(quotients > ROUNDS);
    assert_eq!(divide(false, 1, 0, 1, Size(8)), None, "a quotient of 65 bits");
    assert_eq!(divide(true, u64::MAX, 1 << 63, u64::MAX, Size(8)), None, "minus the least number");
}

#[test]
fn conditions_are_the_processors_own() {
    macro_rules! holds {
        ($name:literal, $flags:expr) => {
            native!(concat!($name, " al"), 0_u64, 0_u64, 0_u64, $flags).0 & 1 != 0
        };
    }
    for bits in 0..64_u64 {
        let mut flags = 2;
        for (bit, flag) in [CARRY, PARITY, ADJUST, ZERO, SIGN, OVERFLOW].into_iter().enumerate() {
            flags |= if bits >> bit & 1 != 0 { flag } else { 0 };
        }
        let expected = [
            holds!("seto", flags),
            holds!("setno", flags),
            holds!("setb", flags),
            holds!("setae", flags),
            holds!("sete", flags),
            holds!("setne", flags),
            holds!("setbe", flags),
            holds!("seta", flags),
            holds!("sets", flags),
            holds!("setns", flags),
            holds!("setp", flags),
            holds!("setnp", flags),
            holds!("setl", flags),
            holds!("setge", flags),
            holds!("setle", flags),
            holds!("setg", flags),
        ];
        for (code, expected) in expected.into_iter().enumerate() {
            assert_eq!(condition(code as u8, flags), expected, "condition {code} of {flags:#x}");
        }
    }
}
