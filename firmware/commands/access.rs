//! Commands that reach directly for memory, ports and registers.

use super::{Outcome, Refusal, narrow, nothing_more, number, number_or};
use crate::format::Text;
use crate::machine::Machine;
use crate::traps::{Fault, guarded};
use crate::{memory, paging, port, print, println, ring0};

const PER_LINE: u64 = 16;
const MOST_AT_ONCE: u64 = 4096;
const POST_PORT: u16 = 0x80;

/// Makes an address accessible, or says why that cannot be.
fn reach(address: u64, size: u64) -> Outcome {
    paging::reach(address, size).map_err(|unreachable| {
        println!("{address:#x} {}", unreachable.reason());
        Refusal::Told
    })
}

/// Says that an access faulted.
fn told(what: &str, address: u64, fault: &Fault) -> Refusal {
    println!("cannot {what} {address:#x}: {fault}");
    Refusal::Told
}

pub fn peek(_: &Machine, mut arguments: &str) -> Outcome {
    let address = number(&mut arguments)?;
    let count = number_or(&mut arguments, PER_LINE)?;
    nothing_more(arguments)?;
    if count == 0 || count > MOST_AT_ONCE {
        println!("peek shows 1 to {MOST_AT_ONCE} bytes at once");
        return Err(Refusal::Told);
    }
    reach(address, count)?;
    for line in (address..address + count).step_by(PER_LINE as usize) {
        let mut bytes = [0; PER_LINE as usize];
        let bytes = &mut bytes[..(address + count - line).min(PER_LINE) as usize];
        for (byte, at) in bytes.iter_mut().zip(line..) {
            *byte = guarded(|| memory::read8(at)).map_err(|fault| told("read", at, &fault))?;
        }
        show_line(line, bytes);
    }
    Ok(())
}

fn show_line(address: u64, bytes: &[u8]) {
    print!("  {address:012x} ");
    for byte in bytes {
        print!(" {byte:02x}");
    }
    println!("{:1$}  {2}", "", 3 * (PER_LINE as usize - bytes.len()), Text(bytes));
}

pub fn poke(_: &Machine, mut arguments: &str) -> Outcome {
    let address = number(&mut arguments)?;
    let value = number(&mut arguments)?;
    let width = number_or(&mut arguments, 4)?;
    nothing_more(arguments)?;
    if !matches!(width, 1 | 2 | 4 | 8) || (width < 8 && value >> (8 * width) != 0) {
        return Err(Refusal::Usage);
    }
    reach(address, width)?;
    guarded(|| memory::write(address, value, width)).map_err(|fault| told("write", address, &fault))
}

pub fn port_in(_: &Machine, mut arguments: &str) -> Outcome {
    let at = narrow::<u16>(&mut arguments)?;
    let width = number_or(&mut arguments, 1)?;
    nothing_more(arguments)?;
    match width {
        1 => println!("  {:#04x}", port::read8(at)),
        2 => println!("  {:#06x}", port::read16(at)),
        4 => println!("  {:#010x}", port::read32(at)),
        _ => return Err(Refusal::Usage),
    }
    Ok(())
}

pub fn port_out(_: &Machine, mut arguments: &str) -> Outcome {
    let at = narrow::<u16>(&mut arguments)?;
    let value = narrow::<u32>(&mut arguments)?;
    let width = number_or(&mut arguments, 1)?;
    nothing_more(arguments)?;
    match width {
        1 => port::write8(at, value.try_into().map_err(|_| Refusal::Usage)?),
        2 => port::write16(at, value.try_into().map_err(|_| Refusal::Usage)?),
        4 => port::write32(at, value),
        _ => return Err(Refusal::Usage),
    }
    Ok(())
}

pub fn msr(_: &Machine, mut arguments: &str) -> Outcome {
    let register = narrow::<u32>(&mut arguments)?;
    nothing_more(arguments)?;
    match guarded(|| ring0::read_msr(register)) {
        Ok(value) => println!("  {value:#018x}"),
        Err(_) => println!("there is no model-specific register {register:#x}"),
    }
    Ok(())
}

pub fn cpuid(_: &Machine, mut arguments: &str) -> Outcome {
    let leaf = narrow::<u32>(&mut arguments)?;
    let subleaf = if arguments.is_empty() { 0 } else { narrow::<u32>(&mut arguments)? };
    nothing_more(arguments)?;
    let [eax, ebx, ecx, edx] = ring0::cpuid(leaf, subleaf);
    println!("  eax {eax:08x}  ebx {ebx:08x}  ecx {ecx:08x}  edx {edx:08x}");
    Ok(())
}

pub fn post(_: &Machine, mut arguments: &str) -> Outcome {
    let code = narrow::<u8>(&mut arguments)?;
    nothing_more(arguments)?;
    port::write8(POST_PORT, code);
    Ok(())
}
