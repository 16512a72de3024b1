//! What is told when a guest cannot go on: the exit's own data, the processor's state, the code it was at,
//! what it did last, and one sentence in plain words.

use std::fmt;

use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};

use super::history::{History, Record};
use crate::boot::Symbols;
use crate::hv::{self, InternalError, Registers, Segment, SpecialRegisters, Vcpu};
use crate::memory::{GuestMemory, PAGE_SIZE};
use crate::x86::mode::linear_rip;
use crate::x86::walk;

/// How many code bytes are shown before RIP, and from RIP on.
const CODE_BEFORE: usize = 16;
const CODE_FROM: usize = 32;

/// The exit that ended the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// An exception while the handler of an exception's exception was looked for.
    TripleFault,
    /// The hypervisor gave up.
    InternalError(InternalError),
    /// The hypervisor gave up at an instruction that this program cannot complete either.
    Beyond {
        /// What the hypervisor said.
        error: InternalError,
        /// What keeps this program from it.
        why: String,
    },
    /// The processor refused to enter the guest.
    FailedEntry {
        /// The hardware's reason code.
        reason: u64,
        /// The host processor on which it happened.
        cpu: u32,
    },
    /// An exit that nothing here asked for.
    Unexpected {
        /// The hypervisor's number for it.
        reason: u32,
    },
}

impl Cause {
    /// What happened, in plain words.
    fn in_plain_words(&self) -> String {
        match self {
            Self::TripleFault => "the guest had an exception, and neither that exception's handler nor the \
                                  double fault handler could be entered (triple fault): its interrupt \
                                  table or stack is unusable"
                .to_owned(),
            Self::InternalError(error) => internal_error_in_plain_words(error.suberror).to_owned(),
            Self::Beyond { why, .. } => format!(
                "KVM had to run the guest's next instruction in software and could not, and lodger cannot \
                 complete it either ({why})"
            ),
            Self::FailedEntry { .. } => "the processor refused to enter the guest: the state in its control \
                                         or segment registers is not one that a processor can be in"
                .to_owned(),
            Self::Unexpected { reason } => {
                format!(
                    "KVM returned exit reason {reason}, which lodger neither asks for nor knows how to answer"
                )
            }
        }
    }
}

fn internal_error_in_plain_words(suberror: u32) -> &'static str {
    match suberror {
        1 => {
            "KVM had to run the guest's next instruction in software and could not: on this host its \
             interpreter lacks that instruction, or the guest runs in a place that holds no code"
        }
        2 => "several exceptions met in a way that KVM cannot deliver",
        3 => {
            "the guest was left while an interrupt or exception was being delivered to it: the place that \
              its interrupt table or stack points to is no usable memory"
        }
        4 => "the processor left the guest for a reason that this host's KVM does not know",
        _ => "KVM gave up for a reason of its own",
    }
}

/// Everything worth knowing about a fatal exit.
#[derive(Debug)]
pub struct FatalReport {
    /// Which processor.
    pub vcpu: u32,
    /// What happened.
    pub cause: Cause,
    /// Its registers, where they could be read.
    pub registers: hv::Result<(Registers, SpecialRegisters)>,
    /// The code at RIP, or why it cannot be read.
    pub code: Code,
    /// The instruction at RIP, in words.
    pub instruction: Option<String>,
    /// What it did last, the oldest first.
    pub history: Vec<Record>,
}

/// Code bytes around RIP.
#[derive(Debug, PartialEq, Eq)]
pub enum Code {
    /// Bytes in front of RIP and from RIP on, as far as they can be read.
    Bytes {
        /// In front of RIP.
        before: Vec<u8>,
        /// From RIP on.
        from: Vec<u8>,
    },
    /// Why there are none.
    Unreadable(String),
}

