//! Commands that take time to find something out.

use super::{Outcome, Refusal, nothing_more, number, number_or};
use crate::clock;
use crate::format::{Picoseconds, Rate, Size};
use crate::machine::Machine;
use crate::{apic, memory, println, ring0, serial, traps};

const PICOSECONDS_PER_SECOND: u128 = 1_000_000_000_000;

pub fn exits(machine: &Machine, arguments: &str) -> Outcome {
    nothing_more(arguments)?;
    crate::exits::measure(machine);
    Ok(())
}

fn rate(machine: &Machine, events: u64, ticks: u64) -> Rate {
    let picoseconds = machine.clock.picoseconds(ticks).max(1);
    Rate((u128::from(events) * PICOSECONDS_PER_SECOND / u128::from(picoseconds)) as u64)
}

/// How many times a counting loop runs to take some milliseconds, and how long it took.
fn long_enough(machine: &Machine, count: impl Fn(u64)) -> (u64, u64) {
    let enough = machine.clock.ticks(5000);
    let mut times = 1000;
    loop {
        let start = clock::now();
        count(times);
        let passed = clock::now() - start;
        if passed >= enough {
            return (times, passed);
        }
        times *= 4;
    }
}

pub fn ring0(machine: &Machine, arguments: &str) -> Outcome {
    const INSTRUCTIONS_PER_ROUND: u64 = 2;
    const CLEARLY_SLOWER: u64 = 20;
    nothing_more(arguments)?;
    let (in_ring0, ring0_ticks) = long_enough(machine, ring0::count_in_ring0);
    let (in_ring3, ring3_ticks) = long_enough(machine, ring0::count_in_ring3);
    let Rate(slow) = rate(machine, in_ring0 * INSTRUCTIONS_PER_ROUND, ring0_ticks);
    let Rate(fast) = rate(machine, in_ring3 * INSTRUCTIONS_PER_ROUND, ring3_ticks);
    println!("  ring 0      {} instructions/s", Rate(slow));
    println!("  ring 3      {} instructions/s", Rate(fast));
    match fast / slow.max(1) {
        ratio @ CLEARLY_SLOWER.. => println!("  this host interprets ring 0: {ratio} times slower"),
        _ => println!("  this host runs both natively"),
    }
    Ok(())
}

pub fn timer(machine: &Machine, arguments: &str) -> Outcome {
    const MILLISECONDS: u64 = 250;
    nothing_more(arguments)?;
    let before = apic::ticks();
    machine.clock.wait(MILLISECONDS * 1000);
    let interrupts = apic::ticks() - before;
    println!("  {interrupts} timer interrupts in {MILLISECONDS} ms, {} since the start", apic::ticks());
    println!(
        "  interrupts of the serial port: {}, of nobody: {}",
        serial::serial_interrupts.load(core::sync::atomic::Ordering::Relaxed),
        traps::other_interrupts.load(core::sync::atomic::Ordering::Relaxed)
    );
    Ok(())
}

pub fn touch(machine: &Machine, mut arguments: &str) -> Outcome {
    const PAGES_PER_MIB: u64 = 256;
    const PAGE: u64 = 4096;
    let mebibytes = number_or(&mut arguments, u64::MAX / PAGES_PER_MIB)?;
    nothing_more(arguments)?;
    let pages = mebibytes.checked_mul(PAGES_PER_MIB).ok_or(Refusal::Usage)?;
    let start = clock::now();
    let touched = memory::touch(machine, pages);
    let time = Picoseconds(machine.clock.picoseconds(clock::now() - start));
    println!("  {} in {} pages written and read back in {time}", Size(touched.pages * PAGE), touched.pages);
    match touched.wrong {
        0 => println!("  every page kept what was written"),
        wrong => println!("  {wrong} pages lost what was written"),
    }
    Ok(())
}

/// Lines of 64 bytes, each with its number, so that a reader can tell what is missing. A cut-off line is ended.
pub fn burst(_: &Machine, mut arguments: &str) -> Outcome {
    const LINE: usize = 64;
    let bytes = number(&mut arguments)?;
    nothing_more(arguments)?;
    let mut left = bytes;
    let mut line = *b"00000000 the quick brown fox jumps over the lazy dog 012345678\r\n";
    while left > 0 {
        let length = left.min(LINE as u64) as usize;
        serial::write(&line[..length]);
        left -= length as u64;
        for digit in line[..8].iter_mut().rev() {
            *digit += 1;
            if *digit <= b'9' {
                break;
            }
            *digit = b'0';
        }
    }
    if !bytes.is_multiple_of(LINE as u64) {
        println!();
    }
    serial::flush();
    Ok(())
}

/// For those who want to see whether a guest goes on where it was.
pub fn count(machine: &Machine, mut arguments: &str) -> Outcome {
    const MICROSECONDS: u64 = 1000;
    let pause = number_or(&mut arguments, 10)?.checked_mul(MICROSECONDS).ok_or(Refusal::Usage)?;
    nothing_more(arguments)?;
    for number in 1_u64.. {
        println!("count {number}");
        machine.clock.wait(pause);
    }
    Ok(())
}
