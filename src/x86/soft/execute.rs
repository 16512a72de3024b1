//! What each operation does to registers and memory.
//!
//! An operation is done as a whole or not at all: whatever can fail comes before the first change.

use super::Engine;
use super::alu::{self, Binary, Size, flag};
use super::decode::{Address, BitChange, Kind, Operation, Place, decode, is_canonical};
use super::pages::NotHere;
use super::state::{RSP, State};

const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
/// What `popf` can change in ring 0: the status flags, TF, IF, DF, NT, AC, ID and IOPL.
const POPPED: u64 = flag::STATUS | 0x24_7700;
/// What `pushf` never shows: VM and RF.
const NOT_PUSHED: u64 = 3 << 16;

impl Address {
    /// What is added up when parts of it are missing is zero: that is faster than to ask.
    #[inline]
    pub fn linear(&self, state: &State) -> u64 {
        self.offset(state).wrapping_add(state.segment_base(self.segment))
    }

    #[inline]
    fn offset(&self, state: &State) -> u64 {
        let index = state.part(self.index) << self.shift;
        state.part(self.base).wrapping_add(index).wrapping_add(self.displacement)
    }
}

fn register(state: &State, number: u8, size: Size) -> u64 {
    state.general[usize::from(number & 15)] & size.mask()
}

fn set_register(state: &mut State, number: u8, value: u64, size: Size) {
    let register = &mut state.general[usize::from(number & 15)];
    *register = match size.0 {
        1 | 2 => *register & !size.mask() | value & size.mask(),
        _ => value & size.mask(),
    };
}

impl Engine {
    #[inline]
    fn read(
        &mut self,
        state: &State,
        operation: &Operation,
        place: Place,
        size: Size,
    ) -> Result<u64, NotHere> {
        match place {
            Place::Register(number) => Ok(register(state, number, size)),
            Place::High(number) => Ok(state.general[usize::from(number & 15)] >> 8 & 0xff),
            Place::Immediate => Ok(operation.immediate & size.mask()),
            Place::Memory => self.pages.load(state, operation.address.linear(state), size),
            Place::None => Err(NotHere),
        }
    }

    #[inline]
    fn write(
        &mut self,
        state: &mut State,
        operation: &Operation,
        place: Place,
        value: u64,
        size: Size,
    ) -> Result<(), NotHere> {
        match place {
            Place::Register(number) => set_register(state, number, value, size),
            Place::High(number) => {
                let register = &mut state.general[usize::from(number & 15)];
                *register = *register & !0xff00 | (value & 0xff) << 8;
            }
            Place::Memory => self.pages.store(state, operation.address.linear(state), value, size)?,
            Place::Immediate | Place::None => return Err(NotHere),
        }
        Ok(())
    }

    /// Replaces the first operand by what `change` makes of it and of the flags.
    #[inline]
    fn modify(
        &mut self,
        state: &mut State,
        operation: &Operation,
        change: impl Fn(&mut u64, u64) -> u64,
    ) -> Result<(), NotHere> {
        let size = operation.size;
        let mut flags = state.flags;
        if operation.locked {
            let linear = operation.address.linear(state);
            self.pages.exchange(state, linear, size, |old| {
                flags = state.flags;
                change(&mut flags, old)
            })?;
        } else {
            let old = self.read(state, operation, operation.first, size)?;
            let new = change(&mut flags, old);
            self.write(state, operation, operation.first, new, size)?;
        }
        state.flags = flags;
        Ok(())
    }

    fn push(&mut self, state: &mut State, value: u64) -> Result<(), NotHere> {
        let top = state.general[usize::from(RSP)].wrapping_sub(8);
        self.pages.store(state, top, value, Size(8))?;
        state.general[usize::from(RSP)] = top;
        Ok(())
    }

    fn top(&mut self, state: &State) -> Result<u64, NotHere> {
        self.pages.load(state, state.general[usize::from(RSP)], Size(8))
    }

