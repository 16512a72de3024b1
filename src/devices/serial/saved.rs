//! What a snapshot keeps of the serial port.

use std::cell::Cell;

use serde::{Deserialize, Serialize};
use vm_superio::SerialState;
use vm_superio::serial::NoEvents;

use super::{
    CLAIM, ENABLE_ALL, INPUT_CAPACITY, LINE_STATUS_DATA, LOOPED_CAPACITY, POLLS, Sent, State, Uart, Wanted,
};
use crate::devices::Error;
use crate::saved::Saved;

/// The serial port as a snapshot keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedSerial {
    pub(super) divisor: [u8; 2],
    pub(super) interrupt_enable: u8,
    pub(super) interrupt_identification: u8,
    pub(super) line_control: u8,
    pub(super) line_status: u8,
    pub(super) modem_control: u8,
    pub(super) modem_status: u8,
    pub(super) scratch: u8,
    pub(super) looped: Vec<u8>,
    pub(super) input: Vec<u8>,
    pub(super) polls: u8,
    pub(super) transmitter_waits: bool,
    pub(super) ended: bool,
    pub(super) carrier_changed: bool,
}

impl Saved for SavedSerial {
    const NAME: &'static str = "serial";
    const VERSION: u16 = 1;
}

impl State {
    pub(super) fn save(&self) -> SavedSerial {
        // `enabled` is a copy of what vm-superio has.
        let Self { uart, enabled: _, input, polls, transmitter_waits, ended, carrier_changed } = self;
        let SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer,
        } = uart.state();
        SavedSerial {
            divisor: [baud_divisor_low, baud_divisor_high],
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            looped: in_buffer,
            input: input.iter().copied().collect(),
            polls: *polls,
            transmitter_waits: *transmitter_waits,
            ended: *ended,
            carrier_changed: *carrier_changed,
        }
    }

    pub(super) fn restore(saved: &SavedSerial) -> Result<Self, Error> {
        let inconsistent = |reason| Error::Inconsistent { device: CLAIM.name, reason };
        if saved.input.len() > INPUT_CAPACITY {
            return Err(inconsistent("more input is waiting than there is room for"));
        }
        if saved.looped.len() > LOOPED_CAPACITY {
            return Err(inconsistent("its receive FIFO holds more than 64 bytes"));
        }
        if (saved.line_status & LINE_STATUS_DATA != 0) == saved.looped.is_empty() {
            return Err(inconsistent("its line status contradicts its receive FIFO"));
        }
        if saved.polls > POLLS || saved.interrupt_enable & !ENABLE_ALL != 0 {
            return Err(inconsistent("a register has bits that do not exist"));
        }
        let uart = SerialState {
            baud_divisor_low: saved.divisor[0],
            baud_divisor_high: saved.divisor[1],
            interrupt_enable: saved.interrupt_enable,
            interrupt_identification: saved.interrupt_identification,
            line_control: saved.line_control,
            line_status: saved.line_status,
            modem_control: saved.modem_control,
            modem_status: saved.modem_status,
            scratch: saved.scratch,
            in_buffer: saved.looped.clone(),
        };
        let mut state = Self {
            uart: Uart::from_state(&uart, Wanted(Cell::new(false)), NoEvents, Sent(false))
                .map_err(|_| inconsistent("its registers cannot be restored"))?,
            enabled: saved.interrupt_enable,
            input: saved.input.iter().copied().collect(),
            polls: saved.polls,
            transmitter_waits: saved.transmitter_waits,
            ended: saved.ended,
            carrier_changed: saved.carrier_changed,
        };
        if state.transmitter_waits {
            state.want_interrupt();
        }
        state.want_received_interrupt();
        state.want_modem_status_interrupt();
        Ok(state)
    }
}
