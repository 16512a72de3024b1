//! Two processors on one guest's memory: what is locked is not lost.

use super::*;

const ROUNDS: u64 = 50_000;

/// Runs `code` on two processors, each with its number in RBX, until its `hlt`.
fn on_two_processors(code: &[u8], prepare: impl Fn(&Bench)) -> [Bench; 2] {
    let first = Bench::with(code);
    prepare(&first);
    let second = Bench {
        memory: Arc::clone(&first.memory),
        soft: Soft::new(Arc::clone(&first.memory)),
        general: first.general,
        special: first.special,
    };
    let mut benches = [first, second];
    std::thread::scope(|scope| {
        for (number, bench) in (0..).zip(&mut benches) {
            (bench.general.rcx, bench.general.rdi, bench.general.rbx) = (ROUNDS, DATA, number);
            bench.general.rsp -= number * PAGE_SIZE;
            let end = CODE + code.len() as u64 - 1;
            // Where both mark a page table's entry at once, one leaves its instruction to the hypervisor; here it tries
            // once more.
            scope.spawn(move || while bench.run() != Leave::Step || bench.general.rip != end {});
        }
    });
    for bench in &benches {
        assert_eq!(bench.general.rip, CODE + code.len() as u64 - 1, "at the hlt");
        assert_eq!(bench.general.rcx, 0);
    }
    benches
}

#[test]
fn no_locked_increment_is_lost() {
    // again: lock inc qword [rdi]; lock inc byte [rdi+8]; lock add dword [rdi+12], 3; dec rcx; jnz again; hlt
    let code = [
        &[0xf0, 0x48, 0xff, 0x07, 0xf0, 0xfe, 0x47, 8, 0xf0, 0x83, 0x47, 12, 3][..],
        &[0x48, 0xff, 0xc9, 0x75, 0xee, END],
    ]
    .concat();
    let [bench, _] = on_two_processors(&code, |_| {});
    assert_eq!(bench.get(DATA), 2 * ROUNDS);
    assert_eq!(bench.get(DATA + 8) & 0xff, 2 * ROUNDS % 256);
    assert_eq!(bench.get(DATA + 8) >> 32, 6 * ROUNDS);
}

#[test]
fn every_number_is_drawn_once() {
    // again: mov eax, 1; lock xadd [rdi], rax; lock bts [rdi+4096], rax; adc rdx, 0; dec rcx; jnz again; hlt
    let code = [
        &[0xb8, 1, 0, 0, 0, 0xf0, 0x48, 0x0f, 0xc1, 0x07, 0xf0, 0x48, 0x0f, 0xab, 0x87, 0, 0x10, 0, 0][..],
        &[0x48, 0x83, 0xd2, 0, 0x48, 0xff, 0xc9, 0x75, 0xe4, END],
    ]
    .concat();
    let benches = on_two_processors(&code, |_| {});
    for bench in &benches {
        assert_eq!(bench.general.rdx, 0, "a bit was set already");
    }
    assert_eq!(benches[0].get(DATA), 2 * ROUNDS);
    let bits: u32 =
        (0..4 * PAGE_SIZE / 8).map(|word| benches[0].get(DATA + PAGE_SIZE + word * 8).count_ones()).sum();
    assert_eq!(u64::from(bits), 2 * ROUNDS);
}

#[test]
fn compare_and_exchange_makes_a_lock() {
    // again: xor eax, eax; mov esi, 1; take: lock cmpxchg [rdi], esi; jz taken; pause; xor eax, eax; jmp take
    // taken: inc qword [rdi+64]; (not locked) mov dword [rdi], 0; dec rcx; jnz again; hlt
    let code = [
        &[0x31, 0xc0, 0xbe, 1, 0, 0, 0, 0xf0, 0x0f, 0xb1, 0x37, 0x74, 6, 0xf3, 0x90, 0x31, 0xc0][..],
        &[0xeb, 0xf4, 0x48, 0xff, 0x47, 0x40, 0xc7, 0x07, 0, 0, 0, 0, 0x48, 0xff, 0xc9, 0x75, 0xdd, END],
    ]
    .concat();
    let [bench, _] = on_two_processors(&code, |_| {});
    assert_eq!(bench.get(DATA + 64), 2 * ROUNDS);
}

#[test]
fn exchanges_hand_a_token_around() {
    // Each number that is put in comes out once: again: xchg [rdi], rbx; add r8, rbx; mov rbx, rcx; dec rcx; jnz again
    let code = [0x48, 0x87, 0x1f, 0x49, 0x01, 0xd8, 0x48, 0x89, 0xcb, 0x48, 0xff, 0xc9, 0x75, 0xf2, END];
    let benches = on_two_processors(&code, |_| {});
    let taken: u64 = benches.iter().map(|bench| bench.general.r8).sum();
    let put = 2 * (2..=ROUNDS).sum::<u64>() + 1;
    assert_eq!(taken + benches[0].get(DATA), put);
}
