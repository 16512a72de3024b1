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
/// Status of a program that sees what it should not.
const WRONG: &str = "mov al, 0x79";

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
