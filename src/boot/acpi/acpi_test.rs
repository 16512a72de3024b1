//! The tables, read back as a guest reads them.

use super::*;
use crate::boot::platform::{VirtioMmio, platform};

const START: u64 = 0xe_0000;

const TWO_DEVICES: &[VirtioMmio] = &[
    VirtioMmio { base: 0xd000_0000, size: 0x1000, interrupt: 5 },
    VirtioMmio { base: 0xd000_1000, size: 0x200, interrupt: 23 },
];

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

impl Tables {
    fn root(&self) -> &[u8] {
        &self.bytes[..36]
    }

    /// The table at `address`, known to be whole.
    fn at(&self, address: u64) -> &[u8] {
        let bytes = &self.bytes[(address - self.start) as usize..];
        let table = &bytes[..u32_at(bytes, 4) as usize];
        assert_eq!(sum(table), 0, "{:?}", &table[..4]);
        assert_eq!(&table[10..24], b"LODGERLODGER  ");
        table
    }

    /// The table with this signature, as found from the root.
    fn find(&self, signature: &[u8; 4]) -> &[u8] {
        let xsdt = self.at(u64_at(self.root(), 24));
        assert_eq!((&xsdt[..4], xsdt[8]), (&b"XSDT"[..], 1));
        let entries = xsdt[36..].chunks_exact(8).map(|entry| self.at(u64_at(entry, 0)));
        entries.into_iter().find(|table| &table[..4] == signature).expect("the root table lists it")
    }

