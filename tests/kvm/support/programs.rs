//! Programs in ring 3, and a kernel for them of a few handlers.

use lodger::hv::{Registers, Vcpu};
use vm_memory::{Bytes, GuestAddress};

use super::board::{Board, Plan, put};
use super::code::machine_code;
use super::state::{IDT, TABLES, TASK as FIRST_TASK, gate};

/// The second 2 MiB, which ring 3 may not touch: the handlers lie there, with this distance.
pub const KERNEL: u64 = 0x20_0000;
const DISTANCE: u64 = 0x400;
/// The descriptor table, and what is added to it: 32-bit code for ring 3 with the selector 0x3b.
const GDT: u64 = 0xc000;
const CODE32: u64 = 0x00cf_fb00_0000_ffff;
pub const PAGE_FAULT: u8 = 14;

/// Sets up `syscall` to arrive where RDI says, and goes to ring 3, 0x100 bytes behind its start, with interrupts on:
/// with the code segment in R8 and the stack in RSI.
macro_rules! with_start {
    ($($line:expr),+ $(,)?) => {
        machine_code!(
            "mov ecx, 0xc0000081",
            "xor eax, eax",
            "mov edx, 0x00130008",
            "wrmsr",
            "mov ecx, 0xc0000082",
            "mov eax, edi",
            "xor edx, edx",
            "wrmsr",
            "mov ecx, 0xc0000084",
            "mov eax, 0x47700",
            "wrmsr",
            "mov ecx, 0xc0000080",
            "rdmsr",
            "or eax, 1",
            "wrmsr",
            "push 0x1b",
            "push rsi",
            "push 0x202",
            "push r8",
            "push 0x100100",
            "iretq",
            ".balign 256",
            $($line,)+
            "out 0xf4, al",
        )
    };
}

pub(crate) use with_start;

/// A handler, and whether ring 3 may call it by `int`.
pub struct Handler(pub u8, pub bool, pub &'static [u8]);

/// Puts `call` at LSTAR. Every exception without a handler ends the board with its vector as the status.
pub fn prepare(board: &Board, call: &[u8], handlers: &[Handler]) {
    const CLOSED: u64 = 0x83;
    const KERNEL_CODE: u16 = 0x08;
    put(&board.memory, TABLES + 0x2008, &(KERNEL | CLOSED).to_le_bytes());
    put(&board.memory, KERNEL, call);
    for vector in 0..32_u8 {
        // mov al, vector; out 0xf4, al
        let address = KERNEL + 0x10_0000 + u64::from(vector) * 16;
        put(&board.memory, address, &[0xb0, vector, 0xe6, 0xf4]);
        put(&board.memory, IDT + u64::from(vector) * 16, &gate(address, KERNEL_CODE));
    }
    for (Handler(vector, open, code), number) in handlers.iter().zip(1..) {
        let address = KERNEL + number * DISTANCE;
        put(&board.memory, address, code);
        let mut gate = gate(address, KERNEL_CODE);
        gate[5] |= if *open { 0x60 } else { 0 };
        put(&board.memory, IDT + u64::from(*vector) * 16, &gate);
    }
    put(&board.memory, GDT + 7 * 8, &CODE32.to_le_bytes());
    board.vcpu().while_at_rest(|vcpu| {
        let mut special = vcpu.special_registers().unwrap();
        special.gdt.limit = 8 * 8 - 1;
        vcpu.set_special_registers(&special).unwrap();
        let general = vcpu.registers().unwrap();
        vcpu.set_registers(&Registers { rdi: KERNEL, rsi: 0x2_0000, r8: 0x23, ..general }).unwrap();
    });
}

/// Counts, checks that it is ring 0 on the caller's stack with the flags that `syscall` leaves, doubles EAX.
pub fn call_handler() -> &'static [u8] {
    machine_code!(
        "pushfq",
        "pop r15",
        "mov r14d, cs",
        "mov r13d, ss",
        "lock inc qword ptr [0x180000]",
        "cmp r14d, 8",
        "jne 3f",
        "cmp r13d, 16",
        "jne 3f",
        "test r15d, 0x47700",
        "jnz 3f",
        "test r11d, 0x200",
        "jz 3f",
        "cmp rsp, rsi",
        "jne 3f",
        "lea eax, [rax + rax + 1]",
        "sysretq",
        "3: mov eax, 0x77",
        "out 0xf4, al",
    )
}

