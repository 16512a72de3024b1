//! Instructions that look into the descriptor tables: `lsl`, by which Linux finds the number of its processor when it
//! is interrupted where it cannot trust the base of GS, as by an NMI.
//!
//! Intel SDM volume 2, "LSL"; volume 3, "Segment Descriptors" and "System Descriptor Types".

use iced_x86::{Instruction, OpKind};

use super::rights::Purpose;
use super::{Cpu, Fault, Stop, operand, registers};
use crate::x86::mode::EFER_LMA;

const RFLAGS_ZF: u64 = 1 << 6;

/// In a selector: the table is the local one.
const LOCAL: u16 = 1 << 2;
/// The size of a descriptor, but for the upper halves that some have in long mode.
const SIZE: u64 = 8;

/// Code or data, not the system's.
const SEGMENT: u64 = 1 << 44;
/// The limit counts pages.
const GRANULARITY: u64 = 1 << 55;

/// `lsl`: the limit of the segment that a selector names, if there is such a segment and the program may know of it;
/// the zero flag tells.
pub(super) fn load_limit(cpu: &mut Cpu<'_>, instruction: &Instruction) -> Result<(), Stop> {
    if !cpu.is_protected() {
        return Err(Fault::UNDEFINED.into());
    }
    let selector = selector(cpu, instruction)?;
    let descriptor = descriptor(cpu, selector)?;
    cpu.general.rflags &= !RFLAGS_ZF;
    if let Some(descriptor) =
        descriptor.filter(|&found| has_limit(cpu, found) && may_see(cpu, selector, found))
    {
        cpu.general.rflags |= RFLAGS_ZF;
        registers::set(&mut cpu.general, instruction.op0_register(), limit(descriptor));
    }
    Ok(())
}

fn selector(cpu: &Cpu<'_>, instruction: &Instruction) -> Result<u16, Stop> {
    if instruction.op1_kind() == OpKind::Register {
        return Ok(registers::get(&cpu.general, instruction.op1_register()) as u16);
    }
    let address = operand::memory_operand(cpu, instruction, 2, Purpose::Read)?;
    let mut bytes = [0; 2];
    cpu.read(address, &mut bytes)?;
    Ok(u16::from_le_bytes(bytes))
}

/// What a selector names, if that lies in its table.
fn descriptor(cpu: &Cpu<'_>, selector: u16) -> Result<Option<u64>, Stop> {
    let offset = u64::from(selector >> 3) * SIZE;
    let (base, limit) = if selector & LOCAL != 0 {
        let table = &cpu.special.ldt;
        if table.unusable {
            return Ok(None);
        }
        (table.base, u64::from(table.limit))
    } else {
        // The first one of the global table is none.
        if offset == 0 {
            return Ok(None);
        }
        (cpu.special.gdt.base, u64::from(cpu.special.gdt.limit))
    };
    if offset + SIZE - 1 > limit {
        return Ok(None);
    }
    let mut bytes = [0; SIZE as usize];
    cpu.read_as_system(base.wrapping_add(offset), &mut bytes)?;
    Ok(Some(u64::from_le_bytes(bytes)))
}

fn kind(descriptor: u64) -> u64 {
    descriptor >> 40 & 15
}

/// Segments, local tables and task states have a limit, gates have none.
fn has_limit(cpu: &Cpu<'_>, descriptor: u64) -> bool {
    let of_long_mode = cpu.special.efer & EFER_LMA != 0;
    match kind(descriptor) {
        _ if descriptor & SEGMENT != 0 => true,
        2 | 9 | 11 => true,
        1 | 3 => !of_long_mode,
        _ => false,
    }
}

/// Conforming code may be seen by everybody, the rest by those who could use it.
fn may_see(cpu: &Cpu<'_>, selector: u16, descriptor: u64) -> bool {
    const CONFORMING: u64 = 12;
    let level = descriptor >> 45 & 3;
    let is_conforming = descriptor & SEGMENT != 0 && kind(descriptor) & CONFORMING == CONFORMING;
    is_conforming || level >= u64::from(cpu.privilege()) && level >= u64::from(selector & 3)
}

