//! Page walks with access rights, and the marks that a processor leaves in the tables.
//!
//! [`walk`] finds the entries; this module says whether the access is allowed, with which
//! error code it faults otherwise, and sets accessed and dirty bits. Those are set by compare-and-exchange on
//! the guest's own entry: another processor may change it at any moment, and then the walk begins again.
//! Intel SDM volume 3, "Determination of Access Rights", "Page-Fault Exceptions", "Accessed and Dirty Flags".

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileMemory};

use super::{Beyond, Cpu, Fault, Stop};
use crate::x86::cpuid;
use crate::x86::entry::{ACCESSED, DIRTY, NO_EXECUTE, PRESENT, USER, WRITABLE};
use crate::x86::mode::{CR0_WP, CR4_PAE, CR4_SMAP, CR4_SMEP, EFER_NXE};
use crate::x86::walk::{self, Step, Tables, Trace};

/// Address bits of an entry that this processor may not have.
const ADDRESS_ABOVE_32: u64 = (1 << 52) - (1 << 32);
/// In PAE mode these bits of an entry mean nothing and must be clear.
const PAE_UNUSED: u64 = (1 << 63) - (1 << 52);
/// Bits that the four root entries of PAE mode do not have: rights, and what is reserved.
const PAE_ROOT_UNUSED: u64 = 0x1e6 | NO_EXECUTE;
const PROTECTION_KEY: u64 = 0xf << 59;

const CODE_PRESENT: u32 = 1 << 0;
const CODE_WRITE: u32 = 1 << 1;
const CODE_USER: u32 = 1 << 2;
const CODE_RESERVED: u32 = 1 << 3;
const CODE_FETCH: u32 = 1 << 4;

const RFLAGS_AC: u64 = 1 << 18;
const CR4_PKE: u64 = 1 << 22;
const CR4_PKS: u64 = 1 << 24;

/// How often a walk is repeated because somebody changes the tables meanwhile. Each repetition means that
/// another processor made progress.
const ATTEMPTS: u32 = 10_000;

/// What is done with the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// They are data to be read.
    Read,
    /// They are written, and possibly read before.
    Write,
    /// They are an instruction.
    Execute,
}

/// On whose behalf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Actor {
    /// The program, with the privilege that it has.
    Program,
    /// The processor itself, which reads descriptors and writes interrupt frames: always as supervisor, and
    /// never excused from SMAP by RFLAGS.AC.
    System,
}

/// An access to memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// What for.
    pub purpose: Purpose,
    /// For whom.
    pub actor: Actor,
}