/// Counts, and goes on behind the faulting instruction of eight bytes.
pub fn page_fault_handler() -> &'static [u8] {
    machine_code!(
        "nop dword ptr [rax]",
        "lock inc qword ptr [0x180008]",
        "add qword ptr [rsp + 8], 8",
        "add rsp, 8",
        "iretq"
    )
}

/// Counts, and answers with twice EAX and two.
pub fn interrupt_handler() -> &'static [u8] {
    machine_code!("lock inc qword ptr [0x180010]", "lea eax, [rax + rax + 2]", "iretq")
}

/// Rounds of a system call, an access that faults, and an interrupt; RBX counts down from R9, or for ever.
pub fn caller() -> &'static [u8] {
    with_start!(
        "2: mov eax, ebx",
        "syscall",
        "lea edx, [rbx + rbx + 1]",
        "cmp eax, edx",
        "jne 9f",
        "mov rdx, [0x200000]",
        "mov eax, ebx",
        "int 0x80",
        "lea edx, [rbx + rbx + 2]",
        "cmp eax, edx",
        "jne 8f",
        "inc ebx",
        "cmp ebx, r9d",
        "jne 2b",
        "xor eax, eax",
        "jmp 7f",
        "9: mov al, 0x79",
        "jmp 7f",
        "8: mov al, 0x78",
        "7:",
    )
}

/// Has all processors make so many rounds.
pub fn rounds(board: &Board, count: u64) {
    board.vcpus.iter().for_each(|thread| {
        thread.while_at_rest(|vcpu| {
            let general = vcpu.registers().unwrap();
            vcpu.set_registers(&Registers { r9: count, ..general }).unwrap();
        });
    });
}

/// The handlers that [`caller`] needs.
pub fn all_handlers() -> [Handler; 2] {
    [Handler(PAGE_FAULT, false, page_fault_handler()), Handler(0x80, true, interrupt_handler())]
}

/// How many calls, faults and interrupts there were.
pub fn counts(board: &Board) -> [u64; 3] {
    [0, 8, 16].map(|offset| board.data(offset))
}

/// Has a second processor start where the first one does, with a stack and a task of its own, and with registers that
/// `change` has changed.
pub fn start_second(board: &Board, change: impl FnOnce(&mut Registers)) {
    const TASK: u64 = 0x1_a000;
    const STACK: u64 = 0x4_0000;
    let mut task = vec![0; 0x200];
    board.memory.mapped().read_slice(&mut task, GuestAddress(FIRST_TASK)).expect("it is in memory");
    put(&board.memory, TASK, &task);
    put(&board.memory, TASK + 4, &(STACK - 0x4000).to_le_bytes());
    let (saved, _) = board.save();
    let mut second = saved[0].clone();
    second.lapic.clone_from(&saved[1].lapic);
    second.special.tr.base = TASK;
    second.registers.rsp = STACK - 0x2000;
    second.registers.rsi = STACK;
    change(&mut second.registers);
    board.vcpus[1].while_at_rest(|vcpu| vcpu.restore(&second)).expect("it can be started this way");
}

/// A program, started in ring 0, whose kernel is run by the software processor.
pub fn software(code: &'static [u8]) -> Plan<'static> {
    interpreted(code).with_kernel_in_software()
}

/// One whose kernel is run by KVM.
pub fn interpreted(code: &'static [u8]) -> Plan<'static> {
    Plan::new(code).ring(0).memory(4 << 20).completed()
}

/// Expects that the software processor has executed so many instructions at least, where it is of use.
pub fn assert_in_software(board: &Board, least: u64) {
    let counters = board.vcpu().counters();
    let instructions = counters.kernel_instructions();
    assert!(counters.completions().is_empty() || instructions >= least, "{instructions}");
}
