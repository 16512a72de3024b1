//! The prompt: reads lines from the serial port and hands them to the commands.

use crate::line::{Effect, Line};
use crate::machine::Machine;
use crate::{apic, commands, power, print, println, ring0, serial};

const PROMPT: &str = "lodger> ";

/// Carries out the commands of one line, which semicolons separate.
pub fn run_all(machine: &Machine, commands: &str) {
    for command in commands.split(';').map(str::trim_ascii).filter(|command| !command.is_empty()) {
        commands::run(machine, command);
    }
}

/// Reads and carries out commands for ever.
pub fn serve(machine: &Machine) -> ! {
    let mut line = Line::new();
    loop {
        print!("{PROMPT}");
        read_line(&mut line);
        commands::run(machine, line.text());
        line.start();
    }
}

fn read_line(line: &mut Line) {
    loop {
        let byte = next_byte();
        match line.take(byte) {
            Effect::None => {}
            Effect::Echo(byte) => serial::write(&[byte]),
            Effect::Erase(count) => erase(count),
            Effect::Redraw(count) => {
                erase(count);
                print!("{}", line.text());
            }
            Effect::Abandoned => print!("^C\n{PROMPT}"),
            Effect::Complete => {
                println!();
                return;
            }
        }
    }
}

fn erase(count: usize) {
    for _ in 0..count {
        serial::write(b"\x08 \x08");
    }
}

/// The next byte of input; sleeps until there is one. When nothing can come any more, the machine ends.
fn next_byte() -> u8 {
    let mut looked_at_tick = None;
    loop {
        let tick = Some(apic::ticks());
        // A tick looks even without an interrupt: one may have been missed, and the carrier drops silently.
        if serial::wants_attention() || looked_at_tick != tick {
            looked_at_tick = tick;
            // The carrier first: once it is gone, everything has been delivered.
            let ended = !serial::has_carrier();
            match serial::received() {
                Some(byte) => return byte,
                None if ended => {
                    println!("\ninput ended, halting");
                    power::exit(0)
                }
                None => {}
            }
        }
        ring0::idle(&serial::serial_wants);
    }
}
