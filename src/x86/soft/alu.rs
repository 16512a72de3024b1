//! Arithmetic on 8, 16, 32 and 64 bits, with the status flags it leaves. Intel SDM volume 1, section 3.4.3.
//!
//! Values are held in 64 bits of which those above the operand's size are clear. Flags that the manuals leave
//! undefined stay as they were.

/// The status flags, and those others that are looked at here.
pub mod flag {
    pub const CARRY: u64 = 1 << 0;
    pub const PARITY: u64 = 1 << 2;
    pub const ADJUST: u64 = 1 << 4;
    pub const ZERO: u64 = 1 << 6;
    pub const SIGN: u64 = 1 << 7;
    pub const TRAP: u64 = 1 << 8;
    pub const INTERRUPT: u64 = 1 << 9;
    pub const DIRECTION: u64 = 1 << 10;
    pub const OVERFLOW: u64 = 1 << 11;
    pub const RESUME: u64 = 1 << 16;
    pub const ALIGNMENT: u64 = 1 << 18;
    pub const STATUS: u64 = CARRY | PARITY | ADJUST | ZERO | SIGN | OVERFLOW;
}
use flag::{ADJUST, CARRY, OVERFLOW, PARITY, SIGN, STATUS, ZERO};

/// How many bytes an operand has: 1, 2, 4 or 8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u8);

impl Size {
    pub fn bits(self) -> u32 {
        u32::from(self.0) * 8
    }

    pub fn mask(self) -> u64 {
        u64::MAX >> (64 - self.bits())
    }

    pub fn sign(self) -> u64 {
        1 << (self.bits() - 1)
    }

    /// The highest bit of `value`.
    fn top(self, value: u64) -> u64 {
        value >> (self.bits() - 1) & 1
    }

    pub fn sign_extend(self, value: u64) -> u64 {
        let unused = 64 - self.bits();
        ((value << unused) as i64 >> unused) as u64
    }

    /// How shift counts are cut.
    fn count(self, count: u64) -> u32 {
        (count & if self.0 == 8 { 63 } else { 31 }) as u32
    }
}

/// Two-operand operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binary {
    Add,
    Adc,
    Sub,
    Sbb,
    And,
    Or,
    Xor,
}

/// One-operand operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unary {
    Inc,
    Dec,
    Neg,
    Not,
}

/// Shifts and rotations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shift {
    Left,
    Right,
    Arithmetic,
    RotateLeft,
    RotateRight,
}

fn put(flags: &mut u64, mask: u64, on: bool) {
    *flags = *flags & !mask | if on { mask } else { 0 };
}

/// Zero, sign and parity of a result.
#[inline]
fn result_flags(result: u64, size: Size) -> u64 {
    /// For each number of four bits, whether it has an even number of ones.
    const EVEN: u16 = 0b1001_0110_0110_1001;
    let parity = u64::from(EVEN >> ((result ^ result >> 4) & 0xf) & 1);
    (u64::from(result == 0) * ZERO) | (size.top(result) * SIGN) | (parity * PARITY)
}

// Carries out of the highest bit follow from operands and result: that is faster than a wider type.

#[inline]
fn add(flags: &mut u64, a: u64, b: u64, carry: u64, size: Size) -> u64 {
    let result = a.wrapping_add(b).wrapping_add(carry) & size.mask();
    let carry = size.top(a & b | (a | b) & !result);
    let overflow = size.top((a ^ result) & (b ^ result));
    let carries = (carry * CARRY) | (overflow * OVERFLOW) | (a ^ b ^ result) & ADJUST;
    *flags = *flags & !STATUS | result_flags(result, size) | carries;
    result
}

#[inline]
fn sub(flags: &mut u64, a: u64, b: u64, borrow: u64, size: Size) -> u64 {
    let result = a.wrapping_sub(b).wrapping_sub(borrow) & size.mask();
    let borrow = size.top(!a & b | (!a | b) & result);
    let overflow = size.top((a ^ b) & (a ^ result));
    let carries = (borrow * CARRY) | (overflow * OVERFLOW) | (a ^ b ^ result) & ADJUST;
    *flags = *flags & !STATUS | result_flags(result, size) | carries;
    result
}

#[inline]
fn logic(flags: &mut u64, result: u64, size: Size) -> u64 {
    // AF is undefined; processors clear it.
    *flags = *flags & !STATUS | result_flags(result, size);
    result
}

/// The result of a two-operand operation.
#[inline]
pub fn binary(operation: Binary, flags: &mut u64, a: u64, b: u64, size: Size) -> u64 {
    match operation {
        Binary::Add => add(flags, a, b, 0, size),
        Binary::Adc => add(flags, a, b, *flags & CARRY, size),
        Binary::Sub => sub(flags, a, b, 0, size),
        Binary::Sbb => sub(flags, a, b, *flags & CARRY, size),
        Binary::And => logic(flags, a & b, size),
        Binary::Or => logic(flags, a | b, size),
        Binary::Xor => logic(flags, a ^ b, size),
    }
}

/// The result of a one-operand operation.
pub fn unary(operation: Unary, flags: &mut u64, a: u64, size: Size) -> u64 {
    let carry = *flags & CARRY;
    match operation {
        Unary::Inc => {
            let result = add(flags, a, 1, 0, size);
            *flags = *flags & !CARRY | carry;
            result
        }
        Unary::Dec => {
            let result = sub(flags, a, 1, 0, size);
            *flags = *flags & !CARRY | carry;
            result
        }
        Unary::Neg => sub(flags, 0, a, 0, size),
        Unary::Not => !a & size.mask(),
    }
}

