use std::sync::Mutex;

use super::*;
use crate::bus::{Bus, BusBuilder};
use crate::hv::Direction;
use crate::saved;

/// Registers that take everything.
struct Registers(Mutex<[u32; 64]>);

impl Registers {
    fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new([0; 64])))
    }
}

impl Function for Registers {
    fn read(&self, offset: u8) -> u32 {
        assert_eq!(offset % 4, 0);
        self.0.lock().unwrap()[usize::from(offset / 4)]
    }

    fn write(&self, offset: u8, value: u32, mask: u32) {
        assert_eq!((offset % 4, value & !mask), (0, 0));
        let register = &mut self.0.lock().unwrap()[usize::from(offset / 4)];
        *register = *register & !mask | value;
    }
}

fn with(functions: impl IntoIterator<Item = (Place, Arc<dyn Function>)>) -> (Arc<Pci>, Bus) {
    let pci = Arc::new(Pci::new(functions));
    let mut builder = BusBuilder::new();
    for (claim, device) in pci.ports(Reset::default()) {
        builder.claim_ports(claim, device).unwrap();
    }
    (pci, builder.build())
}

/// As every machine has it.
fn bridge_only() -> (Arc<Pci>, Bus) {
    with([(Place::FIRST, Arc::new(HostBridge) as Arc<dyn Function>)])
}

fn read(bus: &Bus, port: u16, width: u8) -> u64 {
    let mut data = [0; 8];
    let action = bus.port_access(port, width, Direction::Read, &mut data[..usize::from(width)]);
    assert_eq!(action, Action::None);
    u64::from_le_bytes(data)
}

fn write(bus: &Bus, port: u16, width: u8, value: u32) -> Action {
    bus.port_access(port, width, Direction::Write, &mut value.to_le_bytes()[..usize::from(width)])
}

fn configuration(bus: &Bus, address: u32) -> u64 {
    write(bus, 0xcf8, 4, ENABLE | address);
    read(bus, 0xcfc, 4)
}

#[test]
fn one_function_in_all_the_buses_is_a_host_bridge() {
    let (_, bus) = bridge_only();
    for place in 1..=0xffff_u32 {
        assert_eq!(configuration(&bus, place << 8), 0xffff_ffff, "{place:#x}");
    }
    assert_eq!(configuration(&bus, 0), 0x0008_1b36);
    assert_eq!(configuration(&bus, 8) >> 16, 0x0600);
    // One function, nothing to be placed, no capabilities, no interrupt.
    for register in (0xc..0x100).step_by(4) {
        assert_eq!(configuration(&bus, register), 0, "{register:#x}");
    }
}

#[test]
fn registers_are_reached_by_every_width() {
    let registers = Registers::new();
    let (_, bus) = with([(Place::new(31, 7).unwrap(), registers as Arc<dyn Function>)]);
    write(&bus, 0xcf8, 4, 0x8000_ff40);
    write(&bus, 0xcfc, 4, 0x4433_2211);
    for (offset, width, expected) in [
        (0, 1, 0x11),
        (1, 1, 0x22),
        (2, 1, 0x33),
        (3, 1, 0x44),
        (0, 2, 0x2211),
        (1, 2, 0x3322),
        (2, 2, 0x4433),
        (0, 4, 0x4433_2211),
        // What reaches beyond the register goes to nobody.
        (3, 2, 0xff44),
        (2, 4, 0xffff_4433),
    ] {
        assert_eq!(read(&bus, 0xcfc + offset, width), expected, "{width} at {offset}");
    }
    for (offset, width, expected) in
        [(0, 1, 0x4433_22aa), (3, 1, 0xaa33_22aa), (1, 2, 0xaaaa_aaaa), (2, 2, 0xaaaa_aaaa)]
    {
        write(&bus, 0xcfc + offset, width, 0xaaaa_aaaa);
        assert_eq!(read(&bus, 0xcfc, 4), expected, "{width} at {offset}");
    }
    assert_eq!(configuration(&bus, 0xff44), 0);
}

#[test]
fn the_address_is_written_and_read_by_four_bytes_only() {
    let (_, bus) = bridge_only();
    assert_eq!(read(&bus, 0xcf8, 4), 0);
    write(&bus, 0xcf8, 4, 0xffff_ffff);
    assert_eq!(read(&bus, 0xcf8, 4), 0x80ff_fffc);
    // As Linux does it before it tries this mechanism and the other one.
    for (port, width, value) in [(0xcfb, 1, 1), (0xcf8, 1, 0), (0xcfa, 1, 0), (0xcfa, 2, 0)] {
        assert_eq!(write(&bus, port, width, value), Action::None);
    }
    assert_eq!(read(&bus, 0xcf8, 4), 0x80ff_fffc);
    assert_eq!((read(&bus, 0xcf8, 1), read(&bus, 0xcfa, 1), read(&bus, 0xcfa, 2)), (0xff, 0xff, 0xffff));
}

#[test]
fn without_the_highest_bit_of_the_address_there_is_nothing() {
    let (_, bus) = bridge_only();
    write(&bus, 0xcf8, 4, 0);
    assert_eq!(read(&bus, 0xcfc, 4), 0xffff_ffff);
    assert_eq!(write(&bus, 0xcfc, 4, 0), Action::None);
}

#[test]
fn the_reset_register_lies_among_the_bytes_of_the_address() {
    let (_, bus) = bridge_only();
    // In four bytes at once these bits are the address's.
    assert_eq!(write(&bus, 0xcf8, 4, 0x8000_0600), Action::None);
    assert_eq!(read(&bus, 0xcf9, 1), 0);
    assert_eq!(write(&bus, 0xcf9, 1, 2), Action::None);
    assert_eq!(read(&bus, 0xcf9, 1), 2);
    assert_eq!(read(&bus, 0xcf8, 4), 0x8000_0600);
    assert_eq!(write(&bus, 0xcf9, 1, 6), Action::Reset);
}

#[test]
fn whatever_a_guest_does_there_nothing_breaks() {
    let (pci, bus) = with([
        (Place::FIRST, Arc::new(HostBridge) as Arc<dyn Function>),
        (Place::new(1, 0).unwrap(), Registers::new()),
    ]);
    let mut state = 1_u64;
    for _ in 0..200_000 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let [a, b, c, d, port, width, kind, _] = state.rotate_left(17).to_le_bytes();
        // Any bit of the address, but mostly one of the functions that are there.
        let value = u32::from_le_bytes([a, b & 0x0f, c & d, d | 0x80]);
        let (port, width) = (0xcf4 + u16::from(port % 16), 1 << (width % 3));
        if kind % 3 == 0 {
            read(&bus, port, width);
        } else {
            write(&bus, port, width, value);
        }
        assert_eq!(pci.save().address & !(ENABLE | ADDRESS), 0);
    }
}

#[test]
fn the_address_is_saved() {
    let (pci, bus) = bridge_only();
    for address in [0, 0x8000_0008, u32::MAX] {
        write(&bus, 0xcf8, 4, address);
        let saved = pci.save();
        let (twin, twins_bus) = bridge_only();
        twin.restore(&saved::decode(&saved::encode(&saved)).unwrap());
        assert_eq!(twin.save(), saved);
        for (port, width) in [(0xcf8, 4), (0xcfc, 4), (0xcfe, 2)] {
            assert_eq!(read(&twins_bus, port, width), read(&bus, port, width));
        }
    }
}

#[test]
fn places_are_those_of_a_bus() {
    assert_eq!(Place::new(0, 0), Some(Place::FIRST));
    assert_eq!((Place::new(32, 0), Place::new(0, 8)), (None, None));
}
