//! The serial port COM1: a 16550A on top of vm-superio's register model.
//!
//! vm-superio has the registers, the loop-back mode and the transmitter. Added here is what a console needs:
//!
//! - **Input that waits for its reader.** Bytes that arrive early stay in a bounded queue, which takes the place
//!   of the chip's receive FIFO. Drivers clear that FIFO and read the data register blindly when they probe;
//!   so the queue is offered only to a guest that listens: one that enabled the received-data interrupt, or
//!   that polls the line status register (twice without reconfiguring the port in between, which no probe
//!   does before it reads the data register).
//! - **Interrupt identification as the data sheet has it.** Received data is reported for as long as there is
//!   any, not only until the first byte was read, and a transmitter interrupt is not lost when both are pending.
//! - **Carrier.** When no more input will come and all of it was read, data carrier detect goes low, with the
//!   modem status interrupt for a guest that asks for it: a guest can tell the end of its input from silence.
//! - **Runs.** Bytes of one `rep outsb` go to the sink in one push.
//!
//! The lock is never held while a byte is pushed or the interrupt wire is moved; both happen before the vCPU
//! goes on, in this order, so a driver that serialises its own output sees it in that order.

mod saved;

use std::cell::Cell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex};

use vm_superio::Trigger;
use vm_superio::serial::NoEvents;

use super::{ByteSink, Error, InterruptLine};
use crate::bus::{Action, Claim, Device, Widths};
use crate::threads::lock;

pub use saved::SavedSerial;

/// The ports of COM1.
pub const CLAIM: Claim<u16> = Claim { name: "serial", base: 0x3f8, len: 8, widths: Widths::BYTE };
/// The interrupt of COM1.
pub const IRQ: u32 = 4;
/// How much input is kept for a guest that does not read it.
pub const INPUT_CAPACITY: usize = 64 << 10;

/// What vm-superio's loop-back FIFO holds at most.
const LOOPED_CAPACITY: usize = 64;
/// Reads of the line status register after which a guest counts as polling.
const POLLS: u8 = 2;

// Registers (16550D data sheet, table II).
const DATA: u8 = 0;
const INTERRUPT_ENABLE: u8 = 1;
const INTERRUPT_IDENTIFICATION: u8 = 2; // read
const FIFO_CONTROL: u8 = 2; // written
const LINE_CONTROL: u8 = 3;
const MODEM_CONTROL: u8 = 4;
const LINE_STATUS: u8 = 5;
const MODEM_STATUS: u8 = 6;

const ENABLE_RECEIVED: u8 = 0x01;
const ENABLE_TRANSMITTER: u8 = 0x02;
const ENABLE_MODEM_STATUS: u8 = 0x08;
const ENABLE_ALL: u8 = 0x0f;

const IDENTIFY_FIFOS: u8 = 0xc0;
const IDENTIFY_MODEM_STATUS: u8 = 0x00;
const IDENTIFY_NOTHING: u8 = 0x01;
const IDENTIFY_TRANSMITTER: u8 = 0x02;
const IDENTIFY_RECEIVED: u8 = 0x04;

const FIFO_CLEAR_RECEIVED: u8 = 0x02;
const LINE_CONTROL_DIVISOR: u8 = 0x80;
const MODEM_CONTROL_LOOP: u8 = 0x10;
const LINE_STATUS_DATA: u8 = 0x01;
const MODEM_STATUS_CARRIER_CHANGED: u8 = 0x08;
const MODEM_STATUS_CARRIER: u8 = 0x80;

/// Notes that vm-superio wants an interrupt; the wire is moved when the lock is released.
struct Wanted(Cell<bool>);

impl Trigger for Wanted {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.set(true);
        Ok(())
    }
}

/// Notes that vm-superio sent the byte it was given; who wrote it knows which that was.
struct Sent(bool);

impl io::Write for Sent {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = true;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

type Uart = vm_superio::Serial<Wanted, NoEvents, Sent>;

/// The serial port.
pub struct Serial {
    state: Mutex<State>,
    line: Arc<dyn InterruptLine>,
    sink: Arc<dyn ByteSink>,
}

struct State {
    uart: Uart,
    /// The interrupt enable register, which the divisor latch can hide.
    enabled: u8,
    /// Input that the guest has not read.
    input: VecDeque<u8>,
    /// Reads of the line status register since the port was last configured, up to [`POLLS`].
    polls: u8,
    /// A transmitter interrupt that waits behind received data.
    transmitter_waits: bool,
    /// No more input will come.
    ended: bool,
    /// Carrier came or went since the modem status register was read.
    carrier_changed: bool,
}

impl Serial {
    /// A port whose interrupts go to `line` and whose output goes to `sink`.
    pub fn new(line: Arc<dyn InterruptLine>, sink: Arc<dyn ByteSink>) -> Self {
        let state = State {
            uart: Uart::with_events(Wanted(Cell::new(false)), NoEvents, Sent(false)),
            enabled: 0,
            input: VecDeque::new(),
            polls: 0,
            transmitter_waits: false,
            ended: false,
            carrier_changed: false,
        };
        Self { state: Mutex::new(state), line, sink }
    }

