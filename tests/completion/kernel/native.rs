//! The oracle: the host's processor, executing the instruction with the same general registers and memory.
//!
//! Leaner than the one for completed instructions, which also carries vector state; and an instruction may jump:
//! behind it and at its target lie jumps to the way out, one of which says that it was taken.

use std::arch::global_asm;
use std::ptr;

use libc::{c_int, c_void, siginfo_t, ucontext_t};

use super::cases::{CODE, CODE_SIZE, Case, DATA, DATA_SIZE, READ_ONLY, State};
use crate::native::{Alone, alone};
use crate::place::{PAGE, map};
use crate::signals::{AlternateStack, Handlers};

/// Registers go in and come out here. The code below knows it by number.
const EXCHANGE: u64 = 0x3000_0000;
/// What instructions that go on are followed by a jump to.
const WAY_OUT: u64 = CODE + CODE_SIZE;
/// Where instructions that jump get to in the end.
const WAY_OUT_OF_TARGET: u64 = WAY_OUT + 0x40;
const INT3: u8 = 0xcc;

#[repr(C, align(4096))]
struct Exchange {
    general: [u64; 16],
    flags: u64,
    entry: u64,
    own_stack: u64,
    segment_base: u64,
    own_segment_base: u64,
    jumped: u64,
    raised: u64,
    trap: u64,
    rip: u64,
    general_after: [u64; 16],
    flags_after: u64,
}

const _: () = assert!(std::mem::offset_of!(Exchange, general_after) == 200);

global_asm!(
    ".global kernel_native_run",
    "kernel_native_run:",
    "push rbx; push rbp; push r12; push r13; push r14; push r15",
    "mov ds:[{at} + 144], rsp",
    "rdgsbase rax",
    "mov ds:[{at} + 160], rax",
    "mov rax, ds:[{at} + 152]",
    "wrgsbase rax",
    "push qword ptr ds:[{at} + 128]",
    "popfq",
    "mov rax, ds:[{at} + 0]",
    "mov rcx, ds:[{at} + 8]",
    "mov rdx, ds:[{at} + 16]",
    "mov rbx, ds:[{at} + 24]",
    "mov rsp, ds:[{at} + 32]",
    "mov rbp, ds:[{at} + 40]",
    "mov rsi, ds:[{at} + 48]",
    "mov rdi, ds:[{at} + 56]",
    "mov r8, ds:[{at} + 64]",
    "mov r9, ds:[{at} + 72]",
    "mov r10, ds:[{at} + 80]",
    "mov r11, ds:[{at} + 88]",
    "mov r12, ds:[{at} + 96]",
    "mov r13, ds:[{at} + 104]",
    "mov r14, ds:[{at} + 112]",
    "mov r15, ds:[{at} + 120]",
    "jmp qword ptr ds:[{at} + 136]",
    ".global kernel_native_exit_of_target",
    "kernel_native_exit_of_target:",
    "mov qword ptr ds:[{at} + 168], 1",
    ".global kernel_native_exit",
    "kernel_native_exit:",
    "mov ds:[{at} + 200], rax",
    "mov ds:[{at} + 208], rcx",
    "mov ds:[{at} + 216], rdx",
    "mov ds:[{at} + 224], rbx",
    "mov ds:[{at} + 232], rsp",
    "mov ds:[{at} + 240], rbp",
    "mov ds:[{at} + 248], rsi",
    "mov ds:[{at} + 256], rdi",
    "mov ds:[{at} + 264], r8",
    "mov ds:[{at} + 272], r9",
    "mov ds:[{at} + 280], r10",
    "mov ds:[{at} + 288], r11",
    "mov ds:[{at} + 296], r12",
    "mov ds:[{at} + 304], r13",
    "mov ds:[{at} + 312], r14",
    "mov ds:[{at} + 320], r15",
    "mov rsp, ds:[{at} + 144]",
    "pushfq",
    "pop qword ptr ds:[{at} + 328]",
    "push 2",
    "popfq",
    "mov rax, ds:[{at} + 160]",
    "wrgsbase rax",
    "pop r15; pop r14; pop r13; pop r12; pop rbp; pop rbx",
    "ret",
    at = const EXCHANGE,
);

unsafe extern "C" {
    fn kernel_native_run();
    fn kernel_native_exit();
    fn kernel_native_exit_of_target();
}

static HANDLERS: Handlers = Handlers::new();

/// The processor, with its memory mapped. There can be one.
pub struct Native {
    _stack: AlternateStack,
    _only: Alone,
}

