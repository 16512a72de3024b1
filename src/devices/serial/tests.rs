//! The serial port as drivers, consoles and hostile guests use it.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc;
use std::time::Duration;

use super::*;
use crate::bus::testing::Random;
use crate::devices::testing::{CountingLine, KeepingSink};
use crate::saved;

const TRANSMITTER_EMPTY: u8 = 0x60;

struct Port {
    serial: Serial,
    line: Arc<CountingLine>,
    sink: Arc<KeepingSink>,
}

impl Port {
    fn new() -> Self {
        let (line, sink) = (Arc::<CountingLine>::default(), Arc::<KeepingSink>::default());
        Self { serial: Serial::new(line.clone(), sink.clone()), line, sink }
    }

    fn read(&self, register: u8) -> u8 {
        self.serial.read(register.into(), 1) as u8
    }

    fn write(&self, register: u8, value: u8) {
        assert_eq!(self.serial.write(register.into(), 1, value.into()), Action::None);
    }

    /// Reads what is announced, as an interrupt handler or a polling loop does.
    fn drain(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.read(LINE_STATUS) & LINE_STATUS_DATA != 0 {
            bytes.push(self.read(DATA));
        }
        bytes
    }

    fn identify(&self) -> u8 {
        self.read(INTERRUPT_IDENTIFICATION) & 0x0f
    }
}

/// How Linux 6.1 finds out what a port is (`autoconfig`), without its parts for rarer chips.
fn probe_like_linux(port: &Port) {
    port.write(INTERRUPT_ENABLE, 0);
    port.read(INTERRUPT_ENABLE);
    port.write(INTERRUPT_ENABLE, ENABLE_ALL);
    assert_eq!(port.read(INTERRUPT_ENABLE) & 0x0f, ENABLE_ALL);
    port.write(INTERRUPT_ENABLE, 0);
    let (line_control, modem_control) = (port.read(LINE_CONTROL), port.read(MODEM_CONTROL));
    port.write(MODEM_CONTROL, MODEM_CONTROL_LOOP | 0x0a);
    assert_eq!(port.read(MODEM_STATUS) & 0xf0, 0x90, "the loop-back test fails");
    port.write(MODEM_CONTROL, modem_control);
    port.write(LINE_CONTROL, 0xbf);
    port.write(FIFO_CONTROL, 0);
    port.write(LINE_CONTROL, 0);
    port.write(FIFO_CONTROL, 0x01);
    assert_eq!(port.read(INTERRUPT_IDENTIFICATION) & 0xc0, 0xc0, "this is not a 16550A");
    port.write(LINE_CONTROL, line_control);
    clear_fifos_like_linux(port);
    port.read(DATA);
    port.write(INTERRUPT_ENABLE, 0);
}

fn clear_fifos_like_linux(port: &Port) {
    port.write(FIFO_CONTROL, 0x01);
    port.write(FIFO_CONTROL, 0x07);
    port.write(FIFO_CONTROL, 0);
}

fn sweep_like_linux(port: &Port) {
    for register in [LINE_STATUS, DATA, INTERRUPT_IDENTIFICATION, MODEM_STATUS] {
        port.read(register);
    }
}

/// How Linux 6.1 opens a port (`serial8250_do_startup` and the set-up of the line that follows).
fn open_like_linux(port: &Port) {
    clear_fifos_like_linux(port);
    sweep_like_linux(port);
    assert_ne!(port.read(LINE_STATUS), 0xff);
    // Does the transmitter interrupt come back each time it is enabled?
    port.read(LINE_STATUS);
    port.write(INTERRUPT_ENABLE, ENABLE_TRANSMITTER);
    assert_eq!(port.identify(), IDENTIFY_TRANSMITTER);
    port.write(INTERRUPT_ENABLE, 0);
    port.write(INTERRUPT_ENABLE, ENABLE_TRANSMITTER);
    assert_eq!(port.identify(), IDENTIFY_TRANSMITTER, "Linux would poll this port with a timer");
    port.write(INTERRUPT_ENABLE, 0);
    port.write(LINE_CONTROL, 0x03);
    port.write(MODEM_CONTROL, 0x0b);
    port.write(INTERRUPT_ENABLE, ENABLE_TRANSMITTER);
    assert_eq!(port.read(LINE_STATUS) & TRANSMITTER_EMPTY, TRANSMITTER_EMPTY);
    assert_eq!(port.identify(), IDENTIFY_TRANSMITTER);
    port.write(INTERRUPT_ENABLE, 0);
    sweep_like_linux(port);
    port.write(LINE_CONTROL, 0x83);
    port.write(DATA, 1);
    port.write(INTERRUPT_ENABLE, 0);
    port.write(LINE_CONTROL, 0x03);
    port.write(FIFO_CONTROL, 0x01);
    port.write(FIFO_CONTROL, 0x81);
    port.write(INTERRUPT_ENABLE, 0x05);
}

