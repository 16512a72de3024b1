//! Operands that lie in many places: gathers and scatters, element by element, and the masked store to RDI.
//!
//! A fault in the middle leaves what came before it done, with the mask telling what is left. Intel SDM volume 2,
//! "VGATHER…", "VPSCATTER…", "MASKMOVDQU".

use iced_x86::{EncodingKind, Instruction, Mnemonic, OpKind, Register};

use super::beyond;
use crate::x86::complete::availability::Kind;
use crate::x86::complete::rights::Purpose;
use crate::x86::complete::vectors::{Wide, get_mask, get_vector, set_mask, set_vector};
use crate::x86::complete::{Cpu, Fault, Stop, operand};

/// The registers of an instruction that is executed here, if it is one.
pub(super) fn kind(instruction: &Instruction) -> Option<Kind> {
    match instruction.mnemonic() {
        Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu => Some(Kind::Vector),
        mnemonic if element_size(mnemonic).is_some() => match instruction.encoding() {
            EncodingKind::VEX => Some(Kind::Vector),
            EncodingKind::EVEX => Some(Kind::Masked),
            _ => None,
        },
        _ => None,
    }
}

/// Executes it.
pub(super) fn execute(cpu: &mut Cpu<'_>, instruction: &Instruction) -> Result<(), Stop> {
    match element_size(instruction.mnemonic()) {
        None => store_chosen_bytes(cpu, instruction),
        Some(element) if instruction.op0_kind() == OpKind::Memory => scatter(cpu, instruction, element),
        Some(element) => gather(cpu, instruction, element),
    }
}

fn element_size(mnemonic: Mnemonic) -> Option<usize> {
    use Mnemonic as M;
    match mnemonic {
        M::Vgatherdps | M::Vgatherqps | M::Vpgatherdd | M::Vpgatherqd => Some(4),
        M::Vgatherdpd | M::Vgatherqpd | M::Vpgatherdq | M::Vpgatherqq => Some(8),
        M::Vscatterdps | M::Vscatterqps | M::Vpscatterdd | M::Vpscatterqd => Some(4),
        M::Vscatterdpd | M::Vscatterqpd | M::Vpscatterdq | M::Vpscatterqq => Some(8),
        _ => None,
    }
}

/// The addresses of a gather or scatter.
struct Addresses {
    indices: Wide,
    index_size: usize,
    element: usize,
    count: usize,
}

impl Addresses {
    fn new(
        cpu: &mut Cpu<'_>,
        instruction: &Instruction,
        data: Register,
        element: usize,
    ) -> Result<Self, Stop> {
        let index = instruction.memory_index();
        let index_size = if instruction.is_vsib64() { 8 } else { 4 };
        if !index.is_vector_register() {
            return Err(beyond("it has no vector of addresses"));
        }
        let count = (index.size() / index_size).min(data.size() / element);
        let indices = get_vector(cpu.vectors()?, index.number());
        Ok(Self { indices, index_size, element, count })
    }

    fn linear(
        &self,
        cpu: &Cpu<'_>,
        instruction: &Instruction,
        number: usize,
        purpose: Purpose,
    ) -> Result<u64, Stop> {
        let start = number * self.index_size;
        let bytes = &self.indices[start..start + self.index_size];
        let mut wide = [if bytes[self.index_size - 1] >> 7 == 0 { 0 } else { 0xff }; 8];
        wide[..self.index_size].copy_from_slice(bytes);
        let scale = u64::from(instruction.memory_index_scale());
        let scaled = u64::from_le_bytes(wide).wrapping_mul(scale);
        let offset = operand::offset_with_index(cpu, instruction, scaled);
        operand::linear_address(cpu, instruction, offset, self.element as u64, purpose)
    }
}

