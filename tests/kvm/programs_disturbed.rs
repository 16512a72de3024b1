//! Programs in ring 3 that are interrupted, and that raise exceptions for which their kernel has no breakpoint.

use std::sync::Arc;
use std::time::Duration;

use lodger::vcpu::{Interval, Profiler};

use crate::support::programs::{
    Handler, PAGE_FAULT, assert_in_software, interpreted, prepare, rounds, software, with_start,
};
use crate::support::{Board, Consecutive, Plan, Random, TABLES, machine_code, put};

const TIMER: u8 = 0x40;

/// Counts, and takes its time: some 150 instructions.
fn timer_handler() -> &'static [u8] {
    machine_code!(
        "push rax",
        "push rcx",
        "inc qword ptr [0x180000]",
        "mov ecx, 50",
        "2: lea rax, [rcx + rcx]",
        "dec ecx",
        "jnz 2b",
        "mov eax, 0xfee000b0",
        "mov dword ptr [rax], 0",
        "pop rcx",
        "pop rax",
        "iretq",
    )
}

/// Starts a periodic timer, and adds a number of its own to each register until 1000 interrupts have been handled.
fn computer() -> &'static [u8] {
    with_start!(
        "mov ebx, 0xfee00000",
        "mov dword ptr [rbx + 0xf0], 0x1ff",
        "mov dword ptr [rbx + 0x3e0], 0xb",
        "mov dword ptr [rbx + 0x320], 0x20040",
        "mov dword ptr [rbx + 0x380], 300000",
        // Behind the first interrupt it is known where they arrive.
        "2: cmp qword ptr [0x180000], 0",
        "je 2b",
        "syscall",
        "xor eax, eax",
        "xor ecx, ecx",
        "xor edx, edx",
        "xor ebx, ebx",
        "xor ebp, ebp",
        "xor esi, esi",
        "xor edi, edi",
        "xor r8d, r8d",
        "xor r9d, r9d",
        "xor r10d, r10d",
        "xor r11d, r11d",
        "xor r12d, r12d",
        "xor r13d, r13d",
        "xor r14d, r14d",
        "xor r15d, r15d",
        "pxor xmm0, xmm0",
        "movq xmm1, [0x180200]",
        "2: add rax, 1",
        "add rcx, 3",
        "add rdx, 5",
        "add rbx, 7",
        "add rbp, 11",
        "add rsi, 13",
        "add rdi, 17",
        "add r8, 19",
        "add r9, 23",
        "add r10, 29",
        "add r11, 31",
        "add r12, 37",
        "add r13, 41",
        "add r14, 43",
        "add r15, 47",
        "paddq xmm0, xmm1",
        "cmp qword ptr [0x180000], 1000",
        "jb 2b",
        "mov [0x180100], rax",
        "mov [0x180108], rcx",
        "mov [0x180110], rdx",
        "mov [0x180118], rbx",
        "mov [0x180120], rbp",
        "mov [0x180128], rsi",
        "mov [0x180130], rdi",
        "mov [0x180138], r8",
        "mov [0x180140], r9",
        "mov [0x180148], r10",
        "mov [0x180150], r11",
        "mov [0x180158], r12",
        "mov [0x180160], r13",
        "mov [0x180168], r14",
        "mov [0x180170], r15",
        "movq [0x180178], xmm0",
        "xor eax, eax",
    )
}

const ADDED: [u64; 16] = [1, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53];

fn with_timer(plan: Plan<'static>) -> Board {
    let board = plan.build();
    prepare(&board, machine_code!("sysretq"), &[Handler(TIMER, false, timer_handler())]);
    put(&board.memory, 0x18_0200, &ADDED[15].to_le_bytes());
    board
}

fn assert_computed(board: &Board) {
    let results: Vec<_> = (0..16).map(|number| board.data(0x100 + number * 8)).collect();
    let expected: Vec<_> = ADDED.iter().map(|added| results[0].wrapping_mul(*added)).collect();
    assert_eq!(results, expected);
    assert!(board.data(0) >= 1000);
}

#[test]
fn interrupts_are_handled_in_software_and_leave_a_computing_program_alone() {
    let board = with_timer(software(computer()));
    board.run();
    assert_computed(&board);
    // All but those before it was known where they arrive.
    assert_in_software(&board, 900 * 150);
    let board = with_timer(interpreted(computer()));
    board.run();
    assert_computed(&board);
}