/// The last offset in the segment.
fn limit(descriptor: u64) -> u64 {
    let limit = descriptor & 0xffff | descriptor >> 32 & 0xf_0000;
    if descriptor & GRANULARITY != 0 { limit << 12 | 0xfff } else { limit }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hv::DescriptorTable;
    use crate::x86::complete::testing::{DATA, Guest};

    const LSL: [u8; 4] = [0x48, 0x0f, 0x03, 0xc0]; // lsl rax, rax
    const LSL_16: [u8; 4] = [0x66, 0x0f, 0x03, 0xc0]; // lsl ax, ax
    const LSL_FROM_MEMORY: [u8; 3] = [0x0f, 0x03, 0x03]; // lsl eax, word ptr [rbx]

    /// One that is never found; data of everybody's with limit 0x1005, as Linux keeps a processor's number; data of
    /// ring 0's with all limits; conforming code of ring 0's; a gate; a task state of 16 bits; one of 64.
    const TABLE: [u64; 7] = [
        0x00cf_f300_0000_ffff,
        0x0040_f500_0000_1005,
        0x00cf_9300_0000_ffff,
        0x0040_9e00_0000_0010,
        0x0000_8e00_0000_0020,
        0x0000_8100_0000_0030,
        0x0000_8900_0000_0067,
    ];

    fn guest() -> Guest {
        let mut guest = Guest::new();
        for (number, descriptor) in (0..).zip(TABLE) {
            guest.put(DATA + number * SIZE, &descriptor.to_le_bytes());
        }
        guest.state.special.gdt = DescriptorTable { base: DATA, limit: TABLE.len() as u16 * 8 - 1 };
        guest
    }

    /// What is found, if something is.
    fn ask(guest: &mut Guest, code: &[u8], selector: u64) -> Option<u64> {
        guest.state.registers.rax = selector;
        guest.works(code);
        let found = guest.state.registers.rflags & RFLAGS_ZF != 0;
        assert!(found || guest.state.registers.rax == selector);
        found.then_some(guest.state.registers.rax)
    }

    #[test]
    fn a_limit_is_found_where_a_segment_has_one() {
        let mut guest = guest();
        let all = [None, Some(0x1005), Some(0xffff_ffff), Some(0x10), None, None, Some(0x67), None];
        for (number, expected) in (0..).zip(all) {
            assert_eq!(ask(&mut guest, &LSL, number << 3), expected, "{number}");
        }
        assert_eq!(ask(&mut guest, &LSL, 0x1_0000_000b), Some(0x1005));
        assert_eq!(ask(&mut guest, &LSL_16, 0xabcd_0010), Some(0xabcd_ffff));
        guest.state.registers.rbx = DATA + 0x100;
        guest.put(DATA + 0x100, &[8, 0]);
        assert_eq!(ask(&mut guest, &LSL_FROM_MEMORY, 0xffff_ffff_0000_0000), Some(0x1005));
        guest.map(DATA, 0);
        guest.raises(&LSL_FROM_MEMORY, 14, Some(0));
    }

    #[test]
    fn a_segment_of_a_higher_ring_is_not_seen() {
        let mut guest = guest();
        assert_eq!(ask(&mut guest, &LSL, 1 << 3 | 3), Some(0x1005));
        assert_eq!(ask(&mut guest, &LSL, 2 << 3 | 3), None);
        assert_eq!(ask(&mut guest, &LSL, 3 << 3 | 3), Some(0x10));
    }

    #[test]
    fn a_local_table_is_looked_into_if_there_is_one() {
        let mut guest = guest();
        guest.state.special.ldt.unusable = true;
        assert_eq!(ask(&mut guest, &LSL, 1 << 3 | 4), None);
        let ldt = &mut guest.state.special.ldt;
        (ldt.unusable, ldt.base, ldt.limit) = (false, DATA + SIZE, 7);
        assert_eq!(ask(&mut guest, &LSL, 4), Some(0x1005));
        assert_eq!(ask(&mut guest, &LSL, 1 << 3 | 4), None);
    }

    #[test]
    fn in_real_mode_there_is_no_such_instruction() {
        Guest::new().real().raises(&[0x0f, 0x03, 0xc0], 6, None);
    }
}
