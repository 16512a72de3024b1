//! The bus as vCPUs use it, and against an implementation that does everything byte by byte.

use std::sync::Mutex;

use super::super::testing::Random;
use super::super::{Bus, BusBuilder};
use super::*;

/// An access as a device sees it: its name, the offset, the width and, of a write, the value.
type Seen = (&'static str, u64, u8, Option<u64>);
type Log = Arc<Mutex<Vec<Seen>>>;

/// Remembers what it sees; reads depend on where and how; one value asks for an action.
struct Recorder {
    name: &'static str,
    log: Log,
}

const EXIT_VALUE: u64 = 0xe5;

fn value_at(name: &str, offset: u64, width: u8) -> u64 {
    (offset + u64::from(name.as_bytes()[0])).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(width)
}

impl Device for Recorder {
    fn read(&self, offset: u64, width: u8) -> u64 {
        self.log.lock().unwrap().push((self.name, offset, width, None));
        value_at(self.name, offset, width)
    }

    fn write(&self, offset: u64, width: u8, value: u64) -> Action {
        self.log.lock().unwrap().push((self.name, offset, width, Some(value)));
        if value & 0xff == EXIT_VALUE { Action::Exit(width) } else { Action::None }
    }
}

fn claim<A>(name: &'static str, base: A, len: A, widths: Widths) -> Claim<A> {
    Claim { name, base, len, widths }
}

fn bus_with_ports(claims: &[Claim<u16>]) -> (Bus, Log) {
    let log = Log::default();
    let mut builder = BusBuilder::new();
    for claim in claims {
        builder.claim_ports(*claim, Arc::new(Recorder { name: claim.name, log: log.clone() })).unwrap();
    }
    (builder.build(), log)
}

fn write(bus: &Bus, port: u16, width: u8, bytes: &[u8]) -> Action {
    bus.port_access(port, width, Direction::Write, &mut bytes.to_vec())
}

fn read<const N: usize>(bus: &Bus, port: u16) -> [u8; N] {
    let mut data = [0x5a; N];
    assert_eq!(bus.port_access(port, N as u8, Direction::Read, &mut data), Action::None);
    data
}

fn taken(log: &Log) -> Vec<Seen> {
    std::mem::take(&mut log.lock().unwrap())
}

const UP_TO_FOUR: Widths = Widths::BYTE.and(Widths::WORD).and(Widths::LONG);

#[test]
fn a_device_sees_its_offset_width_and_value() {
    let (bus, log) = bus_with_ports(&[claim("a", 0x100, 8, UP_TO_FOUR)]);
    write(&bus, 0x102, 1, &[0x11]);
    write(&bus, 0x102, 2, &[0x11, 0x22]);
    write(&bus, 0x104, 4, &[0x11, 0x22, 0x33, 0x44]);
    assert_eq!(read::<2>(&bus, 0x106), (value_at("a", 6, 2) as u16).to_le_bytes());
    let expected = [
        ("a", 2, 1, Some(0x11)),
        ("a", 2, 2, Some(0x2211)),
        ("a", 4, 4, Some(0x4433_2211)),
        ("a", 6, 2, None),
    ];
    assert_eq!(taken(&log), expected);
}

#[test]
fn string_output_arrives_element_by_element_at_the_same_port() {
    let (bus, log) = bus_with_ports(&[claim("a", 0x100, 8, UP_TO_FOUR)]);
    write(&bus, 0x101, 2, &[1, 0, 2, 0, 3, 0]);
    assert_eq!(taken(&log), [1, 2, 3].map(|value| ("a", 1, 2, Some(value))));
}

#[test]
fn string_input_reads_every_element() {
    let (bus, log) = bus_with_ports(&[claim("a", 0x100, 8, UP_TO_FOUR)]);
    let mut data = [0; 6];
    bus.port_access(0x100, 2, Direction::Read, &mut data);
    assert_eq!(data, (value_at("a", 0, 2) as u16).to_le_bytes().repeat(3)[..]);
    assert_eq!(taken(&log), [("a", 0, 2, None); 3]);
}

#[test]
fn a_run_stops_at_the_first_answer_that_is_an_action() {
    let (bus, log) = bus_with_ports(&[claim("a", 0x100, 8, UP_TO_FOUR)]);
    assert_eq!(write(&bus, 0x100, 1, &[1, EXIT_VALUE as u8, 3]), Action::Exit(1));
    assert_eq!(taken(&log).len(), 2);
    // The same within an element that has to be split: the last byte never arrives.
    assert_eq!(write(&bus, 0x105, 4, &[1, 2, EXIT_VALUE as u8, 4, 1, 2, 3, 4]), Action::Exit(1));
    assert_eq!(taken(&log).len(), 3);
}

#[test]
fn an_access_wider_than_declared_is_split_into_bytes() {
    let (bus, log) = bus_with_ports(&[claim("a", 0x100, 8, Widths::BYTE)]);
    write(&bus, 0x100, 2, &[0x11, 0x22]);
    assert_eq!(taken(&log), [("a", 0, 1, Some(0x11)), ("a", 1, 1, Some(0x22))]);
}

#[test]
fn an_access_over_an_end_reaches_each_bytes_own_owner() {
    let claims = [claim("a", 0x100, 2, UP_TO_FOUR), claim("b", 0x102, 1, UP_TO_FOUR)];
    let (bus, log) = bus_with_ports(&claims);
    let expected = [value_at("a", 1, 1) as u8, value_at("b", 0, 1) as u8, 0xff, 0xff];
    assert_eq!(read::<4>(&bus, 0x101), expected);
    assert_eq!(taken(&log), [("a", 1, 1, None), ("b", 0, 1, None)]);
    assert_eq!(bus.unowned().ports, UnownedAccesses { reads: 1, writes: 0, last: Some(0x101) });
}

#[test]
fn a_byte_that_its_owner_does_not_take_is_nobodys() {
    let (bus, log) = bus_with_ports(&[claim("a", 0x100, 8, Widths::LONG)]);
    assert_eq!(read::<1>(&bus, 0x100), [0xff]);
    assert_eq!(read::<2>(&bus, 0x100), [0xff; 2]);
    assert_eq!(read::<4>(&bus, 0x106), [0xff; 4]);
    assert_eq!(taken(&log), []);
    assert_eq!(bus.unowned().ports.reads, 3);
}

#[test]
fn nobodys_ports_read_all_ones_ignore_writes_and_are_counted() {
    let (bus, log) = bus_with_ports(&[claim("a", 0x100, 8, UP_TO_FOUR)]);
    assert_eq!(bus.unowned().ports, UnownedAccesses::default());
    assert_eq!(read::<4>(&bus, 0x200), [0xff; 4]);
    assert_eq!(write(&bus, 0x201, 1, &[1, 2, 3]), Action::None);
    assert_eq!(bus.unowned().ports, UnownedAccesses { reads: 1, writes: 3, last: Some(0x201) });
    assert_eq!(bus.unowned().memory, UnownedAccesses::default());
    assert_eq!(taken(&log), []);
}

#[test]
fn odd_widths_lengths_and_places_are_answered_without_harm() {
    let (bus, log) = bus_with_ports(&[claim("a", 0xffff, 1, UP_TO_FOUR), claim("b", 0, 4, UP_TO_FOUR)]);
    assert_eq!(read::<4>(&bus, 0xffff), [value_at("a", 0, 1) as u8, 0xff, 0xff, 0xff]);
    for (width, length) in [(0, 0), (0, 3), (1, 0), (3, 3), (4, 7), (2, 1), (8, 8), (200, 300), (255, 1)] {
        for port in [0, 3, 0x80, 0xffff] {
            for direction in [Direction::Read, Direction::Write] {
                let mut data = vec![1; length];
                assert_eq!(bus.port_access(port, width, direction, &mut data), Action::None);
            }
        }
    }
    assert!(taken(&log).iter().all(|(_, offset, width, _)| offset + u64::from(*width) <= 4));
}

#[test]
fn a_rest_shorter_than_an_element_follows_the_whole_elements() {
    let (bus, log) = bus_with_ports(&[claim("a", 0x100, 8, UP_TO_FOUR)]);
    write(&bus, 0x100, 4, &[1, 0, 0, 0, 2, 0]);
    assert_eq!(taken(&log), [("a", 0, 4, Some(1)), ("a", 0, 2, Some(2))]);
}

#[test]
fn addresses_up_to_the_very_last_can_be_owned() {
    let log = Log::default();
    let device = |name| Arc::new(Recorder { name, log: log.clone() });
    let mut builder = BusBuilder::new();
    builder.claim_memory(claim("m", u64::MAX - 7, 8, Widths::ANY), device("m")).unwrap();
    let bus = builder.build();
    for length in 0..=9 {
        bus.memory_access(u64::MAX - 7, Direction::Write, &mut vec![0; length]);
        bus.memory_access(u64::MAX, Direction::Read, &mut vec![0; length]);
    }
    assert!(taken(&log).iter().all(|(_, offset, width, _)| offset + u64::from(*width) <= 8));
    let mut data = [0; 3];
    bus.memory_access(u64::MAX - 1, Direction::Read, &mut data);
    assert_eq!(data, [value_at("m", 6, 1) as u8, value_at("m", 7, 1) as u8, 0xff]);
    assert_eq!(bus.unowned().memory.last, Some(u64::MAX - 1));
    assert_eq!(bus.owner_of_address(u64::MAX), Some("m"));
    assert_eq!(bus.owner_of_address(0), None);
}

#[test]
fn claims_that_cannot_be_are_refused_by_name() {
    let (device, mut builder) = (Arc::new(Recorder { name: "a", log: Log::default() }), BusBuilder::new());
    let mut ports = |name, base, len| {
        builder.claim_ports(claim(name, base, len, Widths::BYTE), device.clone()).map_err(|e| e.to_string())
    };
    assert_eq!(ports("a", 0x60, 0).unwrap_err(), "the device a claims no ports at 0x60: its range is empty");
    assert_eq!(
        ports("a", 0xfff0, 0x11).unwrap_err(),
        "the device a claims 0x11 ports from 0xfff0 on, but the last of them is 0xffff"
    );
    assert_eq!(ports("a", 0xfff0, 0x10), Ok(()));
    assert_eq!(ports("b", 0x60, 5), Ok(()));
    for (base, len, first, last) in [
        (0x60, 5, "0x60", "0x64"),
        (0x5f, 2, "0x60", "0x60"),
        (0x64, 9, "0x64", "0x64"),
        (0, 0xffff, "0x60", "0x64"),
    ] {
        assert_eq!(
            ports("c", base, len).unwrap_err(),
            format!(
                "the devices b and c both claim ports {first} to {last}: move one of them to another place"
            )
        );
    }
    assert_eq!(ports("c", 0x5f, 1), Ok(()));
    assert_eq!(ports("d", 0x65, 1), Ok(()));
    let memory = builder.claim_memory(claim("m", u64::MAX, 2, Widths::ANY), device);
    assert!(matches!(memory, Err(Error::Wraps { name: "m", .. })));
    let bus = builder.build();
    let owners = [0x5e, 0x5f, 0x60, 0x64, 0x65, 0x66].map(|port| bus.owner_of_port(port));
    assert_eq!(owners, [None, Some("c"), Some("b"), Some("b"), Some("d"), None]);
}

#[test]
fn every_port_has_the_owner_that_claimed_it() {
    let claims = [
        claim("a", 0, 1, Widths::BYTE),
        claim("b", 1, 2, Widths::BYTE),
        claim("c", 0x3f8, 8, Widths::BYTE),
        claim("d", 0x400, 0x100, Widths::BYTE),
        claim("e", 0xffff, 1, Widths::BYTE),
    ];
    for rotation in 0..claims.len() {
        let mut claims = claims;
        claims.rotate_left(rotation);
        let (bus, _) = bus_with_ports(&claims);
        for port in 0..=u16::MAX {
            let owner = claims.iter().find(|claim| port >= claim.base && port - claim.base < claim.len);
            assert_eq!(bus.owner_of_port(port), owner.map(|claim| claim.name), "port {port:#x}");
        }
    }
}

#[test]
fn a_bus_is_shared_by_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Bus>();
}

