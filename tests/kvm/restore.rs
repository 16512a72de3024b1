//! A guest is carried over to a fresh machine and goes on as if nothing had happened.

use std::sync::Arc;
use std::time::Duration;

use kvm_bindings::kvm_pit_state2;
use lodger::hv::{SavedInterrupts, SavedVcpu, Vcpu, Vm};
use vm_memory::{Bytes, GuestAddress};

use crate::support::{
    Board, Consecutive, DATA, HANDLER, Ledger, Plan, Random, eventually, guests_have_deadline_timers,
    machine_code, put, read_u64, through_bytes, within,
};

const LIMIT: Duration = Duration::from_secs(300);

// Where the guest of `every_register_is_carried_over` has its things, as offsets from DATA.
const FS_DATA: u64 = 0x600;
const GS_DATA: u64 = 0x680;
const MSRS: u64 = 0x800;
const VECTORS: u64 = 0x900;
const GENERAL: u64 = 0xa00;
const CONTROL_WORDS: u64 = 0xa80;
const READY: u64 = 0xb00;
const GO_ON: u64 = 0xb08;
const GENERAL_FOUND: u64 = 0xc00;
const VECTORS_FOUND: u64 = 0xd00;
const FLOAT_FOUND: u64 = 0xe00;
const FS_GS_FOUND: u64 = 0xe10;
const MSRS_FOUND: u64 = 0x1000;
const DEBUG_FOUND: u64 = 0x1100;

/// Model-specific registers, and values that they can hold.
const MSR_VALUES: [(u32, u64); 15] = [
    (0x174, 0x28),                        // SYSENTER_CS
    (0x175, 0xffff_8000_1111_0000),       // SYSENTER_ESP
    (0x176, 0xffff_8000_2222_0000),       // SYSENTER_EIP
    (0x277, 0x0007_0106_0007_0106),       // PAT
    (0x200, 0x8000_0006),                 // first memory type range: base
    (0x201, 0xf_8000_0800),               // its mask
    (0x26f, 0x0606_0606_0505_0505),       // the last fixed ranges
    (0x2ff, 0x0c06),                      // default memory type
    (0xc000_0081, 0x001b_0008_0000_0000), // STAR
    (0xc000_0082, 0xffff_8000_3333_0000), // LSTAR
    (0xc000_0083, 0xffff_8000_4444_0000), // CSTAR
    (0xc000_0084, 0x4_7700),              // SFMASK
    (0xc000_0100, DATA + FS_DATA),        // FS base
    (0xc000_0101, DATA + GS_DATA),        // GS base
    (0xc000_0102, 0xffff_8000_5555_0000), // KERNEL_GS_BASE
];

const DEBUG_ADDRESSES: [u64; 4] = [0x7000_1000, 0x7000_2000, 0x7000_3000, 0x7000_4000];

fn general(number: u64) -> u64 {
    // The stack pointer is used by the exception at the end.
    if number == 4 { 0x1_8000 } else { 0x0123_4567_89ab_cd00 | number }
}

fn vector(number: u64) -> u128 {
    u128::from(number) * 0x0101_0101_0101_0101_0202_0202_0202_0202 + 3
}

/// Everything that the guest loads into its registers, laid out from [`DATA`] on.
fn register_values() -> Vec<u8> {
    let mut data = vec![0; READY as usize];
    let mut at = |offset: u64, bytes: &[u8]| {
        data[offset as usize..][..bytes.len()].copy_from_slice(bytes);
    };
    at(FS_DATA, &0xf5f5_u64.to_le_bytes());
    at(GS_DATA, &0x6565_u64.to_le_bytes());
    for (place, (index, value)) in (MSRS..).step_by(16).zip(MSR_VALUES) {
        at(place, &index.to_le_bytes());
        at(place + 8, &value.to_le_bytes());
    }
    for number in 0..16 {
        at(VECTORS + number * 16, &vector(number).to_le_bytes());
        at(GENERAL + number * 8, &general(number).to_le_bytes());
    }
    at(CONTROL_WORDS, &0x5f80_u32.to_le_bytes());
    at(CONTROL_WORDS + 4, &0x0b7f_u16.to_le_bytes());
    at(CONTROL_WORDS + 8, &1234.5678_f64.to_le_bytes());
    data
}