/// The result of a shift or rotation; flags stay when the count is zero.
pub fn shift(operation: Shift, flags: &mut u64, a: u64, count: u64, size: Size) -> u64 {
    let count = size.count(count);
    if count == 0 {
        return a;
    }
    let bits = size.bits();
    let (result, carry, overflow) = match operation {
        Shift::Left => {
            let wide = u128::from(a) << count;
            let result = wide as u64 & size.mask();
            let carry = wide >> bits & 1 != 0;
            (result, carry, (result & size.sign() != 0) != carry)
        }
        Shift::Right => {
            let result = if count < bits { a >> count } else { 0 };
            (result, count <= bits && a >> (count - 1) & 1 != 0, a & size.sign() != 0)
        }
        Shift::Arithmetic => {
            let wide = size.sign_extend(a) as i64;
            let result = (wide >> count.min(63)) as u64 & size.mask();
            (result, wide >> (count - 1).min(63) & 1 != 0, false)
        }
        Shift::RotateLeft | Shift::RotateRight => {
            return rotate(operation == Shift::RotateLeft, flags, a, count, size);
        }
    };
    let mut new = result_flags(result, size);
    put(&mut new, CARRY, carry);
    put(&mut new, OVERFLOW, overflow);
    *flags = *flags & !(STATUS & !ADJUST) | new;
    result
}

fn rotate(left: bool, flags: &mut u64, a: u64, count: u32, size: Size) -> u64 {
    let bits = size.bits();
    let by = count % bits;
    let by_left = if left { by } else { (bits - by) % bits };
    let result = if by_left == 0 { a } else { (a << by_left | a >> (bits - by_left)) & size.mask() };
    let top = result & size.sign() != 0;
    let (carry, overflow) = if left {
        (result & 1 != 0, top != (result & 1 != 0))
    } else {
        (top, top != (result & size.sign() >> 1 != 0))
    };
    put(flags, CARRY, carry);
    put(flags, OVERFLOW, overflow);
    result
}

/// `shld` and `shrd` on 32 or 64 bits: `a` shifted, filled up from `b`.
pub fn double_shift(left: bool, flags: &mut u64, a: u64, b: u64, count: u64, size: Size) -> u64 {
    let count = size.count(count);
    if count == 0 {
        return a;
    }
    let bits = size.bits();
    let (result, carry) = if left {
        ((a << count | b >> (bits - count)) & size.mask(), a >> (bits - count) & 1 != 0)
    } else {
        ((a >> count | b << (bits - count)) & size.mask(), a >> (count - 1) & 1 != 0)
    };
    let mut new = result_flags(result, size);
    put(&mut new, CARRY, carry);
    put(&mut new, OVERFLOW, (a ^ result) & size.sign() != 0);
    *flags = *flags & !(STATUS & !ADJUST) | new;
    result
}

/// The low and high half of a product; carry and overflow tell whether the high half says anything new.
pub fn multiply(signed: bool, flags: &mut u64, a: u64, b: u64, size: Size) -> (u64, u64) {
    let bits = size.bits();
    let (wide, fits) = if signed {
        let wide = i128::from(size.sign_extend(a) as i64) * i128::from(size.sign_extend(b) as i64);
        let low = size.sign_extend(wide as u64) as i64;
        (wide as u128, i128::from(low) == wide)
    } else {
        let wide = u128::from(a) * u128::from(b);
        (wide, wide >> bits == 0)
    };
    put(flags, CARRY | OVERFLOW, !fits);
    (wide as u64 & size.mask(), (wide >> bits) as u64 & size.mask())
}

/// Quotient and remainder of `high:low / divisor`, or nothing where the processor raises an exception.
pub fn divide(signed: bool, high: u64, low: u64, divisor: u64, size: Size) -> Option<(u64, u64)> {
    let wide = u128::from(high) << size.bits() | u128::from(low);
    if divisor == 0 {
        return None;
    }
    if !signed {
        let quotient = wide / u128::from(divisor);
        let remainder = wide % u128::from(divisor);
        return (quotient <= u128::from(size.mask())).then_some((quotient as u64, remainder as u64));
    }
    let unused = 128 - 2 * size.bits();
    let wide = (wide << unused) as i128 >> unused;
    let divisor = i128::from(size.sign_extend(divisor) as i64);
    let quotient = wide.checked_div(divisor)?;
    let remainder = wide.checked_rem(divisor)?;
    let fits = i128::from(size.sign_extend(quotient as u64) as i64) == quotient;
    fits.then_some((quotient as u64 & size.mask(), remainder as u64 & size.mask()))
}

/// What `test` and `cmp` leave.
pub fn compare(flags: &mut u64, a: u64, b: u64, size: Size) {
    sub(flags, a, b, 0, size);
}

/// Leaves what an `and` leaves.
pub fn test(flags: &mut u64, a: u64, b: u64, size: Size) {
    logic(flags, a & b, size);
}

/// The conditions of `jcc`, `setcc` and `cmovcc`, by the number that is part of their encoding.
#[inline]
pub fn condition(code: u8, flags: u64) -> bool {
    let on = |mask: u64| flags & mask != 0;
    let less = on(SIGN) != on(OVERFLOW);
    let holds = match code >> 1 {
        0 => on(OVERFLOW),
        1 => on(CARRY),
        2 => on(ZERO),
        3 => on(CARRY | ZERO),
        4 => on(SIGN),
        5 => on(PARITY),
        6 => less,
        _ => less || on(ZERO),
    };
    holds != (code & 1 != 0)
}

#[cfg(test)]
#[path = "alu_test.rs"]
mod tests;
