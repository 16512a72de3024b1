//! The devices at fixed places, and what the sleep type for "off" is: the contents of the DSDT.

use super::aml;
use crate::boot::map::GENERATION_ID;
use crate::boot::platform::{Platform, VirtioMmio};

/// Devices that notify.
const POWER_BUTTON: aml::NameSegment = *b"PWRB";
const GENERATION: aml::NameSegment = *b"VGEN";

/// What stands behind the DSDT's header.
pub fn contents(platform: &Platform<'_>) -> Vec<u8> {
    let mut devices =
        [serial(platform), panic_port(platform), power_button(), generation_id(), events(platform)].concat();
    for (number, device) in (0..).zip(platform.virtio) {
        devices.extend(virtio(number, device));
    }
    // Only the first element counts where there are no power-management registers; the others have always
    // been there.
    let off = [platform.sleep.off.into(), 0, 0, 0].map(aml::integer);
    [aml::scope(*b"_SB_", &devices), aml::name(*b"_S5_", &aml::package(&off))].concat()
}

fn serial(platform: &Platform<'_>) -> Vec<u8> {
    let port = platform.serial;
    let places = [aml::ports(port.base, 8), aml::edge_interrupt(port.interrupt.into())];
    aml::device(
        *b"COM1",
        &[
            aml::name(*b"_HID", &aml::device_id(*b"PNP", 0x0501)),
            aml::name(*b"_UID", &aml::integer(0)),
            aml::name(*b"_CRS", &aml::resources(&places)),
        ]
        .concat(),
    )
}

/// QEMU's pvpanic, the name under which guests know such a port.
fn panic_port(platform: &Platform<'_>) -> Vec<u8> {
    aml::device(
        *b"PANI",
        &[
            aml::name(*b"_HID", &aml::string("QEMU0001")),
            aml::name(*b"_CRS", &aml::resources(&[aml::ports(platform.panic_port, 1)])),
        ]
        .concat(),
    )
}

fn power_button() -> Vec<u8> {
    aml::device(POWER_BUTTON, &aml::name(*b"_HID", &aml::device_id(*b"PNP", 0x0c0c)))
}

/// The machine's generation, by Microsoft's "Virtual Machine Generation ID": any identity, and a compatible one by
/// which guests know it, of which the second is the first made fit for ACPI. The address is in two halves.
fn generation_id() -> Vec<u8> {
    let compatible = ["VM_Gen_Counter", "VMGENCTR"].map(aml::string);
    let address = [GENERATION_ID as u32, (GENERATION_ID >> 32) as u32].map(aml::integer);
    aml::device(
        GENERATION,
        &[
            aml::name(*b"_HID", &aml::string("LDGR0001")),
            aml::name(*b"_CID", &aml::package(&compatible)),
            aml::name(*b"_DDN", &aml::string("VM_Gen_Counter")),
            aml::name(*b"ADDR", &aml::package(&address)),
        ]
        .concat(),
    )
}

/// The device that brings the interrupts of the others (ACPI 6.5, section 5.6.9): an event is a call of `_EVT` with the
/// interrupt's number.
fn events(platform: &Platform<'_>) -> Vec<u8> {
    /// The button was pressed (section 5.6.6, "Power Button Notification Values"); the generation is another one.
    const HAPPENED: u32 = 0x80;
    let events = [(platform.power_button, POWER_BUTTON), (platform.generation, GENERATION)];
    let interrupts = events.map(|(number, _)| aml::edge_interrupt(number.into()));
    let told =
        events.map(|(number, device)| aml::if_argument_is(number.into(), &aml::notify(device, HAPPENED)));
    aml::device(
        *b"GED_",
        &[
            aml::name(*b"_HID", &aml::string("ACPI0013")),
            aml::name(*b"_UID", &aml::integer(0)),
            aml::name(*b"_CRS", &aml::resources(&interrupts)),
            aml::method(*b"_EVT", 1, &told.concat()),
        ]
        .concat(),
    )
}

/// The identity is the one that Linux's virtio-mmio driver knows.
fn virtio(number: u32, device: &VirtioMmio) -> Vec<u8> {
    let places = [aml::memory(device.base, device.size), aml::edge_interrupt(device.interrupt.into())];
    aml::device(
        virtio_name(number),
        &[
            aml::name(*b"_HID", &aml::string("LNRO0005")),
            aml::name(*b"_UID", &aml::integer(number)),
            aml::name(*b"_CRS", &aml::resources(&places)),
        ]
        .concat(),
    )
}

/// `V000`, `V001` and so on.
fn virtio_name(number: u32) -> aml::NameSegment {
    let digit = |shift: u32| b"0123456789ABCDEF"[(number >> shift) as usize & 0xf];
    [b'V', digit(8), digit(4), digit(0)]
}
