//! The tables of Intel's MultiProcessor Specification 1.4, for kernels without ACPI.
//!
//! A floating pointer, which the guest searches for, leads to the configuration table: processors, the IOAPIC,
//! and where each interrupt arrives. Kernels search the first KiB, the last KiB of base memory and the 64 KiB
//! below 1 MiB for the pointer, in this order; some do it so slowly that the place matters (Linux maps and
//! unmaps 16 bytes at a time), so `map` puts it at the start of the last KiB of base memory.

use super::acpi::checksum;
use super::platform::{CASCADE, IOAPIC, ISA_INTERRUPTS, LOCAL_APIC, Platform};

/// Version 1.4.
const SPECIFICATION: u8 = 4;
const HEADER: usize = 44;

const ENABLED: u8 = 1;
const BOOT_PROCESSOR: u8 = 2;
/// Of an integrated local APIC, with six entries in its local vector table.
const LOCAL_APIC_VERSION: u8 = 0x14;
const IOAPIC_VERSION: u8 = 0x11;
/// Family 6. Kernels ask the processor itself.
const PROCESSOR_SIGNATURE: u32 = 0x600;
/// It has an FPU and a local APIC.
const PROCESSOR_FEATURES: u32 = 0x201;
const ISA_BUS: u8 = 0;
const ALL_LOCAL_APICS: u8 = 0xff;
/// Polarity and trigger are those of the bus.
const AS_THE_BUS: u8 = 0;

/// How an interrupt is delivered.
#[derive(Clone, Copy)]
enum Delivery {
    Vectored = 0,
    Nmi = 1,
    OldController = 3,
}

/// The floating pointer to a configuration table at `table` (section 4.1).
pub fn floating_pointer(table: u32) -> [u8; 16] {
    const LENGTH_IN_PARAGRAPHS: u8 = 1;
    let mut pointer = [0; 16];
    pointer[..4].copy_from_slice(b"_MP_");
    pointer[4..8].copy_from_slice(&table.to_le_bytes());
    pointer[8] = LENGTH_IN_PARAGRAPHS;
    pointer[9] = SPECIFICATION;
    // The feature bytes stay zero: there is a table, and no IMCR to be switched over.
    pointer[10] = checksum(&pointer);
    pointer
}

/// The configuration table (sections 4.2 and 4.3).
pub fn table(platform: &Platform<'_>) -> Vec<u8> {
    let entries = entries(platform);
    let length = (HEADER + entries.iter().map(Vec::len).sum::<usize>()) as u16;
    let mut table = Vec::with_capacity(length.into());
    table.extend(b"PCMP");
    table.extend(length.to_le_bytes());
    table.extend([SPECIFICATION, 0]);
    table.extend(b"LODGER  ");
    table.extend(b"GUEST       ");
    // No table of the maker's.
    table.extend([0; 6]);
    table.extend((entries.len() as u16).to_le_bytes());
    table.extend(LOCAL_APIC.to_le_bytes());
    // No extended entries.
    table.extend([0; 4]);
    table.extend(entries.concat());
    table[7] = checksum(&table);
    table
}

/// All entries, in the order of their types, as the specification wants it.
fn entries(platform: &Platform<'_>) -> Vec<Vec<u8>> {
    let ioapic = platform.ioapic_id();
    let interrupts = (0..ISA_INTERRUPTS).filter(|irq| *irq != CASCADE);
    let mut entries: Vec<_> = platform.processors.iter().map(|&id| processor(id)).collect();
    entries.push([&[1, ISA_BUS], b"ISA   ".as_slice()].concat());
    entries.push([&[2, ioapic, IOAPIC_VERSION, ENABLED], IOAPIC.to_le_bytes().as_slice()].concat());
    entries.extend(interrupts.map(|irq| interrupt(3, Delivery::Vectored, irq, ioapic, irq)));
    // The boot processor's pin 0 takes what the old controllers deliver; pin 1 is the NMI everywhere.
    entries.push(interrupt(4, Delivery::OldController, 0, 0, 0));
    entries.push(interrupt(4, Delivery::Nmi, 0, ALL_LOCAL_APICS, 1));
    entries
}

fn processor(id: u8) -> Vec<u8> {
    let flags = if id == 0 { ENABLED | BOOT_PROCESSOR } else { ENABLED };
    let mut entry = vec![0, id, LOCAL_APIC_VERSION, flags];
    entry.extend(PROCESSOR_SIGNATURE.to_le_bytes());
    entry.extend(PROCESSOR_FEATURES.to_le_bytes());
    entry.resize(20, 0);
    entry
}

fn interrupt(kind: u8, delivery: Delivery, irq: u8, apic: u8, pin: u8) -> Vec<u8> {
    vec![kind, delivery as u8, AS_THE_BUS, 0, ISA_BUS, irq, apic, pin]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::platform::platform;

    /// The entries of a table, after its header was checked.
    fn read(table: &[u8]) -> Vec<&[u8]> {
        let word = |at: usize| usize::from(u16::from_le_bytes([table[at], table[at + 1]]));
        assert_eq!((&table[..4], word(4), table[6]), (&b"PCMP"[..], table.len(), 4));
        assert_eq!(table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        assert_eq!(table[36..40], 0xfee0_0000_u32.to_le_bytes());
        let mut rest = &table[HEADER..];
        let mut entries = Vec::new();
        while let Some(kind) = rest.first() {
            let (entry, next) = rest.split_at(if *kind == 0 { 20 } else { 8 });
            entries.push(entry);
            rest = next;
        }
        assert_eq!(entries.len(), word(34));
        assert!(entries.is_sorted_by_key(|entry| entry[0]));
        entries
    }

    #[test]
    fn the_pointer_leads_to_the_table() {
        let pointer = floating_pointer(0xf_0000);
        assert_eq!(pointer[..10], [b'_', b'M', b'P', b'_', 0, 0, 0xf, 0, 1, 4]);
        assert_eq!(pointer.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)), 0);
    }

    #[test]
    fn every_processor_is_listed_once_and_the_first_boots() {
        for cpus in [1, 2, 255] {
            let table = table(&platform(cpus, &[]));
            let entries = read(&table);
            let processors: Vec<_> =
                entries.iter().filter(|entry| entry[0] == 0).map(|entry| (entry[1], entry[3])).collect();
            let expected: Vec<_> = (0..cpus).map(|id| (id, if id == 0 { 3 } else { 1 })).collect();
            assert_eq!(processors, expected);
            let ioapics: Vec<_> = entries.iter().filter(|entry| entry[0] == 2).collect();
            assert_eq!(ioapics, [&[&[2, cpus, 0x11, 1], &0xfec0_0000_u32.to_le_bytes()[..]].concat()]);
        }
    }

    #[test]
    fn isa_interrupts_arrive_at_the_input_of_their_number() {
        let table = table(&platform(2, &[]));
        let interrupts: Vec<_> = read(&table).into_iter().filter(|entry| entry[0] == 3).collect();
        assert_eq!(interrupts.len(), 15);
        assert!(interrupts.iter().all(|entry| entry[5] != 2 && entry[5] == entry[7] && entry[6] == 2));
        let local: Vec<_> = read(&table).into_iter().filter(|entry| entry[0] == 4).collect();
        assert_eq!(local, [[4, 3, 0, 0, 0, 0, 0, 0], [4, 1, 0, 0, 0, 0, 0xff, 1]]);
    }
}
