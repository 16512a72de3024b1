//! Ring 3 calls the system: by `syscall`, by `int n`, and by faults that are none of both.
//!
//! An ordinary KVM needs no help with any of it; the tests are the same there.

use lodger::hv::{ExitKind, Registers, Vcpu};

use crate::support::{Board, IDT, Plan, Random, TABLES, eventually, gate, machine_code, put, read_u64};

/// The second 2 MiB, which ring 3 may not touch: the handlers lie there, with this distance.
const KERNEL: u64 = 0x20_0000;
const DISTANCE: u64 = 0x400;
/// The descriptor table, and what is added to it: 32-bit code for ring 3 with the selector 0x3b.
const GDT: u64 = 0xc000;
const CODE32: u64 = 0x00cf_fb00_0000_ffff;
const PAGE_FAULT: u8 = 14;

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

/// A handler, and whether ring 3 may call it by `int`.
struct Handler(u8, bool, &'static [u8]);

/// A board with `call` at LSTAR. Every other exception ends it with its vector as the status.
fn board(code: &'static [u8], call: &'static [u8], handlers: &[Handler]) -> Board {
    let board = plan(code).build();
    prepare(&board, call, handlers);
    board
}

fn plan(code: &'static [u8]) -> Plan<'static> {
    Plan::new(code).ring(0).memory(4 << 20).completed()
}

fn prepare(board: &Board, call: &[u8], handlers: &[Handler]) {
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
fn call_handler() -> &'static [u8] {
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
fn page_fault_handler() -> &'static [u8] {
    machine_code!(
        "nop dword ptr [rax]",
        "lock inc qword ptr [0x180008]",
        "add qword ptr [rsp + 8], 8",
        "add rsp, 8",
        "iretq"
    )
}

fn interrupt_handler() -> &'static [u8] {
    machine_code!("lock inc qword ptr [0x180010]", "lea eax, [rax + rax + 2]", "iretq")
}

/// Rounds of a system call, an access that faults, and an interrupt; RBX counts down from R9, or for ever.
fn caller() -> &'static [u8] {
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

fn rounds(board: &Board, count: u64) {
    board.vcpus.iter().for_each(|thread| {
        thread.while_at_rest(|vcpu| {
            let general = vcpu.registers().unwrap();
            vcpu.set_registers(&Registers { r9: count, ..general }).unwrap();
        });
    });
}

fn all_handlers() -> [Handler; 2] {
    [Handler(PAGE_FAULT, false, page_fault_handler()), Handler(0x80, true, interrupt_handler())]
}

fn counts(board: &Board) -> [u64; 3] {
    [0, 8, 16].map(|offset| board.data(offset))
}

#[test]
fn calls_faults_and_interrupts_from_ring_3_all_arrive_where_they_should() {
    let board = board(caller(), call_handler(), &all_handlers());
    rounds(&board, 1000);
    board.run();
    assert_eq!(counts(&board), [1000; 3]);
    let counters = board.vcpu().counters();
    let stops = counters.get(ExitKind::Breakpoint);
    let told: Vec<_> = counters.completions().into_iter().map(|(_, count)| count).collect();
    // All of them, or none where KVM needs no help.
    assert!(stops == 0 || told == [1000; 3], "{:?}", counters.completions());
    assert_eq!(told.iter().sum::<u64>(), stops);
}

#[test]
fn a_page_fault_handler_may_begin_with_any_instruction() {
    let behind = |first: &'static [u8]| -> &'static [u8] {
        let rest = machine_code!(
            "lock inc qword ptr [0x180008]",
            "mov rdx, [rsp]",
            "add qword ptr [rsp + 8], 8",
            "add rsp, 8",
            "iretq"
        );
        [first, rest].concat().leak()
    };
    let starts: [&'static [u8]; 14] = [
        machine_code!("nop"),
        machine_code!("endbr64"),
        machine_code!("cld"),
        machine_code!("cli"),
        machine_code!("jmp 2f", "ud2", "2:"),
        machine_code!("push rax", "pop rax"),
        machine_code!("push -1", "add rsp, 8"),
        machine_code!("push 0x12345678", "add rsp, 8"),
        machine_code!("swapgs", "swapgs"),
        machine_code!("mov rcx, cr2", "cmp rcx, 0x200000", "jne 2f", "jmp 3f", "2: ud2", "3:"),
        machine_code!("jc 2f", "2: nop"),
        machine_code!("call 2f", "2: add rsp, 8"),
        machine_code!("test byte ptr [rsp + 16], 3", "jnz 2f", "ud2", "2:"),
        machine_code!("mov rcx, rsp", "cmp qword ptr [rcx + 32], 0x20000", "je 2f", "ud2", "2:"),
    ];
    for (number, start) in starts.into_iter().enumerate() {
        let handlers = [Handler(PAGE_FAULT, false, behind(start)), Handler(0x80, true, interrupt_handler())];
        let board = board(caller(), call_handler(), &handlers);
        rounds(&board, 20);
        println!("start {number}");
        board.run();
        assert_eq!(counts(&board), [20; 3], "start {number}");
    }
}

#[test]
fn programs_are_carried_over_to_fresh_machines_between_their_calls() {
    let mut board = board(caller(), call_handler(), &all_handlers());
    rounds(&board, u64::MAX);
    let mut random = Random::new(7);
    for _ in 0..12 {
        board.resume();
        let before = board.data(0);
        eventually("it goes on calling", || board.data(0) > before + 5);
        random.dawdle(300);
        board.pause();
        assert!(board.is_alive());
        let [calls, faults, interrupts] = counts(&board);
        assert!(calls - interrupts <= 1 && calls - faults <= 1, "{:?}", counts(&board));
        board = board.move_to(plan(caller()));
    }
}

#[test]
fn pausing_loses_and_repeats_no_call() {
    let board = board(caller(), call_handler(), &all_handlers());
    rounds(&board, 600);
    let mut random = Random::new(11);
    for _ in 0..150 {
        board.resume();
        random.dawdle(300);
        board.pause();
    }
    board.resume();
    board.finish();
    assert_eq!(counts(&board), [600; 3]);
}

#[test]
fn each_processor_has_its_own_entry_for_system_calls() {
    const SECOND_ENTRY: u64 = KERNEL + 0x8000;
    const SECOND_TASK: u64 = 0x1_a000;
    const SECOND_STACK: u64 = 0x4_0000;
    let board = plan(caller()).cpus(2, &[]).build();
    prepare(&board, call_handler(), &all_handlers());
    let count_apart = machine_code!("lock inc qword ptr [0x180018]", "lea eax, [rax + rax + 1]", "sysretq");
    put(&board.memory, SECOND_ENTRY, count_apart);
    // The second processor has a task state segment, and so stacks, of its own.
    let mut task = vec![0; 0x200];
    vm_memory::Bytes::read_slice(board.memory.mapped(), &mut task, vm_memory::GuestAddress(0xd000)).unwrap();
    put(&board.memory, SECOND_TASK, &task);
    put(&board.memory, SECOND_TASK + 4, &(SECOND_STACK - 0x4000).to_le_bytes());
    let (saved, _) = board.save();
    let mut second = saved[0].clone();
    second.lapic.clone_from(&saved[1].lapic);
    second.special.tr.base = SECOND_TASK;
    second.registers.rsp = SECOND_STACK - 0x2000;
    second.registers.rsi = SECOND_STACK;
    second.registers.rdi = SECOND_ENTRY;
    board.vcpus[1].while_at_rest(|vcpu| vcpu.restore(&second)).expect("it can be started this way");
    rounds(&board, u64::MAX);
    board.resume();
    eventually("both call", || board.data(0) > 200 && board.data(0x18) > 200);
    board.pause();
    assert!(board.is_alive());
    let [calls, faults, interrupts] = counts(&board);
    let apart = read_u64(&board.memory, 0x18_0018);
    assert!((calls + apart).abs_diff(faults) <= 2 && faults.abs_diff(interrupts) <= 2);
}

#[test]
fn programs_of_32_bits_call_by_interrupts_too() {
    let code = with_start!(
        ".code32",
        "xor ebx, ebx",
        "2: mov eax, ebx",
        "int 0x80",
        "lea edx, [ebx + ebx + 2]",
        "cmp eax, edx",
        "jne 9f",
        "int3",
        "cmp eax, 0x33",
        "jne 9f",
        "mov al, 0x7f",
        "add al, 0x7f",
        "into",
        "cmp eax, 0x44",
        "jne 9f",
        "add al, 1",
        "into",
        "inc ebx",
        "cmp ebx, 100",
        "jne 2b",
        "xor eax, eax",
        "jmp 8f",
        "9: mov al, 0x79",
        "8:",
    );
    let handlers = [
        Handler(0x80, true, interrupt_handler()),
        Handler(3, true, machine_code!("mov eax, 0x33", "iretq")),
        Handler(4, true, machine_code!("mov eax, 0x44", "iretq")),
    ];
    let board = board(code, call_handler(), &handlers);
    board.vcpu().while_at_rest(|vcpu| {
        let general = vcpu.registers().unwrap();
        vcpu.set_registers(&Registers { r8: 0x3b, ..general }).unwrap();
    });
    board.run();
    assert_eq!(counts(&board)[2], 100);
}

#[test]
fn an_interrupt_that_ring_3_may_not_raise_is_a_protection_fault_at_its_instruction() {
    let refused: [(&'static [u8], u64); 3] = [
        (with_start!("int 0x0d", "nop"), 0x0d * 8 + 2),
        (with_start!("int 0x81", "nop"), 0x81 * 8 + 2),
        (with_start!("int 0xff", "nop"), 0xff * 8 + 2),
    ];
    // Notes error code and place, and goes on behind the instruction of two bytes.
    let protection = machine_code!(
        "pop qword ptr [0x180030]",
        "mov rax, [rsp]",
        "mov [0x180038], rax",
        "mov rax, [rsp + 8]",
        "mov [0x180040], rax",
        "add qword ptr [rsp], 2",
        "xor eax, eax",
        "iretq"
    );
    for (code, error_code) in refused {
        let handlers = [Handler(13, false, protection), Handler(0x80, true, interrupt_handler())];
        let board = board(code, call_handler(), &handlers);
        board.run();
        assert_eq!([0x30, 0x38, 0x40].map(|offset| board.data(offset)), [error_code, 0x10_0100, 0x23]);
    }
}

#[test]
fn an_undefined_instruction_stays_one() {
    let code = with_start!("ud2", "xor eax, eax");
    let undefined = machine_code!("inc qword ptr [0x180010]", "add qword ptr [rsp], 2", "iretq");
    let board = board(
        code,
        call_handler(),
        &[Handler(6, false, undefined), Handler(0x80, true, interrupt_handler())],
    );
    board.run();
    assert_eq!(counts(&board), [0, 0, 1]);
}

#[test]
fn a_program_that_jumps_to_the_entry_for_system_calls_has_made_none() {
    // With RCX and R11 as a call would leave them, but for the interrupt flag, which it cannot clear.
    let code = with_start!(
        "pushfq",
        "pop r11",
        "lea rcx, [rip + 2f]",
        "mov eax, 0x200000",
        "jmp rax",
        "2: xor eax, eax",
    );
    let page_fault = machine_code!(
        "inc qword ptr [0x180008]",
        "mov rax, [rsp + 8]",
        "mov [0x180030], rax",
        "mov [rsp + 8], rcx",
        "add rsp, 8",
        "iretq"
    );
    let board = board(code, call_handler(), &[Handler(PAGE_FAULT, false, page_fault)]);
    board.run();
    assert_eq!(counts(&board), [0, 1, 0]);
    assert_eq!(board.data(0x30), KERNEL);
}

#[test]
fn handlers_that_are_set_up_after_the_entry_for_system_calls_are_found() {
    // The page fault's handler moves with each write to the port, after which the system is called.
    let code = with_start!(
        "mov ebx, 100",
        "2: xor byte ptr [0xe0e1], 0x10",
        "mov ecx, 20",
        "3: out 0x80, al",
        "dec ecx",
        "jnz 3b",
        "mov eax, ebx",
        "syscall",
        "dec ebx",
        "jnz 2b",
        "xor eax, eax",
    );
    let board = board(code, call_handler(), &[Handler(PAGE_FAULT, false, page_fault_handler())]);
    put(&board.memory, KERNEL + 0x1400, page_fault_handler());
    board.run();
    assert_eq!(counts(&board), [100, 0, 0]);
}

#[test]
fn asking_what_kvm_lacks_leaves_a_processor_as_if_it_had_never_run() {
    // A clock goes on.
    const TIME_STAMP: u32 = 0x10;
    // Which registers do not have their initial values, as XSAVE notes it. A processor need not notice that some
    // have them; here it depends on whether the host has changed to another thread meanwhile.
    const XSAVE_USED: usize = 512;
    const X87_AND_SSE: u8 = 3;
    let state = |asked: bool| {
        let plan = Plan::new(machine_code!("nop"));
        let board = if asked { plan.completed() } else { plan }.build();
        let (mut vcpus, _) = board.save();
        let mut saved = vcpus.swap_remove(0);
        saved.msrs.retain(|msr| msr.index != TIME_STAMP);
        saved.xsave[XSAVE_USED] |= X87_AND_SSE;
        let mut memory = vec![0; 0x8000];
        vm_memory::Bytes::read_slice(board.memory.mapped(), &mut memory, vm_memory::GuestAddress(0)).unwrap();
        (saved, memory)
    };
    let ((fresh, fresh_memory), (asked, asked_memory)) = (state(false), state(true));
    assert_eq!(asked, fresh);
    assert!(asked_memory == fresh_memory);
}
