//! General registers by the decoder's names.

use iced_x86::Register;

use crate::hv::Registers;

/// The register of 64 bits that holds `register`, by its number in machine code.
pub(super) fn number(register: Register) -> Option<usize> {
    register.is_gpr().then(|| register.full_register().number())
}

/// All general registers, by their numbers in machine code.
pub(super) fn all(general: &Registers) -> [u64; 16] {
    general.numbered()
}

/// Replaces all general registers.
pub(super) fn set_all(general: &mut Registers, values: &[u64; 16]) {
    *general = general.with_numbered(*values);
}

/// What a general register holds, zero-extended; 0 for what is none.
pub(super) fn get(general: &Registers, register: Register) -> u64 {
    let Some(number) = number(register) else { return 0 };
    let value = all(general)[number];
    match register.size() {
        8 => value,
        4 => value & 0xffff_ffff,
        2 => value & 0xffff,
        _ if is_high_byte(register) => value >> 8 & 0xff,
        _ => value & 0xff,
    }
}

/// Sets a general register as an instruction does: one of 32 bits clears the upper half, a smaller one leaves
/// the rest alone.
pub(super) fn set(general: &mut Registers, register: Register, value: u64) {
    let Some(number) = number(register) else { return };
    let mut values = all(general);
    let old = values[number];
    values[number] = match register.size() {
        8 => value,
        4 => value & 0xffff_ffff,
        2 => old & !0xffff | value & 0xffff,
        _ if is_high_byte(register) => old & !0xff00 | (value & 0xff) << 8,
        _ => old & !0xff | value & 0xff,
    };
    set_all(general, &values);
}

/// AH, CH, DH or BH.
pub(super) fn is_high_byte(register: Register) -> bool {
    matches!(register, Register::AH | Register::CH | Register::DH | Register::BH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_registers_are_set_as_the_processor_sets_them() {
        let mut general = Registers { rbx: u64::MAX, r9: u64::MAX, ..Registers::default() };
        set(&mut general, Register::BL, 0x111);
        assert_eq!(general.rbx, 0xffff_ffff_ffff_ff11);
        set(&mut general, Register::BH, 0x22);
        assert_eq!((general.rbx, get(&general, Register::BH)), (0xffff_ffff_ffff_2211, 0x22));
        set(&mut general, Register::BX, 0x1_3333);
        assert_eq!(general.rbx, 0xffff_ffff_ffff_3333);
        set(&mut general, Register::R9D, 5);
        assert_eq!((general.r9, get(&general, Register::R9)), (5, 5));
        assert_eq!(get(&general, Register::XMM0), 0);
    }

    #[test]
    fn registers_keep_their_places_and_the_instruction_pointer() {
        let mut general = Registers { rip: 7, rflags: 2, ..Registers::default() };
        let values = std::array::from_fn(|number| number as u64 + 100);
        set_all(&mut general, &values);
        assert_eq!(all(&general), values);
        assert_eq!((general.rip, general.rflags), (7, 2));
        for (register, value) in [(Register::RSP, 104), (Register::RDI, 107), (Register::R15, 115)] {
            assert_eq!(get(&general, register), value);
        }
    }
}
