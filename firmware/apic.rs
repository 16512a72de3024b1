//! Interrupt controllers: the PICs are silenced, the local APIC gives a regular tick and measured interrupts, the
//! IOAPIC brings the serial port's.
//!
//! The handlers are in traps.s; they count and acknowledge, everything else happens in ring 3.

use core::ptr;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::clock::{self, Clock};
use crate::port;

const LOCAL: usize = 0xfee0_0000;
const ID: usize = 0x20;
const VERSION: usize = 0x30;
const TASK_PRIORITY: usize = 0x80;
const SPURIOUS: usize = 0xf0;
const COMMAND: usize = 0x300;
const COMMAND_TARGET: usize = 0x310;
const TIMER: usize = 0x320;
const LINE_0: usize = 0x350;
const TIMER_INITIAL: usize = 0x380;
const TIMER_CURRENT: usize = 0x390;
const TIMER_DIVIDER: usize = 0x3e0;

const IO: usize = 0xfec0_0000;
const IO_SELECT: usize = 0x00;
const IO_WINDOW: usize = 0x10;
const IO_VERSION: u32 = 1;
const IO_REDIRECTIONS: u32 = 0x10;

const PIC_MASKS: [u16; 2] = [0x21, 0xa1];

/// The vectors that entry.s has gates for.
const TIMER_VECTOR: u32 = 0x20;
const SERIAL_VECTOR: u32 = 0x24;
const DEVICE_VECTOR: u32 = 0x25;
const SPURIOUS_VECTOR: u32 = 0x2f;

const SERIAL_LINE: u32 = 4;
const ENABLED: u32 = 1 << 8;
const MASKED: u32 = 1 << 16;
const PERIODIC: u32 = 1 << 17;
const DIVIDE_BY_ONE: u32 = 0x0b;

/// How often the timer ticks by itself.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// While something is waited for that another thread of the host does: it needs the processor.
    Rapid,
    /// While something happens.
    Quick,
    /// While nothing does: a tick costs the host about 150 us where ring 0 is interpreted.
    Slow,
}

impl Pace {
    fn nanoseconds(self) -> u64 {
        match self {
            Self::Rapid => 100_000,
            Self::Quick => 20_000_000,
            Self::Slow => 250_000_000,
        }
    }
}

/// Set by the timer's handler: when it ran last, and how often.
#[unsafe(no_mangle)]
static timer_fired_at: AtomicU64 = AtomicU64::new(0);
#[unsafe(no_mangle)]
static timer_ticks: AtomicU64 = AtomicU64::new(0);
/// Counted by the handler of devices' interrupts.
#[unsafe(no_mangle)]
static device_interrupts: AtomicU64 = AtomicU64::new(0);

fn read(base: usize, register: usize) -> u32 {
    // SAFETY: the address is a register of a controller, mapped by the tables of the image.
    unsafe { ptr::read_volatile(ptr::with_exposed_provenance(base + register)) }
}

fn write(base: usize, register: usize, value: u32) {
    // SAFETY: as for `read`; interrupts that this causes have handlers.
    unsafe { ptr::write_volatile(ptr::with_exposed_provenance_mut(base + register), value) };
}

fn io_read(register: u32) -> u32 {
    write(IO, IO_SELECT, register);
    read(IO, IO_WINDOW)
}

fn io_write(register: u32, value: u32) {
    write(IO, IO_SELECT, register);
    write(IO, IO_WINDOW, value);
}

/// The interrupt controllers, set up.
pub struct Apic {
    ticks_per_second: u64,
}

