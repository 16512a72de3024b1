//! String instructions: many elements at once where source and destination are plain pages.

use super::Engine;
use super::alu::{self, Size, flag};
use super::decode::{Operation, Repeat, Str};
use super::pages::{self, Access, NotHere};
use super::state::State;

const RAX: usize = 0;
const RCX: usize = 1;
const RSI: usize = 6;
const RDI: usize = 7;
/// Elements after which a repetition is left for interrupts to be looked for; it is resumed where it was.
const AT_ONCE: u64 = 16 << 10;
/// As many take about as long as one instruction.
const ELEMENTS_PER_INSTRUCTION: u64 = 16;

impl Engine {
    /// Returns the address of the next instruction, which is this one while repetitions are left.
    pub(super) fn string(&mut self, state: &mut State, op: &Operation, what: Str) -> Result<u64, NotHere> {
        let next = state.rip.wrapping_add(op.length.into());
        if op.repeat == Repeat::Once {
            self.element(state, op.size, what)?;
            return Ok(next);
        }
        let mut left = AT_ONCE.min(state.general[RCX]);
        while left > 0 {
            let done = self.many(state, op.size, what, left)?;
            left -= done;
            self.spend(done / ELEMENTS_PER_INSTRUCTION);
            state.general[RCX] = state.general[RCX].wrapping_sub(done);
            let zero = state.flags & flag::ZERO != 0;
            let goes_on = match what {
                Str::Scan | Str::Compare => zero == (op.repeat == Repeat::WhileEqual),
                _ => true,
            };
            if !goes_on {
                return Ok(next);
            }
        }
        Ok(if state.general[RCX] == 0 { next } else { state.rip })
    }

    /// Does at least one element and at most `limit`, and says how many.
    fn many(&mut self, state: &mut State, size: Size, what: Str, limit: u64) -> Result<u64, NotHere> {
        let upwards = state.flags & flag::DIRECTION == 0;
        let (from, to) = (state.general[RSI], state.general[RDI]);
        let room = |address: u64| {
            (crate::memory::PAGE_SIZE - address % crate::memory::PAGE_SIZE) / u64::from(size.0)
        };
        let count = match what {
            Str::Move => limit.min(room(from)).min(room(to)),
            Str::Store => limit.min(room(to)),
            _ => 0,
        };
        if !upwards || count < 2 {
            self.element(state, size, what)?;
            return Ok(1);
        }
        let bytes = (count * u64::from(size.0)) as usize;
        let target = self.pages.host(state, to, bytes, Access::Write)?;
        let free = self.pages.free_of_entries(target, bytes) / usize::from(size.0);
        if free == 0 {
            return Err(NotHere);
        }
        let (count, bytes) = (count.min(free as u64), bytes.min(free * usize::from(size.0)));
        match what {
            Str::Move => {
                let source = self.pages.host(state, from, bytes, Access::Read)?;
                for index in 0..count as usize {
                    let at = index * usize::from(size.0);
                    pages::write(target.wrapping_add(at), pages::read(source.wrapping_add(at), size), size);
                }
                state.general[RSI] = from.wrapping_add(bytes as u64);
            }
            _ => {
                let value = state.general[RAX];
                for index in 0..count as usize {
                    pages::write(target.wrapping_add(index * usize::from(size.0)), value, size);
                }
            }
        }
        state.general[RDI] = to.wrapping_add(bytes as u64);
        Ok(count)
    }

    fn element(&mut self, state: &mut State, size: Size, what: Str) -> Result<(), NotHere> {
        let (from, to) = (state.general[RSI], state.general[RDI]);
        let accumulator = state.general[RAX] & size.mask();
        match what {
            Str::Move => {
                let value = self.pages.load(state, from, size)?;
                self.pages.store(state, to, value, size)?;
            }
            Str::Store => self.pages.store(state, to, accumulator, size)?,
            Str::Load => {
                let value = self.pages.load(state, from, size)?;
                let register = &mut state.general[RAX];
                *register = if size.0 >= 4 { value } else { *register & !size.mask() | value };
            }
            Str::Scan => {
                let value = self.pages.load(state, to, size)?;
                alu::compare(&mut state.flags, accumulator, value, size);
            }
            Str::Compare => {
                let first = self.pages.load(state, from, size)?;
                let second = self.pages.load(state, to, size)?;
                alu::compare(&mut state.flags, first, second, size);
            }
        }
        let step = if state.flags & flag::DIRECTION == 0 {
            u64::from(size.0)
        } else {
            u64::from(size.0).wrapping_neg()
        };
        if !matches!(what, Str::Store | Str::Scan) {
            state.general[RSI] = from.wrapping_add(step);
        }
        if !matches!(what, Str::Load) {
            state.general[RDI] = to.wrapping_add(step);
        }
        Ok(())
    }
}
