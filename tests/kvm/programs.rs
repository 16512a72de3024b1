//! Programs in ring 3 whose kernel changes what they see and is called by what they do not ask for.
//!
//! Where KVM interprets the kernel it is run twice: by the software processor, and by KVM as it is completed. An
//! ordinary KVM runs it twice the same.

use std::time::Duration;

use lodger::hv::{Registers, Vcpu};
use lodger::vcpu::{Interval, Profiler};

use crate::support::programs::{Handler, KERNEL, PAGE_FAULT, prepare, rounds, start_second, with_start};
use crate::support::{Board, Consecutive, Plan, Random, TABLES, machine_code, put, read_u64};

/// Where the kernel's tables for the program's page lie, from the second level on, and where others lie that lead
/// elsewhere.
const POINTERS: u64 = 0x30_1000;
const DIRECTORY: u64 = 0x30_2000;
const TABLE: u64 = 0x30_3000;
const OTHER_TABLE: u64 = 0x30_4000;
const OTHER_DIRECTORY: u64 = 0x30_5000;
const OTHER_POINTERS: u64 = 0x30_6000;
/// Full tables, to be copied: one for each page.
const TEMPLATES: u64 = 0x30_8000;
/// Entries as the kernel looks them up.
const CHOICE: u64 = 0x30_a000;
/// The pages that the program may see, one behind the other, and what it finds in them.
const PAGES: u64 = 0x31_0000;
const OFFSET: u64 = 0x200;
const CONTENTS: [u64; 2] = [0xa, 0xb];
/// The program's page: the second entry of the first level, and the first of all others.
const LINEAR: u64 = 1 << 39;
const OPEN: u64 = 7;

