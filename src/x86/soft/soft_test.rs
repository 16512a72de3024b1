//! Kernel code of a few bytes each, in memory with page tables made by hand.

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::hv::Segment;
use crate::memory::{Layout, Options, PAGE_SIZE};
use crate::x86::mode::{CR0_PE, CR0_PG, CR4_PAE, CR4_SMAP, CR4_SMEP, EFER_LMA};

#[path = "branches_test.rs"]
mod branches;
#[path = "entries_test.rs"]
mod entries;
#[path = "rights_test.rs"]
mod rights;
#[path = "threads_test.rs"]
mod threads;

const ROOT: u64 = 0x1000;
const LAST_TABLE: u64 = 0x4000;
const CODE: u64 = 0x1_0000;
const DATA: u64 = 0x2_0000;
const STACK: u64 = 0x3_0000;
/// `hlt`: for the hypervisor, so that a run ends in front of it.
const END: u8 = 0xf4;
const PLAIN: u64 = 0x3;
const USER_PAGE: u64 = 0x7;
const READ_ONLY: u64 = 0x1;
const ABSENT: u64 = 0;

/// A processor in ring 0 whose first 2 MiB are mapped one to one, in small pages.
struct Bench {
    memory: Arc<GuestMemory>,
    soft: Soft,
    general: Registers,
    special: SpecialRegisters,
}

impl Bench {
    fn with(code: &[u8]) -> Self {
        let layout = Layout::new(2 << 20, 48).unwrap();
        let memory = Arc::new(GuestMemory::map(layout, Options::default()).unwrap());
        let code_segment = Segment { long: true, ..Segment::default() };
        let special = SpecialRegisters {
            cr0: CR0_PE | CR0_PG,
            cr3: ROOT,
            cr4: CR4_PAE,
            efer: EFER_LMA,
            cs: code_segment,
            ..SpecialRegisters::default()
        };
        let general = Registers { rip: CODE, rsp: STACK, rflags: 2, ..Registers::default() };
        let soft = Soft::new(Arc::clone(&memory));
        let bench = Self { memory, soft, general, special };
        for (table, next) in [(ROOT, 0x2000), (0x2000, 0x3000), (0x3000, LAST_TABLE)] {
            bench.put(table, next | USER_PAGE);
        }
        (0..512).for_each(|page| bench.map(page * PAGE_SIZE, PLAIN));
        bench.bytes(CODE, code);
        bench
    }

    fn put(&self, address: u64, value: u64) {
        self.memory.mapped().write_obj(value, GuestAddress(address)).unwrap();
    }

    fn get(&self, address: u64) -> u64 {
        self.memory.mapped().read_obj(GuestAddress(address)).unwrap()
    }

    fn bytes(&self, address: u64, bytes: &[u8]) {
        self.memory.mapped().write_slice(bytes, GuestAddress(address)).unwrap();
    }

    /// Maps the page of `address` to itself with these rights.
    fn map(&self, address: u64, rights: u64) {
        self.put(LAST_TABLE + address / PAGE_SIZE * 8, address & !(PAGE_SIZE - 1) | rights);
    }

    /// Maps a page anywhere to one of memory, with tables behind the data.
    fn map_at(&self, linear: u64, page: u64) {
        let tables = [0x8_0000, 0x8_1000, 0x8_2000];
        for (shift, table, next) in [
            (39, ROOT, tables[0]),
            (30, tables[0], tables[1]),
            (21, tables[1], tables[2]),
            (12, tables[2], page),
        ] {
            self.put(table + (linear >> shift & 0x1ff) * 8, next | PLAIN);
        }
    }

    fn entry(&self, address: u64) -> u64 {
        self.get(LAST_TABLE + address / PAGE_SIZE * 8)
    }

    fn run(&mut self) -> Leave {
        match self.soft.run(&mut self.general, &self.special) {
            // The end of a test is one more instruction that is the hypervisor's.
            Leave::Halt => Leave::Step,
            leave => leave,
        }
    }

