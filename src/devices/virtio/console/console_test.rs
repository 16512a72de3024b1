//! The console and its ports, driven by good drivers and bad ones.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::super::VERSION_1;
use super::super::testing::{BUFFERS, Driver, Part};
use super::*;
use crate::saved::{decode, encode};

const MESSAGE: u64 = BUFFERS;
const ANSWER: u64 = BUFFERS + 0x1000;
const DATA: u64 = BUFFERS + 0x1_0000;
const INPUT: [u16; 3] = [0, 4, 6];
const OUTPUT: [u16; 3] = [1, 5, 7];
const LONG: Duration = Duration::from_secs(20);
const NOTHING: u32 = 0x99;

const READY: u16 = 0;
const ADD: u16 = 1;
const PORT_READY: u16 = 3;
const CONSOLE: u16 = 4;
const RESIZE: u16 = 5;
const OPEN: u16 = 6;
const NAME: u16 = 7;

/// A console, a port for one peer, and one for many.
fn console() -> Arc<Console> {
    let port = |name, peers| Arc::new(Port::new(name, peers).unwrap());
    let further = vec![port("log", Peers::One), port("agent", Peers::Many)];
    Arc::new(Console::new(Some(port("", Peers::One)), further))
}

fn port(console: &Console, number: usize) -> &Arc<Port> {
    console.ports().nth(number).unwrap()
}

fn driver(console: &Arc<Console>) -> Driver {
    Driver::new(Arc::clone(console) as _)
}

/// Sends a message to the device.
#[track_caller]
fn say(driver: &mut Driver, port: u32, event: u16, value: u16) {
    driver.put(MESSAGE, &[&port.to_le_bytes()[..], &event.to_le_bytes(), &value.to_le_bytes()].concat());
    driver.chain(MESSAGES_OUT, &[(MESSAGE, 8, false)]);
    driver.finish(MESSAGES_OUT);
}

/// Has the device tell one thing.
#[track_caller]
fn hear(driver: &mut Driver) -> (u32, u16, u16, Vec<u8>) {
    driver.chain(MESSAGES_IN, &[(ANSWER, 100, true)]);
    let length = driver.finish(MESSAGES_IN) as usize;
    let bytes: [u8; 100] = driver.get(ANSWER);
    let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    (u32::from(half(0)) | u32::from(half(2)) << 16, half(4), half(6), bytes[8..length].to_vec())
}

/// Checks that all is told: what comes next is the answer to a question of our own.
#[track_caller]
fn nothing_to_hear(driver: &mut Driver) {
    let before = driver.used(MESSAGES_IN);
    driver.chain(MESSAGES_IN, &[(ANSWER, 100, true)]);
    driver.ring(MESSAGES_IN);
    say(driver, NOTHING, PORT_READY, 1);
    assert_eq!(driver.used(MESSAGES_IN), before);
    say(driver, 0, READY, 1);
    driver.until("it answers", || driver.used(MESSAGES_IN) == before + 1);
    // The console first; the others follow.
    assert_eq!(driver.get::<8>(ANSWER), [0, 0, 0, 0, ADD as u8, 0, 1, 0]);
    for number in [1, 2] {
        assert_eq!(hear(driver), (number, ADD, 1, vec![]));
    }
}

/// Sets all ports up, as Linux does, and opens them.
#[track_caller]
fn set_up(driver: &mut Driver) {
    say(driver, u32::MAX, READY, 1);
    for number in 0..3 {
        assert_eq!(hear(driver), (number, ADD, 1, vec![]));
    }
    say(driver, 0, PORT_READY, 1);
    assert_eq!(hear(driver), (0, CONSOLE, 1, vec![]));
    assert_eq!(hear(driver), (0, OPEN, 1, vec![]));
    say(driver, 1, PORT_READY, 1);
    assert_eq!(hear(driver), (1, NAME, 1, b"log".to_vec()));
    assert_eq!(hear(driver), (1, OPEN, 1, vec![]));
    say(driver, 2, PORT_READY, 1);
    assert_eq!(hear(driver), (2, NAME, 1, b"agent".to_vec()));
    (0..3).for_each(|number| say(driver, number, OPEN, 1));
}

