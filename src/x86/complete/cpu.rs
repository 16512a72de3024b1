//! The state of the processor on which an instruction is executed.
//!
//! General and control registers are read at once; the vector registers, which few instructions need and which
//! cost more, when they are asked for. Nothing of the guest changes before [`Cpu::store`] except its memory.

use super::fault::Fault;
use crate::hv::{Registers, Result, SpecialRegisters, Vcpu, Vectors};
use crate::memory::GuestMemory;

const RFLAGS_TF: u64 = 1 << 8;
/// Why a debug exception was raised: the instruction was one step.
const DR6_SINGLE_STEP: u64 = 1 << 14;

/// A processor with its memory, in the middle of an instruction.
pub struct Cpu<'a> {
    vcpu: &'a dyn Vcpu,
    /// The guest's memory.
    pub memory: &'a GuestMemory,
    /// General registers, RIP and RFLAGS.
    pub general: Registers,
    /// Segments and control registers. Only CR2 is written back.
    pub special: SpecialRegisters,
    vectors: Option<Box<Vectors>>,
    vectors_changed: bool,
    enabled_state: Option<u64>,
}

impl<'a> Cpu<'a> {
    /// Reads the registers of a processor that is not running.
    pub fn load(vcpu: &'a dyn Vcpu, memory: &'a GuestMemory) -> Result<Self> {
        Ok(Self {
            vcpu,
            memory,
            general: vcpu.registers()?,
            special: vcpu.special_registers()?,
            vectors: None,
            vectors_changed: false,
            enabled_state: None,
        })
    }

    /// Puts everything that has changed back, and has `fault` delivered.
    pub fn store(mut self, fault: Option<Fault>) -> Result<()> {
        if let Some(address) = fault.and_then(|fault| fault.address) {
            self.special.cr2 = address;
            self.vcpu.set_special_registers(&self.special)?;
        }
        if let Some(vectors) = self.vectors.filter(|_| self.vectors_changed) {
            self.vcpu.set_vectors(&vectors)?;
        }
        if fault == Some(Fault::DEBUG) && self.general.rflags & RFLAGS_TF != 0 {
            self.vcpu.set_debug_status(DR6_SINGLE_STEP)?;
        }
        self.vcpu.set_registers(&self.general)?;
        fault.map_or(Ok(()), |fault| self.vcpu.raise(fault.exception))
    }

    /// The vector registers, to be read.
    pub fn vectors(&mut self) -> Result<&Vectors> {
        self.load_vectors().map(|vectors| &*vectors)
    }

    /// The vector registers, to be changed.
    pub fn vectors_mut(&mut self) -> Result<&mut Vectors> {
        self.vectors_changed = true;
        self.load_vectors()
    }

    fn load_vectors(&mut self) -> Result<&mut Vectors> {
        if self.vectors.is_none() {
            let mut vectors = Box::<Vectors>::default();
            self.vcpu.read_vectors(&mut vectors)?;
            self.vectors = Some(vectors);
        }
        Ok(self.vectors.get_or_insert_default())
    }

    /// Which kinds of vector state the guest has enabled: XCR0.
    pub fn enabled_state(&mut self) -> Result<u64> {
        match self.enabled_state {
            Some(enabled) => Ok(enabled),
            None => Ok(*self.enabled_state.insert(self.vcpu.enabled_state()?)),
        }
    }

    /// The privilege level, 0 to 3.
    pub fn privilege(&self) -> u8 {
        self.special.ss.dpl & 3
    }

    /// A model-specific register, if the hypervisor has it.
    pub fn msr(&self, index: u32) -> Result<Option<u64>> {
        self.vcpu.msr(index)
    }
}
