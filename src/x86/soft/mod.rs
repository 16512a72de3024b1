//! A software processor for guest kernels, on hosts whose KVM interprets them.
//!
//! Such a KVM runs some two million instructions of ring 0 in a second; this runs many times as many, of those
//! that kernels mostly consist of. [`Soft::run`] executes instructions in a row until it meets one that it
//! leaves to the hypervisor: what touches devices, control registers and interrupts, what faults, and
//! whatever is rare. The caller has the hypervisor execute exactly that one and comes back.
//!
//! `decode` makes operations of code bytes, `cache` keeps them, `execute` and `string` carry them out, `alu` knows
//! the arithmetic, `pages` the way to memory. Relies on `memory/` and the register types of `hv/`; `vcpu/` calls it.

mod alu;
mod cache;
mod decode;
mod execute;
mod pages;
mod state;
mod string;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::hv::{Direction, Registers, SpecialRegisters};
use crate::memory::GuestMemory;
use alu::{Size, flag};
use cache::Cache;
use decode::{Kind, Operation, Place};
use pages::Pages;
use state::State;

/// After how many instructions a kernel that accepts interrupts gets them, at the latest.
const BETWEEN_INTERRUPTS: u32 = 8192;
/// The same, after it has just begun to accept them: one may be waiting.
const SOON: u32 = 64;

/// After how many instructions a wish for leaving is looked for.
const BETWEEN_WISHES: u32 = 256;

/// Why [`Soft::run`] came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// The instruction at RIP is for the hypervisor.
    Step,
    /// The instruction at RIP is `hlt`, of one byte: the processor sleeps until an interrupt comes.
    Halt,
    /// The instruction at RIP accesses a port.
    Port(PortAccess),
    /// The instruction at RIP returns to ring 3.
    ToUser,
    /// The processor is in a mode that is not run here.
    Mode,
    /// Nothing special: interrupts that wait may come.
    Interrupts,
}

/// An access to a port that has not been done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortAccess {
    /// The port.
    pub port: u16,
    /// Who gives the data.
    pub direction: Direction,
    size: Size,
    length: u8,
}

impl PortAccess {
    fn of(state: &State, operation: &Operation, direction: Direction) -> Self {
        const RDX: usize = 2;
        let port = match (operation.first, operation.second) {
            (Place::Immediate, _) | (_, Place::Immediate) => operation.immediate & 0xff,
            _ => state.general[RDX],
        };
        Self { port: port as u16, direction, size: operation.size, length: operation.length }
    }

    /// How many bytes it has.
    pub fn width(&self) -> u8 {
        self.size.0
    }

    /// Does it: `access` is given the bytes that are written or that the answer goes to.
    pub fn carry_out<T>(&self, general: &mut Registers, access: impl FnOnce(&mut [u8]) -> T) -> T {
        let mut data = general.rax.to_le_bytes();
        let result = access(&mut data[..usize::from(self.size.0)]);
        if self.direction == Direction::Read {
            let value = u64::from_le_bytes(data);
            general.rax = if self.size.0 == 4 { value & self.size.mask() } else { value };
        }
        general.rip = general.rip.wrapping_add(self.length.into());
        result
    }
}

/// What operations are executed with, apart from the registers.
struct Engine {
    pages: Pages,
    /// How many instructions may be executed until others are looked for.
    left: u32,
}

impl Engine {
    /// Counts an instruction for more than one.
    fn spend(&mut self, instructions: u64) {
        self.left = self.left.saturating_sub(u32::try_from(instructions).unwrap_or(u32::MAX));
    }

    fn interrupts_changed(&mut self, state: &State) {
        if state.flags & flag::INTERRUPT != 0 {
            // Not at once: first comes the instruction behind `sti`.
            self.left = self.left.clamp(1, SOON);
        }
    }
}

/// One software processor.
pub struct Soft {
    engine: Engine,
    cache: Cache,
    /// What the tables in `pages` were made for: CR0, CR3, CR4, EFER.
    paging: [u64; 4],
    forget: bool,
    /// Set by others who want to know where it is.
    wish: Option<Arc<AtomicBool>>,
    /// How many instructions it has executed.
    executed: u64,
}

impl Soft {
    /// One that knows nothing yet of the guest in `memory`.
    pub fn new(memory: Arc<GuestMemory>) -> Self {
        Self {
            engine: Engine { pages: Pages::new(memory), left: 0 },
            cache: Cache::new(),
            paging: [0; 4],
            forget: false,
            wish: None,
            executed: 0,
        }
    }

    /// Has it forget what it knows of the guest's page tables: others have executed instructions of the kernel.
    pub fn forget(&mut self) {
        self.forget = true;
    }

