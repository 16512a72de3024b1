//! Commands that show what is there.

use super::{Outcome, nothing_more};
use crate::format::Text;
use crate::machine::Machine;
use crate::{println, processors, report};

pub fn memory(machine: &Machine, arguments: &str) -> Outcome {
    nothing_more(arguments)?;
    report::memory(&machine.boot);
    Ok(())
}

pub fn processor(machine: &Machine, arguments: &str) -> Outcome {
    nothing_more(arguments)?;
    report::processor();
    let running = processors::start_all(&machine.clock);
    println!("  started     {} by INIT and SIPI, with this one: local APICs {running}", running.count());
    Ok(())
}

pub fn devices(machine: &Machine, arguments: &str) -> Outcome {
    nothing_more(arguments)?;
    report::devices(machine);
    Ok(())
}

pub fn time(_: &Machine, arguments: &str) -> Outcome {
    nothing_more(arguments)?;
    report::time();
    Ok(())
}

pub fn command_line(machine: &Machine, arguments: &str) -> Outcome {
    nothing_more(arguments)?;
    println!("{}", Text(machine.boot.command_line().as_bytes()));
    Ok(())
}

pub fn echo(_: &Machine, text: &str) -> Outcome {
    println!("{text}");
    Ok(())
}