fn software(code: &'static [u8]) -> Plan<'static> {
    interpreted(code).with_kernel_in_software()
}

fn interpreted(code: &'static [u8]) -> Plan<'static> {
    Plan::new(code).ring(0).memory(4 << 20).completed()
}

/// Prepares the kernel, and the tables such that the program sees the first page.
fn prepare_tables(board: &Board, call: &[u8], handlers: &[Handler]) {
    prepare(board, call, handlers);
    let page = |number: u64| (PAGES + number * 0x1000) | OPEN;
    let entries = [
        (TABLES + 8, POINTERS | OPEN),
        (POINTERS, DIRECTORY | OPEN),
        (DIRECTORY, TABLE | OPEN),
        (TABLE, page(0)),
        (OTHER_POINTERS, OTHER_DIRECTORY | OPEN),
        (OTHER_DIRECTORY, OTHER_TABLE | OPEN),
        (OTHER_TABLE, page(1)),
    ];
    entries.iter().for_each(|(at, entry)| put(&board.memory, *at, &entry.to_le_bytes()));
    for (number, contents) in (0..).zip(CONTENTS) {
        put(&board.memory, PAGES + number * 0x1000 + OFFSET, &contents.to_le_bytes());
        let template = page(number).to_le_bytes().repeat(512);
        put(&board.memory, TEMPLATES + number * 0x1000, &template);
    }
    board.vcpu().while_at_rest(|vcpu| {
        let general = vcpu.registers().unwrap();
        vcpu.set_registers(&Registers { r12: LINEAR, ..general }).unwrap();
    });
}

/// A call with the entry for page R10 in RAX, which puts it in its place, and invalidates the page by INVLPG or, from
/// the second byte of the pair on, by CR3.
macro_rules! change {
    ($($line:expr),+ $(,)?) => {
        [
            machine_code!(
                "mov eax, r10d", "shl eax, 12", "add eax, 0x310007", $($line,)+ "invlpg [r12]", "sysretq"
            ),
            machine_code!(
                "mov eax, r10d", "shl eax, 12", "add eax, 0x310007", $($line,)+
                "mov rdx, cr3", "mov cr3, rdx", "sysretq"
            ),
        ]
    };
}

/// Has the pages exchanged by a call, and looks; RBX counts up to R9.
fn reader() -> &'static [u8] {
    with_start!(
        "xor r10d, r10d",
        "2: xor r10d, 1",
        "syscall",
        "mov rdx, [r12 + 0x200]",
        "lea rax, [r10 + 0xa]",
        "cmp rdx, rax",
        "jne 9f",
        "inc ebx",
        "cmp ebx, r9d",
        "jne 2b",
        "xor eax, eax",
        "jmp 7f",
        "9: mov al, 0x79",
        "7:",
    )
}

/// Whether the kernel has run where it should.
fn assert_in_software(board: &Board, least: u64) {
    let counters = board.vcpu().counters();
    let instructions = counters.kernel_instructions();
    assert!(counters.completions().is_empty() || instructions >= least, "{instructions}");
}

/// Has the program look after so many changes of this kind.
fn assert_seen(what: &str, calls: [&'static [u8]; 2], count: u64) {
    println!("{what}");
    for call in calls {
        assert!(call.len() as u64 <= OFFSET, "what lies behind it in a large page is read");
        let board = software(reader()).build();
        prepare_tables(&board, call, &[]);
        rounds(&board, count);
        board.run();
        assert_in_software(&board, 3 * count);
        let board = interpreted(reader()).build();
        prepare_tables(&board, call, &[]);
        rounds(&board, count / 10);
        board.run();
    }
}

#[test]
fn a_program_sees_each_change_of_an_entry() {
    let changes = [
        ("mov", change!("mov [0x303000], rax")),
        ("mov of 32 bits", change!("mov [0x303000], eax")),
        ("mov of a byte", change!("shr eax, 8", "mov [0x303001], al")),
        ("mov of an immediate", change!("mov qword ptr [0x303000], 0", "or [0x303000], rax")),
        ("movnti", change!("mov edx, 0x303000", "movnti [rdx], rax")),
        ("xchg", change!("xchg [0x303000], rax")),
        ("cmpxchg", change!("mov rdx, rax", "mov rax, [0x303000]", "lock cmpxchg [0x303000], rdx")),
        ("xadd", change!("sub rax, [0x303000]", "lock xadd [0x303000], rax")),
        ("xor", change!("xor qword ptr [0x303000], 0x1000")),
        ("lock xor", change!("lock xor qword ptr [0x303000], 0x1000")),
        ("lock btc", change!("lock btc qword ptr [0x303000], 12")),
        (
            "lock btr, btc, lock bts",
            change!(
                "lock btr qword ptr [0x303000], 0",
                "btc qword ptr [0x303000], 12",
                "lock bts qword ptr [0x303000], 0"
            ),
        ),
        ("push", change!("mov rdx, rsp", "mov esp, 0x303008", "push rax", "mov rsp, rdx")),
        (
            "a store across words",
            change!("mov edx, 0x303000", "mov dword ptr [rdx - 2], 0", "mov [rdx], rax"),
        ),
    ];
    for (what, calls) in changes {
        assert_seen(what, calls, 2000);
    }
}

#[test]
fn a_program_sees_each_change_of_a_whole_table() {
    let changes = [
        (
            "rep stosq",
            change!("mov r8, rcx", "mov edi, 0x303000", "mov ecx, 512", "rep stosq", "mov rcx, r8"),
        ),
        (
            "rep stosb, mov",
            change!(
                "mov rdx, rax",
                "xor eax, eax",
                "mov r8, rcx",
                "mov edi, 0x303000",
                "mov ecx, 4096",
                "rep stosb",
                "mov rcx, r8",
                "mov [0x303000], rdx"
            ),
        ),
        (
            "rep movsq",
            change!(
                "mov esi, r10d",
                "shl esi, 12",
                "add esi, 0x308000",
                "mov r8, rcx",
                "mov edi, 0x303000",
                "mov ecx, 512",
                "rep movsq",
                "mov rcx, r8"
            ),
        ),
        (
            "rep movsq downwards",
            change!(
                "mov esi, r10d",
                "shl esi, 12",
                "add esi, 0x308ff8",
                "mov r8, rcx",
                "mov edi, 0x303ff8",
                "mov ecx, 512",
                "std",
                "rep movsq",
                "cld",
                "mov rcx, r8"
            ),
        ),
    ];
    for (what, calls) in changes {
        assert_seen(what, calls, 60);
    }
}

#[test]
fn a_program_sees_each_change_of_the_upper_levels() {
    let changes = [
        ("level 2", change!("mov edx, r10d", "shl edx, 12", "add edx, 0x303007", "mov [0x302000], rdx")),
        ("level 3", change!("imul edx, r10d, 0x3000", "add edx, 0x302007", "mov [0x301000], rdx")),
        ("level 4", change!("imul edx, r10d, 0x5000", "add edx, 0x301007", "xchg [0x1008], rdx")),
    ];
    for (what, calls) in changes {
        assert_seen(what, calls, 2000);
    }
    // A table, and a large page in its place, of which the program sees the kernel's code, and what lies behind it.
    let large = change!(
        "mov qword ptr [0x200200], 0xb",
        "mov eax, 0x2000e7",
        "mov edx, 0x303007",
        "test r10d, r10d",
        "cmovz eax, edx",
        "mov [0x302000], rax"
    );
    assert_seen("a large page", large, 2000);
}

/// Has its page changed by a call in four ways in turn, and writes to it and reads from it after each: with
/// instructions of eight bytes, which the handler skips if they fault.
fn prober() -> &'static [u8] {
    with_start!(
        "2: xor r10d, r10d",
        "3: syscall",
        "lea rdx, [rbx + 0x1000]",
        "mov r13, rdx",
        "mov [r12 + 0x200], rdx",
        "xor edx, edx",
        "mov rdx, [r12 + 0x200]",
        // Two may read: what was written in the first round, when it was allowed.
        "mov eax, r10d",
        "cmp eax, 2",
        "jae 4f",
        "cmp rdx, r13",
        "jne 9f",
        "jmp 5f",
        "4: test rdx, rdx",
        "jnz 9f",
        "5: inc r10d",
        "cmp r10d, 4",
        "jne 3b",
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
fn a_program_faults_exactly_where_its_kernel_has_taken_something_away() {
    const COUNT: u64 = 1000;
    let call =
        machine_code!("mov rax, [r10 * 8 + 0x30a000]", "xchg [0x303000], rax", "invlpg [r12]", "sysretq");
    // Counts by error code.
    let fault = machine_code!(
        "push rax",
        "mov rax, [rsp + 8]",
        "inc qword ptr [rax * 8 + 0x180100]",
        "pop rax",
        "add rsp, 8",
        "add qword ptr [rsp], 8",
        "iretq"
    );
    for (plan, count) in [(software(prober()), COUNT), (interpreted(prober()), COUNT / 10)] {
        let board = plan.build();
        prepare_tables(&board, call, &[Handler(PAGE_FAULT, false, fault)]);
        // Writable, read-only, the kernel's own, none.
        for (number, rights) in (0..).zip([7, 5, 3]) {
            put(&board.memory, CHOICE + number * 8, &(PAGES | rights).to_le_bytes());
        }
        rounds(&board, count);
        board.run();
        let faults = [4, 5, 6, 7].map(|code: u64| board.data(0x100 + code * 8));
        // Reads and writes of none, of the kernel's own, and writes of the read-only one.
        assert_eq!(faults, [count, count, count, 2 * count]);
        assert_eq!(read_u64(&board.memory, PAGES + OFFSET), 0x1000 + count - 1);
    }
}

/// Waits for each number at 0x180100, has its kernel load CR3 again, looks, and answers at 0x180108.
fn follower() -> &'static [u8] {
    with_start!(
        "mov r10d, 2",
        "2: inc rbx",
        "3: pause",
        "cmp [0x180100], rbx",
        "jne 3b",
        "syscall",
        "mov rdx, [r12 + 0x200]",
        "mov eax, ebx",
        "and eax, 1",
        "add eax, 0xa",
        "cmp rdx, rax",
        "jne 9f",
        "mov [0x180108], rbx",
        "jmp 2b",
        "9: mov al, 0x79",
    )
}

/// Has the pages exchanged by a call, looks, and waits until the other processor has seen it; with the length of
/// [`follower`], which lies behind it.
fn leader() -> &'static [u8] {
    with_start!(
        "xor ebx, ebx",
        "2: inc rbx",
        "mov r10d, ebx",
        "and r10d, 1",
        "syscall",
        "mov rdx, [r12 + 0x200]",
        "lea rax, [r10 + 0xa]",
        "cmp rdx, rax",
        "jne 9f",
        "mov [0x180100], rbx",
        "3: pause",
        "cmp [0x180108], rbx",
        "jne 3b",
        "cmp ebx, r9d",
        "jne 2b",
        "xor eax, eax",
        "jmp 7f",
        "9: mov al, 0x78",
        "7:",
    )
}

/// The same by a kernel without programs, whose processor never leaves ring 0.
fn leading_kernel() -> &'static [u8] {
    machine_code!(
        "xor ebx, ebx",
        "2: inc rbx",
        "mov eax, ebx",
        "and eax, 1",
        "shl eax, 12",
        "add eax, 0x310007",
        "xchg [0x303000], rax",
        "mov [0x180100], rbx",
        "3: pause",
        "cmp [0x180108], rbx",
        "jne 3b",
        "cmp ebx, r9d",
        "jne 2b",
        "xor eax, eax",
        "out 0xf4, al",
    )
}

