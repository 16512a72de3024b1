//! The clock and the battery-backed memory: an MC146818 with 128 bytes, as every PC has it.
//!
//! It shows the host's time in UTC. A guest that sets the clock changes an offset to the host's time; the host
//! is not touched. The memory says how much memory the machine has, in the places where a BIOS would write it.
//!
//! There are no interrupts: alarm, periodic and update-ended interrupts can be enabled, but never come, and the
//! register that would report them (C) reads as clear. Kernels use other timers; Linux wants an alarm only for
//! waking up from sleep.

mod date;

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::Error;
use crate::bus::{Action, Claim, Device, Widths};
use crate::memory::HOLE_START;
use crate::saved::Saved;
use crate::threads::lock;
use date::Date;

/// The index port and the data port.
pub const CLAIM: Claim<u16> = Claim { name: "cmos", base: 0x70, len: 2, widths: Widths::BYTE };

const DATA_PORT: u64 = 1;
const SIZE: usize = 128;
/// Bit 7 of the index port masks the NMI, which nobody gives here.
const INDEX_MASK: u8 = SIZE as u8 - 1;

// Registers (MC146818 data sheet); those from 0x0e on are the PC's.
const SECOND: u8 = 0x00;
const MINUTE: u8 = 0x02;
const HOUR: u8 = 0x04;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const STATUS_C: u8 = 0x0c;
const STATUS_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;
const TIME: [u8; 8] = [SECOND, MINUTE, HOUR, WEEKDAY, DAY, MONTH, YEAR, CENTURY];

const A_UPDATE_IN_PROGRESS: u8 = 0x80;
/// A 32.768 kHz crystal, periodic rate 1024 Hz: what a BIOS sets.
const A_INITIAL: u8 = 0x26;
const B_SET: u8 = 0x80;
const B_BINARY: u8 = 0x04;
const B_24_HOURS: u8 = 0x02;
const D_VALID: u8 = 0x80;
const HOUR_PM: u8 = 0x80;

/// How long before the end of each second the chip announces that its registers are about to change.
const ANNOUNCEMENT: Duration = Duration::from_micros(244);
/// The end of the year 9999: more than four digits cannot be shown.
const LAST_SECOND: u64 = 253_402_300_799;
/// More than a clock can be set away from the host's.
const MAX_OFFSET: u64 = 400_000_000_000;

/// What tells the real time.
pub trait Clock: Send + Sync {
    /// The time since the beginning of 1970, UTC.
    fn since_epoch(&self) -> Duration;
}

/// The host's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostClock;

impl Clock for HostClock {
    fn since_epoch(&self) -> Duration {
        // A host whose clock was never set shows a time before 1970 at worst.
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }
}

/// The clock and its memory.
pub struct Cmos {
    state: Mutex<State>,
    clock: Arc<dyn Clock>,
}

struct State {
    index: u8,
    /// The registers. Those that show the time hold it only while the guest sets the clock.
    bytes: [u8; SIZE],
    /// Seconds that the guest's clock is ahead of the host's.
    offset: i64,
    /// The second in which the guest last asked for an update in progress.
    asked_in: Option<u64>,
}

impl Cmos {
    /// The clock of a machine with `memory_size` bytes of memory, showing what `clock` says.
    pub fn new(memory_size: u64, clock: Arc<dyn Clock>) -> Self {
        let mut bytes = [0; SIZE];
        bytes[usize::from(STATUS_A)] = A_INITIAL;
        bytes[usize::from(STATUS_B)] = B_24_HOURS;
        describe_memory(&mut bytes, memory_size);
        Self { state: Mutex::new(State { index: 0, bytes, offset: 0, asked_in: None }), clock }
    }

    /// What a snapshot keeps of it.
    pub fn save(&self) -> SavedCmos {
        // Nobody polls across a snapshot's gap in time.
        let State { index, bytes, offset, asked_in: _ } = &*lock(&self.state);
        SavedCmos { index: *index, bytes: bytes.to_vec(), offset: *offset }
    }

    /// Puts back what [`Cmos::save`] read. The clock shows the time of now, not that of the snapshot.
    pub fn restore(&self, saved: &SavedCmos) -> Result<(), Error> {
        let inconsistent = |reason| Error::Inconsistent { device: CLAIM.name, reason };
        let SavedCmos { index, bytes, offset } = saved;
        let bytes = bytes.as_slice().try_into().map_err(|_| inconsistent("it has not 128 bytes"))?;
        if index & !INDEX_MASK != 0 {
            return Err(inconsistent("its index is beyond its 128 bytes"));
        }
        if offset.unsigned_abs() > MAX_OFFSET {
            return Err(inconsistent("its clock is set to a time it cannot show"));
        }
        *lock(&self.state) = State { index: *index, bytes, offset: *offset, asked_in: None };
        Ok(())
    }
}

impl Device for Cmos {
    fn read(&self, offset: u64, _width: u8) -> u64 {
        // The index port cannot be read back.
        if offset != DATA_PORT {
            return 0xff;
        }
        let now = self.clock.since_epoch();
        lock(&self.state).read(now).into()
    }

    fn write(&self, offset: u64, _width: u8, value: u64) -> Action {
        let value = value as u8;
        if offset == DATA_PORT {
            let now = self.clock.since_epoch();
            lock(&self.state).write(value, now);
        } else {
            lock(&self.state).index = value & INDEX_MASK;
        }
        Action::None
    }
}

fn host_seconds(now: Duration) -> i64 {
    now.as_secs().min(LAST_SECOND) as i64
}

impl State {
    fn has(&self, bit_of_b: u8) -> bool {
        self.bytes[usize::from(STATUS_B)] & bit_of_b != 0
    }

