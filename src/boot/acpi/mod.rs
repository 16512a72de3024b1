//! ACPI tables, of the hardware-reduced kind: no fixed power-management hardware, no system-management mode,
//! two sleep registers instead.
//!
//! They tell a guest of its processors, of the interrupt controllers, of devices at fixed places and of how it
//! switches itself off and resets itself. Linux takes "hardware-reduced" as leave not to look for the old timer
//! and interrupt controller (`acpi_generic_reduced_hw_init`), which saves the search; both are there for others.
//!
//! Formats: ACPI 6.5, section 5.2. Called by [`plan`](super::plan), which decides where the tables lie. Tested
//! by reading them back; `iasl -d` and `acpidump` in a guest find nothing wrong with them either.

mod aml;
mod dsdt;

use super::platform::{IOAPIC, LOCAL_APIC, Platform};

const RSDP_SIZE: u64 = 36;
/// Where a table may begin. The specification asks for none; four bytes let every field lie naturally.
const ALIGNMENT: u64 = 16;

const OEM: &[u8; 6] = b"LODGER";
const OEM_TABLE: &[u8; 8] = b"LODGER  ";
/// Who made the tables: for a compiler's number, as nothing else is asked for.
const CREATOR: &[u8; 4] = b"LDGR";

/// How long a table's header is.
const HEADER: usize = 36;
const CHECKSUM_AT: usize = 9;

/// All tables of a machine, at the place for which they were made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tables {
    /// Where the first byte belongs. The root pointer (RSDP) is the first thing there.
    pub start: u64,
    /// The root pointer and the tables.
    pub bytes: Vec<u8>,
}

/// Writes the tables for `platform`, to lie at `start`.
pub fn tables(platform: &Platform<'_>, start: u64) -> Tables {
    let mut tables = Tables { start, bytes: vec![0; RSDP_SIZE as usize] };
    let dsdt = tables.add(&table(b"DSDT", 2, &dsdt::contents(platform)));
    let fadt = tables.add(&fadt(platform, dsdt));
    let madt = tables.add(&madt(platform));
    let entries = [fadt, madt].map(u64::to_le_bytes).concat();
    let xsdt = tables.add(&table(b"XSDT", 1, &entries));
    tables.bytes[..RSDP_SIZE as usize].copy_from_slice(&root_pointer(xsdt));
    tables
}

impl Tables {
    /// Puts a table behind the others; returns its address.
    fn add(&mut self, table: &[u8]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT as usize), 0);
        let address = self.start + self.bytes.len() as u64;
        self.bytes.extend(table);
        address
    }
}

/// A table: header, contents, and a sum of zero.
fn table(signature: &[u8; 4], revision: u8, contents: &[u8]) -> Vec<u8> {
    let length = (HEADER + contents.len()) as u32;
    let mut table = Vec::with_capacity(length as usize);
    table.extend(signature);
    table.extend(length.to_le_bytes());
    table.extend([revision, 0]);
    table.extend(OEM);
    table.extend(OEM_TABLE);
    table.extend(1_u32.to_le_bytes());
    table.extend(CREATOR);
    table.extend(1_u32.to_le_bytes());
    table.extend(contents);
    table[CHECKSUM_AT] = checksum(&table);
    table
}

/// What makes the sum of `bytes` zero.
pub(super) fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_sub(*byte))
}

/// The root pointer. Its first 20 bytes have a sum of their own, for readers that know no more.
fn root_pointer(xsdt: u64) -> Vec<u8> {
    const FIRST_VERSION_SIZE: usize = 20;
    let mut pointer = Vec::from(b"RSD PTR ");
    pointer.push(0);
    pointer.extend(OEM);
    pointer.push(2);
    // There is no table of 32-bit addresses.
    pointer.extend(0_u32.to_le_bytes());
    pointer[8] = checksum(&pointer[..FIRST_VERSION_SIZE]);
    pointer.extend((RSDP_SIZE as u32).to_le_bytes());
    pointer.extend(xsdt.to_le_bytes());
    pointer.extend([0; 4]);
    pointer[32] = checksum(&pointer);
    pointer
}

