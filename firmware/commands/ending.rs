//! Commands that end the machine, well or badly.

use super::{Outcome, Refusal, last_status, narrow, nothing_more};
use crate::machine::Machine;
use crate::{power, println, ring0, traps};

pub fn crash(_: &Machine, how: &str) -> Outcome {
    match how {
        "" | "triple" => ring0::triple_fault(),
        "ud" => rare_instructions(),
        "fault" => traps::fault_unguarded(),
        "halt" => ring0::halt(),
        "loop" => {
            ring0::disable_interrupts();
            loop {
                core::hint::spin_loop();
            }
        }
        _ => return Err(Refusal::Usage),
    }
    Ok(())
}

/// Instructions that interpreters of ring 0 tend to lack; harmless where they are carried out.
fn rare_instructions() {
    println!("  popcnt in ring 0 ...");
    println!("  says {} for 0xff", ring0::rare_instruction(0xff));
    println!("  int3 in ring 0 ...");
    ring0::breakpoint();
}

pub fn exit(_: &Machine, mut arguments: &str) -> Outcome {
    let status = if arguments.is_empty() { last_status() } else { narrow(&mut arguments)? };
    nothing_more(arguments)?;
    power::exit(status)
}

pub fn halt(_: &Machine, arguments: &str) -> Outcome {
    nothing_more(arguments)?;
    power::exit(0)
}

pub fn reboot(_: &Machine, arguments: &str) -> Outcome {
    nothing_more(arguments)?;
    power::reset()
}
