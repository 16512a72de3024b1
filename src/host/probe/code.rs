//! What lies in the bench's memory, and the machine code that all probes have in common.

use vm_memory::{Bytes, GuestAddress};

use super::bench::{Mode, Program};
use crate::hv::{self, DescriptorTable, Registers, Segment, SpecialRegisters};
use crate::memory::{GuestMemory, PAGE_SIZE};
use crate::x86::mode::InitialState;
use crate::x86::segments;

/// The first of the bench's ports.
pub(super) const PORTS: u16 = 0xf0;
/// How many there are, with room for an access of four bytes to the last.
pub(super) const PORT_COUNT: u16 = 8;
/// Four bytes: a value worth knowing.
pub(super) const REPORT: u16 = 0xf0;
/// Four bytes: an exception happened, its frame is at this address.
pub(super) const EXCEPTION: u16 = 0xf2;
/// One byte: the end of the run.
pub(super) const DONE: u16 = 0xf4;

const DESCRIPTORS: u64 = 0x1000;
const TASK_STATE: u64 = 0x2000;
const INTERRUPT_TABLE: u64 = 0x3000;
const HANDLERS: u64 = 0x4000;
const ROOT_TABLE: u64 = 0x5000;
const CODE: u64 = 0x9000;
/// Where `syscall` arrives.
pub(super) const LANDING: u64 = 0xa000;
const STACK_TOP: u64 = 0xc000;
const USER_CODE: u64 = 0xd000;
const USER_STACK_TOP: u64 = 0xf000;
/// For instructions with a memory operand, which find its address in RDI: zeroes, aligned, larger than any
/// state that is saved there.
const SCRATCH: u64 = 0x1_0000;
/// Behind everything above.
const END: u64 = 0x1_4000;
const MEMORY_PAGES: u64 = 256;

/// Behind [`segments::boot_table`], in the order that `sysret` wants: data, then code.
const USER_DATA: u16 = 0x33;
const USER_CODE_SELECTOR: u16 = 0x3b;
const DESCRIPTOR_COUNT: u16 = 8;

const HANDLER_SIZE: u64 = 16;
/// All exceptions.
const EXCEPTIONS: u8 = 32;
const BREAKPOINT: u8 = 3;
/// The gate by which 32-bit programs have always called Linux.
pub(super) const SYSTEM_CALL_GATE: u8 = 0x80;

const CR0_MONITOR_COPROCESSOR: u64 = 1 << 1;
const CR0_NUMERIC_ERROR: u64 = 1 << 5;
const CR4_OSFXSR: u64 = 1 << 9;
const CR4_OSXMMEXCPT: u64 = 1 << 10;
const CR4_OSXSAVE: u64 = 1 << 18;
const EFER_SYSCALL: u64 = 1 << 0;
/// In ECX of CPUID leaf 1.
pub(super) const FEATURE_XSAVE: u32 = 1 << 26;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;

const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const SYSCALL_MASK: u32 = 0xc000_0084;
/// What Linux clears at a system call: among others trap flag, interrupts, direction and port privilege.
const LINUX_SYSCALL_MASK: u32 = 0x4_7700;

/// `mov al, status; out DONE, al`
pub(super) fn done(status: u8) -> [u8; 4] {
    [0xb0, status, 0xe6, DONE as u8]
}

/// `out REPORT, eax`
pub(super) const REPORT_EAX: [u8; 2] = [0xe7, REPORT as u8];

/// `mov eax, leaf; mov ecx, index; cpuid`, then reports EAX, EBX, ECX, EDX.
pub(super) fn cpuid(leaf: u32, index: u32) -> Vec<u8> {
    let mut code = [load_eax(leaf), load_ecx(index)].concat();
    code.extend([0x0f, 0xa2]);
    code.extend(REPORT_EAX);
    for move_to_eax in [[0x89, 0xd8], [0x89, 0xc8], [0x89, 0xd0]] {
        code.extend(move_to_eax);
        code.extend(REPORT_EAX);
    }
    code
}

/// Reports, goes through a loop of two instructions `count` times, and reports again.
pub(super) fn count_down(count: u32) -> Vec<u8> {
    let mut code = load_ecx(count).to_vec();
    code.extend(REPORT_EAX);
    code.extend([0xff, 0xc9, 0x75, 0xfc]); // again: dec ecx; jnz again
    code.extend(REPORT_EAX);
    code.extend(done(0));
    code
}