/// Sends output, in one buffer.
#[track_caller]
fn send(driver: &mut Driver, number: usize, bytes: &[u8]) {
    driver.put(DATA, bytes);
    driver.chain(OUTPUT[number], &[(DATA, bytes.len() as u32, false)]);
    driver.finish(OUTPUT[number]);
}

/// Takes input, at most so much of it.
#[track_caller]
fn receive(driver: &mut Driver, number: usize, most: u32) -> Vec<u8> {
    driver.chain(INPUT[number], &[(DATA, most, true)]);
    let length = driver.finish(INPUT[number]) as usize;
    driver.get::<4096>(DATA)[..length].to_vec()
}

/// Takes all output that there is.
fn output(port: &Port) -> Vec<u8> {
    let mut bytes = vec![0; CAPACITY];
    let count = port.output(&mut bytes);
    port.output_taken(count);
    bytes.truncate(count);
    bytes
}

fn is_signalled(port: &Port) -> bool {
    port.event().read().is_ok()
}

#[test]
fn ports_are_told_of_set_up_and_opened() {
    let console = console();
    let mut driver = driver(&console);
    assert_eq!(driver.offered() & 0xff, 7);
    assert_eq!(driver.read(0x104), 3);
    set_up(&mut driver);
    nothing_to_hear(&mut driver);
    // Somebody comes to the third, and leaves.
    assert!(port(&console, 2).arrive());
    assert_eq!(hear(&mut driver), (2, OPEN, 1, vec![]));
    port(&console, 2).leave();
    assert!(!port(&console, 2).arrive(), "the guest does not know yet");
    is_signalled(port(&console, 2));
    assert_eq!(hear(&mut driver), (2, OPEN, 0, vec![]));
    driver.until("the next may come", || is_signalled(port(&console, 2)));
    assert!(port(&console, 2).arrive());
}

#[test]
fn bytes_go_both_ways_through_each_port() {
    let console = console();
    let mut driver = driver(&console);
    set_up(&mut driver);
    port(&console, 2).arrive();
    for number in 0..3 {
        let port = port(&console, number);
        is_signalled(port);
        send(&mut driver, number, format!("out of {number}").as_bytes());
        assert!(is_signalled(port) && port.has_output());
        assert_eq!(output(port), format!("out of {number}").as_bytes());
        assert_eq!(port.offer_input(format!("into {number}").as_bytes()), 6);
        assert_eq!(receive(&mut driver, number, 3), b"int");
        assert_eq!(receive(&mut driver, number, 4096), format!("o {number}").as_bytes());
    }
    // A chain of several buffers, and buffers that were there before the input.
    driver.put(DATA, b"one, two, three");
    driver.chain(OUTPUT[1], &[(DATA, 4, false), (DATA + 4, 6, false), (DATA + 10, 5, false)]);
    driver.finish(OUTPUT[1]);
    assert_eq!(output(port(&console, 1)), b"one, two, three");
    driver.chain(INPUT[1], &[(DATA, 2, true), (DATA + 16, 100, true)]);
    driver.ring(INPUT[1]);
    port(&console, 1).offer_input(b"scattered");
    driver.until("it comes", || driver.used(INPUT[1]) == 3);
    assert_eq!(driver.last_length(INPUT[1]), 9);
    assert_eq!((driver.get(DATA), driver.get(DATA + 16)), (*b"sc", *b"attered"));
}