    /// Expects that the instruction at CODE is left to the hypervisor with nothing changed.
    fn expect_untouched(&mut self) {
        let before = self.general;
        assert_eq!(self.run(), Leave::Step);
        assert_eq!(self.general, before);
    }
}

#[test]
fn a_loop_runs_to_its_end() {
    // mov ecx, 1000; xor eax, eax; again: add eax, ecx; dec ecx; jnz again; hlt
    let code = [0xb9, 0xe8, 3, 0, 0, 0x31, 0xc0, 0x01, 0xc8, 0xff, 0xc9, 0x75, 0xfa, END];
    let mut bench = Bench::with(&code);
    assert_eq!(bench.run(), Leave::Step);
    assert_eq!((bench.general.rax, bench.general.rcx), (500_500, 0));
    assert_eq!(bench.general.rip, CODE + 13, "at the hlt");
    assert_eq!(bench.soft.executed(), 3002);
}

#[test]
fn somebody_who_wants_to_know_where_it_is_need_not_wait() {
    // again: jmp again
    let mut bench = Bench::with(&[0xeb, 0xfe]);
    let wish = Arc::new(AtomicBool::new(false));
    bench.soft.leave_at(Arc::clone(&wish));
    assert_eq!(bench.run(), Leave::Interrupts);
    assert_eq!(bench.soft.executed(), u64::from(BETWEEN_INTERRUPTS));
    wish.store(true, Ordering::Relaxed);
    assert_eq!(bench.run(), Leave::Interrupts);
    assert_eq!(bench.soft.executed(), u64::from(BETWEEN_INTERRUPTS));
    // One that comes meanwhile is noticed before the next interrupt is due.
    wish.store(false, Ordering::Relaxed);
    let setter = std::thread::spawn(move || wish.store(true, Ordering::Relaxed));
    let start = bench.soft.executed();
    loop {
        let before = bench.soft.executed();
        assert_eq!(bench.run(), Leave::Interrupts);
        if bench.soft.executed() - before < u64::from(BETWEEN_INTERRUPTS) {
            break;
        }
    }
    assert_eq!((bench.soft.executed() - start) % u64::from(BETWEEN_WISHES), 0);
    setter.join().unwrap();
}

#[test]
fn calls_and_the_stack_work() {
    // mov eax, 5; push rax; call f; pop rbx; hlt; f: mov rcx, [rsp+8]; ret
    let code = [0xb8, 5, 0, 0, 0, 0x50, 0xe8, 2, 0, 0, 0, 0x5b, END, 0x48, 0x8b, 0x4c, 0x24, 8, 0xc3];
    let mut bench = Bench::with(&code);
    assert_eq!(bench.run(), Leave::Step);
    assert_eq!((bench.general.rbx, bench.general.rcx, bench.general.rsp), (5, 5, STACK));
}

#[test]
fn narrow_results_keep_what_is_above_them_and_wide_ones_clear_it() {
    // mov ah, 0x12; mov bx, 0x3456; mov ecx, 0x789a; hlt
    let mut bench = Bench::with(&[0xb4, 0x12, 0x66, 0xbb, 0x56, 0x34, 0xb9, 0x9a, 0x78, 0, 0, END]);
    (bench.general.rax, bench.general.rbx, bench.general.rcx) = (u64::MAX, u64::MAX, u64::MAX);
    assert_eq!(bench.run(), Leave::Step);
    assert_eq!(bench.general.rax, 0xffff_ffff_ffff_12ff);
    assert_eq!(bench.general.rbx, 0xffff_ffff_ffff_3456);
    assert_eq!(bench.general.rcx, 0x789a);
}