impl Apic {
    /// Silences the PICs and sets everything up; nothing is delivered before interrupts are enabled.
    pub fn set_up(clock: &Clock) -> Self {
        PIC_MASKS.into_iter().for_each(|port| port::write8(port, 0xff));
        write(LOCAL, SPURIOUS, ENABLED | SPURIOUS_VECTOR);
        write(LOCAL, TASK_PRIORITY, 0);
        write(LOCAL, LINE_0, MASKED);
        write(LOCAL, TIMER_DIVIDER, DIVIDE_BY_ONE);
        write(LOCAL, TIMER, MASKED | TIMER_VECTOR);
        let ticks_per_second = match clock.bus_kilohertz {
            Some(kilohertz) => kilohertz * 1000,
            None => measure(clock),
        };
        let redirection = IO_REDIRECTIONS + 2 * SERIAL_LINE;
        io_write(redirection + 1, id() << 24);
        io_write(redirection, SERIAL_VECTOR);
        let apic = Self { ticks_per_second };
        apic.tick(Pace::Quick);
        apic
    }

    /// How fast the timer counts.
    pub fn hertz(&self) -> u64 {
        self.ticks_per_second
    }

    /// Lets the timer tick regularly.
    pub fn tick(&self, pace: Pace) {
        write(LOCAL, TIMER, PERIODIC | TIMER_VECTOR);
        write(LOCAL, TIMER_INITIAL, self.count(pace.nanoseconds()));
    }

    /// Makes the timer fire once, that long from now. [`Apic::tick`] goes back to the regular tick.
    pub fn fire_once(&self, nanoseconds: u64) {
        write(LOCAL, TIMER_INITIAL, self.count(nanoseconds));
    }

    /// Stops the regular tick, for [`Apic::fire_once`].
    pub fn stop(&self) {
        write(LOCAL, TIMER_INITIAL, 0);
        write(LOCAL, TIMER, TIMER_VECTOR);
    }

    fn count(&self, nanoseconds: u64) -> u32 {
        (u128::from(nanoseconds) * u128::from(self.ticks_per_second) / 1_000_000_000) as u32
    }
}

fn measure(clock: &Clock) -> u64 {
    const MICROSECONDS: u64 = 2000;
    write(LOCAL, TIMER_INITIAL, u32::MAX);
    let start = clock::now();
    let before = read(LOCAL, TIMER_CURRENT);
    clock.wait(MICROSECONDS);
    let after = read(LOCAL, TIMER_CURRENT);
    let picoseconds = clock.picoseconds(clock::now() - start).max(1);
    write(LOCAL, TIMER_INITIAL, 0);
    (u128::from(before.saturating_sub(after)) * 1_000_000_000_000 / u128::from(picoseconds)) as u64
}

/// Lets a device interrupt by this input of the IOAPIC, with an edge. Its interrupts are counted.
pub fn connect(input: u32) {
    let redirection = IO_REDIRECTIONS + 2 * input;
    io_write(redirection + 1, id() << 24);
    io_write(redirection, DEVICE_VECTOR);
}

/// Ends that.
pub fn disconnect(input: u32) {
    io_write(IO_REDIRECTIONS + 2 * input, MASKED | DEVICE_VECTOR);
}

/// How often devices have interrupted that were connected.
pub fn interrupts_of_devices() -> u64 {
    device_interrupts.load(Ordering::Relaxed)
}

/// How often the timer has fired.
pub fn ticks() -> u64 {
    timer_ticks.load(Ordering::Relaxed)
}

/// When the timer's handler ran last, by ring 0's time stamp counter.
pub fn fired_at() -> u64 {
    timer_fired_at.load(Ordering::Relaxed)
}

/// This processor's number.
pub fn id() -> u32 {
    read(LOCAL, ID) >> 24
}

/// Which local APIC it is; also the cheapest register to read.
pub fn version() -> u32 {
    read(LOCAL, VERSION) & 0xff
}

/// How many lines the IOAPIC has; none if there is no IOAPIC.
pub fn io_lines() -> Option<u32> {
    match io_read(IO_VERSION) {
        0 | u32::MAX => None,
        version => Some(((version >> 16) & 0xff) + 1),
    }
}

/// Sends a command to all other processors.
pub fn tell_others(command: u32) {
    const ALL_BUT_SELF: u32 = 3 << 18;
    write(LOCAL, COMMAND_TARGET, 0);
    write(LOCAL, COMMAND, ALL_BUT_SELF | command);
}