    /// Whether stores over what may be an entry of a page table that programs use are to be the hypervisor's, which
    /// follows such entries.
    pub fn spare_entries(&mut self, spare: bool) {
        self.engine.pages.spare_entries(spare);
    }

    /// Has [`run`](Self::run) come back soon, as for interrupts, while `wish` is set.
    pub fn leave_at(&mut self, wish: Arc<AtomicBool>) {
        self.wish = Some(wish);
    }

    /// How many instructions it has executed so far.
    pub fn executed(&self) -> u64 {
        self.executed
    }

    /// Executes instructions; `general` is changed accordingly.
    pub fn run(&mut self, general: &mut Registers, special: &SpecialRegisters) -> Leave {
        let mut state = State::load(general, special);
        if !state.runs_here() {
            return Leave::Mode;
        }
        let paging = [state.cr0, state.cr3, state.cr4, state.efer];
        if self.forget || paging != self.paging {
            self.engine.pages.clear();
            self.paging = paging;
            self.forget = false;
        }
        self.engine.left = BETWEEN_INTERRUPTS;
        let mut executed = 0;
        let leave = loop {
            // Zero is such a multiple, too: most instructions meet one test.
            let left = self.engine.left;
            if left.is_multiple_of(BETWEEN_WISHES) && (left == 0 || self.is_wanted()) {
                break self.leave_early(&state);
            }
            self.engine.left = left - 1;
            match self.step(&mut state) {
                Ok(next) => state.rip = next,
                Err(leave) => break leave,
            }
            executed += 1;
        };
        self.executed += executed;
        // RF holds for one instruction.
        if executed > 0 {
            state.flags &= !flag::RESUME;
        }
        state.store(general);
        leave
    }

    #[inline]
    fn step(&mut self, state: &mut State) -> Result<u64, Leave> {
        let Some(operation) = self.cache.known(state.rip, self.engine.pages.epoch()) else {
            return self.step_anew(state);
        };
        match self.engine.execute(state, operation) {
            Ok(next) => Ok(next),
            Err(pages::NotHere) => {
                let operation = *operation;
                Err(self.leave(state, &operation))
            }
        }
    }

    /// Interrupts are looked for by having the hypervisor execute the instruction at RIP, whichever it is: where that
    /// needs more of the caller, it is told.
    #[cold]
    fn leave_early(&mut self, state: &State) -> Leave {
        let Ok(operation) = self.find(state) else { return Leave::Interrupts };
        match self.leave(state, &operation) {
            leave @ (Leave::Halt | Leave::ToUser) => leave,
            _ => Leave::Interrupts,
        }
    }

    /// The same where code has to be looked for, or reaches to the end of a page.
    #[cold]
    fn step_anew(&mut self, state: &mut State) -> Result<u64, Leave> {
        let operation = self.find(state).map_err(|_| Leave::Step)?;
        self.engine.execute(state, &operation).map_err(|_| self.leave(state, &operation))
    }

    fn find(&mut self, state: &State) -> Result<Operation, pages::NotHere> {
        let pages = &mut self.engine.pages;
        let code = pages.code(state, state.rip)?;
        let found = self.cache.get(state.rip, code.bytes, code.available).copied();
        let Some(operation) = found else {
            let bytes = pages.code_across(state, state.rip)?;
            let found = self.cache.get(state.rip, bytes, size_of_val(&bytes));
            return found.copied().ok_or(pages::NotHere);
        };
        if let Some(at) = code.whole {
            // SAFETY: `pages` found sixteen bytes there, in guest memory, which it keeps mapped.
            unsafe { self.cache.remember(state.rip, at.cast(), pages.epoch()) };
        }
        Ok(operation)
    }

    #[cold]
    fn leave(&mut self, state: &State, operation: &Operation) -> Leave {
        match operation.kind {
            Kind::BeyondAndForget | Kind::ForgetPage => {
                self.forget = true;
                Leave::Step
            }
            Kind::Halt => Leave::Halt,
            Kind::Port(direction) => Leave::Port(PortAccess::of(state, operation, direction)),
            Kind::ReturnToUser => Leave::ToUser,
            Kind::Return if self.returns_to_user(state, operation.size) => Leave::ToUser,
            _ => Leave::Step,
        }
    }

    /// Whether the return at RIP leads to ring 3, as the selector on the stack says.
    fn returns_to_user(&mut self, state: &State, size: Size) -> bool {
        const RING: u64 = 3;
        let selector = state.general[usize::from(state::RSP)].wrapping_add(size.0.into());
        self.engine.pages.load(state, selector, Size(2)).is_ok_and(|selector| selector & RING == RING)
    }

    fn is_wanted(&self) -> bool {
        self.wish.as_ref().is_some_and(|wish| wish.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
#[path = "soft_test.rs"]
mod tests;