#[test]
fn a_driver_that_knows_only_one_port_has_the_console() {
    let console = console();
    let mut driver = Driver::unready(Arc::clone(&console) as _);
    console.set_size(Size { columns: 80, rows: 25 });
    // The size and the version.
    driver.agree(VERSION_1 | 1);
    driver.set_up_all();
    driver.write(0x70, 15);
    // The size has changed, it hears; until it has read it, input waits.
    assert_eq!(driver.read(0x60), 2);
    driver.write(0x64, 2);
    port(&console, 0).offer_input(b"early");
    driver.chain(INPUT[0], &[(DATA, 100, true)]);
    driver.ring(INPUT[0]);
    send(&mut driver, 0, b"first");
    assert_eq!((output(port(&console, 0)), driver.used(INPUT[0])), (b"first".to_vec(), 0));
    assert_eq!(driver.read(0x100), 25 << 16 | 80);
    driver.until("it comes", || driver.used(INPUT[0]) == 1);
    assert_eq!(driver.get::<5>(DATA), *b"early");
    driver.write(0x64, 3);
    console.set_size(Size { columns: 132, rows: 50 });
    assert_eq!((driver.read(0x100), driver.read(0x60) & 2), (50 << 16 | 132, 2));
    for queue in [OUTPUT[1], OUTPUT[2]] {
        driver.put(DATA, b"x");
        driver.chain(queue, &[(DATA, 1, false)]);
        driver.ring(queue);
    }
    driver.chain(MESSAGES_OUT, &[(DATA, 1, false)]);
    driver.ring(MESSAGES_OUT);
    port(&console, 0).offer_input(b"in");
    assert_eq!(receive(&mut driver, 0, 100), b"in");
    send(&mut driver, 0, b"out");
    assert_eq!(output(port(&console, 0)), b"out");
    assert_eq!([1, 2].map(|number| driver.used(OUTPUT[number])), [0, 0]);
    assert_eq!((driver.used(MESSAGES_OUT), driver.needs_reset()), (0, false));
}

#[test]
fn a_console_by_itself_is_of_the_simple_kind_also_after_a_move() {
    let alone = || Arc::new(Console::new(Some(Arc::new(Port::new("", Peers::One).unwrap())), vec![]));
    for features in [1, 0] {
        let old = alone();
        let mut driver = Driver::unready(Arc::clone(&old) as _);
        assert_eq!((driver.offered() & 0xff, old.queue_sizes().len()), (0b101, 2));
        driver.agree(VERSION_1 | features);
        driver.set_up_all();
        driver.write(0x70, 15);
        port(&old, 0).offer_input(b"early");
        driver.transport.pause();
        let new = alone();
        new.restore(&decode(&encode(&old.save())).unwrap()).unwrap();
        assert_eq!(new.save(), old.save());
        let mut driver = driver.move_to(Arc::clone(&new) as _);
        // One that knows no sizes is not waited for.
        assert_eq!(driver.read(0x60), 2 * features as u32);
        if features == 1 {
            driver.chain(INPUT[0], &[(DATA, 100, true)]);
            driver.ring(INPUT[0]);
            send(&mut driver, 0, b"first");
            assert_eq!((output(port(&new, 0)), driver.used(INPUT[0])), (b"first".to_vec(), 0));
            driver.read(0x102);
            driver.until("it comes", || driver.used(INPUT[0]) == 1);
        } else {
            assert_eq!(receive(&mut driver, 0, 100), b"early");
        }
        // Who has heard is not asked again where it is moved to, and the next driver is.
        driver.transport.pause();
        let last = alone();
        last.restore(&decode(&encode(&new.save())).unwrap()).unwrap();
        let mut driver = driver.move_to(Arc::clone(&last) as _);
        port(&last, 0).offer_input(b"late");
        assert_eq!(receive(&mut driver, 0, 100), b"late");
        last.reset();
        assert_eq!(last.save().listens, Listens::Nobody);
    }
}

#[test]
fn a_device_without_a_console_has_the_other_ports() {
    let log = Arc::new(Port::new("log", Peers::One).unwrap());
    let console = Arc::new(Console::new(None, vec![Arc::clone(&log)]));
    assert!(console.console().is_none());
    let mut driver = driver(&console);
    assert_eq!(driver.read(0x104), 2);
    say(&mut driver, 0, READY, 1);
    assert_eq!(hear(&mut driver), (1, ADD, 1, vec![]));
    say(&mut driver, 0, PORT_READY, 1);
    say(&mut driver, 1, PORT_READY, 1);
    assert_eq!(hear(&mut driver), (1, NAME, 1, b"log".to_vec()));
    driver.write(0x108, u32::from(b'!'));
    for number in 0..2 {
        send(&mut driver, number, b"out");
    }
    assert_eq!(output(&log), b"out");
}

