//! Operands in one page and across pages.

use super::*;
use crate::hv::Vcpu;
use crate::x86::complete::Fault;
use crate::x86::complete::testing::{DATA, Guest, PRESENT, SIZE, WRITABLE};

fn cpu(guest: &Guest) -> Cpu<'_> {
    guest.vcpu.restore(&guest.state).unwrap();
    Cpu::load(&guest.vcpu, &guest.memory).unwrap()
}

#[test]
fn an_operand_is_put_together_from_pages_that_lie_apart() {
    let guest = Guest::new();
    guest.map(DATA, 0x2_0000 | PRESENT | WRITABLE);
    guest.map(DATA + 0x1000, 0x3_0000 | PRESENT | WRITABLE);
    cpu(&guest).write(DATA + 0xffe, &[1, 2, 3, 4]).unwrap();
    assert_eq!((guest.get(0x2_0ffe), guest.get(0x3_0000)), ([1, 2], [3, 4]));
    let mut buffer = [0; 4];
    cpu(&guest).read(DATA + 0xffe, &mut buffer).unwrap();
    assert_eq!(buffer, [1, 2, 3, 4]);
    let all: Vec<u8> = (0..=255).cycle().take(8192).collect();
    cpu(&guest).write(DATA + 0x10, &all).unwrap();
    let mut back = vec![0; 8192];
    cpu(&guest).read_as_system(DATA + 0x10, &mut back).unwrap();
    assert_eq!(back, all);
}

#[test]
fn nothing_is_written_when_a_part_cannot_be() {
    let guest = Guest::new();
    guest.map(DATA + 0x1000, 0);
    let Err(Stop::Fault(fault)) = cpu(&guest).write(DATA + 0xffe, &[1, 2, 3, 4]) else { panic!() };
    assert_eq!(fault, Fault::page(DATA + 0x1000, 2));
    assert_eq!(guest.get(DATA + 0xffe), [0; 2]);
    guest.map(DATA + 0x1000, SIZE | PRESENT | WRITABLE);
    let Err(Stop::Beyond(beyond)) = cpu(&guest).write_as_system(DATA + 0xffe, &[1; 4]) else { panic!() };
    assert!(beyond.text.contains("0x11000 is mapped to 0x100000, where there is no memory"), "{beyond}");
    assert_eq!(guest.get(DATA + 0xffe), [0; 2]);
}

#[test]
fn addresses_that_are_not_canonical_are_protection_faults() {
    let guest = Guest::new();
    let mut buffer = [0; 2];
    for linear in [1 << 47, (1 << 47) - 1, 1 << 63] {
        let end = cpu(&guest).read(linear, &mut buffer);
        let Err(Stop::Fault(fault)) = end else { panic!("{end:?}") };
        // The first byte's page comes first.
        let expected = if linear == (1 << 47) - 1 { Fault::page(linear, 0) } else { Fault::PROTECTION };
        assert_eq!(fault, expected);
    }
}

#[test]
fn addresses_of_32_bits_wrap_around() {
    let guest = Guest::new().protected();
    guest.put(0, &[5, 6]);
    let end = cpu(&guest).read(0xffff_fffe, &mut [0; 4]);
    // The end of the address space is no memory here.
    assert!(matches!(end, Err(Stop::Beyond(_))), "{end:?}");
    let mut buffer = [0; 2];
    cpu(&guest).read(0x1_0000_0000, &mut buffer).unwrap();
    assert_eq!(buffer, [5, 6]);
}

#[test]
fn chosen_bytes_are_all_that_is_touched() {
    let guest = Guest::new();
    guest.map(DATA + 0x1000, 0);
    let bytes: [u8; 64] = std::array::from_fn(|index| index as u8 + 1);
    let at = DATA + 0xff0;
    cpu(&guest).write_chosen(at, &bytes, 0x8005).unwrap();
    assert_eq!(guest.get(at), [1, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16]);
    assert!(matches!(cpu(&guest).write_chosen(at, &bytes, 0x1_8002), Err(Stop::Fault(_))));
    assert_eq!(guest.get(at + 1), [0]);
    cpu(&guest).write_chosen(DATA + 0x1000, &bytes, 0).unwrap();
    let mut buffer = [9; 64];
    cpu(&guest).read_chosen(at, &mut buffer, 0x8004).unwrap();
    assert_eq!((buffer[1], buffer[2], buffer[15], buffer[16]), (9, 3, 16, 9));
}

#[test]
fn runs_of_bits_are_found() {
    let all = |chosen, length| runs(chosen, length).collect::<Vec<_>>();
    assert_eq!(all(0, 64), []);
    assert_eq!(all(u64::MAX, 64), [(0, 64)]);
    assert_eq!(all(u64::MAX, 5), [(0, 5)]);
    assert_eq!(all(1 << 63 | 0b1101, 64), [(0, 1), (2, 4), (63, 64)]);
}
