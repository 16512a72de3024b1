//! The prompt: reads lines from the serial port and hands them to the commands.

use crate::apic::{Apic, Pace};
use crate::line::{Effect, Line};
use crate::machine::Machine;
use crate::{apic, commands, power, print, println, ring0, serial};

const PROMPT: &str = "lodger> ";
/// How many times to look for input in vain before looking seldom.
const PATIENCE: u32 = 25;
/// The IOAPIC's input for the power button, which the tables tell of.
const POWER_BUTTON: u32 = 13;

/// Carries out the commands of one line, which semicolons separate.
pub fn run_all(machine: &Machine, commands: &str) {
    for command in commands.split(';').map(str::trim_ascii).filter(|command| !command.is_empty()) {
        commands::run(machine, command);
    }
}

/// Reads and carries out commands for ever.
pub fn serve(machine: &Machine) -> ! {
    if apic::io_lines().is_some_and(|lines| lines > POWER_BUTTON) {
        apic::connect(POWER_BUTTON);
    }
    let mut input = Input::new(&machine.apic);
    let mut line = Line::new();
    loop {
        serial::write(PROMPT.as_bytes());
        read_line(&mut input, &mut line);
        commands::run(machine, line.text());
        line.start();
    }
}

fn read_line(input: &mut Input, line: &mut Line) {
    loop {
        match line.take(input.next_byte()) {
            Effect::None => {}
            Effect::Echo(byte) => serial::write(&[byte]),
            Effect::Erase(count) => erase(count),
            Effect::Redraw(count) => {
                erase(count);
                serial::write(line.text().as_bytes());
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

/// Input that was received and not yet used.
struct Input<'a> {
    apic: &'a Apic,
    bytes: [u8; 64],
    used: usize,
    received: usize,
}

impl<'a> Input<'a> {
    fn new(apic: &'a Apic) -> Self {
        Self { apic, bytes: [0; 64], used: 0, received: 0 }
    }

    fn next_byte(&mut self) -> u8 {
        if self.used == self.received {
            serial::flush();
            self.received = self.wait();
            self.used = 0;
        }
        self.used += 1;
        self.bytes[self.used - 1]
    }

    /// Sleeps until there is input, and says how much. When none can come any more, the machine ends.
    fn wait(&mut self) -> usize {
        let mut pace = Pace::Quick;
        let mut looks = 0;
        let mut looked_at = None;
        // No other device is connected while nothing is done. Who presses it meanwhile presses it again.
        let pressed = apic::interrupts_of_devices();
        let count = loop {
            if apic::interrupts_of_devices() != pressed {
                println!("\nthe power button was pressed, switching off");
                power::off()
            }
            let tick = Some(apic::ticks());
            // A tick looks even without an interrupt: one may have been missed, and the carrier drops silently.
            if serial::wants_attention() || looked_at != tick {
                looked_at = tick;
                match serial::receive(&mut self.bytes) {
                    None => {
                        println!("\ninput ended, halting");
                        power::exit(0)
                    }
                    Some(0) => looks += 1,
                    Some(count) => break count,
                }
            }
            if looks > PATIENCE && pace == Pace::Quick {
                pace = Pace::Slow;
                self.apic.tick(pace);
            }
            ring0::idle(&serial::serial_wants);
        };
        if pace == Pace::Slow {
            self.apic.tick(Pace::Quick);
        }
        count
    }
}
