//! Exceptions: guarded pieces of work that may fault, and the report of faults that nobody expected.

use core::fmt;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::ring0::Control;
use crate::{power, println, ring0};

const PAGE_FAULT: u64 = 14;

/// What `exception` in traps.s pushes, lowest address first.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Frame {
    cr2: u64,
    rax: u64,
    rbx: u64,
    rcx: u64,
    rdx: u64,
    rsi: u64,
    rdi: u64,
    rbp: u64,
    r8: u64,
    r9: u64,
    r10: u64,
    r11: u64,
    r12: u64,
    r13: u64,
    r14: u64,
    r15: u64,
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// An exception that ended a guarded piece of work.
pub struct Fault(Frame);

/// Where `guarded_call` can be left, 0 outside of one. Used by traps.s.
#[unsafe(no_mangle)]
static guard: AtomicU64 = AtomicU64::new(0);
/// Counted by traps.s: interrupts that nothing asked for.
#[unsafe(no_mangle)]
pub static other_interrupts: AtomicU64 = AtomicU64::new(0);

static INTERRUPTS_WANTED: AtomicBool = AtomicBool::new(false);

unsafe extern "sysv64" {
    fn guarded_call(function: extern "sysv64" fn(*mut u8), argument: *mut u8);
    fn leave_guarded_call() -> !;
}

/// The frame of the last exception that a guard caught.
static mut CAUGHT: MaybeUninit<Frame> = MaybeUninit::uninit();

/// Lets interrupts in, now and again after every fault.
pub fn enable_interrupts() {
    INTERRUPTS_WANTED.store(true, Ordering::Relaxed);
    ring0::enable_interrupts();
}

/// Does `work`, which may fault at any instruction.
///
/// After a fault nothing that `work` had on its stack is dropped; it must hold nothing that needs it.
pub fn guarded<R, W: FnOnce() -> R>(work: W) -> Result<R, Fault> {
    struct Job<W, R> {
        work: Option<W>,
        result: Option<R>,
    }
    extern "sysv64" fn run<R, W: FnOnce() -> R>(job: *mut u8) {
        // SAFETY: `guarded` passes a job of exactly this type, which nobody else uses during the call.
        let job = unsafe { &mut *job.cast::<Job<W, R>>() };
        job.result = job.work.take().map(|work| work());
    }
    let mut job = Job { work: Some(work), result: None };
    // SAFETY: `run` gets the job it expects. A fault comes back here with the registers that calls preserve.
    unsafe { guarded_call(run::<R, W>, (&raw mut job).cast()) };
    job.result.ok_or_else(|| {
        if INTERRUPTS_WANTED.load(Ordering::Relaxed) {
            ring0::enable_interrupts();
        }
        // SAFETY: without a result there was a fault, so `exception_taken` wrote the frame.
        Fault(unsafe { (&raw const CAUGHT).read().assume_init() })
    })
}

/// Faults as if no command were running.
pub fn fault_unguarded() {
    guard.store(0, Ordering::Relaxed);
    // SAFETY: an undefined instruction has no effect but its exception.
    unsafe { core::arch::asm!("ud2", options(nomem, nostack)) };
}

/// Called by traps.s in ring 3, interrupts off, on a stack of its own.
#[unsafe(no_mangle)]
extern "sysv64" fn exception_taken(frame: *const Frame) -> ! {
    // SAFETY: traps.s passes the frame it has just pushed; it stays until the next step into ring 0.
    let frame = unsafe { frame.read() };
    if guard.load(Ordering::Relaxed) == 0 {
        die(&Fault(frame));
    }
    // SAFETY: one thread; and the guard is one that `guarded_call` has set up and not left yet.
    unsafe {
        (&raw mut CAUGHT).write(MaybeUninit::new(frame));
        leave_guarded_call()
    }
}

fn die(fault: &Fault) -> ! {
    static DYING: AtomicBool = AtomicBool::new(false);
    if !DYING.swap(true, Ordering::Relaxed) {
        fault.report();
        println!("the guest cannot go on");
    }
    power::exit(power::STATUS_GUEST_FAULT);
}

impl Fault {
    /// Prints everything that is known.
    pub fn report(&self) {
        let f = &self.0;
        let Control { cr0, cr3, cr4 } = ring0::read_control();
        println!("exception: {self}");
        println!("  rip {:016x}  rsp {:016x}  rflags {:08x}  cr2 {:016x}", f.rip, f.rsp, f.rflags, f.cr2);
        println!("  rax {:016x}  rbx {:016x}  rcx {:016x}  rdx {:016x}", f.rax, f.rbx, f.rcx, f.rdx);
        println!("  rsi {:016x}  rdi {:016x}  rbp {:016x}  cs {:x} ss {:x}", f.rsi, f.rdi, f.rbp, f.cs, f.ss);
        println!("  cr0 {cr0:08x}  cr3 {cr3:08x}  cr4 {cr4:08x}");
        println!("  r8  {:016x}  r9  {:016x}  r10 {:016x}  r11 {:016x}", f.r8, f.r9, f.r10, f.r11);
        println!("  r12 {:016x}  r13 {:016x}  r14 {:016x}  r15 {:016x}", f.r12, f.r13, f.r14, f.r15);
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Frame { vector, error, rip, cs, cr2, .. } = self.0;
        write!(
            f,
            "{} (vector {vector}, error code {error:#x}) at {rip:#x} in ring {}",
            name(vector),
            cs & 3
        )?;
        if vector == PAGE_FAULT {
            write!(f, ", address {cr2:#x}")?;
        }
        Ok(())
    }
}

fn name(vector: u64) -> &'static str {
    match vector {
        0 => "division error",
        1 => "debug trap",
        2 => "non-maskable interrupt",
        3 => "breakpoint",
        4 => "overflow",
        5 => "bound exceeded",
        6 => "undefined instruction",
        7 => "no vector unit",
        8 => "double fault",
        10 => "bad task state",
        11 => "segment not present",
        12 => "stack fault",
        13 => "general protection fault",
        14 => "page fault",
        16 => "x87 error",
        17 => "misaligned access",
        18 => "machine check",
        19 => "vector arithmetic error",
        _ => "exception",
    }
}