#[test]
fn output_reaches_the_sink_byte_by_byte() {
    let port = Port::new();
    for byte in *b"hi" {
        assert_eq!(port.read(LINE_STATUS), TRANSMITTER_EMPTY);
        port.write(DATA, byte);
    }
    assert_eq!(port.sink.take(), [b"h", b"i"]);
    assert_eq!(port.line.take(), 0);
}

#[test]
fn a_run_reaches_the_sink_in_one_push_and_raises_one_interrupt() {
    let port = Port::new();
    port.write(INTERRUPT_ENABLE, ENABLE_TRANSMITTER);
    assert_eq!((port.line.take(), port.identify()), (1, IDENTIFY_TRANSMITTER));
    assert_eq!(port.serial.write_run(DATA.into(), 1, b"all at once"), Action::None);
    assert_eq!(port.sink.take(), [b"all at once"]);
    assert_eq!((port.line.take(), port.identify()), (1, IDENTIFY_TRANSMITTER));
    assert_eq!(port.identify(), IDENTIFY_NOTHING);
}

#[test]
fn runs_that_are_not_output_are_written_one_by_one() {
    let port = Port::new();
    port.write(LINE_CONTROL, LINE_CONTROL_DIVISOR);
    port.serial.write_run(DATA.into(), 1, &[1, 2, 3]);
    assert_eq!(port.read(DATA), 3);
    port.write(LINE_CONTROL, 3);
    port.write(MODEM_CONTROL, MODEM_CONTROL_LOOP);
    port.serial.write_run(DATA.into(), 1, b"round");
    assert_eq!(port.drain(), b"round");
    port.serial.write_run(7, 1, &[4, 5]);
    assert_eq!(port.read(7), 5);
    port.serial.write_run(DATA.into(), 1, &[]);
    assert_eq!(port.sink.take(), Vec::<Vec<u8>>::new());
}

#[test]
fn input_that_came_early_survives_the_probe_and_the_opening_of_the_port() {
    let port = Port::new();
    assert_eq!(port.serial.offer_input(b"early"), 5);
    probe_like_linux(&port);
    for byte in *b"printing polls the line status too" {
        port.read(LINE_STATUS);
        port.write(DATA, byte);
    }
    port.serial.offer_input(b" bird");
    probe_like_linux(&port);
    port.line.take();
    open_like_linux(&port);
    assert!(port.line.take() > 0, "no interrupt tells of the input");
    assert_eq!(port.identify(), IDENTIFY_RECEIVED);
    assert_eq!(port.drain(), b"early bird");
    assert_eq!(port.identify(), IDENTIFY_NOTHING);
}

#[test]
fn a_polling_guest_gets_its_input_at_the_second_look() {
    let port = Port::new();
    port.serial.offer_input(b"ab");
    assert_eq!(port.read(LINE_STATUS), TRANSMITTER_EMPTY);
    port.read(MODEM_STATUS);
    assert_eq!(port.drain(), b"ab");
    port.serial.offer_input(b"c");
    assert_eq!(port.drain(), b"c", "a guest that polls goes on polling");
}