#[test]
fn the_guest_hears_how_large_the_terminal_is() {
    let console = console();
    let mut driver = driver(&console);
    set_up(&mut driver);
    console.set_size(Size { columns: 80, rows: 25 });
    assert_eq!(hear(&mut driver), (0, RESIZE, 1, vec![80, 0, 25, 0]));
    // The last of several; and the same is no change.
    for rows in [30, 40, 40] {
        console.set_size(Size { columns: 100, rows });
    }
    assert_eq!(hear(&mut driver), (0, RESIZE, 1, vec![100, 0, 40, 0]));
    nothing_to_hear(&mut driver);
    driver.start_again();
    say(&mut driver, 0, PORT_READY, 1);
    let told = [(); 3].map(|()| hear(&mut driver).1);
    assert_eq!(told, [CONSOLE, OPEN, RESIZE]);
}

#[test]
fn a_byte_in_an_emergency_needs_no_agreement() {
    let console = console();
    let driver = Driver::unready(Arc::clone(&console) as _);
    for byte in *b"help" {
        driver.write(0x108, byte.into());
    }
    driver.write(0x100, u32::MAX);
    driver.write(0x10c, u32::MAX);
    assert_eq!(output(port(&console, 0)), b"help");
    for _ in 0..CAPACITY + 100 {
        driver.write(0x108, u32::from(b'!'));
    }
    assert_eq!(output(port(&console, 0)).len(), CAPACITY);
}

#[test]
fn output_that_nobody_takes_waits_with_the_driver_and_holds_no_other_port_up() {
    let console = console();
    let mut driver = driver(&console);
    set_up(&mut driver);
    // One chain of more than the port holds.
    let bytes: Vec<u8> = (0..200_000_u32).map(|index| (index % 251) as u8).collect();
    driver.put(DATA, &bytes);
    driver.chain(OUTPUT[1], &[(DATA, 100_000, false), (DATA + 100_000, 100_000, false)]);
    driver.ring(OUTPUT[1]);
    let log = Arc::clone(port(&console, 1));
    driver.until("it is full", || log.output(&mut vec![0; CAPACITY]) == CAPACITY);
    let before = driver.used(OUTPUT[1]);
    driver.chain(OUTPUT[0], &[(DATA, 1, false)]);
    driver.finish(OUTPUT[0]);
    // It can be stopped and go on.
    driver.transport.pause();
    driver.transport.resume();
    // In bites of no particular size.
    let taken = take_until(&log, bytes.len(), 7777);
    assert!(taken == bytes);
    driver.until("the chain comes back", || driver.used(OUTPUT[1]) == before + 1);
}

/// Takes so much output, waiting for it, at most `bite` at once.
#[track_caller]
fn take_until(port: &Port, count: usize, bite: usize) -> Vec<u8> {
    let (start, mut taken) = (Instant::now(), Vec::new());
    let mut bytes = vec![0; bite];
    while taken.len() < count {
        assert!(start.elapsed() < LONG, "only {} bytes have come", taken.len());
        let length = port.output(&mut bytes);
        port.output_taken(length);
        taken.extend_from_slice(&bytes[..length]);
        thread::yield_now();
    }
    taken
}

