//! Programs in ring 3 whose kernel changes the page tables through which they see.
//!
//! Where KVM interprets the kernel it is run twice: by the software processor, and by KVM as it is completed. An
//! ordinary KVM runs it twice the same.

use lodger::hv::{Registers, Vcpu};

use crate::support::programs::{
    Handler, KERNEL, PAGE_FAULT, assert_in_software, interpreted, prepare, rounds, software, start_second,
    with_start,
};
use crate::support::{Board, Random, TABLES, eventually, machine_code, put, read_u64};

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

/// Two calls that put the entry for page R10, which is in RAX, in its place: one invalidates the page by INVLPG, the
/// other all of them by CR3.
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

/// Has the pages exchanged by a call, looks, and waits until the other processor has seen it.
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

/// Has the second processor run the [`follower`], elsewhere in memory.
fn start_follower(board: &Board) {
    // The start pushes where ring 3 begins.
    const ELSEWHERE: u64 = 0x12_0000;
    let code = follower();
    let push = [0x68, 0x00, 0x01, 0x10, 0x00];
    let at = code.windows(5).position(|bytes| bytes == push).expect("it does so");
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
    board.resume();
    let seen = board.data(0x108);
    eventually("it goes on", || board.data(0x108) > seen + 10);
    board.pause();
    assert!(board.is_alive());
    let [changed, seen] = [0x100, 0x108].map(|offset| board.data(offset));
    assert!(changed - seen <= 1, "{changed} {seen}");
}
