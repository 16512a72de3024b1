//! Time: the time stamp counter, the PIT it may have to be measured with, and the CMOS clock.

use core::arch::x86_64::_rdtsc;

use crate::{port, ring0};

const HYPERVISOR_LEAF: u32 = 0x4000_0000;
const FREQUENCY_LEAF: u32 = 0x4000_0010;

const PIT_CHANNEL_2: u16 = 0x42;
const PIT_COMMAND: u16 = 0x43;
const PIT_HERTZ: u64 = 1_193_182;
const SPEAKER: u16 = 0x61;
const CMOS_INDEX: u16 = 0x70;
const CMOS_DATA: u16 = 0x71;

/// How the frequency of the time stamp counter was found.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The hypervisor says it.
    Hypervisor,
    /// Measured against the PIT.
    Pit,
    /// Neither was possible; the figure is a guess.
    Guess,
}

/// The clock that everything is measured with.
#[derive(Clone, Copy)]
pub struct Clock {
    pub kilohertz: u64,
    pub source: Source,
    /// The frequency of the local APIC's timer, where the hypervisor says it.
    pub bus_kilohertz: Option<u64>,
}

/// The time stamp counter.
pub fn now() -> u64 {
    // SAFETY: always there in long mode, and CR4.TSD is clear.
    unsafe { _rdtsc() }
}

impl Clock {
    /// Asks the hypervisor, or measures.
    pub fn find() -> Self {
        let has_leaf =
            (FREQUENCY_LEAF..FREQUENCY_LEAF + 0x100).contains(&ring0::cpuid(HYPERVISOR_LEAF, 0)[0]);
        let [tsc, bus, ..] = if has_leaf { ring0::cpuid(FREQUENCY_LEAF, 0) } else { [0; 4] };
        let bus_kilohertz = Some(u64::from(bus)).filter(|&bus| bus != 0);
        let (kilohertz, source) = match tsc {
            0 => measure_with_pit().map_or((1_000_000, Source::Guess), |measured| (measured, Source::Pit)),
            told => (told.into(), Source::Hypervisor),
        };
        Self { kilohertz, source, bus_kilohertz }
    }

    /// Clock ticks as picoseconds.
    pub fn picoseconds(&self, ticks: u64) -> u64 {
        (u128::from(ticks) * 1_000_000_000 / u128::from(self.kilohertz)) as u64
    }

    /// So many microseconds as clock ticks.
    pub fn ticks(&self, microseconds: u64) -> u64 {
        self.kilohertz * microseconds / 1000
    }

    /// Lets so many microseconds pass.
    pub fn wait(&self, microseconds: u64) {
        let until = now() + self.ticks(microseconds);
        while now() < until {
            core::hint::spin_loop();
        }
    }
}

/// Lets channel 2 count down 5 ms and counts TSC ticks meanwhile. Nothing where there is no PIT.
fn measure_with_pit() -> Option<u64> {
    const COUNT: u64 = PIT_HERTZ / 200;
    const TOO_LONG: u64 = 1 << 30;
    port::write8(SPEAKER, port::read8(SPEAKER) & !0x02 | 0x01); // gate on, speaker off
    port::write8(PIT_COMMAND, 0xb0); // channel 2, both bytes, mode 0
    port::write8(PIT_CHANNEL_2, COUNT as u8);
    port::write8(PIT_CHANNEL_2, (COUNT >> 8) as u8);
    let start = now();
    let mut waiting = false;
    loop {
        let ended = port::read8(SPEAKER) & 0x20 != 0;
        let passed = now() - start;
        match (ended, waiting) {
            (true, true) => return Some(passed * PIT_HERTZ / COUNT / 1000),
            (true, false) => return None, // ended before it began: nothing counts there
            (false, _) if passed > TOO_LONG => return None,
            (false, _) => waiting = true,
        }
    }
}

/// Whether the PIT counts. Its third channel answers for all: unlike the first it raises no interrupts.
pub fn pit_counts() -> bool {
    /// More than it takes to see one count of 838 ns pass, however fast a port is read.
    const LOOKS: u32 = 100;
    port::write8(SPEAKER, port::read8(SPEAKER) & !0x02 | 0x01);
    port::write8(PIT_COMMAND, 0xb0);
    port::write8(PIT_CHANNEL_2, 0xff);
    port::write8(PIT_CHANNEL_2, 0xff);
    let count = || {
        port::write8(PIT_COMMAND, 0x80); // latch channel 2
        u16::from_le_bytes([port::read8(PIT_CHANNEL_2), port::read8(PIT_CHANNEL_2)])
    };
    let first = count();
    (0..LOOKS).any(|_| count() != first)
}

/// A date and time of day.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct DateTime {
    pub year: u16,
    pub month: u8,
    pub day: u8,
    pub hour: u8,
    pub minute: u8,
    pub second: u8,
}

fn cmos(register: u8) -> u8 {
    port::write8(CMOS_INDEX, register);
    port::read8(CMOS_DATA)
}

/// What the CMOS clock shows, if there is one: read twice alike, so that no change falls in between.
pub fn cmos_time() -> Option<DateTime> {
    let mut before = read_cmos();
    for _ in 0..8 {
        let after = read_cmos();
        if before == after {
            let valid = (1..=12).contains(&after.month) && (1..=31).contains(&after.day) && after.hour < 24;
            return valid.then_some(after);
        }
        before = after;
    }
    None
}

fn read_cmos() -> DateTime {
    const CENTURY: u8 = 0x32;
    const PM: u8 = 0x80;
    let format = cmos(0x0b);
    let number = |value: u8| if format & 0x04 != 0 { value } else { (value >> 4) * 10 + (value & 15) };
    let [second, minute, hour, day, month, year] = [0, 2, 4, 7, 8, 9].map(cmos);
    let century = match number(cmos(CENTURY)) {
        century @ 19..=29 => u16::from(century),
        _ => 20,
    };
    let hour = match number(hour & !PM) {
        full if format & 0x02 != 0 => full,
        twelve => twelve % 12 + if hour & PM != 0 { 12 } else { 0 },
    };
    DateTime {
        year: century * 100 + u16::from(number(year)),
        month: number(month),
        day: number(day),
        hour,
        minute: number(minute),
        second: number(second),
    }
}
