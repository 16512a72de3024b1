//! The oracle: the host's processor, executing the very bytes of an instruction in this process.
//!
//! Code, data and the exchange area lie at fixed addresses in the lowest 2 GiB, the same as in the guest, so that
//! no operand has to be rewritten. The instruction gets all registers, the stack pointer included; signals come on a
//! stack of their own, and lead to where the registers are collected. Nothing of the product is used.

use std::arch::global_asm;
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use libc::{c_int, c_void, siginfo_t, ucontext_t};

use crate::case::{Case, Outcome, Raised};
use crate::place::{CODE, CODE_SIZE, DATA, DATA_SIZE, PAGE, READ_ONLY, map};
use crate::signals::{AlternateStack, Handlers};

/// Registers go in and come out here. The code below knows it by number.
const EXCHANGE: u64 = 0x6000_0000;
/// What every instruction is followed by a jump to.
const WAY_OUT: u64 = CODE + CODE_SIZE;

#[repr(C, align(4096))]
struct Exchange {
    general: [u64; 16],
    flags: u64,
    entry: u64,
    own_stack: u64,
    gs_base: u64,
    own_gs_base: u64,
    raised: u64,
    trap: u64,
    error: u64,
    address: u64,
    rip: u64,
    general_after: [u64; 16],
    flags_after: u64,
    _to_page: [u64; 4096 / 8 - 43],
    vectors: [u8; 4096],
    vectors_after: [u8; 4096],
    own_vectors: [u8; 4096],
}

const _: () = assert!(std::mem::offset_of!(Exchange, general_after) == 208);
const _: () = assert!(std::mem::offset_of!(Exchange, vectors) == 4096);

global_asm!(
    ".global completion_native_run",
    "completion_native_run:",
    "push rbx; push rbp; push r12; push r13; push r14; push r15",
    "mov ds:[{at} + 144], rsp",
    "rdgsbase rax",
    "mov ds:[{at} + 160], rax",
    "mov rax, ds:[{at} + 152]",
    "wrgsbase rax",
    "mov eax, -1",
    "mov edx, -1",
    "xsave64 ds:[{at} + 12288]",
    "xrstor64 ds:[{at} + 4096]",
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
    ".global completion_native_exit",
    "completion_native_exit:",
    "mov ds:[{at} + 208], rax",
    "mov ds:[{at} + 216], rcx",
    "mov ds:[{at} + 224], rdx",
    "mov ds:[{at} + 232], rbx",
    "mov ds:[{at} + 240], rsp",
    "mov ds:[{at} + 248], rbp",
    "mov ds:[{at} + 256], rsi",
    "mov ds:[{at} + 264], rdi",
    "mov ds:[{at} + 272], r8",
    "mov ds:[{at} + 280], r9",
    "mov ds:[{at} + 288], r10",
    "mov ds:[{at} + 296], r11",
    "mov ds:[{at} + 304], r12",
    "mov ds:[{at} + 312], r13",
    "mov ds:[{at} + 320], r14",
    "mov ds:[{at} + 328], r15",
    "mov rsp, ds:[{at} + 144]",
    "pushfq",
    "pop qword ptr ds:[{at} + 336]",
    "push 2",
    "popfq",
    "mov eax, -1",
    "mov edx, -1",
    "xsave64 ds:[{at} + 8192]",
    "xrstor64 ds:[{at} + 12288]",
    "mov rax, ds:[{at} + 160]",
    "wrgsbase rax",
    "pop r15; pop r14; pop r13; pop r12; pop rbp; pop rbx",
    "ret",
    at = const EXCHANGE,
);

unsafe extern "C" {
    fn completion_native_run();
    fn completion_native_exit();
}

/// Which state components the processor saves (XCR0).
pub fn enabled_state() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a register; the host has it, or no test of this kind could run.
    unsafe { std::arch::asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high) };
    u64::from(high) << 32 | u64::from(low)
}

static HANDLERS: Handlers = Handlers::new();

/// There is one exchange area. And of several who begin to handle signals, the product among them, each has to learn
/// who did so before.
static IN_USE: Mutex<()> = Mutex::new(());

/// Held by the one test that has the processor.
pub type Alone = MutexGuard<'static, ()>;