/// Makes `syscall` arrive at [`LANDING`].
pub(super) fn accept_system_calls() -> Vec<u8> {
    // The lower half is the code segment, the stack segment follows it; `sysret` adds 8 and 16 to the upper.
    let selectors = u32::from(USER_DATA - 8) << 16 | u32::from(segments::code64().selector);
    [(STAR, 0, selectors), (LSTAR, LANDING as u32, 0), (SYSCALL_MASK, LINUX_SYSCALL_MASK, 0)]
        .iter()
        .flat_map(|&(msr, low, high)| write_msr(msr, low, high))
        .collect()
}

/// Allows `xsave` and its kin, as a kernel does that found them in CPUID.
pub(super) fn allow_xsave() -> Vec<u8> {
    // mov rax, cr4; or eax, OSXSAVE; mov cr4, rax
    let mut code = vec![0x0f, 0x20, 0xe0];
    code.extend(with_operand(0x0d, CR4_OSXSAVE as u32));
    code.extend([0x0f, 0x22, 0xe0]);
    code
}

/// Enables the kinds of state in `mask` for `xsave` and for the instructions that use them.
pub(super) fn enable_state(mask: u32) -> Vec<u8> {
    let mut code = [load_eax(mask), load_ecx(0)].concat();
    code.extend([0x31, 0xd2]); // xor edx, edx
    code.extend([0x0f, 0x01, 0xd1]); // xsetbv
    code
}

/// `mov eax, value`
pub(super) fn load_eax(value: u32) -> [u8; 5] {
    with_operand(0xb8, value)
}

/// `mov ecx, value`
pub(super) fn load_ecx(value: u32) -> [u8; 5] {
    with_operand(0xb9, value)
}

fn with_operand(opcode: u8, value: u32) -> [u8; 5] {
    let [a, b, c, d] = value.to_le_bytes();
    [opcode, a, b, c, d]
}

/// `mov ecx, msr; mov eax, low; mov edx, high; wrmsr`
fn write_msr(msr: u32, low: u32, high: u32) -> Vec<u8> {
    let mut code = [load_ecx(msr), load_eax(low), with_operand(0xba, high)].concat();
    code.extend([0x0f, 0x30]);
    code
}

/// Returns to ring 3 as if from an interrupt, with the right to use ports.
fn enter_user_mode() -> Vec<u8> {
    const RFLAGS: u32 = 0x3002;
    let words = [
        u32::from(USER_DATA),
        USER_STACK_TOP as u32,
        RFLAGS,
        u32::from(USER_CODE_SELECTOR),
        USER_CODE as u32,
    ];
    let mut code: Vec<u8> = words.iter().flat_map(|&word| with_operand(0x68, word)).collect(); // push word
    code.extend([0x48, 0xcf]); // iretq
    code
}

/// Whether the processor pushes an error code for this exception (Intel SDM volume 3, table 7-1, and AMD's
/// #VC and #SX).
pub(super) fn has_error_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30)
}

/// Where the program's code begins.
pub(super) fn start(program: &Program) -> u64 {
    match program.mode {
        // CS begins there.
        Mode::Real => 0,
        Mode::Ring0 => CODE + program.setup.len() as u64,
        Mode::Ring3 => USER_CODE,
    }
}

/// The registers with which a program starts.
pub(super) fn registers(mode: Mode, reset: &SpecialRegisters) -> (Registers, SpecialRegisters) {
    if mode == Mode::Real {
        return InitialState::Real { entry: CODE as u32, stack: STACK_TOP as u16 }.registers(reset);
    }
    let long = InitialState::Long {
        entry: CODE,
        parameters: 0,
        stack: STACK_TOP,
        page_tables: ROOT_TABLE,
        descriptors: DESCRIPTORS,
    };
    let (general, special) = long.registers(reset);
    let special = SpecialRegisters {
        tr: task(),
        gdt: DescriptorTable { base: DESCRIPTORS, limit: DESCRIPTOR_COUNT * 8 - 1 },
        idt: DescriptorTable { base: INTERRUPT_TABLE, limit: (u16::from(SYSTEM_CALL_GATE) + 1) * 16 - 1 },
        cr0: special.cr0 | CR0_MONITOR_COPROCESSOR | CR0_NUMERIC_ERROR,
        cr4: special.cr4 | CR4_OSFXSR | CR4_OSXMMEXCPT,
        efer: special.efer | EFER_SYSCALL,
        ..special
    };
    (Registers { rdi: SCRATCH, ..general }, special)
}

