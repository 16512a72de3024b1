use super::*;
use crate::hv::{DescriptorTable, Exception, Segment};
use crate::x86::complete::testing::{CODE, Guest, PRESENT, SIZE, USER, WRITABLE};
use crate::x86::mode::CR4_SMAP;
use crate::x86::segments;

const IDT: u64 = 0x2_0000;
const GDT: u64 = 0x2_2000;
const TASK: u64 = 0x2_3000;
const HANDLERS: u64 = 0x3_0000;
const STACK: u64 = 0x4_0fd0;
const ENTRY: u64 = 0x3_8000;
const MASK: u64 = 0x4_7700;
const USER_CODE: u64 = 0x23;
/// The first page that no memory is behind.
const NO_MEMORY: u64 = SIZE;

fn gate(target: u64, access: u64, stack: u64) -> [u64; 2] {
    let low = target & 0xffff | 0x10 << 16 | stack << 32 | access << 40 | (target >> 16 & 0xffff) << 48;
    [low, target >> 32]
}

fn entry_of(vector: u8) -> u64 {
    HANDLERS + u64::from(vector) * 16
}

fn put_words(guest: &Guest, at: u64, words: &[u64]) {
    guest.put(at, &words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>());
}

/// A guest with an interrupt table, and a processor that watches it. Each handler begins with `nop`.
fn guest() -> (Guest, Transitions) {
    let mut guest = Guest::new();
    for vector in 0..=255 {
        let open = if vector == 0x80 { 0xee } else { 0x8e };
        put_words(&guest, IDT + u64::from(vector) * 16, &gate(entry_of(vector), open, 0));
        guest.put(entry_of(vector), &[0x90]);
    }
    let user = |segment: Segment| segments::encode(&Segment { dpl: 3, ..segment });
    let kernel = segments::encode(&segments::code64());
    put_words(&guest, GDT, &[0, 0, kernel, user(segments::data()), user(segments::code64()), kernel]);
    put_words(&guest, GDT + 6 * 8, &[user(segments::code32())]);
    guest.state.special.idt = DescriptorTable { base: IDT, limit: 0xfff };
    guest.state.special.gdt = DescriptorTable { base: GDT, limit: 7 * 8 - 1 };
    guest.state.special.tr = Segment { base: TASK, ..segments::task() };
    guest.state.special.ss = Segment { selector: 0, ..segments::data() };
    guest.state.msrs = [(STAR, 0x13_0010 << 32), (LSTAR, ENTRY), (SYSCALL_MASK, MASK)]
        .map(|(index, value)| Msr { index, value })
        .to_vec();
    guest.vcpu.restore(&guest.state).unwrap();
    let mut transitions = Transitions::new(Gaps::ALL);
    transitions.arm(&guest.vcpu, &guest.memory).unwrap();
    (guest, transitions)
}

/// Puts the processor at the entry of the handler of `vector`, with these words on its stack.
fn at_handler(guest: &mut Guest, vector: u8, stack: &[u64]) {
    put_words(guest, STACK, stack);
    guest.state.registers.rip = entry_of(vector);
    guest.state.registers.rsp = STACK;
}

/// What `syscall` leads to, with user flags of 0x246.
fn call(guest: &mut Guest) {
    guest.state.registers.rcx = 0x5002;
    guest.state.registers.r11 = 0x246;
    guest.state.special.cr2 = ENTRY;
    at_handler(guest, PAGE_FAULT, &[5, ENTRY, USER_CODE, 0x1_0046, 0x7000, 0x1b]);
}

fn stop(guest: &mut Guest, transitions: &mut Transitions) -> Stopped {
    guest.vcpu.restore(&guest.state).unwrap();
    let stopped = transitions.stopped(&guest.vcpu, &guest.memory).unwrap();
    guest.state = guest.vcpu.save(&[]).unwrap();
    stopped
}