#[test]
fn input_that_the_guest_does_not_take_waits_and_no_more_is_taken() {
    let console = console();
    let mut driver = driver(&console);
    set_up(&mut driver);
    let log = port(&console, 1);
    is_signalled(log);
    assert_eq!(log.offer_input(&vec![b'a'; CAPACITY - 10]), CAPACITY - 10);
    assert_eq!(log.offer_input(&[b'b'; 100]), 10);
    assert_eq!(log.input_space(), 0);
    assert!(!is_signalled(log));
    // The guest has closed it: then nothing comes.
    say(&mut driver, 1, OPEN, 0);
    driver.chain(INPUT[1], &[(DATA, 4096, true)]);
    driver.ring(INPUT[1]);
    say(&mut driver, NOTHING, OPEN, 1);
    assert_eq!(driver.used(INPUT[1]), 0);
    say(&mut driver, 1, OPEN, 1);
    driver.until("it comes", || driver.used(INPUT[1]) == 1);
    driver.until("the peer is told of the room", || is_signalled(log));
    assert_eq!(log.input_space(), 4096);
    let mut rest = 0;
    while rest < CAPACITY - 4096 {
        rest += receive(&mut driver, 1, 4096).len();
    }
    assert_eq!((rest, log.input_space()), (CAPACITY - 4096, CAPACITY));
}

#[test]
fn what_a_peer_sent_before_it_left_comes_before_the_next_peer() {
    let console = console();
    let mut driver = driver(&console);
    set_up(&mut driver);
    let agent = port(&console, 2);
    // While nobody is there, output is thrown away.
    send(&mut driver, 2, b"to nobody");
    assert!(agent.arrive() && !agent.is_free());
    agent.offer_input(b"request");
    send(&mut driver, 2, b"not taken");
    agent.leave();
    assert!(!agent.has_output() && !agent.is_free() && !agent.arrive());
    // As far as the guest knows, it is still there.
    assert_eq!(hear(&mut driver), (2, OPEN, 1, vec![]));
    assert_eq!(receive(&mut driver, 2, 4), b"requ");
    nothing_to_hear(&mut driver);
    assert!(!agent.is_free());
    is_signalled(agent);
    assert_eq!(receive(&mut driver, 2, 100), b"est");
    assert_eq!(hear(&mut driver), (2, OPEN, 0, vec![]));
    driver.until("the next may come", || is_signalled(agent));
    assert!(agent.arrive());
    send(&mut driver, 2, b"to the next");
    assert_eq!(output(agent), b"to the next");
    assert_eq!(hear(&mut driver), (2, OPEN, 1, vec![]));
}

#[test]
fn a_peer_that_leaves_frees_what_the_driver_waits_to_send() {
    let console = console();
    let mut driver = driver(&console);
    set_up(&mut driver);
    port(&console, 2).arrive();
    driver.chain(OUTPUT[2], &[(DATA, 100_000, false)]);
    driver.ring(OUTPUT[2]);
    driver.until("it is full", || port(&console, 2).output(&mut vec![0; CAPACITY]) == CAPACITY);
    assert_eq!(driver.used(OUTPUT[2]), 0);
    port(&console, 2).leave();
    driver.until("the chain comes back", || driver.used(OUTPUT[2]) == 1);
}

/// Has somebody at the third port, and for him more than it holds, and another chain.
#[track_caller]
fn fill_agent(console: &Arc<Console>, driver: &mut Driver) {
    let agent = port(console, 2);
    assert!(agent.arrive());
    assert_eq!(hear(driver), (2, OPEN, 1, vec![]));
    driver.put(DATA, &[b'o'; 100_000]);
    driver.chain(OUTPUT[2], &[(DATA, 100_000, false)]);
    driver.chain(OUTPUT[2], &[(DATA, 10, false)]);
    driver.ring(OUTPUT[2]);
    driver.until("it is full", || agent.output(&mut vec![0; CAPACITY]) == CAPACITY);
}

#[test]
fn what_waited_for_a_peer_that_has_left_is_not_the_next_ones() {
    let console = console();
    let mut driver = driver(&console);
    set_up(&mut driver);
    let agent = Arc::clone(port(&console, 2));
    for _ in 0..3 {
        fill_agent(&console, &mut driver);
        let before = driver.used(OUTPUT[2]);
        driver.transport.pause();
        agent.leave();
        // Told now, the guest would make way for the next one before its chains are gone.
        assert_eq!(console.save().ports[2].as_ref().unwrap().untold, 0);
        driver.transport.resume();
        assert_eq!(hear(&mut driver), (2, OPEN, 0, vec![]));
        assert_eq!(driver.used(OUTPUT[2]), before + 2);
        assert!(agent.arrive() && !agent.has_output());
        assert_eq!(hear(&mut driver), (2, OPEN, 1, vec![]));
        send(&mut driver, 2, b"to the next");
        assert_eq!(output(&agent), b"to the next");
        agent.leave();
        assert_eq!(hear(&mut driver), (2, OPEN, 0, vec![]));
    }
}

