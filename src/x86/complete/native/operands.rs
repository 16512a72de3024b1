//! The memory operand of an instruction that is executed here: into a buffer and back, or in place.

use iced_x86::{Instruction, InstructionInfo, Mnemonic, OpAccess, OpKind};

use super::allow::uses_x87;
use super::beyond;
use super::engine::Engine;
use super::masked::{self, Touched};
use super::rewrite::Place;
use crate::memory::PAGE_SIZE;
use crate::x86::complete::rights::Purpose;
use crate::x86::complete::{Cpu, Fault, Stop, operand, registers};

/// A cache line: only within one the processor locks without stopping all others.
const LINE: u64 = 64;
/// No vector operand is larger. What is larger is not always written in full.
const LARGEST_VECTOR: usize = 64;
/// What `fxsave` stores.
const FXSAVE_SIZE: usize = 512;
/// Room in the buffer, behind the place where an operand may begin.
const LARGEST: usize = 2048;

/// The memory operand.
#[derive(Debug)]
pub(super) enum Operand {
    /// There is none.
    None,
    /// There is one that only hints at something.
    Untouched,
    /// Copied.
    Buffered(Buffered),
    /// Changed where it is.
    InPlace {
        /// Its address in this program.
        pointer: u64,
        /// Its effective address in the guest.
        offset: u64,
    },
}

/// An operand that is copied.
#[derive(Debug)]
pub(super) struct Buffered {
    linear: u64,
    offset: u64,
    size: usize,
    reads: bool,
    writes: bool,
    /// Whether it is written by the x87 unit.
    stores_from_stack: bool,
    touched: Touched,
    /// Why there is no such address.
    no_address: Option<Fault>,
}

/// Where an operand was put.
#[derive(Debug, Clone, Copy)]
pub(super) struct Placed {
    /// The place; nothing if there is no operand.
    pub place: Option<Place>,
    /// What the guest gets if the processor touches a part of the operand that could not be put there.
    pub missing: Option<Missing>,
}

/// A part of an operand that the guest's instruction may not touch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Missing {
    fault: Fault,
    /// From the place here to the operand in the guest.
    distance: u64,
}

impl Missing {
    /// What the guest gets if the processor has touched the part at `address`.
    pub(super) fn at(self, address: u64) -> Fault {
        match self.fault.address {
            Some(_) => Fault { address: Some(address.wrapping_add(self.distance)), ..self.fault },
            None => self.fault,
        }
    }
}

impl Operand {
    /// Finds the operand and checks that it lies within its segment.
    pub(super) fn find(
        cpu: &mut Cpu<'_>,
        instruction: &Instruction,
        info: &InstructionInfo,
    ) -> Result<Self, Stop> {
        let in_memory =
            (0..instruction.op_count()).find(|&number| instruction.op_kind(number) == OpKind::Memory);
        let Some(number) = in_memory else { return Ok(Self::None) };
        let access = info.op_access(number);
        let reads = !matches!(access, OpAccess::Write | OpAccess::CondWrite);
        let writes = !matches!(access, OpAccess::Read | OpAccess::CondRead);
        if matches!(access, OpAccess::NoMemAccess | OpAccess::None) {
            return Ok(Self::Untouched);
        }
        let size = instruction.memory_size().size();
        if size == 0 || size > LARGEST {
            return Err(beyond("the size of its operand is not known"));
        }
        let purpose = if writes { Purpose::Write } else { Purpose::Read };
        let offset = effective_address(cpu, instruction);
        let touched = masked::touched(cpu, instruction)?;
        let found = operand::linear_address(cpu, instruction, offset, size as u64, purpose);
        let (linear, no_address) = match found {
            Ok(linear) => (linear, None),
            Err(Stop::Fault(_)) if touched == Touched::Bytes(0) => (offset, None),
            Err(Stop::Fault(fault)) => (offset, Some(fault)),
            Err(stop) => return Err(stop),
        };
        if no_address.is_none() && is_locked(instruction) && linear % LINE + size as u64 <= LINE {
            match cpu.in_place(linear, size) {
                Ok(Some(piece)) => {
                    let pointer = piece.ptr_guard_mut().as_ptr() as u64;
                    return Ok(Self::InPlace { pointer, offset });
                }
                // It faults again when it is to be copied; whether anything else is wrong is looked at there.
                Ok(None) | Err(Stop::Fault(_)) => {}
                Err(stop) => return Err(stop),
            }
        }
        let stores_from_stack = writes && uses_x87(instruction, info);
        let buffered =
            Buffered { linear, offset, size, reads, writes, stores_from_stack, touched, no_address };
        Ok(Self::Buffered(buffered))
    }