#[test]
fn per_processor_data_is_found_through_the_segment() {
    // mov rax, gs:[0x10]; hlt
    let mut bench = Bench::with(&[0x65, 0x48, 0x8b, 0x04, 0x25, 0x10, 0, 0, 0, END]);
    bench.special.gs.base = DATA;
    bench.put(DATA + 0x10, 77);
    assert_eq!(bench.run(), Leave::Step);
    assert_eq!(bench.general.rax, 77);
}

#[test]
fn operands_and_instructions_may_cross_pages() {
    let mut bench = Bench::with(&[]);
    // mov rax, [rsi]; mov [rdi], rax; hlt, of which the first lies on both sides of the edge
    bench.general.rip = CODE + 0xffe;
    bench.bytes(CODE + 0xffe, &[0x48, 0x8b, 0x06, 0x48, 0x89, 0x07, END]);
    (bench.general.rsi, bench.general.rdi) = (DATA + 0xffd, DATA + 0x1ffb);
    bench.put(DATA + 0xffd, 0x0102_0304_0506_0708);
    assert_eq!(bench.run(), Leave::Step);
    assert_eq!(bench.get(DATA + 0x1ffb), 0x0102_0304_0506_0708);
}

#[test]
fn a_store_that_reaches_into_a_forbidden_page_changes_nothing() {
    // mov [rdi], rax; hlt
    let mut bench = Bench::with(&[0x48, 0x89, 0x07, END]);
    for rights in [ABSENT, READ_ONLY] {
        bench.general.rdi = DATA + 0xffc;
        bench.general.rax = u64::MAX;
        bench.map(DATA + 0x1000, rights);
        bench.expect_untouched();
        assert_eq!(bench.get(DATA + 0xff8), 0);
    }
}

#[test]
fn what_faults_is_left_to_the_hypervisor() {
    for (code, what) in [
        (&[0x48, 0x8b, 0x06, END][..], "a load"),
        (&[0xff, 0x36, END][..], "a push from memory"),
        (&[0xf0, 0x48, 0xff, 0x06, END][..], "a locked increment"),
        (&[0x48, 0x0f, 0xb1, 0x06, END][..], "a compare and exchange"),
    ] {
        let mut bench = Bench::with(code);
        bench.general.rsi = DATA;
        bench.map(DATA, ABSENT);
        bench.expect_untouched();
        // Beyond the guest's memory, and no canonical address.
        bench.map(DATA, 0x1_0000_0000 | PLAIN);
        bench.expect_untouched();
        bench.general.rsi = 1 << 60;
        bench.expect_untouched();
        assert_eq!(bench.soft.executed(), 0, "{what}");
    }
}

#[test]
fn a_division_that_faults_is_left_to_the_hypervisor() {
    // div rcx; hlt
    let mut bench = Bench::with(&[0x48, 0xf7, 0xf1, END]);
    bench.expect_untouched();
    bench.general.rcx = 3;
    bench.general.rax = 10;
    assert_eq!(bench.run(), Leave::Step);
    assert_eq!((bench.general.rax, bench.general.rdx), (3, 1));
}

#[test]
fn pages_are_marked_as_the_processor_marks_them() {
    // mov al, [rsi]; mov [rdi], al; hlt
    let mut bench = Bench::with(&[0x8a, 0x06, 0x88, 0x07, END]);
    (bench.general.rsi, bench.general.rdi) = (DATA, DATA + PAGE_SIZE);
    assert_eq!(bench.run(), Leave::Step);
    assert_eq!(bench.entry(DATA) & 0x60, 0x20, "accessed, not dirty");
    assert_eq!(bench.entry(DATA + PAGE_SIZE) & 0x60, 0x60, "accessed and dirty");
    assert_eq!(bench.entry(DATA + 2 * PAGE_SIZE) & 0x60, 0);
}