    /// Executes `operation` and returns the address of the next one.
    #[inline]
    pub(super) fn execute(&mut self, state: &mut State, operation: &Operation) -> Result<u64, NotHere> {
        let op = operation;
        let size = op.size;
        let next = state.rip.wrapping_add(op.length.into());
        match op.kind {
            kind if kind.is_left() => return Err(NotHere),
            Kind::Nothing => {}
            // All of them: the page may be a large one, of which there are pieces here.
            Kind::ForgetPage if self.pages.spares_entries() => return Err(NotHere),
            Kind::ForgetPage => self.pages.clear(),
            Kind::Fence => std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst),
            Kind::Move => {
                let value = self.read(state, op, op.second, size)?;
                self.write(state, op, op.first, value, size)?;
            }
            Kind::Load(from) => {
                let value = self.read(state, op, op.second, from)?;
                self.write(state, op, op.first, value, size)?;
            }
            Kind::SignExtend(from) => {
                let value = from.sign_extend(self.read(state, op, op.second, from)?);
                self.write(state, op, op.first, value, size)?;
            }
            Kind::Address => {
                // The base of a segment does not count.
                let value = op.address.offset(state);
                self.write(state, op, op.first, value, size)?;
            }
            Kind::Binary(what) => {
                let second = self.read(state, op, op.second, size)?;
                self.modify(state, op, |flags, first| alu::binary(what, flags, first, second, size))?;
            }
            Kind::Compare => {
                let first = self.read(state, op, op.first, size)?;
                let second = self.read(state, op, op.second, size)?;
                alu::compare(&mut state.flags, first, second, size);
            }
            Kind::Test => {
                let first = self.read(state, op, op.first, size)?;
                let second = self.read(state, op, op.second, size)?;
                alu::test(&mut state.flags, first, second, size);
            }
            Kind::Unary(what) => {
                self.modify(state, op, |flags, value| alu::unary(what, flags, value, size))?
            }
            Kind::Shift(what) => {
                let count = match op.second {
                    Place::Register(_) => state.general[RCX] & 0xff,
                    Place::Immediate => op.immediate & 0xff,
                    _ => 1,
                };
                self.modify(state, op, |flags, value| alu::shift(what, flags, value, count, size))?;
            }
            Kind::ShiftInto(what) => {
                let value = self.read(state, op, op.second, size)?;
                let count = if op.third_is_immediate {
                    op.immediate
                } else {
                    state.general[op.immediate as usize & 15]
                };
                let mut flags = state.flags;
                let value = alu::shift(what, &mut flags, value, count & 0xff, size);
                self.write(state, op, op.first, value, size)?;
            }
            Kind::DoubleShift { left } => self.double_shift(state, op, left)?,
            Kind::JumpIf(code) => {
                return Ok(if alu::condition(code, state.flags) { op.immediate } else { next });
            }
            Kind::JumpIfZero => return Ok(if state.general[RCX] == 0 { op.immediate } else { next }),
            Kind::Jump => return Ok(op.immediate),
            Kind::JumpTo => return self.read(state, op, op.first, size).and_then(canonical),
            Kind::Call => {
                self.push(state, next)?;
                return Ok(op.immediate);
            }
            Kind::CallTo => {
                let target = self.read(state, op, op.first, size).and_then(canonical)?;
                self.push(state, next)?;
                return Ok(target);
            }
            Kind::Return2 { pop } => {
                let target = self.top(state).and_then(canonical)?;
                let stack = &mut state.general[usize::from(RSP)];
                *stack = stack.wrapping_add(8 + u64::from(pop));
                return Ok(target);
            }
            Kind::Push => {
                let value = self.read(state, op, op.first, size)?;
                self.push(state, value)?;
            }
            Kind::Pop => self.pop(state, op)?,
            Kind::Leave => {
                let frame = state.general[5];
                state.general[5] = self.pages.load(state, frame, size)?;
                state.general[usize::from(RSP)] = frame.wrapping_add(8);
            }
            Kind::SetIf(code) => {
                let value = alu::condition(code, state.flags).into();
                self.write(state, op, op.first, value, size)?;
            }
            Kind::MoveIf(code) => {
                let place = if alu::condition(code, state.flags) { op.second } else { op.first };
                // The operand is read in any case, and the upper half of a 32-bit register cleared.
                let second = self.read(state, op, op.second, size)?;
                let value = if place == op.second { second } else { self.read(state, op, place, size)? };
                self.write(state, op, op.first, value, size)?;
            }
            Kind::SetFlag(which) => state.flags |= u64::from(which),
            Kind::ClearFlag(which) => state.flags &= !u64::from(which),
            Kind::FlipCarry => state.flags ^= flag::CARRY,
            Kind::EnableInterrupts => self.enable_interrupts(state, next)?,
            Kind::PushFlags => self.push(state, state.flags & !NOT_PUSHED)?,
            Kind::PopFlags => self.pop_flags(state)?,
            Kind::String(what) => return self.string(state, op, what),
            _ => self.rest(state, op)?,
        }
        Ok(next)
    }

    /// What comes less often.
    fn rest(&mut self, state: &mut State, op: &Operation) -> Result<(), NotHere> {
        let size = op.size;
        match op.kind {
            Kind::Exchange => self.exchange(state, op),
            Kind::Multiply { signed } => {
                let factor = self.read(state, op, op.first, size)?;
                let a = register(state, 0, size);
                let (low, high) = alu::multiply(signed, &mut state.flags, a, factor, size);
                if size.0 == 1 {
                    set_register(state, 0, high << 8 | low, Size(2));
                } else {
                    set_register(state, 0, low, size);
                    set_register(state, 2, high, size);
                }
                Ok(())
            }
            Kind::MultiplyInto => {
                let second = self.read(state, op, op.second, size)?;
                let explicit = op.third_is_immediate;
                let first =
                    if explicit { op.immediate & size.mask() } else { self.read(state, op, op.first, size)? };
                let (low, _) = alu::multiply(true, &mut state.flags, first, second, size);
                self.write(state, op, op.first, low, size)
            }
            Kind::Divide { signed } => self.divide(state, op, signed),
            Kind::Widen => {
                let value = size.sign_extend(register(state, 0, size));
                set_register(state, 0, value, Size(size.0 * 2));
                Ok(())
            }
            Kind::Sign => {
                let negative = register(state, 0, size) & size.sign() != 0;
                set_register(state, 2, if negative { size.mask() } else { 0 }, size);
                Ok(())
            }
            Kind::BitTest(change) => self.bit_test(state, op, change),
            Kind::ScanForward
            | Kind::ScanBackward
            | Kind::CountTrailing
            | Kind::CountLeading
            | Kind::CountOnes => self.count(state, op),
            Kind::SwapBytes => {
                let value = self.read(state, op, op.first, size)?.swap_bytes() >> (64 - size.bits());
                // Of 16 bits the result is undefined.
                if size.0 < 4 { Err(NotHere) } else { self.write(state, op, op.first, value, size) }
            }
            Kind::ExchangeAdd => self.exchange_add(state, op),
            Kind::CompareExchange => self.compare_exchange(state, op),
            Kind::LoadFlags => {
                let flags = state.flags & (flag::STATUS & !flag::OVERFLOW) | 2;
                state.general[RAX] = state.general[RAX] & !0xff00 | flags << 8;
                Ok(())
            }
            Kind::StoreFlags => {
                let mask = flag::STATUS & !flag::OVERFLOW;
                state.flags = state.flags & !mask | state.general[RAX] >> 8 & mask;
                Ok(())
            }
            _ => Err(NotHere),
        }
    }

    fn double_shift(&mut self, state: &mut State, op: &Operation, left: bool) -> Result<(), NotHere> {
        let size = op.size;
        let count = if op.third_is_immediate { op.immediate & 0xff } else { state.general[RCX] & 0xff };
        let filler = self.read(state, op, op.second, size)?;
        self.modify(state, op, |flags, value| alu::double_shift(left, flags, value, filler, count, size))
    }

    fn pop(&mut self, state: &mut State, op: &Operation) -> Result<(), NotHere> {
        // To memory: its address would have to be made after RSP has changed.
        let Place::Register(number) = op.first else { return Err(NotHere) };
        let value = self.top(state)?;
        let stack = &mut state.general[usize::from(RSP)];
        *stack = stack.wrapping_add(8);
        set_register(state, number, value, Size(8));
        Ok(())
    }

    fn pop_flags(&mut self, state: &mut State) -> Result<(), NotHere> {
        let value = self.top(state)?;
        if value & flag::TRAP != 0 {
            return Err(NotHere);
        }
        let stack = &mut state.general[usize::from(RSP)];
        *stack = stack.wrapping_add(8);
        state.flags = state.flags & !(POPPED | flag::RESUME) | value & POPPED;
        self.interrupts_changed(state);
        Ok(())
    }

    /// No interrupt may come between `sti` and the next instruction. Where that is the hypervisor's, as `hlt` is, so
    /// is this one: it then sees to that.
    fn enable_interrupts(&mut self, state: &mut State, next: u64) -> Result<(), NotHere> {
        if state.flags & flag::INTERRUPT == 0 && self.peek(state, next)?.is_left() {
            return Err(NotHere);
        }
        state.flags |= flag::INTERRUPT;
        self.interrupts_changed(state);
        Ok(())
    }

    fn peek(&mut self, state: &State, rip: u64) -> Result<Kind, NotHere> {
        let code = self.pages.code(state, rip)?;
        let operation = match decode(rip, &code.bytes.to_le_bytes()[..code.available]) {
            Some(operation) => operation,
            None => decode(rip, &self.pages.code_across(state, rip)?.to_le_bytes()).ok_or(NotHere)?,
        };
        Ok(operation.kind)
    }

    fn exchange(&mut self, state: &mut State, op: &Operation) -> Result<(), NotHere> {
        let size = op.size;
        let (memory, other) =
            if op.second == Place::Memory { (op.second, op.first) } else { (op.first, op.second) };
        let value = self.read(state, op, other, size)?;
        let old = if memory == Place::Memory {
            self.pages.exchange(state, op.address.linear(state), size, |_| value)?
        } else {
            let old = self.read(state, op, memory, size)?;
            self.write(state, op, memory, value, size)?;
            old
        };
        self.write(state, op, other, old, size)
    }

    fn exchange_add(&mut self, state: &mut State, op: &Operation) -> Result<(), NotHere> {
        let size = op.size;
        let addend = self.read(state, op, op.second, size)?;
        let old = if op.first == Place::Memory {
            let linear = op.address.linear(state);
            self.pages.exchange(state, linear, size, |old| old.wrapping_add(addend) & size.mask())?
        } else {
            self.read(state, op, op.first, size)?
        };
        let sum = alu::binary(Binary::Add, &mut state.flags, old, addend, size);
        self.write(state, op, op.second, old, size)?;
        if op.first == Place::Memory { Ok(()) } else { self.write(state, op, op.first, sum, size) }
    }

    fn compare_exchange(&mut self, state: &mut State, op: &Operation) -> Result<(), NotHere> {
        let size = op.size;
        let (expected, new) = (register(state, 0, size), self.read(state, op, op.second, size)?);
        let old = if op.first == Place::Memory {
            let linear = op.address.linear(state);
            // Also without the prefix: in one step is never wrong.
            self.pages.exchange(state, linear, size, |old| if old == expected { new } else { old })?
        } else {
            self.read(state, op, op.first, size)?
        };
        alu::compare(&mut state.flags, expected, old, size);
        if old != expected {
            set_register(state, 0, old, size);
        } else if op.first != Place::Memory {
            self.write(state, op, op.first, new, size)?;
        }
        Ok(())
    }

    fn divide(&mut self, state: &mut State, op: &Operation, signed: bool) -> Result<(), NotHere> {
        let size = op.size;
        let divisor = self.read(state, op, op.first, size)?;
        let (high, low) = match size.0 {
            1 => (state.general[RAX] >> 8 & 0xff, state.general[RAX] & 0xff),
            _ => (state.general[RDX] & size.mask(), state.general[RAX] & size.mask()),
        };
        // Where there is no result the hypervisor raises the exception.
        let (quotient, remainder) = alu::divide(signed, high, low, divisor, size).ok_or(NotHere)?;
        if size.0 == 1 {
            set_register(state, 0, remainder << 8 | quotient, Size(2));
        } else {
            set_register(state, 0, quotient, size);
            set_register(state, 2, remainder, size);
        }
        Ok(())
    }

    fn bit_test(&mut self, state: &mut State, op: &Operation, change: BitChange) -> Result<(), NotHere> {
        let size = op.size;
        let number = self.read(state, op, op.second, size)?;
        let mask = 1_u64 << (number % u64::from(size.bits()));
        let changed = |old: u64| match change {
            BitChange::Keep => old,
            BitChange::Set => old | mask,
            BitChange::Clear => old & !mask,
            BitChange::Flip => old ^ mask,
        };
        let mut linear = op.address.linear(state);
        if op.first == Place::Memory && op.second != Place::Immediate {
            // The bit number is signed and reaches beyond the operand.
            let operands = (size.sign_extend(number) as i64).div_euclid(size.bits().into());
            linear = linear.wrapping_add_signed(operands.wrapping_mul(size.0.into()));
        }
        let old = match (op.first, change) {
            (Place::Memory, BitChange::Keep) => self.pages.load(state, linear, size)?,
            (Place::Memory, _) if op.locked => self.pages.exchange(state, linear, size, changed)?,
            (Place::Memory, _) => {
                let old = self.pages.load(state, linear, size)?;
                self.pages.store(state, linear, changed(old), size)?;
                old
            }
            _ => {
                let old = self.read(state, op, op.first, size)?;
                if change != BitChange::Keep {
                    self.write(state, op, op.first, changed(old), size)?;
                }
                old
            }
        };
        state.flags = state.flags & !flag::CARRY | u64::from(old & mask != 0);
        Ok(())
    }

    fn count(&mut self, state: &mut State, op: &Operation) -> Result<(), NotHere> {
        let size = op.size;
        let value = self.read(state, op, op.second, size)?;
        let leading = u64::from(value.leading_zeros() - (64 - size.bits()));
        let trailing = u64::from(value.trailing_zeros().min(size.bits()));
        let zero = if value == 0 { flag::ZERO } else { 0 };
        match op.kind {
            Kind::ScanForward | Kind::ScanBackward => {
                state.flags = state.flags & !flag::ZERO | zero;
                let highest = (u64::from(size.bits()) - 1).wrapping_sub(leading);
                let found = if op.kind == Kind::ScanForward { trailing } else { highest };
                // Without a bit set the register stays as it was.
                if value == 0 { Ok(()) } else { self.write(state, op, op.first, found, size) }
            }
            Kind::CountOnes => {
                state.flags = state.flags & !flag::STATUS | zero;
                self.write(state, op, op.first, value.count_ones().into(), size)
            }
            _ => {
                let count = if op.kind == Kind::CountTrailing { trailing } else { leading };
                let none = if value == 0 { flag::CARRY } else { 0 };
                let first = if count == 0 { flag::ZERO } else { 0 };
                state.flags = state.flags & !(flag::CARRY | flag::ZERO) | none | first;
                self.write(state, op, op.first, count, size)
            }
        }
    }
}

/// A jump to an address that is not canonical is the hypervisor's to refuse.
fn canonical(target: u64) -> Result<u64, NotHere> {
    if is_canonical(target) { Ok(target) } else { Err(NotHere) }
}