#[test]
fn more_input_than_a_fifo_holds_arrives_whole_and_keeps_the_interrupt_pending() {
    let port = Port::new();
    port.write(INTERRUPT_ENABLE, ENABLE_RECEIVED);
    let input: Vec<u8> = (0..1000).map(|index| index as u8).collect();
    assert_eq!(port.serial.offer_input(&input), 1000);
    assert_eq!(port.line.take(), 1);
    let mut got = Vec::new();
    // A handler that takes a few bytes each time, for as long as the port says there are more.
    while port.identify() == IDENTIFY_RECEIVED {
        for _ in 0..7 {
            if port.read(LINE_STATUS) & LINE_STATUS_DATA != 0 {
                got.push(port.read(DATA));
            }
        }
    }
    assert_eq!(got, input);
    port.serial.offer_input(b"x");
    assert_eq!(port.line.take(), 1);
}

#[test]
fn enabling_the_received_data_interrupt_raises_it_for_input_that_is_there() {
    let port = Port::new();
    port.serial.offer_input(b"a");
    assert_eq!(port.line.take(), 0);
    port.write(INTERRUPT_ENABLE, ENABLE_RECEIVED);
    assert_eq!(port.line.take(), 1);
    // A console masks interrupts while it prints; unmasking brings the interrupt back even if nobody has
    // looked at the first one.
    port.write(INTERRUPT_ENABLE, 0);
    assert_eq!(port.identify(), IDENTIFY_NOTHING);
    port.write(INTERRUPT_ENABLE, ENABLE_RECEIVED);
    assert_eq!((port.line.take(), port.identify()), (1, IDENTIFY_RECEIVED));
}

#[test]
fn a_transmitter_interrupt_waits_behind_received_data() {
    let port = Port::new();
    port.write(INTERRUPT_ENABLE, ENABLE_RECEIVED | ENABLE_TRANSMITTER);
    port.serial.offer_input(b"a");
    assert_eq!(port.identify(), IDENTIFY_RECEIVED);
    assert_eq!(port.identify(), IDENTIFY_RECEIVED);
    assert_eq!(port.read(DATA), b'a');
    assert_eq!(port.identify(), IDENTIFY_TRANSMITTER);
    assert_eq!(port.identify(), IDENTIFY_NOTHING);
}

#[test]
fn looping_cuts_the_receiver_off_until_it_ends() {
    let port = Port::new();
    port.write(INTERRUPT_ENABLE, ENABLE_RECEIVED);
    port.write(MODEM_CONTROL, MODEM_CONTROL_LOOP);
    port.serial.offer_input(b"outside");
    assert_eq!(port.line.take(), 0);
    port.write(DATA, b'L');
    assert_eq!((port.line.take(), port.identify()), (1, IDENTIFY_RECEIVED));
    assert_eq!(port.drain(), b"L");
    port.write(DATA, b'M');
    port.write(FIFO_CONTROL, 0x07);
    assert_eq!(port.drain(), b"", "the FIFO was cleared");
    port.line.take();
    port.write(MODEM_CONTROL, 0x0b);
    assert_eq!(port.line.take(), 1);
    assert_eq!(port.drain(), b"outside");
}

#[test]
fn input_is_bounded() {
    let port = Port::new();
    assert_eq!(port.serial.offer_input(&vec![7; INPUT_CAPACITY + 1]), INPUT_CAPACITY);
    assert_eq!((port.serial.input_space(), port.serial.offer_input(b"x")), (0, 0));
    port.write(INTERRUPT_ENABLE, ENABLE_RECEIVED);
    port.read(DATA);
    assert_eq!((port.serial.input_space(), port.serial.offer_input(b"xy")), (1, 1));
    assert_eq!(port.drain().len(), INPUT_CAPACITY);
}

#[test]
fn carrier_is_lost_when_the_last_input_was_read() {
    let port = Port::new();
    port.write(INTERRUPT_ENABLE, ENABLE_RECEIVED | ENABLE_MODEM_STATUS);
    port.serial.offer_input(b"ab");
    port.serial.end_input();
    port.line.take();
    assert_eq!(port.read(DATA), b'a');
    assert_eq!(port.read(MODEM_STATUS), 0xb0, "carrier, data set ready, clear to send");
    assert_eq!((port.read(DATA), port.line.take()), (b'b', 1));
    assert_eq!(port.identify(), IDENTIFY_MODEM_STATUS);
    assert_eq!(port.read(MODEM_STATUS), 0x30 | MODEM_STATUS_CARRIER_CHANGED);
    assert_eq!((port.identify(), port.read(MODEM_STATUS)), (IDENTIFY_NOTHING, 0x30));
    // Somebody attaches again.
    port.serial.offer_input(b"c");
    assert_eq!(port.read(MODEM_STATUS), 0xb0 | MODEM_STATUS_CARRIER_CHANGED);
}