#[test]
fn user_pages_are_touched_only_where_that_is_allowed() {
    // mov al, [rsi]; hlt
    let mut bench = Bench::with(&[0x8a, 0x06, END]);
    bench.general.rsi = DATA;
    bench.map(DATA, USER_PAGE);
    bench.bytes(DATA, &[9]);
    bench.special.cr4 |= CR4_SMAP;
    bench.expect_untouched();
    bench.general.rflags |= flag::ALIGNMENT;
    assert_eq!(bench.run(), Leave::Step);
    assert_eq!(bench.general.rax, 9);
    // The right is taken back: nothing of it was remembered.
    bench.general.rip = CODE;
    bench.general.rflags &= !flag::ALIGNMENT;
    bench.expect_untouched();
}

#[test]
fn code_on_user_pages_is_run_unless_that_is_forbidden() {
    let mut bench = Bench::with(&[0x90, END]);
    bench.map(CODE, USER_PAGE);
    assert_eq!(bench.run(), Leave::Step);
    assert_eq!(bench.general.rip, CODE + 1);
    bench.general.rip = CODE;
    bench.special.cr4 |= CR4_SMEP;
    bench.expect_untouched();
}

#[test]
fn code_that_changes_is_seen_at_once() {
    // again: mov byte [again+10], 0xff (makes the inc below a dec); inc eax; hlt
    let mut bench = Bench::with(&[0xff, 0xc0, END]);
    assert_eq!(bench.run(), Leave::Step);
    assert_eq!(bench.general.rax, 1);
    bench.bytes(CODE, &[0xff, 0xc8]);
    bench.general.rip = CODE;
    assert_eq!(bench.run(), Leave::Step);
    assert_eq!(bench.general.rax, 0);
}

#[test]
fn changed_page_tables_count_from_invlpg_on() {
    // mov al, [rsi]; mov bl, [rsi]; invlpg [rsi]; mov cl, [rsi]; hlt
    let mut bench = Bench::with(&[0x8a, 0x06, 0x0f, 0x01, 0x3e, 0x8a, 0x0e, END]);
    bench.general.rsi = DATA;
    bench.bytes(DATA, &[1]);
    bench.bytes(DATA + PAGE_SIZE, &[2]);
    assert_eq!(bench.run(), Leave::Step);
    bench.put(LAST_TABLE + DATA / PAGE_SIZE * 8, (DATA + PAGE_SIZE) | PLAIN);
    bench.general.rip = CODE;
    assert_eq!(bench.run(), Leave::Step);
    assert_eq!((bench.general.rax, bench.general.rcx), (1, 2));
}

#[test]
fn another_address_space_is_another() {
    // mov al, [rsi]; hlt
    let mut bench = Bench::with(&[0x8a, 0x06, END]);
    bench.general.rsi = DATA;
    bench.bytes(DATA, &[1]);
    assert_eq!(bench.run(), Leave::Step);
    bench.special.cr3 = 0x5000;
    bench.put(0x5000, 0);
    bench.general.rip = CODE;
    bench.expect_untouched();
}

#[test]
fn strings_are_copied_and_filled_across_pages() {
    // rep movsb; mov ecx, 5000; rep stosb; hlt
    let mut bench = Bench::with(&[0xf3, 0xa4, 0xb9, 0x88, 0x13, 0, 0, 0xf3, 0xaa, END]);
    let text: Vec<u8> = (0..9000_u32).map(|number| number as u8 ^ 0x5a).collect();
    bench.bytes(DATA + 5, &text);
    (bench.general.rsi, bench.general.rdi, bench.general.rcx) = (DATA + 5, DATA + 0x8003, 9000);
    bench.general.rax = 0xee;
    assert_eq!(bench.run(), Leave::Step);
    let mut found = vec![0; 9000];
    bench.memory.mapped().read_slice(&mut found, GuestAddress(DATA + 0x8003)).unwrap();
    assert_eq!(found, text);
    let mut filled = vec![0; 5001];
    bench.memory.mapped().read_slice(&mut filled, GuestAddress(DATA + 0x8003 + 9000)).unwrap();
    assert!(filled[..5000].iter().all(|&byte| byte == 0xee) && filled[5000] == 0);
    assert_eq!((bench.general.rcx, bench.general.rsi), (0, DATA + 5 + 9000));
}