/// Fills its registers (what needs ring 0 first, the rest in ring 3), waits until it is told to go on, and
/// writes down what it finds in them.
fn register_guest() -> &'static [u8] {
    machine_code!(
        "mov eax, 0x1b",
        "mov ds, eax",
        "mov es, eax",
        "mov fs, eax",
        "mov gs, eax",
        "mov esi, 0x180800",
        "2: mov ecx, [rsi]",
        "test ecx, ecx",
        "jz 3f",
        "mov eax, [rsi + 8]",
        "mov edx, [rsi + 12]",
        "wrmsr",
        "add rsi, 16",
        "jmp 2b",
        "3: mov eax, 0x70001000",
        "mov dr0, rax",
        "mov eax, 0x70002000",
        "mov dr1, rax",
        "mov eax, 0x70003000",
        "mov dr2, rax",
        "mov eax, 0x70004000",
        "mov dr3, rax",
        "push 0x1b",
        "push 0x20000",
        "push 0x3002",
        "push 0x23",
        "jmp 5f",
        // Handler of the invalid instruction: what needs ring 0.
        ".balign 256",
        "mov esi, 0x180800",
        "mov edi, 0x181000",
        "2: mov ecx, [rsi]",
        "test ecx, ecx",
        "jz 3f",
        "rdmsr",
        "mov [rdi], eax",
        "mov [rdi + 4], edx",
        "add rsi, 16",
        "add rdi, 8",
        "jmp 2b",
        "3: mov rax, dr0",
        "mov [0x181100], rax",
        "mov rax, dr1",
        "mov [0x181108], rax",
        "mov rax, dr2",
        "mov [0x181110], rax",
        "mov rax, dr3",
        "mov [0x181118], rax",
        "mov al, 0",
        "out 0xf4, al",
        "5: lea rax, [rip + 6f]",
        "push rax",
        "iretq",
        "6: mov ebx, 0x180900",
        "movdqu xmm0, [rbx]",
        "movdqu xmm1, [rbx + 0x10]",
        "movdqu xmm2, [rbx + 0x20]",
        "movdqu xmm3, [rbx + 0x30]",
        "movdqu xmm4, [rbx + 0x40]",
        "movdqu xmm5, [rbx + 0x50]",
        "movdqu xmm6, [rbx + 0x60]",
        "movdqu xmm7, [rbx + 0x70]",
        "movdqu xmm8, [rbx + 0x80]",
        "movdqu xmm9, [rbx + 0x90]",
        "movdqu xmm10, [rbx + 0xa0]",
        "movdqu xmm11, [rbx + 0xb0]",
        "movdqu xmm12, [rbx + 0xc0]",
        "movdqu xmm13, [rbx + 0xd0]",
        "movdqu xmm14, [rbx + 0xe0]",
        "movdqu xmm15, [rbx + 0xf0]",
        "ldmxcsr [rbx + 0x180]",
        "fninit",
        "fldcw [rbx + 0x184]",
        "fld qword ptr [rbx + 0x188]",
        "mov rax, [0x180a00]",
        "mov rcx, [0x180a08]",
        "mov rdx, [0x180a10]",
        "mov rbx, [0x180a18]",
        "mov rsp, [0x180a20]",
        "mov rbp, [0x180a28]",
        "mov rsi, [0x180a30]",
        "mov rdi, [0x180a38]",
        "mov r8, [0x180a40]",
        "mov r9, [0x180a48]",
        "mov r10, [0x180a50]",
        "mov r11, [0x180a58]",
        "mov r12, [0x180a60]",
        "mov r13, [0x180a68]",
        "mov r14, [0x180a70]",
        "mov r15, [0x180a78]",
        "mov qword ptr [0x180b00], 1",
        "7: cmp dword ptr [0x180b08], 0",
        "je 7b",
        "mov [0x180c00], rax",
        "mov [0x180c08], rcx",
        "mov [0x180c10], rdx",
        "mov [0x180c18], rbx",
        "mov [0x180c20], rsp",
        "mov [0x180c28], rbp",
        "mov [0x180c30], rsi",
        "mov [0x180c38], rdi",
        "mov [0x180c40], r8",
        "mov [0x180c48], r9",
        "mov [0x180c50], r10",
        "mov [0x180c58], r11",
        "mov [0x180c60], r12",
        "mov [0x180c68], r13",
        "mov [0x180c70], r14",
        "mov [0x180c78], r15",
        "mov ebx, 0x180d00",
        "movdqu [rbx], xmm0",
        "movdqu [rbx + 0x10], xmm1",
        "movdqu [rbx + 0x20], xmm2",
        "movdqu [rbx + 0x30], xmm3",
        "movdqu [rbx + 0x40], xmm4",
        "movdqu [rbx + 0x50], xmm5",
        "movdqu [rbx + 0x60], xmm6",
        "movdqu [rbx + 0x70], xmm7",
        "movdqu [rbx + 0x80], xmm8",
        "movdqu [rbx + 0x90], xmm9",
        "movdqu [rbx + 0xa0], xmm10",
        "movdqu [rbx + 0xb0], xmm11",
        "movdqu [rbx + 0xc0], xmm12",
        "movdqu [rbx + 0xd0], xmm13",
        "movdqu [rbx + 0xe0], xmm14",
        "movdqu [rbx + 0xf0], xmm15",
        "stmxcsr [rbx + 0x100]",
        "fnstcw [rbx + 0x104]",
        "fstp qword ptr [rbx + 0x108]",
        "mov rax, fs:[0]",
        "mov [rbx + 0x110], rax",
        "mov rax, gs:[0]",
        "mov [rbx + 0x118], rax",
        "ud2",
    )
}

