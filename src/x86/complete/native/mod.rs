//! Instructions of computation, executed by the host's own processor on the guest's registers.
//!
//! [`allow`] decides by an explicit list what is computation. The memory operand is read into a buffer next to
//! the code, the instruction re-encoded so that it uses the buffer ([`mod@rewrite`]), executed on the guest's
//! registers ([`engine`], [`switch`]), and the buffer written back. An operand that is locked is changed in place,
//! in the guest's memory, so that it is atomic against other processors. Exceptions of the host's processor
//! become the guest's ([`recovery`]). [`masked`] and [`scattered`] deal with operands of which only parts are
//! touched.

mod allow;
mod engine;
mod masked;
mod operands;
mod pages;
mod recovery;
mod rewrite;
mod scattered;
mod switch;

use std::cell::RefCell;

use iced_x86::{EncodingKind, Instruction, InstructionInfoFactory, Mnemonic};

use self::engine::{End, Engine, Job};
use self::operands::{Missing, Operand};
use self::rewrite::{Rewritten, rewrite};
use super::availability::{self, Kind};
use super::vectors::x87_pointers;
use super::{Beyond, Cpu, Fault, Stop, operand, registers, system};
use crate::hv::{Error, Vectors};

const CR4_OSXMMEXCPT: u64 = 1 << 10;
const RSP: usize = 4;

/// What a thread needs for this, made when it is first needed and kept.
struct Workshop {
    engine: Engine,
    infos: InstructionInfoFactory,
}

thread_local! {
    static WORKSHOP: RefCell<Option<Workshop>> = const { RefCell::new(None) };
}

/// Executes the instruction, if it is computation.
pub(super) fn execute(cpu: &mut Cpu<'_>, instruction: &Instruction) -> Result<(), Stop> {
    if !engine::has_state() {
        return Err(beyond("the host's processor has no xsave, by which guest registers are loaded"));
    }
    WORKSHOP.with(|workshop| {
        // Nothing below comes back here.
        let mut workshop = workshop.try_borrow_mut().map_err(|_| beyond("another one is being executed"))?;
        let workshop = match workshop.as_mut() {
            Some(workshop) => workshop,
            None => workshop.insert(Workshop {
                engine: Engine::new().map_err(|source| Error::Call {
                    what: "map pages on which instructions are completed",
                    source,
                })?,
                infos: InstructionInfoFactory::new(),
            }),
        };
        execute_in(workshop, cpu, instruction)
    })
}

fn beyond(text: &str) -> Stop {
    Stop::Beyond(Beyond { text: text.to_owned() })
}

fn execute_in(workshop: &mut Workshop, cpu: &mut Cpu<'_>, instruction: &Instruction) -> Result<(), Stop> {
    let Workshop { engine, infos } = workshop;
    let info = infos.info(instruction);
    if let Some(kind) = scattered::kind(instruction) {
        availability::check(cpu, instruction, kind)?;
        return scattered::execute(cpu, instruction);
    }
    let kind = allow::allowed(instruction, info).map_err(beyond)?;
    if allow::is_hint(instruction) {
        if instruction.mnemonic() == Mnemonic::Pause && instruction.len() > 2 {
            // With REX.B it exchanges R8 and RAX, which the decoder does not know.
            return Err(beyond("its prefixes may make it another instruction"));
        }
        return Ok(());
    }
    availability::check(cpu, instruction, kind)?;
    if instruction.mnemonic() == Mnemonic::Lea {
        let value = operand::offset(cpu, instruction);
        registers::set(&mut cpu.general, instruction.op0_register(), value);
        return Ok(());
    }
    operands::check_forms(cpu, instruction)?;
    let operand = Operand::find(cpu, instruction, info)?;
    if matches!(operand, Operand::Untouched) {
        return Ok(());
    }
    let bit = operands::bit(cpu, instruction);
    let no_register = || beyond("no register is left to execute it with");
    let placed = match operand.place(cpu, engine) {
        Ok(placed) => placed,
        Err(Stop::Fault(fault)) => {
            let place = operand.place_zeroes(engine);
            let rewritten =
                rewrite(instruction, info, place, cpu.general.rsp, bit).ok_or_else(no_register)?;
            return Err(raised_before(engine, cpu, &rewritten, kind)?.unwrap_or(fault.into()));
        }
        Err(stop) => return Err(stop),
    };
    let mut rewritten =
        rewrite(instruction, info, placed.place, cpu.general.rsp, bit).ok_or_else(no_register)?;
    if !operand.is_in_place() {
        // Not atomic, as it is when it crosses a cache line or page; the prefix would only slow down the host.
        rewritten.instruction.set_has_lock_prefix(false);
    }
    run(engine, cpu, &rewritten, kind, placed.missing)?;
    if kind == Kind::X87 {
        tell_x87_pointers(engine, cpu, instruction, &operand)?;
    }
    operand.finish(cpu, engine)
}