#[test]
fn handlers_are_found_in_the_interrupt_table_and_found_again_when_they_move() {
    let (guest, mut transitions) = guest();
    assert_eq!(transitions.breakpoints, [entry_of(14), entry_of(6)]);
    assert!(!transitions.is_unsettled());
    put_words(&guest, IDT + 14 * 16, &gate(0xffff_ffff_8123_4560, 0x8f, 0));
    transitions.watch(&guest.vcpu, &guest.memory).unwrap();
    assert_eq!(transitions.breakpoints, [0xffff_ffff_8123_4560, entry_of(6)]);
    put_words(&guest, IDT + 6 * 16, &gate(0, 0x8e, 0));
    transitions.watch(&guest.vcpu, &guest.memory).unwrap();
    assert_eq!(transitions.breakpoints, [0xffff_ffff_8123_4560]);
    assert!(!transitions.is_unsettled());
    put_words(&guest, IDT + 14 * 16, &gate(entry_of(14), 0x0e, 0));
    transitions.watch(&guest.vcpu, &guest.memory).unwrap();
    assert!(transitions.is_unsettled() && !transitions.is_watching());
}

#[test]
fn undefined_instructions_are_of_interest_only_while_ring_3_may_use_interrupt_0x80() {
    let (guest, mut transitions) = guest();
    for (access, expected) in [(0x8e, vec![entry_of(14)]), (0xee, vec![entry_of(14), entry_of(6)])] {
        put_words(&guest, IDT + 0x80 * 16, &gate(entry_of(0x80), access, 0));
        transitions.watch(&guest.vcpu, &guest.memory).unwrap();
        assert_eq!(transitions.breakpoints, expected);
    }
}

#[test]
fn a_system_call_gets_the_state_that_it_should_have_arrived_with() {
    let (mut guest, mut transitions) = guest();
    call(&mut guest);
    assert_eq!(stop(&mut guest, &mut transitions), Stopped::Call);
    let (general, special) = (guest.state.registers, guest.state.special);
    assert_eq!((general.rip, general.rsp, general.rflags), (ENTRY, 0x7000, 0x46 & !MASK | 2));
    assert_eq!((general.rcx, general.r11), (0x5002, 0x246));
    assert_eq!((special.cs.selector, special.cs.long, special.cs.dpl), (0x10, true, 0));
    assert_eq!((special.ss.selector, special.ss.dpl, special.ss.unusable), (0x18, 0, false));
}

#[test]
fn what_syscall_cannot_have_left_behind_is_a_page_fault() {
    type Change = fn(&mut Guest);
    let changes: [(&str, Change); 9] = [
        ("another place", |guest| guest.put(STACK + 8, &(ENTRY + 1).to_le_bytes())),
        ("ring 0", |guest| guest.put(STACK + 16, &[0x10])),
        ("another address", |guest| guest.state.special.cr2 = ENTRY + 1),
        ("a write", |guest| guest.put(STACK, &[7])),
        ("an access of ring 0", |guest| guest.put(STACK, &[1])),
        ("a reserved bit", |guest| guest.put(STACK, &[13])),
        ("interrupts on", |guest| guest.put(STACK + 24, &0x1_0246_u64.to_le_bytes())),
        ("flags of its own in R11", |guest| guest.state.registers.r11 = 0x20_0246),
        ("a stack that cannot be read", |guest| guest.map(STACK, 0)),
    ];
    for (name, change) in changes {
        let (mut guest, mut transitions) = guest();
        call(&mut guest);
        change(&mut guest);
        assert_eq!(stop(&mut guest, &mut transitions), Stopped::Exception, "{name}");
        // The handler's first instruction is done.
        assert_eq!(guest.state.registers.rip, entry_of(14) + 1, "{name}");
        assert_eq!(guest.state.registers.rsp, STACK, "{name}");
        assert!(guest.exceptions().is_empty(), "{name}");
    }
}