impl FatalReport {
    pub(super) fn capture<V: Vcpu>(
        vcpu: u32,
        cause: Cause,
        state: &V,
        memory: &GuestMemory,
        history: &History,
    ) -> Self {
        let registers = state.registers().and_then(|general| Ok((general, state.special_registers()?)));
        let code = match &registers {
            Ok((general, special)) => read_code(memory, general, special),
            Err(_) => Code::Unreadable("the registers could not be read".to_owned()),
        };
        let instruction = match (&registers, &code) {
            (Ok((general, special)), Code::Bytes { from, .. }) => disassemble(general, special, from),
            _ => None,
        };
        Self { vcpu, cause, registers, code, instruction, history: history.iter().copied().collect() }
    }

    /// The report with the name of the function at RIP, if `symbols` has it.
    pub fn with_symbols<'a>(&'a self, symbols: Option<&'a Symbols>) -> impl fmt::Display + 'a {
        WithSymbols(self, symbols)
    }

    /// Whether these are the registers of a processor that has just been reset: on some hosts that is all
    /// that is left after a triple fault.
    fn looks_reset(&self) -> bool {
        matches!(&self.registers, Ok((general, special)) if general.rip == 0xfff0 && special.cs.base == 0xffff_0000)
    }
}

/// The first instruction of `code`, if it is one.
fn disassemble(general: &Registers, special: &SpecialRegisters, code: &[u8]) -> Option<String> {
    let bits = match (special.cs.long, special.cs.default_big) {
        (true, _) => 64,
        (false, true) => 32,
        (false, false) => 16,
    };
    let instruction = Decoder::with_ip(bits, code, general.rip, DecoderOptions::NONE).decode();
    let mut text = String::new();
    IntelFormatter::new().format(&instruction, &mut text);
    (!instruction.is_invalid()).then_some(text)
}

fn read_code(memory: &GuestMemory, general: &Registers, special: &SpecialRegisters) -> Code {
    let rip = linear_rip(general, special);
    let from = match read(memory, special, rip, CODE_FROM) {
        Ok(bytes) => bytes,
        Err(reason) => return Code::Unreadable(reason),
    };
    // What lies in front may begin on a page that is not there; then what is on RIP's own page is shown.
    let in_page = (rip % PAGE_SIZE) as usize;
    let before = [CODE_BEFORE, CODE_BEFORE.min(in_page)].into_iter().find_map(|length| {
        let bytes = read(memory, special, rip.wrapping_sub(length as u64), length).ok()?;
        (bytes.len() == length).then_some(bytes)
    });
    Code::Bytes { before: before.unwrap_or_default(), from }
}

/// Up to `length` bytes at a linear address, or why there is not even one.
fn read(
    memory: &GuestMemory,
    special: &SpecialRegisters,
    linear: u64,
    length: usize,
) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0; length];
    let physical = walk::walk(memory, special, linear).map_err(|fault| fault.to_string())?;
    match walk::read_linear(memory, special, linear, &mut bytes) {
        0 => Err(format!("{linear:#x} is mapped to {physical:#x}, where there is no memory")),
        length => {
            bytes.truncate(length);
            Ok(bytes)
        }
    }
}

/// A report that names the function at RIP.
struct WithSymbols<'a>(&'a FatalReport, Option<&'a Symbols>);

impl fmt::Display for FatalReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        WithSymbols(self, None).fmt(f)
    }
}

impl fmt::Display for WithSymbols<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(report, symbols) = *self;
        let FatalReport { vcpu, cause, registers, code, instruction, history } = report;
        writeln!(f, "the guest stopped on vcpu{vcpu}: {}", cause.in_plain_words())?;
        write_cause(f, cause)?;
        match registers {
            Ok((general, special)) => {
                write_registers(f, general, special)?;
                let function =
                    |symbols: &Symbols| symbols.describe(special.ss.dpl, linear_rip(general, special));
                if let Some(function) = symbols.and_then(function) {
                    writeln!(f, "  rip is in {function}")?;
                }
                if report.looks_reset() {
                    writeln!(
                        f,
                        "  (these are reset values: this host keeps no others after a triple fault)"
                    )?;
                }
            }
            Err(error) => writeln!(f, "  registers: {error}")?,
        }
        write_code(f, code)?;
        if let Some(instruction) = instruction {
            writeln!(f, "  instruction at rip: {instruction}")?;
        }
        write_history(f, history)
    }
}