/// What the instruction raises before its memory operand is looked at: that the host does not have it, a pending x87
/// exception, that the operand is not aligned. It is executed on registers of which nothing is kept.
fn raised_before(
    engine: &mut Engine,
    cpu: &mut Cpu<'_>,
    rewritten: &Rewritten,
    kind: Kind,
) -> Result<Option<Stop>, Stop> {
    let mut general = registers::all(&cpu.general);
    for substitute in rewritten.substitutes.iter().flatten() {
        general[substitute.number] = substitute.value;
    }
    let mut flags = cpu.general.rflags;
    let mut image;
    let vectors = if kind == Kind::Scalar {
        None
    } else {
        let enabled = cpu.enabled_state()?;
        image = cpu.vectors()?.clone();
        Some((&mut image, enabled))
    };
    let instruction = &rewritten.instruction;
    let job = Job { instruction, general: &mut general, flags: &mut flags, vectors };
    // SAFETY: as in `run`, and the operand is in the engine's data.
    match unsafe { engine.run(job) } {
        End::Trap(trap @ (6 | 13 | 16)) => Ok(Some(exception(cpu, trap))),
        _ => Ok(None),
    }
}

fn run(
    engine: &mut Engine,
    cpu: &mut Cpu<'_>,
    rewritten: &Rewritten,
    kind: Kind,
    missing: Option<Missing>,
) -> Result<(), Stop> {
    let before = registers::all(&cpu.general);
    let mut general = before;
    for substitute in rewritten.substitutes.iter().flatten() {
        general[substitute.number] = substitute.value;
    }
    let mut flags = cpu.general.rflags;
    let end = {
        let enabled = if kind == Kind::Scalar { 0 } else { cpu.enabled_state()? };
        let vectors: Option<(&mut Vectors, u64)> =
            if kind == Kind::Scalar { None } else { Some((cpu.vectors_mut()?, enabled)) };
        let job =
            Job { instruction: &rewritten.instruction, general: &mut general, flags: &mut flags, vectors };
        // SAFETY: `allow` has refused whatever is not computation, and the only memory operand was redirected
        // by `rewrite` to the engine's data or to checked guest memory.
        unsafe { engine.run(job) }
    };
    match end {
        End::Done => {}
        End::PageFault(address) => {
            let unexpected = || beyond("the host's processor raised a page fault at it");
            return Err(missing.map_or_else(unexpected, |missing| missing.at(address).into()));
        }
        End::Trap(trap) => return Err(exception(cpu, trap)),
        End::NoEncoding => return Err(beyond("it has no equivalent in 64-bit code")),
    }
    let mut rsp = before[RSP];
    for substitute in rewritten.substitutes.iter().flatten() {
        if substitute.result_in_rsp {
            rsp = general[substitute.number];
        }
        general[substitute.number] = before[substitute.number];
    }
    general[RSP] = rsp;
    registers::set_all(&mut cpu.general, &general);
    cpu.general.rflags = flags;
    Ok(())
}

/// What the guest gets for an exception of the host's processor.
fn exception(cpu: &Cpu<'_>, trap: u8) -> Stop {
    match trap {
        0 => Fault::DIVIDE.into(),
        6 => Fault::UNDEFINED.into(),
        13 => Fault::PROTECTION.into(),
        16 => system::x87_exception(cpu),
        19 if cpu.special.cr4 & CR4_OSXMMEXCPT == 0 => Fault::UNDEFINED.into(),
        19 => Fault::VECTOR_MATHS.into(),
        trap => beyond(&format!("the host's processor raised exception {trap} at it")),
    }
}

/// The x87 unit remembers where its last instruction and that one's operand were; what it remembers now is where
/// they were here.
fn tell_x87_pointers(
    engine: &Engine,
    cpu: &mut Cpu<'_>,
    instruction: &Instruction,
    operand: &Operand,
) -> Result<(), Stop> {
    let (at, data) = x87_pointers::get(cpu.vectors()?);
    let rip = cpu.general.rip;
    let offset = operand.offset();
    if engine.owns(at) {
        let data = if engine.owns(data) { offset } else { data };
        let opcode = x87_opcode(cpu, instruction);
        let vectors = cpu.vectors_mut()?;
        x87_pointers::set(vectors, rip, data);
        if let Some(opcode) = opcode {
            x87_pointers::set_opcode(vectors, opcode);
        }
    }
    Ok(())
}

/// The last opcode as the unit remembers it: eleven bits of the escape byte and the one behind it.
fn x87_opcode(cpu: &Cpu<'_>, instruction: &Instruction) -> Option<u16> {
    if instruction.encoding() != EncodingKind::Legacy {
        return None;
    }
    let base = if cpu.is_64_bit() { 0 } else { cpu.special.cs.base };
    let mut bytes = [0; 15];
    let bytes = &mut bytes[..instruction.len()];
    cpu.fetch(base.wrapping_add(instruction.ip()), bytes).ok()?;
    let escape = bytes.iter().position(|byte| (0xd8..=0xdf).contains(byte))?;
    Some(u16::from(bytes[escape] & 7) << 8 | u16::from(*bytes.get(escape + 1)?))
}

#[cfg(test)]
#[path = "native_test.rs"]
mod tests;