fn register_plan(data: &[u8]) -> Plan<'_> {
    const INVALID_OPCODE: u8 = 6;
    Plan::new(register_guest()).ring(0).handler(INVALID_OPCODE, HANDLER).data(data)
}

/// Checks what the guest found in its registers.
fn assert_registers_kept(board: &Board) {
    for number in 0..16 {
        assert_eq!(board.data(GENERAL_FOUND + number * 8), general(number), "general register {number}");
        let halves = [0, 8].map(|half| u128::from(board.data(VECTORS_FOUND + number * 16 + half)));
        assert_eq!(halves[0] | halves[1] << 64, vector(number), "vector register {number}");
    }
    assert_eq!(board.data(FLOAT_FOUND) & 0xffff_ffff_ffff, 0x0b7f_0000_5f80, "control words");
    assert_eq!(f64::from_bits(board.data(FLOAT_FOUND + 8)), 1234.5678);
    assert_eq!([board.data(FS_GS_FOUND), board.data(FS_GS_FOUND + 8)], [0xf5f5, 0x6565]);
    for (place, (index, value)) in (MSRS_FOUND..).step_by(8).zip(MSR_VALUES) {
        assert_eq!(board.data(place), value, "model-specific register {index:#x}");
    }
    for (place, address) in (DEBUG_FOUND..).step_by(8).zip(DEBUG_ADDRESSES) {
        assert_eq!(board.data(place), address, "debug register");
    }
}

fn tell_to_go_on(board: &Board) {
    put(&board.memory, DATA + GO_ON, &1_u64.to_le_bytes());
}

#[test]
fn every_register_is_carried_over() {
    let data = register_values();
    // Once without moving, so that a failure below is one of saving and restoring.
    let board = register_plan(&data).build();
    tell_to_go_on(&board);
    board.run();
    assert_registers_kept(&board);

    let board = register_plan(&data).build();
    board.resume();
    eventually("the guest has filled its registers", || board.data(READY) != 0);
    board.pause();
    let other = board.move_to(register_plan(&[]));
    drop(board);
    tell_to_go_on(&other);
    other.run();
    assert_registers_kept(&other);
}