#[test]
fn an_interrupt_gets_the_frame_and_the_flags_of_its_gate() {
    for (access, expected) in [(0xee, 0x46), (0xef, 0x246)] {
        let (mut guest, mut transitions) = guest();
        put_words(&guest, IDT + 0x80 * 16, &gate(entry_of(0x80), access, 0));
        guest.put(0x5000, &[0xcd, 0x80]);
        // With the flags for nested tasks and for resuming, which handlers do not see.
        at_handler(&mut guest, UNDEFINED, &[0x5000, USER_CODE, 0x1_4346, 0x7000, 0x1b]);
        guest.state.registers.rax = 77;
        assert_eq!(stop(&mut guest, &mut transitions), Stopped::Interrupt);
        let general = guest.state.registers;
        assert_eq!((general.rip, general.rsp, general.rflags), (entry_of(0x80), STACK, expected));
        assert_eq!(general.rax, 77);
        let frame = [0, 8, 16, 24, 32].map(|offset| guest.word(STACK + offset));
        assert_eq!(frame, [0x5002, USER_CODE, 0x4346, 0x7000, 0x1b]);
    }
}

#[test]
fn an_interrupt_is_found_where_the_kernel_may_not_look() {
    let (mut guest, mut transitions) = guest();
    guest.put(0x5000, &[0xcd, 0x80]);
    guest.map(0x5000, 0x5000 | PRESENT | USER);
    guest.state.special.cr4 |= CR4_SMAP;
    at_handler(&mut guest, UNDEFINED, &[0x5000, USER_CODE, 0x202, 0x7000, 0x1b]);
    assert_eq!(stop(&mut guest, &mut transitions), Stopped::Interrupt);
    assert_eq!(guest.word(STACK), 0x5002);
}

#[test]
fn an_interrupt_with_a_stack_of_its_own_gets_its_frame_there() {
    let (mut guest, mut transitions) = guest();
    put_words(&guest, IDT + 0x80 * 16, &gate(entry_of(0x80), 0xee, 3));
    guest.put(TASK + 28 + 3 * 8, &0x4_8018_u64.to_le_bytes());
    guest.put(0x5000, &[0xcd, 0x80]);
    at_handler(&mut guest, UNDEFINED, &[0x5000, USER_CODE, 0x202, 0x7000, 0x1b]);
    assert_eq!(stop(&mut guest, &mut transitions), Stopped::Interrupt);
    assert_eq!(guest.state.registers.rsp, 0x4_8010 - 40);
    assert_eq!((guest.word(0x4_8010 - 40), guest.word(0x4_8010 - 8)), (0x5002, 0x1b));
}

#[test]
fn an_interrupt_that_is_refused_goes_back_to_ring_3_as_a_protection_fault() {
    for (vector, access, expected) in [(0x81_u8, 0x8e, 13), (0x82, 0xe9, 13), (0x83, 0x6e, 11), (0x84, 0, 13)]
    {
        let (mut guest, mut transitions) = guest();
        put_words(&guest, IDT + u64::from(vector) * 16, &gate(entry_of(vector), access, 0));
        guest.put(0x5000, &[0xcd, vector]);
        at_handler(&mut guest, UNDEFINED, &[0x5000, USER_CODE, 0x202, 0x7000, 0x1b]);
        assert_eq!(stop(&mut guest, &mut transitions), Stopped::Interrupt);
        let (general, special) = (guest.state.registers, guest.state.special);
        assert_eq!((general.rip, general.rsp), (0x5000, 0x7000));
        assert_eq!((special.cs.selector, special.cs.dpl), (USER_CODE as u16, 3));
        assert_eq!((special.ss.selector, special.ss.dpl), (0x1b, 3));
        let error_code = Some(u32::from(vector) * 8 + 2);
        assert_eq!(guest.exceptions(), [Exception { vector: expected, error_code }]);
    }
}

