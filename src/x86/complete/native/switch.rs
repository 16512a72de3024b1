//! Onto the guest's registers and back.
//!
//! [`enter`] loads vector state, general registers and arithmetic flags and goes to the code page, whose
//! instruction is followed by a jump to [`leave`], which stores everything and returns to `enter`'s caller. RSP
//! stays the host's all the time, with the address of the [`Frame`] on its top: a signal may arrive at any
//! moment, and finds a stack. Its handler starts with vector registers of its own, as the kernel sees to.
//!
//! The code page is entered by `iretq`. That loads the flags without touching any register; and it is a
//! serialising instruction, which the processor needs in order to execute code that was just written through
//! another address (Intel SDM volume 3, "Handling Self- and Cross-Modifying Code").

use std::arch::naked_asm;
use std::mem::offset_of;

use crate::hv::Vectors;

/// The arithmetic flags and the direction flag: all flags that instructions executed here use or change.
pub(super) const FLAGS: u64 = 0xcd5;

/// What is loaded and stored. The layout is known to the assembly below.
#[repr(C)]
pub(super) struct Frame {
    /// By their numbers in machine code; that of RSP is not used.
    pub general: [u64; 16],
    /// Within [`FLAGS`].
    pub flags: u64,
    /// The vector state, or null if it stays as it is.
    pub vectors: *mut Vectors,
    /// Which of its components are loaded and stored.
    pub components: u64,
    /// Where the code begins.
    pub entry: u64,
    /// The processor's exception, if there was one.
    pub trap: Option<u8>,
    /// The address of a page fault.
    pub address: u64,
}

/// Executes what lies at `frame.entry`.
///
/// # Safety
/// The code there has to leave RSP alone and to end with a jump to [`leave`], may touch only memory that
/// nothing else relies on, and may do nothing but computation. The vector state has to be one that the
/// processor accepts in `xrstor`, with no component that is not enabled.
#[unsafe(naked)]
pub(super) unsafe extern "sysv64" fn enter(frame: *mut Frame) {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        // The calling convention has these two control registers preserved.
        "sub rsp, 8",
        "stmxcsr [rsp]",
        "fnstcw [rsp + 4]",
        "push rdi",
        "mov rsi, [rdi + {vectors}]",
        "test rsi, rsi",
        "jz 2f",
        "mov eax, [rdi + {components}]",
        "mov edx, [rdi + {components} + 4]",
        "xrstor64 [rsi]",
        "2:",
        "mov rax, rsp",
        "mov ecx, ss",
        "push rcx",
        "push rax",
        "push qword ptr [rdi + {flags}]",
        "mov ecx, cs",
        "push rcx",
        "push qword ptr [rdi + {entry}]",
        "mov rax, [rdi]",
        "mov rcx, [rdi + 8]",
        "mov rdx, [rdi + 16]",
        "mov rbx, [rdi + 24]",
        "mov rbp, [rdi + 40]",
        "mov rsi, [rdi + 48]",
        "mov r8, [rdi + 64]",
        "mov r9, [rdi + 72]",
        "mov r10, [rdi + 80]",
        "mov r11, [rdi + 88]",
        "mov r12, [rdi + 96]",
        "mov r13, [rdi + 104]",
        "mov r14, [rdi + 112]",
        "mov r15, [rdi + 120]",
        "mov rdi, [rdi + 56]",
        "iretq",
        vectors = const offset_of!(Frame, vectors),
        components = const offset_of!(Frame, components),
        flags = const offset_of!(Frame, flags),
        entry = const offset_of!(Frame, entry),
    )
}

/// Comes back from where [`enter`] went. Not a function: it is jumped to.
#[unsafe(naked)]
pub(super) unsafe extern "sysv64" fn leave() {
    naked_asm!(
        // None of these changes a flag.
        "push rax",
        "mov rax, [rsp + 8]",
        "mov [rax + 8], rcx",
        "mov [rax + 16], rdx",
        "mov [rax + 24], rbx",
        "mov [rax + 40], rbp",
        "mov [rax + 48], rsi",
        "mov [rax + 56], rdi",
        "mov [rax + 64], r8",
        "mov [rax + 72], r9",
        "mov [rax + 80], r10",
        "mov [rax + 88], r11",
        "mov [rax + 96], r12",
        "mov [rax + 104], r13",
        "mov [rax + 112], r14",
        "mov [rax + 120], r15",
        "pop rcx",
        "mov [rax], rcx",
        "pushfq",
        "pop qword ptr [rax + {flags}]",
        "cld",
        "mov rdi, rax",
        "mov rsi, [rdi + {vectors}]",
        "test rsi, rsi",
        "jz 2f",
        "mov eax, [rdi + {components}]",
        "mov edx, [rdi + {components} + 4]",
        "xsave64 [rsi]",
        // An empty x87 stack and the control registers of before. `fninit` waits for no exception that the
        // guest left pending.
        "fninit",
        "fldcw [rsp + 12]",
        "ldmxcsr [rsp + 8]",
        // Used upper halves would slow down whatever the host does next.
        "test eax, 4",
        "jz 2f",
        "vzeroupper",
        "2:",
        "add rsp, 16",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
        vectors = const offset_of!(Frame, vectors),
        components = const offset_of!(Frame, components),
        flags = const offset_of!(Frame, flags),
    )
}