#[test]
fn the_end_of_no_input_at_all_loses_the_carrier_at_once() {
    let port = Port::new();
    port.serial.end_input();
    port.serial.end_input();
    assert_eq!(port.line.take(), 0, "nobody asked for the interrupt");
    assert_eq!(port.read(MODEM_STATUS) & MODEM_STATUS_CARRIER, 0);
    port.write(MODEM_CONTROL, MODEM_CONTROL_LOOP | 0x0a);
    assert_eq!(port.read(MODEM_STATUS) & 0xf0, 0x90, "the loop-back test does not depend on carrier");
}

/// A wire that gives edges in a way of its own.
#[derive(Default)]
struct PulsedLine(AtomicUsize);

impl InterruptLine for PulsedLine {
    fn set(&self, _high: bool) {
        panic!("between rise and fall comes another edge, and one of them is lost");
    }

    fn pulse(&self) {
        self.0.fetch_add(1, Relaxed);
    }
}

#[test]
fn how_an_edge_is_given_is_left_to_the_wire() {
    let line = Arc::<PulsedLine>::default();
    let serial = Serial::new(line.clone(), Arc::<KeepingSink>::default());
    serial.write(INTERRUPT_ENABLE.into(), 1, (ENABLE_RECEIVED | ENABLE_TRANSMITTER).into());
    assert_eq!(line.0.swap(0, Relaxed), 1);
    serial.offer_input(b"a");
    assert_eq!(line.0.swap(0, Relaxed), 1);
}

/// A sink that uses the port while it is being pushed to.
struct Reentrant(Mutex<Option<Arc<Serial>>>);

impl ByteSink for Reentrant {
    fn push(&self, bytes: &[u8]) {
        let serial = self.0.lock().unwrap().clone().unwrap();
        assert_eq!(serial.offer_input(bytes), bytes.len());
        serial.read(LINE_STATUS.into(), 1);
    }
}

#[test]
fn the_port_stays_usable_while_the_sink_takes_its_time() {
    let sink = Arc::new(Reentrant(Mutex::new(None)));
    let serial = Arc::new(Serial::new(Arc::<CountingLine>::default(), sink.clone()));
    *sink.0.lock().unwrap() = Some(serial.clone());
    serial.write(DATA.into(), 1, b'x'.into());
    assert_eq!(serial.input_space(), INPUT_CAPACITY - 1);
    *sink.0.lock().unwrap() = None;
}

/// A wire whose edges wake up a thread that stands for the guest.
struct WakingLine(mpsc::Sender<()>);

impl InterruptLine for WakingLine {
    fn set(&self, high: bool) {
        if high {
            let _ = self.0.send(());
        }
    }
}

#[test]
fn a_guest_that_sleeps_until_the_next_interrupt_gets_all_input_of_another_thread() {
    let (wire, edges) = mpsc::channel();
    let serial = Serial::new(Arc::new(WakingLine(wire)), Arc::<KeepingSink>::default());
    // Less than there is room for, so that the other thread ends even if this one fails.
    let input: Vec<u8> = (0..60_000_u32).map(|index| (index % 251) as u8).collect();
    let mut got = Vec::new();
    serial.write(INTERRUPT_ENABLE.into(), 1, (ENABLE_RECEIVED | ENABLE_MODEM_STATUS).into());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = Random::new(6);
            let mut rest = &input[..];
            while !rest.is_empty() {
                let length = (1 + random.below(100) as usize).min(rest.len());
                rest = &rest[serial.offer_input(&rest[..length])..];
            }
            serial.end_input();
        });
        let mut carrier = true;
        while carrier {
            edges.recv_timeout(Duration::from_secs(60)).expect("an interrupt was lost");
            loop {
                match serial.read(INTERRUPT_IDENTIFICATION.into(), 1) as u8 & 0x0f {
                    IDENTIFY_RECEIVED => got.push(serial.read(DATA.into(), 1) as u8),
                    IDENTIFY_MODEM_STATUS => {
                        carrier = serial.read(MODEM_STATUS.into(), 1) as u8 & MODEM_STATUS_CARRIER != 0;
                    }
                    _ => break,
                }
            }
        }
    });
    assert_eq!(got, input);
}