/// The fixed description of the machine (ACPI 6.5, section 5.2.9); what is not named here is zero, that is absent.
fn fadt(platform: &Platform<'_>, dsdt: u64) -> Vec<u8> {
    const SIZE: usize = 276;
    const MAJOR: u8 = 6;
    const MINOR: u8 = 5;
    /// There are devices at ISA ports, and no VGA. The keyboard controller is not announced, as nothing is
    /// plugged into it: a guest that finds it does no more than wait for its answers.
    const PC_LEGACY_DEVICES: u16 = 1 << 0;
    const PC_NO_VGA: u16 = 1 << 2;
    const FLAG_WBINVD: u32 = 1 << 0;
    /// C1, that is `hlt`, works on every processor.
    const FLAG_C1: u32 = 1 << 2;
    /// Set: there are no such buttons in the fixed hardware.
    const FLAG_NO_POWER_BUTTON: u32 = 1 << 4;
    const FLAG_NO_SLEEP_BUTTON: u32 = 1 << 5;
    const FLAG_RESET_REGISTER: u32 = 1 << 10;
    const FLAG_HEADLESS: u32 = 1 << 12;
    const FLAG_HARDWARE_REDUCED: u32 = 1 << 20;
    let flags = FLAG_WBINVD
        | FLAG_C1
        | FLAG_NO_POWER_BUTTON
        | FLAG_NO_SLEEP_BUTTON
        | FLAG_RESET_REGISTER
        | FLAG_HEADLESS
        | FLAG_HARDWARE_REDUCED;

    let mut contents = [0; SIZE - HEADER];
    // Offsets are the specification's, from the start of the table.
    let mut put = |at: usize, bytes: &[u8]| {
        contents[at - HEADER..][..bytes.len()].copy_from_slice(bytes);
    };
    put(40, &(dsdt as u32).to_le_bytes());
    put(109, &(PC_LEGACY_DEVICES | PC_NO_VGA).to_le_bytes());
    put(112, &flags.to_le_bytes());
    put(116, &byte_port(platform.reset.port));
    put(128, &[platform.reset.value]);
    put(131, &[MINOR]);
    put(140, &dsdt.to_le_bytes());
    put(244, &byte_port(platform.sleep.control));
    put(256, &byte_port(platform.sleep.status));
    put(268, b"lodger\0\0");
    table(b"FACP", MAJOR, &contents)
}

/// A port that is read and written by bytes, as a generic address (ACPI 6.5, section 5.2.3.2).
fn byte_port(port: u16) -> [u8; 12] {
    const SYSTEM_IO: u8 = 1;
    const BITS: u8 = 8;
    const BY_BYTES: u8 = 1;
    let mut address = [0; 12];
    address[..4].copy_from_slice(&[SYSTEM_IO, BITS, 0, BY_BYTES]);
    address[4..6].copy_from_slice(&port.to_le_bytes());
    address
}

/// Processors and interrupt controllers (ACPI 6.5, section 5.2.12).
///
/// Every ISA interrupt arrives at the IOAPIC input of its own number, edge-triggered and active high, which is
/// what a guest assumes where no override says otherwise.
fn madt(platform: &Platform<'_>) -> Vec<u8> {
    const REVISION: u8 = 5;
    /// There are two 8259s as well.
    const OLD_CONTROLLERS: u32 = 1;
    const ENABLED: u32 = 1;
    const ALL_PROCESSORS: u8 = 0xff;
    let mut contents = [LOCAL_APIC.to_le_bytes(), OLD_CONTROLLERS.to_le_bytes()].concat();
    for (&apic, uid) in platform.processors.iter().zip(0..=u8::MAX) {
        contents.extend([0, 8, uid, apic]);
        contents.extend(ENABLED.to_le_bytes());
    }
    contents.extend([1, 12, platform.ioapic_id(), 0]);
    contents.extend(IOAPIC.to_le_bytes());
    contents.extend(0_u32.to_le_bytes());
    // The NMI arrives at local pin 1, with the bus's own polarity and trigger.
    contents.extend([4, 6, ALL_PROCESSORS, 0, 0, 1]);
    table(b"APIC", REVISION, &contents)
}

#[cfg(test)]
#[path = "acpi_test.rs"]
mod tests;