#[test]
fn interrupts_of_16_and_32_bits_are_read_with_the_base_of_their_segment() {
    let (mut guest, mut transitions) = guest();
    let based = Segment { base: 0x1000, dpl: 3, ..segments::code32() };
    put_words(&guest, GDT + 6 * 8, &[segments::encode(&based)]);
    guest.put(0x5000, &[0xcd, 0x80]);
    at_handler(&mut guest, UNDEFINED, &[0x4000, 0x33, 0x202, 0x7000, 0x1b]);
    assert_eq!(stop(&mut guest, &mut transitions), Stopped::Interrupt);
    assert_eq!(guest.word(STACK), 0x4002);
}

#[test]
fn what_is_no_interrupt_stays_an_undefined_instruction() {
    type Change = fn(&mut Guest);
    let changes: [(&str, Change); 8] = [
        ("ud2", |guest| guest.put(0x5000, &[0x0f, 0x0b])),
        ("from ring 0", |guest| guest.put(STACK + 8, &[0x10])),
        ("not to be read", |guest| guest.map(0x5000, 0)),
        ("no such code segment", |guest| guest.put(STACK + 8, &[0xf3])),
        ("in a local table that is not there", |guest| guest.put(STACK + 8, &[0x0f])),
        ("to a handler that is nowhere", |guest| {
            put_words(guest, IDT + 0x80 * 16, &gate(1 << 60, 0xee, 0));
        }),
        ("to a stack that is nowhere", |guest| {
            put_words(guest, IDT + 0x80 * 16, &gate(entry_of(0x80), 0xee, 1));
            guest.put(TASK + 36, &(NO_MEMORY + 0x1000).to_le_bytes());
        }),
        ("to code that is data", |guest| {
            put_words(guest, GDT + 0x10, &[segments::encode(&segments::data())])
        }),
    ];
    for (name, change) in changes {
        let (mut guest, mut transitions) = guest();
        guest.put(0x5000, &[0xcd, 0x80]);
        at_handler(&mut guest, UNDEFINED, &[0x5000, USER_CODE, 0x202, 0x7000, 0x1b]);
        change(&mut guest);
        assert_eq!(stop(&mut guest, &mut transitions), Stopped::Exception, "{name}");
        assert_eq!(guest.state.registers.rip, entry_of(6) + 1, "{name}");
        assert!(guest.exceptions().is_empty(), "{name}");
    }
}

#[test]
fn an_interrupt_table_that_makes_no_sense_is_no_reason_to_stop() {
    let tables =
        [(0, 0), (u64::MAX - 8, 0xfff), (1 << 60, 0xfff), (NO_MEMORY, 0xffff), (IDT, 14 * 16 + 14), (0, 5)];
    for (base, limit) in tables {
        let (mut guest, mut transitions) = guest();
        guest.state.special.idt = DescriptorTable { base, limit };
        guest.vcpu.restore(&guest.state).unwrap();
        transitions.watch(&guest.vcpu, &guest.memory).unwrap();
        assert!(!transitions.breakpoints.contains(&entry_of(14)), "{base:#x} {limit:#x}");
        call(&mut guest);
        // A breakpoint that was set before strikes once more.
        let stopped = stop(&mut guest, &mut transitions);
        assert!(matches!(stopped, Stopped::Nothing | Stopped::Call), "{stopped:?}");
    }
}

#[test]
fn outside_of_long_mode_nothing_is_watched() {
    let (mut guest, mut transitions) = guest();
    guest.state.special.efer = 0;
    guest.vcpu.restore(&guest.state).unwrap();
    transitions.watch(&guest.vcpu, &guest.memory).unwrap();
    assert!(transitions.breakpoints.is_empty());
}