    /// Gives the guest input and returns how many bytes there was room for.
    pub fn offer_input(&self, bytes: &[u8]) -> usize {
        self.change(|state| state.offer_input(bytes))
    }

    /// How many bytes [`Serial::offer_input`] would take now.
    pub fn input_space(&self) -> usize {
        INPUT_CAPACITY - lock(&self.state).input.len()
    }

    /// Says that no more input will come: carrier is lost as soon as the guest has read what there is.
    ///
    /// Input that is offered nevertheless (somebody attached to the console again) brings the carrier back.
    pub fn end_input(&self) {
        self.change(State::end_input);
    }

    /// What a snapshot keeps of it.
    pub fn save(&self) -> SavedSerial {
        lock(&self.state).save()
    }

    /// Puts back what [`Serial::save`] read, and raises the interrupt again that may have been pending.
    pub fn restore(&self, saved: &SavedSerial) -> Result<(), Error> {
        let restored = State::restore(saved)?;
        self.change(|state| *state = restored);
        Ok(())
    }

    /// Changes the state under the lock, then gives the interrupt that came of it.
    fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let mut state = lock(&self.state);
        let result = change(&mut state);
        let wanted = state.uart.interrupt_evt().0.take();
        drop(state);
        if wanted {
            self.line.pulse();
        }
        result
    }
}

impl Device for Serial {
    fn read(&self, offset: u64, _width: u8) -> u64 {
        self.change(|state| state.read(offset as u8)).into()
    }

    fn write(&self, offset: u64, width: u8, value: u64) -> Action {
        self.write_run(offset, width, &[value as u8])
    }

    fn write_run(&self, offset: u64, _width: u8, bytes: &[u8]) -> Action {
        let mut state = lock(&self.state);
        let sent = state.write(offset as u8, bytes);
        let wanted = state.uart.interrupt_evt().0.take();
        drop(state);
        if sent {
            self.sink.push(bytes);
        }
        // After the push: the interrupt says that the next byte may follow.
        if wanted {
            self.line.pulse();
        }
        Action::None
    }
}

impl State {
    fn want_interrupt(&self) {
        self.uart.interrupt_evt().0.set(true);
    }

    fn want_received_interrupt(&mut self) {
        if self.enabled & ENABLE_RECEIVED != 0 && self.has_data() {
            self.want_interrupt();
        }
    }

    fn want_modem_status_interrupt(&self) {
        if self.enabled & ENABLE_MODEM_STATUS != 0 && self.carrier_changed {
            self.want_interrupt();
        }
    }

    fn is_looping(&mut self) -> bool {
        self.uart.read(MODEM_CONTROL) & MODEM_CONTROL_LOOP != 0
    }

    fn shows_divisor(&mut self) -> bool {
        self.uart.read(LINE_CONTROL) & LINE_CONTROL_DIVISOR != 0
    }

    /// Whether bytes came round the loop and were not read.
    fn has_looped(&mut self) -> bool {
        self.uart.read(LINE_STATUS) & LINE_STATUS_DATA != 0
    }

    /// Whether there is input and the guest listens. In loop-back mode the receiver is cut off.
    fn offers_input(&mut self) -> bool {
        let listens = self.enabled & ENABLE_RECEIVED != 0 || self.polls >= POLLS;
        listens && !self.input.is_empty() && !self.is_looping()
    }

    fn has_data(&mut self) -> bool {
        self.has_looped() || self.offers_input()
    }

    fn has_carrier(&self) -> bool {
        !self.ended || !self.input.is_empty()
    }

    fn read(&mut self, register: u8) -> u8 {
        match register {
            DATA if !self.shows_divisor() => self.receive(),
            INTERRUPT_IDENTIFICATION => self.identify_interrupt(),
            LINE_STATUS => {
                self.polls = POLLS.min(self.polls + 1);
                let data = if self.offers_input() { LINE_STATUS_DATA } else { 0 };
                self.uart.read(LINE_STATUS) | data
            }
            MODEM_STATUS if !self.is_looping() => self.modem_status(),
            _ => self.uart.read(register),
        }
    }

    fn receive(&mut self) -> u8 {
        if self.has_looped() {
            return self.uart.read(DATA);
        }
        if !self.offers_input() {
            // Nothing was announced, so nobody polls: this is a driver that sweeps out its port.
            self.polls = 0;
            return 0;
        }
        let byte = self.input.pop_front().unwrap_or_default();
        self.note_lost_carrier();
        byte
    }