    /// Puts the operand where the instruction will find it. Whatever may fault faults here.
    pub(super) fn place(&self, cpu: &Cpu<'_>, engine: &mut Engine) -> Result<Placed, Stop> {
        match self {
            Self::None | Self::Untouched => Ok(Placed { place: None, missing: None }),
            Self::InPlace { pointer, .. } => Ok(Placed { place: Some(Place::Far(*pointer)), missing: None }),
            Self::Buffered(buffered) => buffered.fill(cpu, engine),
        }
    }

    /// Where the operand would be put, filled with zeroes, if it is of computation.
    pub(super) fn place_zeroes(&self, engine: &mut Engine) -> Option<Place> {
        let Self::Buffered(Buffered { linear, size: size @ ..=LARGEST_VECTOR, .. }) = self else {
            return None;
        };
        let (address, start) = engine.place_for(*linear);
        engine.data()[start..start + size].fill(0);
        Some(Place::Near(address))
    }

    /// Writes the result back.
    pub(super) fn finish(&self, cpu: &Cpu<'_>, engine: &mut Engine) -> Result<(), Stop> {
        let Self::Buffered(Buffered { linear, size, writes: true, touched, .. }) = self else {
            return Ok(());
        };
        let (_, start) = engine.place_for(*linear);
        let bytes = &engine.data()[start..start + size];
        match touched {
            Touched::Bytes(chosen) | Touched::Checked(chosen) => cpu.write_chosen(*linear, bytes, *chosen),
            Touched::All | Touched::Unknown => cpu.write(*linear, bytes),
        }
    }

    pub(super) fn is_in_place(&self) -> bool {
        matches!(self, Self::InPlace { .. })
    }

    /// The effective address; 0 if there is no operand.
    pub(super) fn offset(&self) -> u64 {
        match self {
            Self::None | Self::Untouched => 0,
            Self::InPlace { offset, .. } | Self::Buffered(Buffered { offset, .. }) => *offset,
        }
    }
}

impl Buffered {
    fn fill(&self, cpu: &Cpu<'_>, engine: &mut Engine) -> Result<Placed, Stop> {
        let Self { linear, size, reads, writes, stores_from_stack, touched, no_address, .. } = *self;
        match no_address {
            None => {}
            Some(fault) if touched == Touched::Unknown => {
                return Ok(self.partly_at(engine.place_outside(linear), fault));
            }
            Some(fault) => return Err(fault.into()),
        }
        let (address, start) = engine.place_for(linear);
        let buffer = &mut engine.data()[start..start + size];
        self.check_edges(cpu)?;
        if writes {
            match touched {
                Touched::Bytes(chosen) => cpu.check_write_chosen(linear, size, chosen)?,
                Touched::All | Touched::Checked(_) | Touched::Unknown => cpu.check_write(linear, size)?,
            }
        }
        // An x87 store may store nothing, if it raises an exception that is reported later.
        if reads || stores_from_stack || size > LARGEST_VECTOR {
            match touched {
                Touched::All => cpu.read(linear, buffer)?,
                Touched::Bytes(chosen) | Touched::Checked(chosen) => {
                    buffer.fill(0);
                    cpu.read_chosen(linear, buffer, chosen)?;
                }
                Touched::Unknown => match cpu.read(linear, buffer) {
                    Err(Stop::Fault(fault)) => return self.fill_in_part(cpu, engine, fault),
                    result => result?,
                },
            }
        }
        Ok(Placed { place: Some(Place::Near(address)), missing: None })
    }