fn write_cause(f: &mut fmt::Formatter<'_>, cause: &Cause) -> fmt::Result {
    match cause {
        Cause::TripleFault => writeln!(f, "  exit: KVM_EXIT_SHUTDOWN"),
        Cause::InternalError(InternalError { suberror, data })
        | Cause::Beyond { error: InternalError { suberror, data }, .. } => {
            write!(f, "  exit: KVM_EXIT_INTERNAL_ERROR, suberror {suberror}, data")?;
            data.iter().try_for_each(|word| write!(f, " {word:#x}"))?;
            writeln!(f)
        }
        Cause::FailedEntry { reason, cpu } => {
            writeln!(f, "  exit: KVM_EXIT_FAIL_ENTRY, hardware reason {reason:#x}, on host processor {cpu}")
        }
        Cause::Unexpected { reason } => writeln!(f, "  exit: reason {reason}"),
    }
}

fn write_registers(f: &mut fmt::Formatter<'_>, r: &Registers, s: &SpecialRegisters) -> fmt::Result {
    let rows = [
        [("rax", r.rax), ("rbx", r.rbx), ("rcx", r.rcx), ("rdx", r.rdx)],
        [("rsi", r.rsi), ("rdi", r.rdi), ("rbp", r.rbp), ("rsp", r.rsp)],
        [("r8", r.r8), ("r9", r.r9), ("r10", r.r10), ("r11", r.r11)],
        [("r12", r.r12), ("r13", r.r13), ("r14", r.r14), ("r15", r.r15)],
        [("rip", r.rip), ("flags", r.rflags), ("efer", s.efer), ("apic", s.apic_base)],
        [("cr0", s.cr0), ("cr2", s.cr2), ("cr3", s.cr3), ("cr4", s.cr4)],
    ];
    for row in rows {
        let cells = row.map(|(name, value)| format!("{name:>5} {value:016x}"));
        writeln!(f, "  {}", cells.join(" "))?;
    }
    let segments =
        [("cs", s.cs), ("ss", s.ss), ("ds", s.ds), ("es", s.es), ("fs", s.fs), ("gs", s.gs), ("tr", s.tr)];
    for (name, segment) in segments {
        writeln!(f, "  {name:>5} {}", describe_segment(&segment))?;
    }
    writeln!(f, "    gdt base {:016x} limit {:04x}", s.gdt.base, s.gdt.limit)?;
    writeln!(f, "    idt base {:016x} limit {:04x}", s.idt.base, s.idt.limit)
}

fn describe_segment(segment: &Segment) -> String {
    let Segment { selector, base, limit, kind, dpl, .. } = *segment;
    let size = match (segment.long, segment.default_big) {
        (true, _) => "64-bit",
        (false, true) => "32-bit",
        (false, false) => "16-bit",
    };
    let mut text =
        format!("{selector:04x} base {base:016x} limit {limit:08x} type {kind:x} dpl {dpl} {size}");
    if segment.unusable || !segment.present {
        text.push_str(" unusable");
    }
    text
}

fn write_code(f: &mut fmt::Formatter<'_>, code: &Code) -> fmt::Result {
    match code {
        Code::Unreadable(reason) => writeln!(f, "  code at rip: not readable: {reason}"),
        Code::Bytes { before, from } => {
            write!(f, "  code at rip (>):")?;
            before.iter().try_for_each(|byte| write!(f, " {byte:02x}"))?;
            write!(f, " >")?;
            from.iter().try_for_each(|byte| write!(f, " {byte:02x}"))?;
            writeln!(f)
        }
    }
}

fn write_history(f: &mut fmt::Formatter<'_>, history: &[Record]) -> fmt::Result {
    writeln!(f, "  last {} exits, the latest at the end:", history.len())?;
    // Equal neighbours, as polling loops make them, are told once.
    for run in history.chunk_by(|one, next| one == next) {
        match run.len() {
            1 => writeln!(f, "    {}", run[0])?,
            count => writeln!(f, "    {} ({count} times)", run[0])?,
        }
    }
    Ok(())
}