/// The rules of the bus once more, as simply as they can be put.
struct Naive<'a> {
    claims: &'a [Claim<u16>],
    seen: Vec<Seen>,
    unowned: [u64; 2],
}

impl Naive<'_> {
    fn taker(&self, address: u64, width: usize) -> Option<Claim<u16>> {
        let inside = |address: u64, claim: &Claim<u16>| {
            address >= u64::from(claim.base) && address < u64::from(claim.base) + u64::from(claim.len)
        };
        self.claims.iter().copied().find(|claim| {
            (0..width).all(|index| inside(address + index as u64, claim)) && claim.widths.contains(width)
        })
    }

    fn one(&mut self, claim: Claim<u16>, address: u64, direction: Direction, piece: &mut [u8]) -> Action {
        let (offset, width) = (address - u64::from(claim.base), piece.len() as u8);
        let mut bytes = [0; 8];
        if direction == Direction::Read {
            self.seen.push((claim.name, offset, width, None));
            piece.copy_from_slice(&value_at(claim.name, offset, width).to_le_bytes()[..piece.len()]);
            return Action::None;
        }
        bytes[..piece.len()].copy_from_slice(piece);
        self.seen.push((claim.name, offset, width, Some(u64::from_le_bytes(bytes))));
        if u64::from(bytes[0]) == EXIT_VALUE { Action::Exit(width) } else { Action::None }
    }

    fn access(&mut self, port: u16, width: u8, direction: Direction, data: &mut [u8]) -> Action {
        for element in data.chunks_mut(usize::from(width)) {
            if let Some(claim) = self.taker(port.into(), element.len()) {
                match self.one(claim, port.into(), direction, element) {
                    Action::None => continue,
                    action => return action,
                }
            }
            let mut missed = 0;
            let mut action = Action::None;
            for index in 0..element.len() {
                let address = u64::from(port) + index as u64;
                match self.taker(address, 1) {
                    Some(claim) => action = self.one(claim, address, direction, &mut element[index..=index]),
                    None if direction == Direction::Read => (missed, element[index]) = (1, 0xff),
                    None => missed = 1,
                }
                if action != Action::None {
                    break;
                }
            }
            self.unowned[direction as usize] += missed;
            if action != Action::None {
                return action;
            }
        }
        Action::None
    }
}