#[test]
fn interrupts_are_handled_while_a_computing_program_is_sampled_or_paused() {
    let board = with_timer(software(computer()));
    let often = Interval::new(Duration::from_micros(50)).expect("it is long enough");
    let profiler = Profiler::start(&board.vcpus, often).expect("a thread can be started");
    board.run();
    drop(profiler);
    assert_computed(&board);
    let board = with_timer(software(computer()));
    let mut random = Random::new(19);
    for _ in 0..200 {
        board.resume();
        random.dawdle(300);
        board.pause();
    }
    board.run();
    assert_computed(&board);
}

/// Starts a timer that fires once, 1000 times, and waits each time until it has. Every third time it calls its kernel
/// meanwhile.
fn waiter() -> &'static [u8] {
    with_start!(
        "mov ebx, 0xfee00000",
        "mov dword ptr [rbx + 0xf0], 0x1ff",
        "mov dword ptr [rbx + 0x3e0], 0xb",
        "mov dword ptr [rbx + 0x320], 0x40",
        "xor esi, esi",
        "2: imul eax, esi, 7919",
        "and eax, 0x1ffff",
        "inc eax",
        "mov dword ptr [rbx + 0x380], eax",
        "imul eax, esi, 0x55555556",
        "cmp eax, 0x55555556",
        "jae 3f",
        "syscall",
        "3: cmp [0x180000], rsi",
        "je 3b",
        "inc esi",
        "cmp [0x180000], rsi",
        "jne 9f",
        "cmp esi, 1000",
        "jb 2b",
        "xor eax, eax",
        "jmp 7f",
        "9: mov al, 0x79",
        "7:",
    )
}

#[test]
fn each_interrupt_is_handled_once() {
    for plan in [software(waiter()), interpreted(waiter())] {
        let board = with_timer(plan);
        board.run();
        assert_eq!(board.data(0), 1000);
    }
    let board = with_timer(software(waiter()));
    let often = Interval::new(Duration::from_micros(50)).expect("it is long enough");
    let profiler = Profiler::start(&board.vcpus, often).expect("a thread can be started");
    board.run();
    drop(profiler);
    assert_eq!(board.data(0), 1000);
}

/// Rounds of exceptions and a call; RBX counts up to R9.
fn troublemaker() -> &'static [u8] {
    with_start!(
        "2: xor edx, edx",
        "div edx",
        "hlt",
        "ud2",
        "int3",
        "mov eax, ebx",
        "syscall",
        "lea edx, [rbx + rbx + 1]",
        "cmp eax, edx",
        "jne 9f",
        "mov rax, [0x200000]",
        "inc ebx",
        "cmp ebx, r9d",
        "jne 2b",
        "xor eax, eax",
        "jmp 7f",
        "9: mov al, 0x79",
        "7:",
    )
}

#[test]
fn exceptions_that_nobody_waits_for_reach_their_handlers() {
    let call = machine_code!("lea eax, [rax + rax + 1]", "sysretq");
    let handlers = [
        // The first also talks to a device, and makes a page fault of its own.
        Handler(
            0,
            false,
            machine_code!(
                "inc qword ptr [0x180000]",
                "mov edx, 0x540",
                "mov eax, [0x180000]",
                "out dx, eax",
                "mov rax, [0x7fffff00]",
                "add qword ptr [rsp], 2",
                "iretq"
            ),
        ),
        Handler(
            13,
            false,
            machine_code!(
                "add rsp, 8",
                "inc qword ptr [0x180008]",
                "cmp qword ptr [rsp + 8], 0x23",
                "jne 2f",
                "inc qword ptr [rsp]",
                "iretq",
                "2: mov al, 0x77",
                "out 0xf4, al"
            ),
        ),
        Handler(6, false, machine_code!("inc qword ptr [0x180010]", "add qword ptr [rsp], 2", "iretq")),
        Handler(3, true, machine_code!("inc qword ptr [0x180018]", "iretq")),
        Handler(
            PAGE_FAULT,
            false,
            machine_code!("add rsp, 8", "inc qword ptr [0x180020]", "add qword ptr [rsp], 8", "iretq"),
        ),
    ];
    for (plan, count) in [(software(troublemaker()), 1000), (interpreted(troublemaker()), 200)] {
        let device = Arc::new(Consecutive::default());
        let board = plan.device(&device).build();
        prepare(&board, call, &handlers);
        // The second GiB is not there.
        put(&board.memory, TABLES + 0x1008, &0_u64.to_le_bytes());
        rounds(&board, count);
        board.run();
        let counts = [0, 8, 16, 24, 32].map(|offset| board.data(offset));
        assert_eq!(counts, [count, count, count, count, 2 * count]);
        device.check();
        assert_eq!(device.last(), count);
    }
}