#[test]
fn the_upper_halves_of_vector_registers_are_carried_over() {
    if !std::arch::is_x86_feature_detected!("avx") {
        println!("this processor has no AVX");
        return;
    }
    let code = machine_code!(
        "mov rax, cr4",
        "or eax, 0x40000",
        "mov cr4, rax",
        "xor ecx, ecx",
        "xor edx, edx",
        "mov eax, 7",
        "xsetbv",
        "push 0x1b",
        "push 0x20000",
        "push 0x3002",
        "push 0x23",
        "lea rax, [rip + 2f]",
        "push rax",
        "iretq",
        "2: mov ebx, 0x180000",
        "vmovdqu ymm3, [rbx]",
        "vmovdqu ymm15, [rbx + 0x20]",
        "mov qword ptr [rbx + 0xb00], 1",
        "3: cmp dword ptr [rbx + 0xb08], 0",
        "je 3b",
        "vmovdqu [rbx + 0x40], ymm3",
        "vmovdqu [rbx + 0x60], ymm15",
        "mov al, 0",
        "out 0xf4, al",
    );
    let data: Vec<u8> = (1..=64).collect();
    let board = Plan::new(code).ring(0).data(&data).build();
    board.resume();
    eventually("the guest has filled its registers", || board.data(READY) != 0);
    board.pause();
    let other = board.move_to(Plan::new(code));
    tell_to_go_on(&other);
    other.run();
    let mut found = vec![0; 64];
    other.memory.mapped().read_slice(&mut found, GuestAddress(DATA + 0x40)).unwrap();
    assert_eq!(found, data);
}

#[test]
fn a_storm_of_port_accesses_goes_on_without_a_gap_in_a_hundred_machines() {
    let code = machine_code!("mov edx, 0x540", "xor eax, eax", "2: inc eax", "out dx, eax", "jmp 2b");
    within(LIMIT, move || {
        let device = Arc::new(Consecutive::default());
        let plan = |ring| Plan::new(code).ring(ring).device(&device);
        let mut random = Random::new(6);
        let mut board = plan(3).build();
        for round in 0..100 {
            let before = device.last();
            board.resume();
            eventually("the guest writes", || device.last() > before);
            random.dawdle(50);
            board.pause();
            // The state of the other ring is restored like any other.
            board = board.move_to(plan(if round % 2 == 0 { 0 } else { 3 }));
        }
        device.check();
        println!("{} accesses", device.last());
    });
}

/// What [`Ledger`] expects, for ever; status 1 when string input yields anything else than 8, 9, 10.
fn ledger_guest() -> &'static [u8] {
    machine_code!(
        "cld",
        "mov ebx, 0xd0000000",
        "2: mov edx, 0x544",
        "in eax, dx",
        "mov edx, 0x540",
        "out dx, eax",
        "mov [rbx], eax",
        "mov eax, [rbx + 4]",
        "out dx, eax",
        "mov esi, 0x180000",
        "mov ecx, 3",
        "rep outsd",
        "mov edx, 0x544",
        "mov edi, 0x180100",
        "mov ecx, 3",
        "rep insd",
        "cmp dword ptr [0x180100], 8",
        "jne 3f",
        "cmp dword ptr [0x180104], 9",
        "jne 3f",
        "cmp dword ptr [0x180108], 10",
        "je 2b",
        "3: mov al, 1",
        "out 0xf4, al",
    )
}

#[test]
fn no_access_of_any_kind_is_lost_or_repeated_when_the_guest_moves() {
    const ELEMENTS: [u8; 12] = [5, 0, 0, 0, 6, 0, 0, 0, 7, 0, 0, 0];
    within(LIMIT, || {
        for ring in [0, 3] {
            let ledger = Arc::new(Ledger::default());
            let plan = || Plan::new(ledger_guest()).ring(ring).data(&ELEMENTS).device(&ledger);
            let mut random = Random::new(7);
            let mut board = plan().build();
            for _ in 0..30 {
                let before = ledger.accesses();
                board.resume();
                eventually("the guest makes accesses", || ledger.accesses() > before);
                random.dawdle(100);
                board.pause();
                assert!(board.is_alive(), "the guest found a wrong value");
                ledger.check();
                board = board.move_to(plan());
            }
            println!("ring {ring}: {} accesses", ledger.accesses());
        }
    });
}