/// Waits for other tests that have the processor, or make the product begin to handle signals.
pub fn alone() -> Alone {
    IN_USE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The processor, with its memory mapped.
pub struct Native {
    _stack: AlternateStack,
    _only: Alone,
}

impl Native {
    /// Maps code and data where the guest has them. The product handles signals already.
    pub fn new(only: Alone) -> Self {
        let all = libc::PROT_READ | libc::PROT_WRITE;
        map(CODE, CODE_SIZE + PAGE, all | libc::PROT_EXEC);
        write_way_out();
        map(DATA, DATA_SIZE, all);
        map(READ_ONLY, PAGE, libc::PROT_READ);
        map(EXCHANGE, size_of::<Exchange>() as u64, all);
        HANDLERS.catch(on_signal);
        Self { _stack: AlternateStack::new(), _only: only }
    }

    /// What the processor makes of it.
    pub fn run(&self, case: &Case) -> Outcome {
        let exchange = EXCHANGE as *mut Exchange;
        let mut code = [0x90_u8; 20];
        let length = case.bytes.len();
        let next = case.rip + length as u64;
        code[..length].copy_from_slice(&case.bytes);
        // jmp, relative to the instruction behind it.
        code[length] = 0xe9;
        let distance = (WAY_OUT - next - 5) as u32;
        code[length + 1..length + 5].copy_from_slice(&distance.to_le_bytes());
        // SAFETY: these addresses are this object's own mappings, nothing else refers to them, and a case's code
        // and data fit. What the case may do to registers is undone by the code above; its memory operands are
        // chosen to lie in these mappings, or nowhere.
        unsafe {
            ptr::copy_nonoverlapping(code.as_ptr(), case.rip as *mut u8, code.len());
            ptr::copy_nonoverlapping(case.data.as_ptr(), DATA as *mut u8, DATA_SIZE as usize);
            (*exchange).general = case.general;
            (*exchange).flags = case.flags;
            (*exchange).entry = case.rip;
            (*exchange).gs_base = case.gs_base;
            (*exchange).raised = 0;
            (*exchange).vectors = case.vectors.0;
            completion_native_run();
            let raised = ((*exchange).raised != 0).then(|| Raised {
                vector: (*exchange).trap as u8,
                error: (*exchange).error as u32,
                address: (*exchange).address,
            });
            let mut outcome = Outcome {
                general: (*exchange).general_after,
                flags: (*exchange).flags_after,
                rip: if raised.is_some() { (*exchange).rip } else { next },
                vectors: Box::new((*exchange).vectors_after),
                data: vec![0; DATA_SIZE as usize],
                raised,
            };
            ptr::copy_nonoverlapping(DATA as *const u8, outcome.data.as_mut_ptr(), DATA_SIZE as usize);
            outcome
        }
    }

    /// Sets what lies on the page that cannot be written.
    pub fn fill_read_only(&self, bytes: &[u8]) {
        assert_eq!(bytes.len(), PAGE as usize);
        let page = READ_ONLY as *mut c_void;
        // SAFETY: the page is this object's own mapping, and as large as what is copied.
        unsafe {
            assert_eq!(libc::mprotect(page, PAGE as usize, libc::PROT_READ | libc::PROT_WRITE), 0);
            ptr::copy_nonoverlapping(bytes.as_ptr(), page.cast(), bytes.len());
            assert_eq!(libc::mprotect(page, PAGE as usize, libc::PROT_READ), 0);
        }
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        let mappings = [
            (CODE, CODE_SIZE + PAGE),
            (DATA, DATA_SIZE),
            (READ_ONLY, PAGE),
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

/// The rest of this program is too far away for a jump without a register: one through memory.
fn write_way_out() {
    let exit = (completion_native_exit as *const ()) as u64;
    // SAFETY: the page behind the code has just been mapped, for this.
    unsafe {
        // jmp [rip + 2]
        ptr::copy_nonoverlapping([0xff_u8, 0x25, 2, 0, 0, 0].as_ptr(), WAY_OUT as *mut u8, 6);
        *((WAY_OUT + 8) as *mut u64) = exit;
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
        (*exchange).error = registers[libc::REG_ERR as usize] as u64;
        (*exchange).address = registers[libc::REG_CR2 as usize] as u64;
        (*exchange).rip = rip;
        registers[libc::REG_RIP as usize] = completion_native_exit as *const () as i64;
    }
}