#[test]
fn the_rest_of_a_chain_is_not_the_next_peers_where_the_driver_cares_for_no_peers() {
    let console = console();
    let mut driver = driver(&console);
    set_up(&mut driver);
    let agent = Arc::clone(port(&console, 2));
    fill_agent(&console, &mut driver);
    let before = driver.used(OUTPUT[2]);
    say(&mut driver, 2, PORT_READY, 0);
    driver.transport.pause();
    agent.leave();
    assert!(agent.arrive());
    driver.transport.resume();
    driver.until("the chains come back", || driver.used(OUTPUT[2]) == before + 2);
    assert_eq!(output(&agent).len(), 10);
}

#[test]
fn peers_come_and_go_while_there_is_no_driver() {
    let console = console();
    let agent = port(&console, 2);
    for _ in 0..3 {
        assert!(agent.arrive());
        agent.leave();
        assert!(agent.is_free());
    }
    assert!(agent.arrive());
    agent.offer_input(b"early");
    agent.leave();
    assert!(!agent.is_free());
    let mut driver = driver(&console);
    set_up(&mut driver);
    assert_eq!(hear(&mut driver), (2, OPEN, 1, vec![]));
    assert_eq!(receive(&mut driver, 2, 100), b"early");
    assert_eq!(hear(&mut driver), (2, OPEN, 0, vec![]));
    // A driver that goes away without having been told.
    assert!(agent.arrive());
    agent.leave();
    driver.write(0x70, 0);
    assert!(agent.is_free());
}

#[test]
fn a_reset_in_the_middle_loses_nothing_of_the_hosts() {
    let console = console();
    let mut driver = driver(&console);
    set_up(&mut driver);
    let log = Arc::clone(port(&console, 1));
    driver.put(DATA, &[b'o'; 100_000]);
    driver.chain(OUTPUT[1], &[(DATA, 100_000, false)]);
    driver.ring(OUTPUT[1]);
    driver.until("it is full", || log.output(&mut vec![0; CAPACITY]) == CAPACITY);
    log.offer_input(b"input");
    assert_eq!(receive(&mut driver, 1, 2), b"in");
    driver.start_again();
    assert_eq!(output(&log).len(), CAPACITY);
    set_up(&mut driver);
    assert_eq!(receive(&mut driver, 1, 100), b"put");
    // What the driver took back is not sent, and what it sends is not shortened by it.
    send(&mut driver, 1, b"whole");
    assert_eq!(output(&log), b"whole");
}