    fn dsdt(&self) -> &[u8] {
        let fadt = self.find(b"FACP");
        assert_eq!(u64::from(u32_at(fadt, 40)), u64_at(fadt, 140));
        self.at(u64_at(fadt, 140))
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[test]
fn the_root_pointer_has_both_sums_and_no_table_of_32_bit_addresses() {
    let tables = tables(&platform(1, &[]), START);
    let root = tables.root();
    assert_eq!((&root[..8], root[15], u32_at(root, 16), u32_at(root, 20)), (&b"RSD PTR "[..], 2, 0, 36));
    assert_eq!((sum(&root[..20]), sum(root)), (0, 0));
}

#[test]
fn the_fixed_table_names_registers_for_reset_and_sleep() {
    let tables = tables(&platform(1, &[]), START);
    let fadt = tables.find(b"FACP");
    assert_eq!((fadt.len(), fadt[8], fadt[131]), (276, 6, 5));
    const HARDWARE_REDUCED: u32 = 1 << 20;
    const RESET_REGISTER: u32 = 1 << 10;
    assert_eq!(u32_at(fadt, 112) & (HARDWARE_REDUCED | RESET_REGISTER), HARDWARE_REDUCED | RESET_REGISTER);
    let port = |at: usize| (fadt[at..at + 4].to_vec(), u64_at(fadt, at + 4));
    assert_eq!((port(116), fadt[128]), ((vec![1, 8, 0, 1], 0x64), 0xfe));
    assert_eq!(port(244), (vec![1, 8, 0, 1], 0x600));
    assert_eq!(port(256), (vec![1, 8, 0, 1], 0x601));
    // No power-management ports, no SCI, no SMI.
    assert!(fadt[44..109].iter().all(|byte| *byte == 0));
    assert!(fadt[148..244].iter().all(|byte| *byte == 0));
}

#[test]
fn processors_and_interrupt_controllers_are_listed() {
    for cpus in [1, 2, 255] {
        let tables = tables(&platform(cpus, &[]), START);
        let madt = tables.find(b"APIC");
        assert_eq!((u32_at(madt, 36), u32_at(madt, 40)), (0xfee0_0000, 1));
        let mut rest = &madt[44..];
        let mut entries = Vec::new();
        while let Some(length) = rest.get(1) {
            let (entry, next) = rest.split_at((*length).into());
            entries.push(entry);
            rest = next;
        }
        let (processors, others) = entries.split_at(cpus.into());
        for (id, processor) in (0..cpus).zip(processors) {
            assert_eq!(*processor, [0, 8, id, id, 1, 0, 0, 0]);
        }
        assert_eq!(others, [&[1, 12, cpus, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0][..], &[4, 6, 0xff, 0, 0, 1]]);
    }
}

#[test]
fn devices_are_described_with_their_places() {
    let tables = tables(&platform(1, TWO_DEVICES), START);
    let dsdt = tables.dsdt();
    assert_eq!((&dsdt[..4], dsdt[8]), (&b"DSDT"[..], 2));
    for part in [
        // COM1: ports 0x3f8 to 0x3ff, interrupt 4.
        &b"COM1\x08_HID\x0c\x41\xd0\x05\x01"[..],
        &[0x47, 1, 0xf8, 3, 0xf8, 3, 1, 8, 0x89, 6, 0, 3, 1, 4, 0, 0, 0, 0x79, 0],
        b"PANI\x08_HID\x0dQEMU0001\0",
        &[0x47, 1, 5, 5, 5, 5, 1, 1, 0x79, 0],
        b"PWRB\x08_HID\x0c\x41\xd0\x0c\x0c",
        // By both its names, at 0xdf010.
        b"VGEN\x08_HID\x0dLDGR0001\0\x08_CID\x12\x1c\x02\x0dVM_Gen_Counter\0\x0dVMGENCTR\0",
        b"ADDR\x12\x08\x02\x0c\x10\xf0\x0d\x00\x00",
        // Edges at interrupts 13 and 23, which notify the button and the generation.
        b"GED_\x08_HID\x0dACPI0013\0\x08_UID\x00",
        b"\x89\x06\x00\x03\x01\x0d\x00\x00\x00\x89\x06\x00\x03\x01\x17\x00\x00\x00\x79\x00",
        b"\x14\x20_EVT\x01\xa0\x0c\x93\x68\x0a\x0d\x86PWRB\x0a\x80\xa0\x0c\x93\x68\x0a\x17\x86VGEN\x0a\x80",
        b"V000\x08_HID\x0dLNRO0005\0\x08_UID\x00",
        &[0x86, 9, 0, 1, 0, 0, 0, 0xd0, 0, 0x10, 0, 0, 0x89, 6, 0, 3, 1, 5, 0, 0, 0, 0x79, 0],
        b"V001\x08_HID\x0dLNRO0005\0\x08_UID\x01",
        &[0x86, 9, 0, 1, 0, 0x10, 0, 0xd0, 0, 2, 0, 0, 0x89, 6, 0, 3, 1, 23, 0, 0, 0, 0x79, 0],
        b"\x08_S5_\x12\x07\x04\x0a\x05\x00\x00\x00",
    ] {
        assert!(contains(dsdt, part), "{part:02x?}");
    }
    assert!(!contains(super::tables(&platform(1, &[]), START).dsdt(), b"LNRO0005"));
}

#[test]
fn nested_lengths_end_where_the_table_ends() {
    let many: Vec<_> = (0..600)
        .map(|number| VirtioMmio { base: 0xd000_0000 + number * 0x1000, size: 0x1000, interrupt: 5 })
        .collect();
    for virtio in [&[], TWO_DEVICES, &many[..]] {
        let tables = tables(&platform(1, virtio), START);
        let dsdt = tables.dsdt();
        assert_eq!(dsdt[36], 0x10, "a scope comes first");
        let (length, own) = package_length(&dsdt[37..]);
        assert_eq!(dsdt[37 + own..][..5], *b"\\_SB_");
        let mut inside = &dsdt[37 + own + 5..37 + length];
        assert_eq!(dsdt[37 + length..][..5], *b"\x08_S5_", "the off state follows it");
        let mut devices = 0;
        while !inside.is_empty() {
            assert_eq!(inside[..2], [0x5b, 0x82], "a device");
            let (length, _) = package_length(&inside[2..]);
            inside = &inside[2 + length..];
            devices += 1;
        }
        assert_eq!(devices, 5 + virtio.len());
    }
}

/// A length as AML writes it, and how many bytes it takes.
fn package_length(bytes: &[u8]) -> (usize, usize) {
    let more = usize::from(bytes[0] >> 6);
    match more {
        0 => (usize::from(bytes[0] & 0x3f), 1),
        _ => {
            let low = usize::from(bytes[0] & 0xf);
            let high = bytes[1..=more].iter().rev().fold(0, |value, byte| value << 8 | usize::from(*byte));
            (low | high << 4, 1 + more)
        }
    }
}

#[test]
fn the_addresses_follow_the_place() {
    let (here, there) = (tables(&platform(2, TWO_DEVICES), START), tables(&platform(2, TWO_DEVICES), 0x7000));
    assert_eq!(here.bytes.len(), there.bytes.len());
    assert_eq!(here.dsdt(), there.dsdt());
    assert_eq!(there.find(b"APIC"), here.find(b"APIC"));
}