#[test]
fn a_timer_that_was_armed_fires_in_the_new_machine() {
    // Some milliseconds from now, far behind the moment of saving.
    let one_shot = machine_code!(
        "mov ebx, 0xfee00000",
        "mov dword ptr [rbx + 0xf0], 0x1ff",
        "mov dword ptr [rbx + 0x3e0], 0xb",
        "mov dword ptr [rbx + 0x320], 0x40",
        "mov dword ptr [rbx + 0x380], 30000000",
        "mov qword ptr [0x180b00], 1",
        "sti",
        "2: hlt",
        "jmp 2b",
        ".balign 256",
        "mov al, 0",
        "out 0xf4, al",
    );
    let deadline = machine_code!(
        "mov ebx, 0xfee00000",
        "mov dword ptr [rbx + 0xf0], 0x1ff",
        "mov dword ptr [rbx + 0x320], 0x40040",
        "rdtsc",
        "shl rdx, 32",
        "or rax, rdx",
        "add rax, 60000000",
        "mov rdx, rax",
        "shr rdx, 32",
        "mov ecx, 0x6e0",
        "wrmsr",
        "mov qword ptr [0x180b00], 1",
        "sti",
        "2: hlt",
        "jmp 2b",
        ".balign 256",
        "mov al, 0",
        "out 0xf4, al",
    );
    let mut cases = vec![("one shot", one_shot)];
    if guests_have_deadline_timers() {
        cases.push(("deadline", deadline));
    }
    for (name, code) in cases {
        let plan = || Plan::new(code).ring(0).handler(0x40, HANDLER);
        let board = plan().build();
        board.resume();
        eventually("the timer is armed", || board.data(READY) != 0);
        board.pause();
        let other = board.move_to(plan());
        drop(board);
        assert!(other.is_alive(), "{name}");
        other.run();
    }
}

#[test]
fn several_processors_are_carried_over_whether_started_or_not() {
    let starter = machine_code!(
        "3: cmp qword ptr [0x180b08], 0",
        "je 3b",
        "mov ebx, 0xfee00000",
        "mov dword ptr [rbx + 0x310], 0x01000000",
        "mov dword ptr [rbx + 0x300], 0x4500",
        "mov dword ptr [rbx + 0x310], 0x01000000",
        "mov dword ptr [rbx + 0x300], 0x4630",
        "2: inc qword ptr [0x180000]",
        "jmp 2b",
    );
    let second = machine_code!(".code16", "mov ax, 0x4000", "mov ds, ax", "2: inc dword ptr [0]", "jmp 2b");
    let plan = || Plan::new(starter).ring(0).cpus(2, second);
    let both_count = |board: &Board| {
        let counts = || [board.data(0), read_u64(&board.memory, 0x4_0000)];
        let before = counts();
        eventually("both processors count", || {
            counts().iter().zip(before).all(|(now, before)| *now > before)
        });
    };

    let board = plan().build();
    board.resume();
    board.pause();
    let waiting = board.move_to(plan());
    tell_to_go_on(&waiting);
    waiting.resume();
    both_count(&waiting);
    waiting.pause();
    let running = waiting.move_to(plan());
    drop(waiting);
    running.resume();
    both_count(&running);
}

/// What moves on by itself, taken out: when each channel was loaded.
fn without_times(interrupts: &SavedInterrupts) -> SavedInterrupts {
    let mut interrupts = interrupts.clone();
    assert_eq!(interrupts.pit.len(), size_of::<kvm_pit_state2>());
    // SAFETY: the block is as long as the structure, any bytes of which are valid.
    let mut pit: kvm_pit_state2 = unsafe { std::ptr::read_unaligned(interrupts.pit.as_ptr().cast()) };
    pit.channels.iter_mut().for_each(|channel| channel.count_load_time = 0);
    // SAFETY: as above; the structure has no padding.
    unsafe { std::ptr::write_unaligned(interrupts.pit.as_mut_ptr().cast(), pit) };
    interrupts
}