#[test]
fn generated_accesses_end_as_the_naive_rules_say() {
    const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
    let widths = [Widths::BYTE, UP_TO_FOUR, Widths::LONG, Widths::WORD.and(Widths::LONG), Widths::ANY];
    let mut random = Random::new(1);
    for _ in 0..300 {
        // Claims side by side and with gaps, in a small window whose end is sometimes the last port of all.
        let start = random.pick(&[0, 0x3f0, 0xffd8_u32]);
        let mut next = start;
        let mut claims = Vec::new();
        for name in NAMES {
            next += random.pick(&[0, 0, 1, 3]);
            let len = random.pick(&[1, 2, 4, 5, 8]).min(0x10000 - next.min(0x10000));
            if len > 0 {
                claims.push(claim(name, next as u16, len as u16, random.pick(&widths)));
            }
            next += len;
        }
        let (bus, log) = bus_with_ports(&claims);
        let mut naive = Naive { claims: &claims, seen: Vec::new(), unowned: [0; 2] };
        for _ in 0..300 {
            let port = (start + random.below(44) as u32).min(0xffff) as u16;
            let width = random.pick(&[1, 1, 2, 3, 4, 4, 8]);
            let any_length = random.below(20);
            let length = random.pick(&[u64::from(width), u64::from(width) * 3, any_length]) as usize;
            let direction = random.pick(&[Direction::Read, Direction::Write]);
            let mut data: Vec<u8> = (0..length).map(|_| random.pick(&[0, 1, 0xe5, 0xff, 0x42])).collect();
            let mut expected_data = data.clone();
            let expected = naive.access(port, width, direction, &mut expected_data);
            assert_eq!(bus.port_access(port, width, direction, &mut data), expected, "{claims:?}");
            assert_eq!(data, expected_data, "port {port:#x} width {width} {direction:?} {claims:?}");
            assert_eq!(taken(&log), std::mem::take(&mut naive.seen), "{claims:?}");
        }
        let unowned = bus.unowned().ports;
        assert_eq!([unowned.reads, unowned.writes], naive.unowned);
    }
}