#[test]
fn a_copy_that_meets_an_absent_page_stops_in_front_of_it() {
    // rep movsb; hlt
    let mut bench = Bench::with(&[0xf3, 0xa4, END]);
    (bench.general.rsi, bench.general.rdi, bench.general.rcx) = (DATA, DATA + 0x8ff0, 100);
    bench.map(DATA + 0x9000, ABSENT);
    assert_eq!(bench.run(), Leave::Step);
    assert_eq!((bench.general.rip, bench.general.rcx), (CODE, 84), "the rest is for the hypervisor");
    assert_eq!((bench.general.rsi, bench.general.rdi), (DATA + 16, DATA + 0x9000));
}

#[test]
fn strings_are_searched_and_compared_in_both_directions() {
    // repne scasb; hlt
    let mut bench = Bench::with(&[0xf2, 0xae, END]);
    bench.bytes(DATA, b"hello world");
    (bench.general.rdi, bench.general.rcx, bench.general.rax) = (DATA, 20, u64::from(b'w'));
    assert_eq!(bench.run(), Leave::Step);
    assert_eq!((bench.general.rdi, bench.general.rcx), (DATA + 7, 13));
    // std; repe cmpsb; cld; hlt
    let mut bench = Bench::with(&[0xfd, 0xf3, 0xa6, 0xfc, END]);
    bench.bytes(DATA, b"xbcde");
    bench.bytes(DATA + 100, b"abcde");
    (bench.general.rsi, bench.general.rdi, bench.general.rcx) = (DATA + 4, DATA + 104, 5);
    assert_eq!(bench.run(), Leave::Step);
    assert_eq!((bench.general.rcx, bench.general.rflags & flag::ZERO), (0, 0));
    assert_eq!(bench.general.rsi, DATA.wrapping_sub(1));
}

#[test]
fn bits_beyond_the_operand_are_found_in_both_directions() {
    // lock bts [rdi], rax; hlt
    let mut bench = Bench::with(&[0xf0, 0x48, 0x0f, 0xab, 0x07, END]);
    for (number, address, bit) in [(3_i64, DATA, 3), (64 + 7, DATA + 8, 7), (-1, DATA - 8, 63)] {
        (bench.general.rdi, bench.general.rax, bench.general.rip) = (DATA, number as u64, CODE);
        assert_eq!(bench.run(), Leave::Step);
        assert_eq!(bench.get(address), 1 << bit, "bit {number}");
    }
}

#[test]
fn interrupts_are_looked_for_soon_after_they_are_accepted() {
    // sti; again: jmp again
    let mut bench = Bench::with(&[0xfb, 0xeb, 0xfe]);
    assert_eq!(bench.run(), Leave::Interrupts);
    assert_eq!(bench.soft.executed(), u64::from(SOON) + 1);
    assert_eq!(bench.general.rflags & flag::INTERRUPT, flag::INTERRUPT);
    assert_eq!(bench.run(), Leave::Interrupts);
    assert_eq!(bench.soft.executed(), u64::from(SOON + BETWEEN_INTERRUPTS) + 1);
}