/// Exchanges the pages if R10 says which one is to be there, and loads CR3 in any case.
fn exchange_or_reload() -> &'static [u8] {
    machine_code!(
        "cmp r10d, 2",
        "je 2f",
        "mov eax, r10d",
        "shl eax, 12",
        "add eax, 0x310007",
        "xchg [0x303000], rax",
        "2: mov rdx, cr3",
        "mov cr3, rdx",
        "sysretq",
    )
}

/// Has the second processor run the [`follower`], which starts where the first one is and goes on elsewhere.
fn start_follower(board: &Board) {
    // The code at the start is the same but for where ring 3 begins, which is in its last bytes before `iretq`.
    const ELSEWHERE: u64 = 0x12_0000;
    let code = follower();
    let push = [0x68, 0x00, 0x01, 0x10, 0x00];
    let at = code.windows(5).position(|bytes| bytes == push).expect("the start pushes where ring 3 begins");
    let mut code = code.to_vec();
    code[at + 3] = (ELSEWHERE >> 16) as u8;
    put(&board.memory, ELSEWHERE, &code);
    start_second(board, |second| second.rip = ELSEWHERE);
}

#[test]
fn a_program_sees_what_the_kernel_of_another_processor_changed() {
    for (plan, count) in [(software(leader()), 2000), (interpreted(leader()), 200)] {
        let board = plan.cpus(2, &[]).build();
        prepare_tables(&board, exchange_or_reload(), &[]);
        start_follower(&board);
        rounds(&board, count);
        board.run();
        assert_eq!([0x100, 0x108].map(|offset| board.data(offset)), [count; 2]);
    }
}