fn restored(saved: &SavedSerial) -> Port {
    let port = Port::new();
    port.serial.restore(&saved::decode(&saved::encode(saved)).unwrap()).unwrap();
    port
}

#[test]
fn a_restored_port_goes_on_and_repeats_a_pending_interrupt() {
    let port = Port::new();
    port.write(INTERRUPT_ENABLE, ENABLE_RECEIVED | ENABLE_TRANSMITTER);
    port.serial.offer_input(b"ab");
    port.identify();
    port.serial.end_input();
    let port = restored(&port.serial.save());
    assert_eq!(port.line.take(), 1);
    assert_eq!(port.identify(), IDENTIFY_RECEIVED);
    assert_eq!(port.drain(), b"ab");
    assert_eq!(port.identify(), IDENTIFY_TRANSMITTER);
    assert_eq!(port.read(MODEM_STATUS) & MODEM_STATUS_CARRIER, 0);
}

#[test]
fn saved_states_that_no_port_was_ever_in_are_refused() {
    let good = Port::new().serial.save();
    let line_status = TRANSMITTER_EMPTY | LINE_STATUS_DATA;
    let bad = [
        SavedSerial { input: vec![0; INPUT_CAPACITY + 1], ..good.clone() },
        SavedSerial { looped: vec![0; 65], line_status, ..good.clone() },
        SavedSerial { looped: vec![0], ..good.clone() },
        SavedSerial { line_status, ..good.clone() },
        SavedSerial { polls: 3, ..good.clone() },
        SavedSerial { interrupt_enable: 0x10, ..good.clone() },
    ];
    let port = Port::new();
    for saved in bad {
        assert!(port.serial.restore(&saved).is_err(), "{saved:?}");
    }
    assert_eq!(port.serial.save(), good);
}

#[test]
fn generated_accesses_do_no_harm_and_every_state_can_be_saved() {
    let mut random = Random::new(2);
    let mut port = Port::new();
    for _ in 0..5_000 {
        let (register, value) = (random.below(8) as u8, random.byte());
        match random.below(16) {
            0 => _ = port.serial.offer_input(&[value; 3]),
            1 if value < 16 => port.serial.end_input(),
            2..8 => _ = port.read(register),
            8 => _ = port.serial.write_run(register.into(), 1, &[value; 5]),
            _ => port.write(register, value),
        }
        let saved = port.serial.save();
        let twin = restored(&saved);
        assert_eq!(twin.serial.save(), saved);
        if random.below(8) == 0 {
            port = twin;
        }
    }
}

#[test]
fn whatever_a_guest_did_before_it_can_listen_in_the_end() {
    let mut random = Random::new(3);
    for _ in 0..200 {
        let port = Port::new();
        port.serial.offer_input(b"kept");
        for _ in 0..50 {
            // No reads: what a guest reads is gone. Received data is not enabled, so nothing is owed to it.
            let register = random.pick(&[FIFO_CONTROL, LINE_CONTROL, MODEM_CONTROL, 7, DATA]);
            port.write(register, random.byte());
        }
        port.write(LINE_CONTROL, 3);
        port.write(MODEM_CONTROL, 0x0b);
        port.write(FIFO_CONTROL, 0x07);
        port.line.take();
        port.write(INTERRUPT_ENABLE, ENABLE_RECEIVED);
        assert_eq!((port.line.take(), port.identify()), (1, IDENTIFY_RECEIVED));
        assert_eq!(port.drain(), b"kept");
    }
}