#[test]
fn no_interrupt_comes_between_sti_and_the_next_instruction() {
    // hlt; iretq; mwait; out dx, al; sysretq
    let others: [&[u8]; 5] = [&[END], &[0x48, 0xcf], &[0x0f, 0x01, 0xc9], &[0xee], &[0x48, 0x0f, 0x07]];
    for other in others {
        let mut bench = Bench::with(&[&[0xfb], other].concat());
        bench.expect_untouched();
        // Where they come already, `sti` changes nothing.
        bench.general.rflags |= flag::INTERRUPT;
        bench.run();
        assert_eq!(bench.general.rip, CODE + 1);
    }
    // again: cli; sti; jmp again, each of which may be the last before interrupts are looked for
    let mut bench = Bench::with(&[0xfa, 0xfb, 0xeb, 0xfc]);
    for _ in 0..300 {
        assert_eq!(bench.run(), Leave::Interrupts);
        assert_ne!(bench.general.rip, CODE + 2, "right behind sti");
    }
    // What follows lies in the next page.
    let mut bench = Bench::with(&[]);
    bench.general.rip = CODE + 0xffe;
    bench.bytes(CODE + 0xffe, &[0xfb, 0x48, 0xcf]);
    bench.expect_untouched();
}

#[test]
fn returns_to_ring_3_are_told_apart_from_others() {
    // sysretq
    let mut bench = Bench::with(&[0x48, 0x0f, 0x07]);
    assert_eq!(bench.run(), Leave::ToUser);
    // iretq
    let mut bench = Bench::with(&[0x48, 0xcf]);
    bench.put(STACK + 8, 0x33);
    assert_eq!(bench.run(), Leave::ToUser);
    bench.put(STACK + 8, 0x10);
    assert_eq!(bench.run(), Leave::Step);
}

#[test]
fn ports_are_told_with_their_data() {
    // mov edx, 0x3f8; out dx, al; in eax, 0x70; hlt
    let mut bench = Bench::with(&[0xba, 0xf8, 3, 0, 0, 0xee, 0xe5, 0x70, END]);
    bench.general.rax = u64::MAX;
    let Leave::Port(access) = bench.run() else { panic!("a port") };
    assert_eq!((access.port, access.width(), access.direction), (0x3f8, 1, Direction::Write));
    access.carry_out(&mut bench.general, |data| assert_eq!(data, [0xff]));
    let Leave::Port(access) = bench.run() else { panic!("a port") };
    assert_eq!((access.port, access.width(), access.direction), (0x70, 4, Direction::Read));
    access.carry_out(&mut bench.general, |data| data.copy_from_slice(&[1, 2, 3, 4]));
    assert_eq!(bench.general.rax, 0x0403_0201);
    assert_eq!(bench.run(), Leave::Step);
    assert_eq!(bench.general.rip, CODE + 8);
}

#[test]
fn only_64_bit_ring_0_with_paging_is_run() {
    let changes: [fn(&mut Bench); 6] = [
        |bench| bench.special.cr0 &= !CR0_PG,
        |bench| bench.special.efer = 0,
        |bench| bench.special.cs.long = false,
        |bench| bench.special.ss.dpl = 3,
        |bench| bench.special.cr4 |= 1 << 23,
        |bench| bench.general.rflags |= flag::TRAP,
    ];
    for change in changes {
        let mut bench = Bench::with(&[0x90, END]);
        change(&mut bench);
        assert_eq!(bench.run(), Leave::Mode);
        assert_eq!(bench.general.rip, CODE);
    }
}

#[test]
fn random_bytes_do_no_harm() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let mut executed = 0;
    for _ in 0..300 {
        let mut bench = Bench::with(&[]);
        for chunk in 0..32 {
            bench.put(CODE + chunk * 8, random());
        }
        let general = &mut bench.general;
        let registers =
            [&mut general.rax, &mut general.rbx, &mut general.rcx, &mut general.rsi, &mut general.rdi];
        for register in registers {
            *register = match random() % 3 {
                0 => DATA + random() % 0x10000,
                1 => random() % 64,
                _ => random(),
            };
        }
        for _ in 0..20 {
            match bench.run() {
                // The hypervisor would deal with it; here it is skipped.
                Leave::Step | Leave::Port(_) => bench.general.rip = bench.general.rip.wrapping_add(1),
                _ => break,
            }
        }
        executed += bench.soft.executed();
    }
    assert!(executed > 1_000, "{executed}");
}