impl Cpu<'_> {
    /// The guest-physical address behind `linear`, which need not be in memory; marks the page as used.
    pub(super) fn translate(&self, linear: u64, access: Access) -> Result<u64, Stop> {
        for _ in 0..ATTEMPTS {
            let trace = walk::trace(self.memory, &self.special, linear);
            let physical = self.judge(&trace, linear, access)?;
            if self.mark(&trace, access.purpose)? {
                return Ok(physical);
            }
        }
        let text = format!("the tables that map {linear:#x} change faster than they can be followed");
        Err(Beyond { text }.into())
    }

    fn judge(&self, trace: &Trace, linear: u64, access: Access) -> Result<u64, Stop> {
        let user = access.actor == Actor::Program && self.privilege() == 3;
        let fault = |more: u32| {
            let mut code = more;
            code |= if access.purpose == Purpose::Write { CODE_WRITE } else { 0 };
            code |= if user { CODE_USER } else { 0 };
            code |= if access.purpose == Purpose::Execute && self.tells_fetches() { CODE_FETCH } else { 0 };
            Stop::Fault(Fault::page(linear, code))
        };
        let reserved = |step: &Step| step.entry & self.reserved(trace.tables, step) != 0;
        if trace.steps().iter().any(|step| step.entry & PRESENT != 0 && reserved(step)) {
            return Err(fault(CODE_PRESENT | CODE_RESERVED));
        }
        let physical = trace.end.map_err(|error| match error {
            walk::Fault::NotCanonical { .. } => Fault::PROTECTION.into(),
            walk::Fault::NotPresent { .. } => fault(0),
            walk::Fault::Reserved { .. } => fault(CODE_PRESENT | CODE_RESERVED),
            walk::Fault::OutsideMemory { .. } => Beyond { text: error.to_string() }.into(),
        })?;
        if trace.tables != Tables::None {
            let rights = Rights::of(trace);
            if !self.allows(rights, access.purpose, user, access.actor) {
                return Err(fault(CODE_PRESENT));
            }
            self.check_key(trace, rights, access.purpose)?;
        }
        Ok(physical)
    }

    /// Whether error codes tell instruction fetches apart.
    fn tells_fetches(&self) -> bool {
        let has_no_execute = self.special.efer & EFER_NXE != 0 && self.special.cr4 & CR4_PAE != 0;
        has_no_execute || self.special.cr4 & CR4_SMEP != 0
    }

    fn reserved(&self, tables: Tables, step: &Step) -> u64 {
        let beyond_processor = ADDRESS_ABOVE_32 & !((1 << physical_address_bits()) - 1);
        let no_execute = if self.special.efer & EFER_NXE == 0 { NO_EXECUTE } else { 0 };
        match (tables, step.level) {
            (Tables::None | Tables::Narrow, _) => 0,
            (Tables::Pae, 3) => PAE_ROOT_UNUSED | PAE_UNUSED | beyond_processor,
            (Tables::Pae, _) => PAE_UNUSED | beyond_processor | no_execute,
            (Tables::Long, _) => beyond_processor | no_execute,
        }
    }

    fn allows(&self, rights: Rights, purpose: Purpose, user: bool, actor: Actor) -> bool {
        let Rights { user: for_user, writable, executable } = rights;
        if user && !for_user {
            return false;
        }
        let crosses_over = !user && for_user;
        let has = |bit| self.special.cr4 & bit != 0;
        let excused = actor == Actor::Program && self.general.rflags & RFLAGS_AC != 0;
        match purpose {
            Purpose::Execute => executable && !(crosses_over && has(CR4_SMEP)),
            _ if crosses_over && has(CR4_SMAP) && !excused => false,
            Purpose::Read => true,
            Purpose::Write => writable || (!user && self.special.cr0 & CR0_WP == 0),
        }
    }

    /// Protection keys are registers of their own, which are not looked up here. Key 0, which everything has
    /// that asked for none, is never barred by any system known.
    fn check_key(&self, trace: &Trace, rights: Rights, purpose: Purpose) -> Result<(), Stop> {
        let guarded = self.special.cr4 & if rights.user { CR4_PKE } else { CR4_PKS } != 0;
        let key = trace.steps().last().map_or(0, |leaf| leaf.entry & PROTECTION_KEY);
        if guarded && trace.tables == Tables::Long && purpose != Purpose::Execute && key != 0 {
            let text = "its operand is guarded by a protection key, which is not supported here".to_owned();
            return Err(Beyond { text }.into());
        }
        Ok(())
    }

    /// Sets accessed and dirty bits. Tells whether the entries still were what the walk saw.
    fn mark(&self, trace: &Trace, purpose: Purpose) -> Result<bool, Stop> {
        let steps = trace.steps();
        for (index, step) in steps.iter().enumerate() {
            let is_leaf = index + 1 == steps.len();
            let dirty = if is_leaf && purpose == Purpose::Write { DIRTY } else { 0 };
            let marked = step.entry | ACCESSED | dirty;
            let has_marks = !(trace.tables == Tables::Pae && step.level == 3);
            if has_marks && marked != step.entry && !self.exchange(trace.tables, step, marked)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn exchange(&self, tables: Tables, step: &Step, marked: u64) -> Result<bool, Stop> {
        // The walk has read it there, at a multiple of its size.
        let gone = |_| Beyond { text: format!("the table entry at {:#x} is in no memory", step.at) };
        let order = (Ordering::SeqCst, Ordering::Relaxed);
        if tables == Tables::Narrow {
            let slice = self.memory.mapped().get_slice(GuestAddress(step.at), 4).map_err(gone)?;
            let entry = slice.get_atomic_ref::<AtomicU32>(0).map_err(|_| misplaced(step))?;
            return Ok(entry.compare_exchange(step.entry as u32, marked as u32, order.0, order.1).is_ok());
        }
        let slice = self.memory.mapped().get_slice(GuestAddress(step.at), 8).map_err(gone)?;
        let entry = slice.get_atomic_ref::<AtomicU64>(0).map_err(|_| misplaced(step))?;
        Ok(entry.compare_exchange(step.entry, marked, order.0, order.1).is_ok())
    }
}

fn misplaced(step: &Step) -> Beyond {
    Beyond { text: format!("the table entry at {:#x} is not aligned", step.at) }
}

/// What all entries on the way allow together.
#[derive(Debug, Clone, Copy)]
struct Rights {
    user: bool,
    writable: bool,
    executable: bool,
}

impl Rights {
    fn of(trace: &Trace) -> Self {
        let mut steps = trace.steps();
        if trace.tables == Tables::Pae {
            steps = steps.get(1..).unwrap_or_default();
        }
        let all = |bit| steps.iter().all(|step| step.entry & bit != 0);
        Self {
            user: all(USER),
            writable: all(WRITABLE),
            executable: steps.iter().all(|step| step.entry & NO_EXECUTE == 0),
        }
    }
}

/// How many bits a physical address has, asked once: `cpuid` is slow where the host is a guest itself.
fn physical_address_bits() -> u8 {
    static BITS: OnceLock<u8> = OnceLock::new();
    *BITS.get_or_init(|| cpuid::host_address_bits().clamp(32, 52))
}

#[cfg(test)]
#[path = "rights_test.rs"]
mod tests;