#[test]
fn a_program_sees_what_a_processor_without_programs_changed() {
    for (plan, count) in [(software(leader()), 2000), (interpreted(leader()), 200)] {
        let board = plan.cpus(2, &[]).build();
        prepare_tables(&board, exchange_or_reload(), &[]);
        start_follower(&board);
        put(&board.memory, KERNEL + 0x8000, leading_kernel());
        board.vcpu().while_at_rest(|vcpu| {
            let general = vcpu.registers().unwrap();
            vcpu.set_registers(&Registers { rip: KERNEL + 0x8000, ..general }).unwrap();
        });
        rounds(&board, count);
        board.run();
        assert_eq!([0x100, 0x108].map(|offset| board.data(offset)), [count; 2]);
    }
}

#[test]
fn pausing_makes_no_processor_miss_a_change() {
    let board = software(leader()).cpus(2, &[]).build();
    prepare_tables(&board, exchange_or_reload(), &[]);
    start_follower(&board);
    rounds(&board, u64::MAX);
    let mut random = Random::new(17);
    for _ in 0..150 {
        board.resume();
        random.dawdle(500);
        board.pause();
        assert!(board.is_alive());
    }
    let [changed, seen] = [0x100, 0x108].map(|offset| board.data(offset));
    assert!(seen > 0 && changed - seen <= 1, "{changed} {seen}");
}

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
    for (code, count) in [(true, 1000), (false, 200)] {
        let device = std::sync::Arc::new(Consecutive::default());
        let plan = if code { software(troublemaker()) } else { interpreted(troublemaker()) };
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