#[test]
fn interrupt_controllers_and_interval_timer_are_carried_over() {
    let code = machine_code!(
        // Both old controllers at vectors 0x30 and 0x38, some lines masked.
        "mov al, 0x11",
        "out 0x20, al",
        "out 0xa0, al",
        "mov al, 0x30",
        "out 0x21, al",
        "mov al, 0x38",
        "out 0xa1, al",
        "mov al, 4",
        "out 0x21, al",
        "mov al, 2",
        "out 0xa1, al",
        "mov al, 1",
        "out 0x21, al",
        "out 0xa1, al",
        "mov al, 0xa5",
        "out 0x21, al",
        "mov al, 0x5a",
        "out 0xa1, al",
        // Channel 0 of the interval timer in mode 2, channel 2 in mode 3.
        "mov al, 0x34",
        "out 0x43, al",
        "mov al, 0x11",
        "out 0x40, al",
        "mov al, 0x22",
        "out 0x40, al",
        "mov al, 0xb6",
        "out 0x43, al",
        "mov al, 0x33",
        "out 0x42, al",
        "mov al, 0x44",
        "out 0x42, al",
        // Two entries of the IOAPIC.
        "mov ecx, 0xfec00000",
        "mov dword ptr [rcx], 0x1a",
        "mov dword ptr [rcx + 0x10], 0x8041",
        "mov dword ptr [rcx], 0x2f",
        "mov dword ptr [rcx + 0x10], 0x01000000",
        "mov al, 0",
        "out 0xf4, al",
    );
    let board = Plan::new(code).ring(0).build();
    board.run();
    let saved = through_bytes(&board.vm.save_interrupts().unwrap());
    let fresh = Plan::new(code).build();
    assert_ne!(without_times(&fresh.vm.save_interrupts().unwrap()), without_times(&saved));
    fresh.vm.restore_interrupts(&saved).unwrap();
    let again = fresh.vm.save_interrupts().unwrap();
    assert_eq!(without_times(&again), without_times(&saved));
}

#[test]
fn a_processor_that_was_restored_is_saved_as_it_was() {
    let data = register_values();
    let board = register_plan(&data).build();
    board.resume();
    eventually("the guest has filled its registers", || board.data(READY) != 0);
    board.pause();
    let (saved, _) = board.save();
    let other = board.move_to(register_plan(&[]));
    let (again, _) = other.save();
    let (mut saved, mut again) = (saved[0].clone(), again[0].clone());
    // Time goes on.
    for state in [&mut saved, &mut again] {
        state.msrs.retain(
            |msr| !matches!(msr.index, 0x10 | 0x3b | 0x4000_0000..=0x4000_ffff | 0x4b56_4d00..=0x4b56_4dff),
        );
    }
    assert_eq!(again, saved);
}

#[test]
fn what_cannot_be_saved_state_is_refused_without_harm() {
    let board = Plan::new(ledger_guest()).build();
    let (saved, interrupts) = board.save();
    let damages: [fn(&mut Vec<u8>); 3] =
        [Vec::clear, |block| block.truncate(block.len() - 1), |block| block.push(0)];
    for damage in damages {
        let blocks: [fn(&mut SavedVcpu) -> &mut Vec<u8>; 3] =
            [|saved| &mut saved.xsave, |saved| &mut saved.lapic, |saved| &mut saved.events];
        for block in blocks {
            let mut saved = saved[0].clone();
            damage(block(&mut saved));
            assert!(board.vcpu().while_at_rest(|vcpu| vcpu.restore(&saved)).is_err());
        }
        let mut interrupts = interrupts.clone();
        damage(&mut interrupts.pit);
        assert!(board.vm.restore_interrupts(&interrupts).is_err());
    }
    let many = vec![(0, 7); 1000];
    let saved = SavedVcpu { xcrs: many, ..saved[0].clone() };
    assert!(board.vcpu().while_at_rest(|vcpu| vcpu.restore(&saved)).is_err());
}