impl Native {
    pub fn new() -> Self {
        let only = alone();
        let all = libc::PROT_READ | libc::PROT_WRITE;
        map(CODE, CODE_SIZE + PAGE, all | libc::PROT_EXEC);
        // SAFETY: the code has just been mapped, with a page behind it for the ways out.
        unsafe { ptr::write_bytes(CODE as *mut u8, INT3, CODE_SIZE as usize) };
        write_way_out(WAY_OUT, (kernel_native_exit as *const ()) as u64);
        write_way_out(WAY_OUT_OF_TARGET, (kernel_native_exit_of_target as *const ()) as u64);
        map(DATA - PAGE, PAGE, libc::PROT_NONE);
        map(DATA, DATA_SIZE, all);
        map(DATA + DATA_SIZE, PAGE, libc::PROT_NONE);
        map(READ_ONLY, PAGE, all);
        // SAFETY: this page, too.
        unsafe {
            let bytes = super::cases::read_only();
            ptr::copy_nonoverlapping(bytes.as_ptr(), READ_ONLY as *mut u8, bytes.len());
            assert_eq!(libc::mprotect(READ_ONLY as *mut c_void, PAGE as usize, libc::PROT_READ), 0);
        }
        map(READ_ONLY + PAGE, PAGE, libc::PROT_NONE);
        map(EXCHANGE, size_of::<Exchange>() as u64, all);
        HANDLERS.catch(on_signal);
        Self { _stack: AlternateStack::new(), _only: only }
    }

    /// What the processor makes of it: the vector of an exception, and the state.
    pub fn run(&self, case: &Case) -> (Option<u8>, State<'static>) {
        let exchange = EXCHANGE as *mut Exchange;
        let next = case.rip + case.bytes.len() as u64;
        let mut code = case.bytes.clone();
        code.extend(jump(next, WAY_OUT));
        // SAFETY: these addresses are this object's own mappings, nothing else refers to them while the instruction
        // runs, and a case's code and data fit. Only what the software processor has executed comes here, with
        // memory operands in these mappings.
        unsafe {
            ptr::copy_nonoverlapping(code.as_ptr(), case.rip as *mut u8, code.len());
            ptr::copy_nonoverlapping(case.data.as_ptr(), DATA as *mut u8, DATA_SIZE as usize);
            if let Some(landing) = case.landing {
                ptr::copy_nonoverlapping(
                    jump(landing, WAY_OUT_OF_TARGET).as_ptr(),
                    landing as *mut u8,
                    JUMP_LENGTH,
                );
            }
            (*exchange).general = case.general;
            (*exchange).flags = case.flags;
            (*exchange).entry = case.rip;
            (*exchange).segment_base = case.segment_base;
            (*exchange).raised = 0;
            (*exchange).jumped = 0;
            kernel_native_run();
            let raised = ((*exchange).raised != 0).then(|| (*exchange).trap as u8);
            let rip = match ((*exchange).jumped, case.landing) {
                _ if raised.is_some() => (*exchange).rip,
                (1, Some(landing)) => landing,
                _ => next,
            };
            ptr::write_bytes(case.rip as *mut u8, INT3, code.len());
            if let Some(landing) = case.landing {
                ptr::write_bytes(landing as *mut u8, INT3, JUMP_LENGTH);
            }
            let state = State {
                general: (*exchange).general_after,
                flags: (*exchange).flags_after,
                rip,
                data: std::slice::from_raw_parts(DATA as *const u8, DATA_SIZE as usize),
            };
            (raised, state)
        }
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        let mappings = [
            (CODE, CODE_SIZE + PAGE),
            (DATA - PAGE, DATA_SIZE + 4 * PAGE),
            (EXCHANGE, size_of::<Exchange>() as u64),
        ];
        // SAFETY: all of this was mapped by this object.
        unsafe {
            for (at, size) in mappings {
                libc::munmap(at as *mut c_void, size as usize);
            }
        }
    }
}

const JUMP_LENGTH: usize = 5;

/// `jmp`, relative to the instruction behind it.
fn jump(at: u64, to: u64) -> [u8; JUMP_LENGTH] {
    let distance = to.wrapping_sub(at + JUMP_LENGTH as u64) as u32;
    let mut bytes = [0xe9; JUMP_LENGTH];
    bytes[1..].copy_from_slice(&distance.to_le_bytes());
    bytes
}

/// The rest of this program is too far away for a jump without a register: one through memory.
fn write_way_out(at: u64, exit: u64) {
    // SAFETY: the page behind the code has just been mapped, for this.
    unsafe {
        // jmp [rip + 2]
        ptr::copy_nonoverlapping([0xff_u8, 0x25, 2, 0, 0, 0].as_ptr(), at as *mut u8, 6);
        *((at + 8) as *mut u64) = exit;
    }
}

/// Notes what was raised, and goes on where registers are collected.
extern "C" fn on_signal(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a context; the exchange area is mapped if the code at fault is in `CODE`.
    unsafe {
        let registers = &mut (*context.cast::<ucontext_t>()).uc_mcontext.gregs;
        let rip = registers[libc::REG_RIP as usize] as u64;
        if !(CODE..CODE + CODE_SIZE).contains(&rip) {
            return HANDLERS.hand_on(signal, info, context);
        }
        let exchange = EXCHANGE as *mut Exchange;
        (*exchange).raised = 1;
        (*exchange).trap = registers[libc::REG_TRAPNO as usize] as u64;
        (*exchange).rip = rip;
        registers[libc::REG_RIP as usize] = kernel_native_exit as *const () as i64;
    }
}