    /// The processor's own order where it looks at an image of the x87 unit, as `fnstenv` (14 or 28 bytes), `fnsave`
    /// (94 or 108) and `fxsave` store it. It decides which address a page fault is said to have.
    fn check_edges(&self, cpu: &Cpu<'_>) -> Result<(), Stop> {
        let Self { linear, size, writes, .. } = *self;
        let check = |at: u64, size: usize| match writes {
            true => cpu.check_write(at, size),
            false => cpu.read(at, &mut [0; 4][..size]),
        };
        let last = linear.wrapping_add(size as u64 - 1);
        match size {
            FXSAVE_SIZE => check(last, 1),
            // The 16-bit forms begin with a control word of 16 bits.
            14 | 94 => check(linear, 2).and_then(|()| check(last, 1)),
            28 | 108 => check(linear, 4).and_then(|()| check(last, 1)),
            _ => Ok(()),
        }
    }

    /// Puts what can be read at an edge of the buffer, so that the rest lies where nothing is: the processor tells
    /// whether it wants it.
    fn fill_in_part(&self, cpu: &Cpu<'_>, engine: &mut Engine, fault: Fault) -> Result<Placed, Stop> {
        let Self { linear, size, .. } = *self;
        let first = ((PAGE_SIZE - linear % PAGE_SIZE) as usize).min(size);
        let data = engine.data();
        let edge = data.len() - first;
        let address = if is_there(cpu.read(linear, &mut data[edge..]))? {
            engine.data_address() + edge as u64
        } else if first < size
            && is_there(cpu.read(linear.wrapping_add(first as u64), &mut data[..size - first]))?
        {
            engine.data_address() - first as u64
        } else {
            engine.place_outside(linear)
        };
        Ok(self.partly_at(address, fault))
    }

    fn partly_at(&self, address: u64, fault: Fault) -> Placed {
        let distance = self.linear.wrapping_sub(address);
        Placed { place: Some(Place::Near(address)), missing: Some(Missing { fault, distance }) }
    }
}

fn is_there(read: Result<(), Stop>) -> Result<bool, Stop> {
    match read {
        Ok(()) => Ok(true),
        Err(Stop::Fault(_)) => Ok(false),
        Err(other) => Err(other),
    }
}

fn is_locked(instruction: &Instruction) -> bool {
    instruction.has_lock_prefix() || instruction.mnemonic() == Mnemonic::Xchg
}

fn takes_bit_from_register(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc)
        && instruction.op0_kind() == OpKind::Memory
        && instruction.op1_kind() == OpKind::Register
}

/// The number of the bit, as a signed number: it may lie far from the operand's address.
fn bit_number(cpu: &Cpu<'_>, instruction: &Instruction) -> i64 {
    let value = registers::get(&cpu.general, instruction.op1_register());
    match instruction.op1_register().size() {
        2 => i64::from(value as i16),
        4 => i64::from(value as i32),
        _ => value as i64,
    }
}

fn effective_address(cpu: &Cpu<'_>, instruction: &Instruction) -> u64 {
    if !takes_bit_from_register(instruction) {
        return operand::offset(cpu, instruction);
    }
    let size = instruction.op1_register().size() as i64;
    let away = (bit_number(cpu, instruction) >> (size * 8).trailing_zeros()) * size;
    operand::offset_moved_by(cpu, instruction, away as u64)
}

/// Which bit of the operand a bit instruction means, where it takes that from a register.
pub(super) fn bit(cpu: &Cpu<'_>, instruction: &Instruction) -> Option<u64> {
    let bits = instruction.op1_register().size() as u64 * 8;
    takes_bit_from_register(instruction).then(|| bit_number(cpu, instruction) as u64 % bits)
}

/// Refuses forms whose layout in memory depends on the mode of the guest, and would be another one here.
pub(super) fn check_forms(cpu: &Cpu<'_>, instruction: &Instruction) -> Result<(), Stop> {
    use Mnemonic as M;
    match instruction.mnemonic() {
        M::Fnstenv | M::Fldenv | M::Fnsave | M::Frstor if !cpu.is_protected() => {
            Err(beyond("it has a format of its own in real mode"))
        }
        M::Fxsave | M::Fxrstor if !cpu.is_64_bit() => {
            Err(beyond("it has a format of its own outside 64-bit code"))
        }
        _ => Ok(()),
    }
}