fn gather(cpu: &mut Cpu<'_>, instruction: &Instruction, element: usize) -> Result<(), Stop> {
    let data = instruction.op0_register();
    let masked_by_vector = instruction.encoding() == EncodingKind::VEX;
    let mask = if masked_by_vector { instruction.op2_register() } else { instruction.op_mask() };
    let index = instruction.memory_index();
    let same = |one: Register, other: Register| one.number() == other.number();
    if same(data, index) || (masked_by_vector && (same(data, mask) || same(index, mask))) {
        return Err(Fault::UNDEFINED.into());
    }
    let addresses = Addresses::new(cpu, instruction, data, element)?;
    let mut result = get_vector(cpu.vectors()?, data.number());
    let mut left = Mask::read(cpu, mask, element)?;
    let mut end = Ok(());
    for number in 0..addresses.count {
        if left.is_set(number) {
            let place = number * element..(number + 1) * element;
            let read = addresses
                .linear(cpu, instruction, number, Purpose::Read)
                .and_then(|linear| cpu.read(linear, &mut result[place]));
            if let Err(stop) = read {
                end = Err(stop);
                break;
            }
        }
        // Whether it was chosen or not.
        left.clear(number);
    }
    if matches!(end, Err(Stop::Beyond(_) | Stop::Hypervisor(_))) {
        return end;
    }
    if end.is_ok() {
        result[addresses.count * element..].fill(0);
        left.clear_all();
    }
    set_vector(cpu.vectors_mut()?, data.number(), &result);
    left.write(cpu, mask)?;
    end
}

fn scatter(cpu: &mut Cpu<'_>, instruction: &Instruction, element: usize) -> Result<(), Stop> {
    let data = instruction.op1_register();
    let mask = instruction.op_mask();
    let addresses = Addresses::new(cpu, instruction, data, element)?;
    let values = get_vector(cpu.vectors()?, data.number());
    let mut left = Mask::read(cpu, mask, element)?;
    let mut end = Ok(());
    for number in 0..addresses.count {
        if left.is_set(number) {
            let written = addresses
                .linear(cpu, instruction, number, Purpose::Write)
                .and_then(|linear| cpu.write(linear, &values[number * element..(number + 1) * element]));
            if let Err(stop) = written {
                end = Err(stop);
                break;
            }
            left.clear(number);
        }
    }
    if end.is_ok() {
        left.clear_all();
    }
    left.write(cpu, mask)?;
    end
}

/// Which elements are still to be done.
enum Mask {
    /// By the sign of each element of a vector register.
    Signs { register: Wide, element: usize },
    /// By the bits of a mask register.
    Bits(u64),
}

impl Mask {
    fn read(cpu: &mut Cpu<'_>, register: Register, element: usize) -> Result<Self, Stop> {
        let vectors = cpu.vectors()?;
        Ok(if register.is_vector_register() {
            Self::Signs { register: get_vector(vectors, register.number()), element }
        } else {
            Self::Bits(get_mask(vectors, register.number()))
        })
    }

    fn is_set(&self, number: usize) -> bool {
        match self {
            Self::Signs { register, element } => register[(number + 1) * element - 1] >> 7 != 0,
            Self::Bits(bits) => bits >> number & 1 != 0,
        }
    }

    fn clear(&mut self, number: usize) {
        match self {
            Self::Signs { register, element } => register[number * *element..(number + 1) * *element].fill(0),
            Self::Bits(bits) => *bits &= !(1 << number),
        }
    }

    fn clear_all(&mut self) {
        match self {
            Self::Signs { register, .. } => register.fill(0),
            Self::Bits(bits) => *bits = 0,
        }
    }

    fn write(&self, cpu: &mut Cpu<'_>, register: Register) -> Result<(), Stop> {
        let vectors = cpu.vectors_mut()?;
        match self {
            Self::Signs { register: value, .. } => set_vector(vectors, register.number(), value),
            Self::Bits(bits) => set_mask(vectors, register.number(), *bits),
        }
        Ok(())
    }
}

/// `maskmovdqu`: the bytes of one register whose sign bit in another one is set go to DS:RDI.
fn store_chosen_bytes(cpu: &mut Cpu<'_>, instruction: &Instruction) -> Result<(), Stop> {
    let size = instruction.op1_register().size();
    let offset = match instruction.op0_kind() {
        OpKind::MemorySegRDI => cpu.general.rdi,
        OpKind::MemorySegEDI => cpu.general.rdi & 0xffff_ffff,
        OpKind::MemorySegDI => cpu.general.rdi & 0xffff,
        _ => return Err(beyond("its operand is not where it should be")),
    };
    let vectors = cpu.vectors()?;
    let bytes = get_vector(vectors, instruction.op1_register().number());
    let mask = get_vector(vectors, instruction.op2_register().number());
    let chosen = (0..size).filter(|&index| mask[index] >> 7 != 0).fold(0, |all, index| all | 1 << index);
    let linear = operand::linear_address(cpu, instruction, offset, size as u64, Purpose::Write)?;
    // The manual leaves it to the processor whether bytes that are not stored may be missing; AMD's does not.
    cpu.check_write(linear, size)?;
    cpu.write_chosen(linear, &bytes[..size], chosen)
}