fn task() -> Segment {
    Segment { base: TASK_STATE, ..segments::task() }
}

/// Puts everything into memory that `program` needs.
pub(super) fn write(memory: &GuestMemory, program: &Program) -> hv::Result<()> {
    let at = |address: u64, bytes: &[u8]| {
        memory.mapped().write_slice(bytes, GuestAddress(address)).map_err(|_| hv::Error::Call {
            what: "write a few bytes of code into a guest",
            source: std::io::ErrorKind::InvalidInput.into(),
        })
    };
    at(0, &[0; END as usize])?;
    let setup = match program.mode {
        Mode::Real => Vec::new(),
        Mode::Ring0 => program.setup.clone(),
        Mode::Ring3 => [program.setup.as_slice(), &enter_user_mode()].concat(),
    };
    at(CODE, &setup)?;
    let code = if program.mode == Mode::Ring3 { USER_CODE } else { CODE + setup.len() as u64 };
    at(code, &program.code)?;
    // mov eax, cs
    at(LANDING, &[[0x8c, 0xc8].as_slice(), &REPORT_EAX, &done(0)].concat())?;
    at(DESCRIPTORS, &words(descriptors()))?;
    // The stack for interrupts from ring 3.
    at(TASK_STATE + 4, &STACK_TOP.to_le_bytes())?;
    for vector in (0..EXCEPTIONS).chain([SYSTEM_CALL_GATE]) {
        let address = HANDLERS + HANDLER_SIZE * u64::from(vector);
        at(address, &handler(vector))?;
        at(INTERRUPT_TABLE + 16 * u64::from(vector), &words(gate(vector, address)))?;
    }
    let tables = [(ROOT_TABLE, 0x6000), (0x6000, 0x7000), (0x7000, 0x8000)];
    for (table, next) in tables {
        at(table, &words([next | PRESENT | WRITABLE | USER]))?;
    }
    at(0x8000, &words((0..MEMORY_PAGES).map(page)))
}

fn words(words: impl IntoIterator<Item = u64>) -> Vec<u8> {
    words.into_iter().flat_map(u64::to_le_bytes).collect()
}

/// The entry that maps a page to itself, for ring 3 where ring 3 has business.
fn page(number: u64) -> u64 {
    let address = number * PAGE_SIZE;
    let user = (USER_CODE..USER_STACK_TOP).contains(&address);
    address | PRESENT | WRITABLE | if user { USER } else { 0 }
}

fn descriptors() -> [u64; DESCRIPTOR_COUNT as usize] {
    let [null, unused, code, data, ..] = segments::boot_table(&segments::code64());
    let user_data = segments::encode(&Segment { dpl: 3, ..segments::data() });
    let user_code = segments::encode(&Segment { dpl: 3, ..segments::code64() });
    let task = task();
    [null, unused, code, data, segments::encode(&task), segments::encode_upper(&task), user_data, user_code]
}

/// An interrupt gate (Intel SDM volume 3, "64-Bit Mode IDT"). Ring 3 may use those that programs use.
fn gate(vector: u8, handler: u64) -> [u64; 2] {
    let access: u64 = if matches!(vector, BREAKPOINT | SYSTEM_CALL_GATE) { 0xee } else { 0x8e };
    let selector = u64::from(segments::code64().selector);
    [handler & 0xffff | selector << 16 | access << 40 | (handler >> 16 & 0xffff) << 48, handler >> 32]
}

/// A breakpoint leaves its number in EAX and returns; everything else is reported, and is the end.
fn handler(vector: u8) -> Vec<u8> {
    if vector == BREAKPOINT {
        return [load_eax(vector.into()).as_slice(), &[0x48, 0xcf]].concat(); // iretq
    }
    // push vector; mov eax, esp; out EXCEPTION, eax; hlt
    vec![0x6a, vector, 0x89, 0xe0, 0xe7, EXCEPTION as u8, 0xf4]
}
