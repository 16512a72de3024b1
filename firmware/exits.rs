//! What it costs to leave the guest: round trips of every kind, measured from ring 3.

use core::cell::RefCell;
use core::hint::black_box;
use core::ptr;
use core::sync::atomic::AtomicBool;

use crate::clock;
use crate::format::Picoseconds;
use crate::machine::Machine;
use crate::samples::{Figures, Samples};
use crate::{apic, port, println, ring0};

/// Nobody minds what is written here.
const POST_PORT: u16 = 0x80;
/// No device of this machine answers here.
const UNOWNED_PORT: u16 = 0x5f0;
/// Nor here.
const UNOWNED_ADDRESS: usize = 0xd000_0000;
/// How often cheap and dear things are repeated.
const OFTEN: u32 = 1000;
const SELDOM: u32 = 100;
/// A series that takes longer is cut short, so that all together stay below half a second.
const MOST_MICROSECONDS: u64 = 40_000;
const RUN: usize = 64;
const AT_ONCE: u64 = 8;
const TIMER_NANOSECONDS: u64 = 200_000;

struct Series(RefCell<Samples>);

// SAFETY: there is one thread, and no interrupt handler measures.
unsafe impl Sync for Series {}

static SERIES: Series = Series(RefCell::new(Samples::new()));

/// Measures everything and prints a table.
pub fn measure(machine: &Machine) {
    println!("  round trips, up to {OFTEN} each{:>23}{:>15}", "least", "median");
    let repeat = |times, operation: &dyn Fn()| repeat(machine, times, operation);
    let nothing = repeat(OFTEN, &|| {});
    let cost = nothing.least;
    let row = |name: &str, figures: Figures| show(machine, name, figures.without(cost));

    row("port write (0x80)", repeat(OFTEN, &|| port::write8(POST_PORT, 0)));
    row("port read (nobody's)", repeat(OFTEN, &|| _ = black_box(port::read8(UNOWNED_PORT))));
    row("port string write, a byte", per(RUN as u64, repeat(20, &|| port::write_run(POST_PORT, &[0; RUN]))));
    row("memory-mapped read (nobody's)", repeat(OFTEN, &|| _ = black_box(read_unowned())));
    row("memory-mapped write (nobody's)", repeat(OFTEN, &write_unowned));
    row("local APIC read", repeat(OFTEN, &|| _ = black_box(apic::version())));
    let gate = repeat(OFTEN, &ring0::nothing);
    let ports = repeat(SELDOM, &|| ring0::port_loop(AT_ONCE));
    row("port write (0x80) from ring 0", per(AT_ONCE, ports.without(gate.median)));
    row("fault to ring 0 and back", gate);
    let cpuids = repeat(SELDOM, &|| ring0::cpuid_loop(AT_ONCE));
    row("cpuid in ring 0", per(AT_ONCE, cpuids.without(gate.median)));

    println!("  {SELDOM} timer interrupts each");
    show(machine, "deadline to handler, busy", interrupts(machine, Waiting::Busy, Until::Handler));
    show(machine, "deadline to ring 3, busy", interrupts(machine, Waiting::Busy, Until::Ring3));
    show(machine, "deadline to ring 3, asleep", interrupts(machine, Waiting::Asleep, Until::Ring3));
}

fn show(machine: &Machine, name: &str, figures: Figures) {
    let time = |ticks| Picoseconds(machine.clock.picoseconds(ticks));
    println!("    {name:<32}{:>15}{:>15}", time(figures.least), time(figures.median));
}

fn repeat(machine: &Machine, times: u32, operation: &dyn Fn()) -> Figures {
    let series = &mut *SERIES.0.borrow_mut();
    series.clear();
    let latest = clock::now() + machine.clock.ticks(MOST_MICROSECONDS);
    for _ in 0..times {
        let start = clock::now();
        operation();
        let end = clock::now();
        series.add(end - start);
        if end > latest {
            break;
        }
    }
    series.figures().unwrap_or(Figures { least: 0, median: 0 })
}

fn per(count: u64, figures: Figures) -> Figures {
    Figures { least: figures.least / count, median: figures.median / count }
}

fn read_unowned() -> u32 {
    // SAFETY: mapped by the tables of the image, and nothing is there.
    unsafe { ptr::read_volatile(ptr::with_exposed_provenance(UNOWNED_ADDRESS)) }
}

fn write_unowned() {
    // SAFETY: as for reading.
    unsafe { ptr::write_volatile(ptr::with_exposed_provenance_mut(UNOWNED_ADDRESS), 0_u32) };
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Waiting {
    Busy,
    Asleep,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    Handler,
    Ring3,
}

/// From the moment at which the timer should fire to the moment at which something knows.
///
/// The deadline counts from before the timer was started, so that the figures err upwards, by one access to the
/// local APIC.
fn interrupts(machine: &Machine, waiting: Waiting, until: Until) -> Figures {
    static NEVER: AtomicBool = AtomicBool::new(false);
    let series = &mut *SERIES.0.borrow_mut();
    series.clear();
    machine.apic.stop();
    let delay = machine.clock.ticks(TIMER_NANOSECONDS / 1000);
    let patience = machine.clock.ticks(100_000);
    for _ in 0..SELDOM {
        let before = apic::ticks();
        let start = clock::now();
        machine.apic.fire_once(TIMER_NANOSECONDS);
        while apic::ticks() == before && clock::now() - start < patience {
            if waiting == Waiting::Asleep {
                ring0::idle(&NEVER);
            }
        }
        let end = if until == Until::Ring3 { clock::now() } else { apic::fired_at() };
        series.add(end.saturating_sub(start + delay));
    }
    machine.apic.tick(apic::Pace::Quick);
    series.figures().unwrap_or(Figures { least: 0, median: 0 })
}