#[test]
fn an_instruction_that_cannot_be_executed_here_moves_the_breakpoint_behind_it_for_one_stop() {
    let (mut guest, mut transitions) = guest();
    // mov rax, cr2
    guest.put(entry_of(14), &[0x0f, 0x20, 0xd0, 0x90]);
    call(&mut guest);
    guest.put(STACK, &[7]);
    assert_eq!(stop(&mut guest, &mut transitions), Stopped::Exception);
    assert_eq!(guest.state.registers.rip, entry_of(14));
    assert_eq!(transitions.breakpoints, [entry_of(14) + 3, entry_of(6)]);
    assert!(transitions.is_unsettled());
    guest.state.registers.rip += 3;
    assert_eq!(stop(&mut guest, &mut transitions), Stopped::Nothing);
    assert_eq!(guest.state.registers.rip, entry_of(14) + 3);
    assert_eq!(transitions.breakpoints, [entry_of(14), entry_of(6)]);
}

#[test]
fn a_call_that_got_behind_the_first_instruction_is_delivered_there() {
    let (mut guest, mut transitions) = guest();
    guest.put(entry_of(14), &[0x0f, 0x20, 0xd0, 0x90]);
    call(&mut guest);
    guest.put(STACK, &[7]);
    stop(&mut guest, &mut transitions);
    call(&mut guest);
    guest.state.registers.rip += 3;
    assert_eq!(stop(&mut guest, &mut transitions), Stopped::Call);
    assert_eq!(guest.state.registers.rip, ENTRY);
}

#[test]
fn a_handler_whose_first_instruction_faults_gets_that_fault() {
    let (mut guest, mut transitions) = guest();
    // mov eax, [0x6000], which is not there
    guest.put(entry_of(14), &[0x8b, 0x04, 0x25, 0, 0x60, 0, 0]);
    guest.map(0x6000, 0);
    call(&mut guest);
    guest.put(STACK, &[7]);
    assert_eq!(stop(&mut guest, &mut transitions), Stopped::Exception);
    assert_eq!(guest.state.registers.rip, entry_of(14));
    assert_eq!(guest.exceptions(), [Exception { vector: 14, error_code: Some(0) }]);
    assert_eq!(guest.state.special.cr2, 0x6000);
}

#[test]
fn a_push_where_nothing_can_be_pushed_is_left_to_the_processor() {
    let (mut guest, mut transitions) = guest();
    guest.put(entry_of(14), &[0x6a, 0xff]); // push -1
    call(&mut guest);
    guest.put(STACK, &[7]);
    guest.state.registers.rsp = 0x5_0000;
    guest.map(0x4_f000, 0x4_f001 & !WRITABLE);
    guest.state.special.cr0 |= 1 << 16;
    assert_eq!(stop(&mut guest, &mut transitions), Stopped::Exception);
    assert_eq!((guest.state.registers.rip, guest.state.registers.rsp), (entry_of(14), 0x5_0000));
    assert!(guest.exceptions().is_empty());
}

#[test]
fn a_write_to_a_register_of_syscall_is_done_and_followed() {
    let (mut guest, mut transitions) = guest();
    let lstar = Msr { index: LSTAR, value: CODE };
    assert!(transitions.write_msr(&guest.vcpu, &guest.memory, lstar).unwrap());
    assert_eq!(guest.vcpu.msr(LSTAR).unwrap(), Some(CODE));
    guest.state = guest.vcpu.save(&[]).unwrap();
    call(&mut guest);
    assert_eq!(stop(&mut guest, &mut transitions), Stopped::Exception);
    // Without an entry for system calls nobody looks at page faults.
    let none = Msr { index: LSTAR, value: 0 };
    assert!(transitions.write_msr(&guest.vcpu, &guest.memory, none).unwrap());
    assert_eq!(transitions.breakpoints, [entry_of(6)]);
}

#[test]
fn a_restored_processor_is_armed_by_what_it_holds() {
    let (guest, _) = guest();
    let mut transitions = Transitions::new(Gaps::ALL);
    assert!(transitions.breakpoints.is_empty());
    transitions.arm(&guest.vcpu, &guest.memory).unwrap();
    assert_eq!((transitions.star, transitions.lstar, transitions.mask), (0x13_0010 << 32, ENTRY, MASK));
    assert_eq!(transitions.breakpoints, [entry_of(14), entry_of(6)]);
}