    fn read(&mut self, now: Duration) -> u8 {
        match self.index {
            STATUS_A => {
                let update = if self.is_updating(now) { A_UPDATE_IN_PROGRESS } else { 0 };
                self.bytes[usize::from(STATUS_A)] | update
            }
            STATUS_C => 0,
            STATUS_D => D_VALID,
            register if TIME.contains(&register) && !self.has(B_SET) => self.show(register, self.date(now)),
            register => self.bytes[usize::from(register)],
        }
    }

    fn write(&mut self, value: u8, now: Duration) {
        let register = self.index;
        let place = usize::from(register);
        match register {
            STATUS_A => self.bytes[place] = value & !A_UPDATE_IN_PROGRESS,
            STATUS_B => self.set_status_b(value, now),
            STATUS_C | STATUS_D => {}
            _ if TIME.contains(&register) && !self.has(B_SET) => {
                self.stop(now);
                self.bytes[place] = value;
                self.start(now);
            }
            _ => self.bytes[place] = value,
        }
    }

    /// Whether the time registers are about to change.
    ///
    /// The data sheet gives 244 µs of warning. A guest that polls for the beginning of a second may be slower
    /// than that, and would wait for ever; so if a second began between two of its questions, the answer is
    /// once that an update is in progress.
    fn is_updating(&mut self, now: Duration) -> bool {
        if self.has(B_SET) {
            return false;
        }
        let asked_in = self.asked_in.replace(now.as_secs());
        let missed = asked_in.is_some_and(|second| second.checked_add(1) == Some(now.as_secs()));
        missed || Duration::from_secs(1) - Duration::from_nanos(now.subsec_nanos().into()) <= ANNOUNCEMENT
    }

    fn set_status_b(&mut self, value: u8, now: Duration) {
        let (was_set, is_set) = (self.has(B_SET), value & B_SET != 0);
        if is_set && !was_set {
            self.stop(now);
        }
        self.bytes[usize::from(STATUS_B)] = value;
        if was_set && !is_set {
            // In the format that is chosen now: changing it means that the time is written anew.
            self.start(now);
        }
    }

    /// The time that the clock shows.
    fn date(&self, now: Duration) -> Date {
        Date::from_seconds(host_seconds(now).saturating_add(self.offset))
    }

    /// Writes the time into the registers.
    fn stop(&mut self, now: Duration) {
        let date = self.date(now);
        for register in TIME {
            self.bytes[usize::from(register)] = self.show(register, date);
        }
    }

    /// Goes on from the time that is in the registers. The day of the week follows from the date.
    fn start(&mut self, now: Duration) {
        let value = |register| self.decode(self.bytes[usize::from(register)]);
        let date = Date {
            year: i64::from(value(CENTURY).min(99)) * 100 + i64::from(value(YEAR).min(99)),
            month: value(MONTH),
            day: value(DAY),
            hour: self.decode_hour(self.bytes[usize::from(HOUR)]),
            minute: value(MINUTE),
            second: value(SECOND),
        };
        self.offset = date.to_seconds() - host_seconds(now);
    }

    /// What a time register shows at `date`.
    fn show(&self, register: u8, date: Date) -> u8 {
        match register {
            SECOND => self.encode(date.second),
            MINUTE => self.encode(date.minute),
            HOUR => self.encode_hour(date.hour),
            WEEKDAY => self.encode(date.weekday()),
            DAY => self.encode(date.day),
            MONTH => self.encode(date.month),
            YEAR => self.encode(date.year.rem_euclid(100) as u8),
            _ => self.encode(date.year.div_euclid(100).rem_euclid(100) as u8),
        }
    }

    fn encode(&self, number: u8) -> u8 {
        if self.has(B_BINARY) { number } else { ((number / 10) << 4) | (number % 10) }
    }

    fn decode(&self, shown: u8) -> u8 {
        // At most 15 × 10 + 15.
        if self.has(B_BINARY) { shown } else { (shown >> 4) * 10 + (shown & 0x0f) }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.has(B_24_HOURS) {
            return self.encode(hour);
        }
        let afternoon = if hour >= 12 { HOUR_PM } else { 0 };
        // Midnight and noon are called 12.
        self.encode((hour + 11) % 12 + 1) | afternoon
    }

    fn decode_hour(&self, shown: u8) -> u8 {
        if self.has(B_24_HOURS) {
            return self.decode(shown);
        }
        let afternoon = if shown & HOUR_PM != 0 { 12 } else { 0 };
        self.decode(shown & !HOUR_PM).clamp(1, 12) % 12 + afternoon
    }
}

/// Writes the size of the machine's memory where boot loaders and old kernels look for it.
fn describe_memory(bytes: &mut [u8; SIZE], size: u64) {
    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;
    const UNIT: u64 = 64 * KIB;
    let mut put = |registers: &[usize], value: u64| {
        let value = value.min((1 << (8 * registers.len())) - 1);
        for (register, byte) in registers.iter().zip(value.to_le_bytes()) {
            bytes[*register] = byte;
        }
    };
    let low = size.min(HOLE_START);
    put(&[0x15, 0x16], (size / KIB).min(640));
    for registers in [[0x17, 0x18], [0x30, 0x31]] {
        put(&registers, low.saturating_sub(MIB) / KIB);
    }
    put(&[0x34, 0x35], low.saturating_sub(16 * MIB) / UNIT);
    put(&[0x5b, 0x5c, 0x5d], (size - low) / UNIT);
}

/// The clock and its memory as a snapshot keeps them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedCmos {
    index: u8,
    bytes: Vec<u8>,
    offset: i64,
}

impl Saved for SavedCmos {
    const NAME: &'static str = "cmos";
    const VERSION: u16 = 1;
}

#[cfg(test)]
mod tests;