    /// The most urgent interrupt that is pending and enabled (data sheet, table IV).
    fn identify_interrupt(&mut self) -> u8 {
        // vm-superio forgets everything it had pending when this register is read.
        let pending = self.uart.read(INTERRUPT_IDENTIFICATION);
        let waited = std::mem::take(&mut self.transmitter_waits);
        let transmitter =
            (waited || pending & IDENTIFY_TRANSMITTER != 0) && self.enabled & ENABLE_TRANSMITTER != 0;
        let source = if self.enabled & ENABLE_RECEIVED != 0 && self.has_data() {
            self.transmitter_waits = transmitter;
            IDENTIFY_RECEIVED
        } else if transmitter {
            IDENTIFY_TRANSMITTER
        } else if self.enabled & ENABLE_MODEM_STATUS != 0 && self.carrier_changed {
            IDENTIFY_MODEM_STATUS
        } else {
            IDENTIFY_NOTHING
        };
        IDENTIFY_FIFOS | source
    }

    fn modem_status(&mut self) -> u8 {
        let mut status =
            self.uart.read(MODEM_STATUS) & !(MODEM_STATUS_CARRIER | MODEM_STATUS_CARRIER_CHANGED);
        if self.has_carrier() {
            status |= MODEM_STATUS_CARRIER;
        }
        if std::mem::take(&mut self.carrier_changed) {
            status |= MODEM_STATUS_CARRIER_CHANGED;
        }
        status
    }

    /// Writes all of `bytes` to one register and returns whether they went out on the line.
    fn write(&mut self, register: u8, bytes: &[u8]) -> bool {
        let Some((&first, rest)) = bytes.split_first() else {
            return false;
        };
        self.write_one(register, first);
        if std::mem::take(&mut self.uart.writer_mut().0) {
            // The port is configured for output and the transmitter interrupt is noted: no further byte of
            // the run would change anything.
            return true;
        }
        for &byte in rest {
            self.write_one(register, byte);
        }
        false
    }

    fn write_one(&mut self, register: u8, value: u8) {
        match register {
            INTERRUPT_ENABLE if !self.shows_divisor() => self.enable_interrupts(value & ENABLE_ALL),
            FIFO_CONTROL => {
                self.polls = 0;
                if value & FIFO_CLEAR_RECEIVED != 0 {
                    self.drop_looped();
                }
            }
            LINE_CONTROL => {
                self.polls = 0;
                self.write_uart(register, value);
            }
            MODEM_CONTROL => {
                self.polls = 0;
                self.write_uart(register, value);
                // Input may have come while the receiver was cut off.
                self.want_received_interrupt();
            }
            _ => self.write_uart(register, value),
        }
    }

    fn write_uart(&mut self, register: u8, value: u8) {
        // Fails only if the trigger or the writer fails, and ours cannot.
        let _ = self.uart.write(register, value);
    }

    fn enable_interrupts(&mut self, enabled: u8) {
        let newly = enabled & !self.enabled;
        self.enabled = enabled;
        self.polls = 0;
        self.write_uart(INTERRUPT_ENABLE, enabled);
        if enabled & ENABLE_TRANSMITTER == 0 {
            self.transmitter_waits = false;
        }
        // An edge given while the interrupt controller masked the line is gone. Enabling gives it again, as
        // the wire of a chip would still be high.
        if newly & ENABLE_TRANSMITTER != 0 {
            self.want_interrupt();
        }
        self.want_received_interrupt();
        self.want_modem_status_interrupt();
    }

    /// Empties vm-superio's FIFO, which knows no command for it.
    fn drop_looped(&mut self) {
        let line_control = self.uart.read(LINE_CONTROL);
        self.write_uart(LINE_CONTROL, line_control & !LINE_CONTROL_DIVISOR);
        while self.has_looped() {
            self.uart.read(DATA);
        }
        self.write_uart(LINE_CONTROL, line_control);
    }

    fn offer_input(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(INPUT_CAPACITY - self.input.len());
        if taken == 0 {
            return 0;
        }
        self.carrier_changed |= !self.has_carrier();
        self.ended = false;
        self.input.extend(&bytes[..taken]);
        self.want_received_interrupt();
        self.want_modem_status_interrupt();
        taken
    }

    fn end_input(&mut self) {
        if !self.ended {
            self.ended = true;
            self.note_lost_carrier();
        }
    }

    /// To be called when input ended, or when some of it was read.
    fn note_lost_carrier(&mut self) {
        if !self.has_carrier() {
            self.carrier_changed = true;
            self.want_modem_status_interrupt();
        }
    }
}

#[cfg(test)]
mod tests;
