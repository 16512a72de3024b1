//! Ring 3 calls the system: by `syscall`, by `int n`, and by faults that are none of both.
//!
//! An ordinary KVM needs no help with any of it; the tests are the same there.

use std::time::Duration;

use lodger::hv::{ExitKind, Registers, Vcpu};
use lodger::vcpu::{Interval, Profiler};

use crate::support::programs::{
    Handler, KERNEL, PAGE_FAULT, all_handlers, call_handler, caller, counts, interpreted, interrupt_handler,
    page_fault_handler, prepare, rounds, software, start_second, with_start,
};
use crate::support::{Board, Plan, Random, eventually, machine_code, put, read_u64};

/// A board with `call` at LSTAR. Every other exception ends it with its vector as the status.
fn board(code: &'static [u8], call: &'static [u8], handlers: &[Handler]) -> Board {
    let board = interpreted(code).build();
    prepare(&board, call, handlers);
    board
}

/// The same twice: with a kernel that KVM runs, and with one that runs in software.
fn boards(code: &'static [u8], call: &'static [u8], handlers: &[Handler]) -> [Board; 2] {
    [interpreted(code), software(code)].map(|plan| {
        let board = plan.build();
        prepare(&board, call, handlers);
        board
    })
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

fn board_in_software(count: u64) -> Board {
    let board = software(caller()).build();
    prepare(&board, call_handler(), &all_handlers());
    rounds(&board, count);
    board
}

#[test]
fn calls_faults_and_interrupts_arrive_in_a_kernel_that_runs_in_software() {
    let board = board_in_software(1000);
    board.run();
    assert_eq!(counts(&board), [1000; 3]);
    let counters = board.vcpu().counters();
    let told: Vec<_> = counters.completions().into_iter().map(|(_, count)| count).collect();
    assert!(told.is_empty() || told == [1000; 3], "{:?}", counters.completions());
    assert!(told.is_empty() || counters.kernel_instructions() > 15_000, "{}", counters.kernel_instructions());
}

#[test]
fn sampling_loses_and_repeats_no_call() {
    let often = Interval::new(Duration::from_micros(50)).expect("it is long enough");
    let board = board_in_software(1000);
    let profiler = Profiler::start(&board.vcpus, often).expect("a thread can be started");
    board.run();
    drop(profiler);
    assert_eq!(counts(&board), [1000; 3]);
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
        for plan in [interpreted(caller()), software(caller())] {
            let board = plan.build();
            prepare(&board, call_handler(), &handlers);
            rounds(&board, 20);
            println!("start {number}");
            board.run();
            assert_eq!(counts(&board), [20; 3], "start {number}");
        }
    }
}

#[test]
fn programs_are_carried_over_to_fresh_machines_between_their_calls() {
    carry_over(board(caller(), call_handler(), &all_handlers()), || interpreted(caller()));
    carry_over(board_in_software(u64::MAX), || software(caller()));
}

fn carry_over(mut board: Board, plan: impl Fn() -> Plan<'static>) {
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
        board = board.move_to(plan());
    }
}

#[test]
fn pausing_loses_and_repeats_no_call() {
    for board in [board(caller(), call_handler(), &all_handlers()), board_in_software(600)] {
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
}

/// Runs two processors with entries of their own until both have called often.
fn call_on_two_processors(plan: Plan<'static>) -> Board {
    const SECOND_ENTRY: u64 = KERNEL + 0x8000;
    let board = plan.cpus(2, &[]).build();
    prepare(&board, call_handler(), &all_handlers());
    let count_apart = machine_code!("lock inc qword ptr [0x180018]", "lea eax, [rax + rax + 1]", "sysretq");
    put(&board.memory, SECOND_ENTRY, count_apart);
    start_second(&board, |second| second.rdi = SECOND_ENTRY);
    rounds(&board, u64::MAX);
    board.resume();
    eventually("both call", || board.data(0) > 200 && board.data(0x18) > 200);
    board
}

/// Expects that no call, fault or interrupt of two processors at rest was lost or came twice.
fn assert_all_counted(board: &Board) {
    assert!(board.is_alive());
    let [calls, faults, interrupts] = counts(board);
    let apart = read_u64(&board.memory, 0x18_0018);
    assert!((calls + apart).abs_diff(faults) <= 2 && faults.abs_diff(interrupts) <= 2);
}

#[test]
fn each_processor_has_its_own_entry_for_system_calls() {
    let board = call_on_two_processors(interpreted(caller()));
    board.pause();
    assert_all_counted(&board);
}

#[test]
fn each_processor_runs_its_kernel_in_software_and_loses_no_call() {
    let board = call_on_two_processors(software(caller()));
    let mut random = Random::new(13);
    for _ in 0..60 {
        board.pause();
        assert_all_counted(&board);
        board.resume();
        random.dawdle(300);
    }
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
    for board in boards(code, call_handler(), &handlers) {
        board.vcpu().while_at_rest(|vcpu| {
            let general = vcpu.registers().unwrap();
            vcpu.set_registers(&Registers { r8: 0x3b, ..general }).unwrap();
        });
        board.run();
        assert_eq!(counts(&board)[2], 100);
    }
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
        for board in boards(code, call_handler(), &handlers) {
            board.run();
            assert_eq!([0x30, 0x38, 0x40].map(|offset| board.data(offset)), [error_code, 0x10_0100, 0x23]);
        }
    }
}

#[test]
fn an_undefined_instruction_stays_one() {
    let code = with_start!("ud2", "xor eax, eax");
    let undefined = machine_code!("inc qword ptr [0x180010]", "add qword ptr [rsp], 2", "iretq");
    for board in boards(
        code,
        call_handler(),
        &[Handler(6, false, undefined), Handler(0x80, true, interrupt_handler())],
    ) {
        board.run();
        assert_eq!(counts(&board), [0, 0, 1]);
    }
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
    for board in boards(code, call_handler(), &[Handler(PAGE_FAULT, false, page_fault)]) {
        board.run();
        assert_eq!(counts(&board), [0, 1, 0]);
        assert_eq!(board.data(0x30), KERNEL);
    }
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
    for board in boards(code, call_handler(), &[Handler(PAGE_FAULT, false, page_fault_handler())]) {
        put(&board.memory, KERNEL + 0x1400, page_fault_handler());
        board.run();
        assert_eq!(counts(&board), [100, 0, 0]);
    }
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
