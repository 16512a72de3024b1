//! Instructions done by hand.

use crate::hv::Exception;
use crate::x86::complete::testing::{CODE, DATA, Guest};

const AC: u64 = 1 << 18;
const CLAC: [u8; 3] = [0x0f, 0x01, 0xca];
const STAC: [u8; 3] = [0x0f, 0x01, 0xcb];
const STORE: [u8; 3] = [0x0f, 0xae, 0x18]; // stmxcsr [rax]
const LOAD: [u8; 3] = [0x0f, 0xae, 0x10]; // ldmxcsr [rax]

#[test]
fn a_breakpoint_is_delivered_behind_the_instruction() {
    for (code, vector) in [(0xcc, 3), (0xf1, 1)] {
        let mut guest = Guest::new();
        guest.run(&[code]).unwrap();
        assert_eq!(guest.exceptions(), [Exception { vector, error_code: None }]);
        assert_eq!(guest.state.registers.rip, CODE + 1);
    }
}

#[test]
fn into_raises_overflow_only_after_an_overflow() {
    let mut guest = Guest::new().protected();
    guest.works(&[0xce]);
    guest.state.registers.rflags |= 1 << 11;
    guest.run(&[0xce]).unwrap();
    assert_eq!(guest.exceptions(), [Exception { vector: 4, error_code: None }]);
    assert_eq!(guest.state.registers.rip, CODE + 1);
    // In 64-bit code there is no such instruction.
    Guest::new().raises(&[0xce], 6, None);
}

#[test]
fn stac_and_clac_change_one_flag_and_are_the_systems() {
    let mut guest = Guest::new();
    guest.state.special.cr4 |= 1 << 21;
    guest.state.registers.rflags |= 0x8d5;
    guest.works(&STAC);
    assert_eq!(guest.state.registers.rflags, 2 | 0x8d5 | AC);
    guest.works(&CLAC);
    assert_eq!(guest.state.registers.rflags, 2 | 0x8d5);
    guest.raises(&[0xf0, 0x0f, 0x01, 0xcb], 6, None); // lock stac
    guest.state.special.ss.dpl = 3;
    // Ring 3 has to be allowed to fetch it.
    guest.map(CODE, CODE | 7);
    guest.raises(&STAC, 6, None);
}

#[test]
fn mxcsr_is_stored_and_loaded_without_its_reserved_bits() {
    let mut guest = Guest::new();
    guest.state.registers.rax = DATA + 1;
    guest.works(&STORE);
    assert_eq!(guest.get(DATA + 1), 0x1f80_u32.to_le_bytes());
    guest.put(DATA + 1, &0x9fbf_u32.to_le_bytes());
    guest.works(&LOAD);
    assert_eq!(guest.vectors().0[24..28], 0x9fbf_u32.to_le_bytes());
    assert_eq!(guest.vectors().0[512], 2, "the value counts only with the component's bit");
    guest.works(&[0xc5, 0xf8, 0xae, 0x18]); // vstmxcsr [rax]
    assert_eq!(guest.get(DATA + 1), 0x9fbf_u32.to_le_bytes());
    guest.put(DATA + 1, &0x1_1f80_u32.to_le_bytes());
    guest.raises(&LOAD, 13, Some(0));
    assert_eq!(guest.vectors().0[24..28], 0x9fbf_u32.to_le_bytes());
    guest.map(DATA, 0);
    guest.raises(&LOAD, 14, Some(0));
    guest.raises(&STORE, 14, Some(2));
    guest.state.special.cr0 |= 8;
    guest.raises(&LOAD, 7, None);
    guest.state.special.cr4 &= !(1 << 9);
    guest.raises(&STORE, 6, None);
}

#[test]
fn wait_looks_at_the_task_switched_flag_only_when_it_is_to() {
    let mut guest = Guest::new();
    guest.works(&[0x9b]);
    guest.state.special.cr0 |= 8;
    guest.raises(&[0x9b], 7, None);
    guest.state.special.cr0 &= !2;
    guest.works(&[0x9b]);
}

#[test]
fn an_x87_exception_that_an_interrupt_should_report_is_beyond() {
    let mut guest = Guest::new();
    guest.change_vectors(|vectors| {
        vectors.0[..4].copy_from_slice(&[0x7b, 3, 4, 0]);
        vectors.0[512] |= 1;
    });
    guest.raises(&[0x9b], 16, None);
    guest.state.special.cr0 &= !(1 << 5);
    assert!(guest.run(&[0x9b]).is_err());
}