#[test]
fn a_console_goes_on_where_it_was_saved() {
    let old = console();
    old.set_size(Size { columns: 80, rows: 25 });
    let mut driver = driver(&old);
    say(&mut driver, 0, READY, 1);
    let _: Vec<_> = (0..3).map(|_| hear(&mut driver)).collect();
    (1..3).for_each(|number| say(&mut driver, number, PORT_READY, 1));
    (1..3).for_each(|number| say(&mut driver, number, OPEN, 1));
    assert!(port(&old, 2).arrive());
    let bytes: Vec<u8> = (0..100_000_u32).map(|index| (index % 241) as u8).collect();
    driver.put(DATA, &bytes);
    driver.chain(OUTPUT[1], &[(DATA, 100_000, false)]);
    driver.ring(OUTPUT[1]);
    driver.until("it is full", || port(&old, 1).output(&mut vec![0; CAPACITY]) == CAPACITY);
    port(&old, 1).offer_input(b"for the log");
    port(&old, 2).offer_input(b"for the agent");
    driver.transport.pause();

    let saved = old.save();
    let encoded = encode(&saved);
    let new = console();
    new.restore(&decode(&encoded).unwrap()).unwrap();
    let SavedConsole { ports, size, listens } = new.save();
    assert_eq!((size, listens, &ports[..2]), (saved.size, saved.listens, &saved.ports[..2]));
    let mut driver = driver.move_to(Arc::clone(&new) as _);
    assert!(take_until(port(&new, 1), bytes.len(), 5000) == bytes);
    assert_eq!(receive(&mut driver, 1, 100), b"for the log");
    assert_eq!(hear(&mut driver), (1, NAME, 1, b"log".to_vec()));
    assert_eq!(hear(&mut driver), (1, OPEN, 1, vec![]));
    assert_eq!(hear(&mut driver), (2, NAME, 1, b"agent".to_vec()));
    // The peer of the old one has left, as far as the new one is concerned.
    assert!(!port(&new, 2).arrive());
    assert_eq!(hear(&mut driver), (2, OPEN, 1, vec![]));
    assert_eq!(receive(&mut driver, 2, 100), b"for the agent");
    assert_eq!(hear(&mut driver), (2, OPEN, 0, vec![]));
    assert!(port(&new, 2).arrive());

    // Nothing more is to be said: saved, it comes back the same.
    driver.transport.pause();
    port(&new, 2).leave();
    let saved = new.save();
    let again = console();
    again.restore(&decode(&encode(&saved)).unwrap()).unwrap();
    assert_eq!(again.save(), saved);
}

#[test]
fn state_that_no_such_device_has_is_refused() {
    let refused = |change: fn(&mut SavedConsole)| {
        let mut saved = console().save();
        change(&mut saved);
        let error = console().restore(&saved).unwrap_err().to_string();
        assert!(error.contains("virtio-console") && error.contains("other ports"), "{error}");
    };
    refused(|saved| drop(saved.ports.pop()));
    refused(|saved| saved.ports[0] = None);
    refused(|saved| saved.ports[1].as_mut().unwrap().name = "other".to_owned());
    refused(|saved| saved.ports[1].as_mut().unwrap().input = vec![0; CAPACITY + 1]);
    refused(|saved| saved.ports[1].as_mut().unwrap().output = vec![0; CAPACITY + 1]);
    refused(|saved| saved.ports[1].as_mut().unwrap().untold = 0x20);
}

#[test]
fn what_is_no_request_stops_the_console_until_it_is_reset() {
    let console = console();
    let mut driver = driver(&console);
    let cases: [(&str, u16, &[Part]); 7] = [
        ("output to write", OUTPUT[1], &[(DATA, 4, true)]),
        ("output to write, behind some", OUTPUT[0], &[(DATA, 4, false), (DATA, 4, true)]),
        ("half a message", MESSAGES_OUT, &[(DATA, 7, false)]),
        ("a message to write", MESSAGES_OUT, &[(DATA, 8, false), (DATA, 8, true)]),
        ("input to read", INPUT[0], &[(DATA, 8, false)]),
        ("an answer to read", MESSAGES_IN, &[(DATA, 8, false)]),
        ("no room for an answer", MESSAGES_IN, &[(DATA, 7, true)]),
    ];
    for (what, queue, parts) in cases {
        println!("{what}");
        port(&console, 0).offer_input(b"x");
        say(&mut driver, 0, READY, 1);
        say(&mut driver, 0, OPEN, 1);
        driver.chain(queue, parts);
        driver.expect_misuse(queue);
    }
    set_up(&mut driver);
}

#[test]
fn messages_of_any_value_do_no_harm() {
    let console = console();
    let mut driver = driver(&console);
    for event in (0..10).chain([0x100, u16::MAX]) {
        for value in [0, 1, 2, u16::MAX] {
            for number in [0, 1, 2, 3, 30, 31, 0x8000_0000, u32::MAX] {
                say(&mut driver, number, event, value);
            }
        }
    }
    assert!(!driver.needs_reset());
    driver.start_again();
    set_up(&mut driver);
}
