//! Instructions executed on the host's processor, as a guest sees them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use vm_memory::GuestMemoryBackend;

use crate::x86::complete::testing::{CODE, DATA, Guest, PRESENT, USER, WRITABLE};
use crate::x86::complete::vectors::{get_vector, set_vector};

const CARRY: u64 = 1;
const ZERO: u64 = 1 << 6;

fn floats(values: [f32; 8]) -> [u8; 64] {
    let mut bytes = [0; 64];
    for (place, value) in bytes.chunks_exact_mut(4).zip(values) {
        place.copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

#[test]
fn popcnt_counts_registers_and_memory_and_sets_flags() {
    let mut guest = Guest::new();
    guest.state.registers.rax = 0xc8;
    guest.state.registers.rflags = 2 | 0x8d5 | 1 << 9 | 1 << 18;
    guest.works(&[0xf3, 0x48, 0x0f, 0xb8, 0xc8]); // popcnt rcx, rax
    assert_eq!(guest.state.registers.rcx, 3);
    assert_eq!(guest.state.registers.rflags, 2 | 1 << 9 | 1 << 18);
    guest.put(DATA, &[0xff, 0, 0, 1]);
    guest.state.registers.rbx = DATA;
    guest.works(&[0xf3, 0x0f, 0xb8, 0x13]); // popcnt edx, [rbx]
    assert_eq!(guest.state.registers.rdx, 9);
    guest.works(&[0xf3, 0x48, 0x0f, 0xb8, 0xe0]); // popcnt rsp, rax
    assert_eq!(guest.state.registers.rsp, 3);
    guest.works(&[0xf3, 0x48, 0x0f, 0xb8, 0xdc]); // popcnt rbx, rsp
    assert_eq!((guest.state.registers.rbx, guest.state.registers.rsp), (2, 3));
}

#[test]
fn cmpxchg16b_exchanges_or_loads_and_wants_alignment() {
    let mut guest = Guest::new();
    let code = [0xf0, 0x48, 0x0f, 0xc7, 0x0e]; // lock cmpxchg16b [rsi]
    let registers = &mut guest.state.registers;
    (registers.rsi, registers.rax, registers.rdx, registers.rbx, registers.rcx) = (DATA, 1, 2, 3, 4);
    guest.put(DATA, &[1_u64.to_le_bytes(), 2_u64.to_le_bytes()].concat());
    guest.works(&code);
    assert_eq!((guest.word(DATA), guest.word(DATA + 8)), (3, 4));
    assert_eq!(guest.state.registers.rflags & ZERO, ZERO);
    guest.works(&code);
    assert_eq!(guest.state.registers.rflags & ZERO, 0);
    assert_eq!((guest.state.registers.rax, guest.state.registers.rdx), (3, 4));
    for address in [DATA + 8, DATA + 0x38, DATA + 0xff8] {
        guest.state.registers.rsi = address;
        guest.raises(&code, 13, Some(0));
        guest.raises(&code[1..], 13, Some(0));
    }
}

#[test]
fn locked_operands_are_changed_where_they_are_or_across_pages() {
    let mut guest = Guest::new();
    for address in [DATA, DATA + 61, DATA + 0xffd] {
        guest.put(address, &7_u32.to_le_bytes());
        guest.state.registers.rdi = address;
        guest.state.registers.rax = 5;
        guest.works(&[0xf0, 0x0f, 0xc1, 0x07]); // lock xadd [rdi], eax
        assert_eq!(guest.state.registers.rax, 7);
        assert_eq!(guest.get(address), 12_u32.to_le_bytes());
        guest.works(&[0x87, 0x07]); // xchg [rdi], eax
        assert_eq!((guest.state.registers.rax, guest.get(address)), (12, 7_u32.to_le_bytes()));
    }
    guest.raises(&[0xf0, 0x01, 0xc0], 6, None); // lock add eax, eax
}

#[test]
fn bits_are_found_far_from_the_operand() {
    let mut guest = Guest::new();
    guest.state.registers.rdi = DATA + 0x100;
    for (number, byte, bit) in [(3_i64, 0x100, 3), (100, 0x10c, 4), (-1, 0xff, 7), (-200, 0xe7, 0)] {
        guest.state.registers.rcx = number as u64;
        guest.works(&[0xf0, 0x48, 0x0f, 0xab, 0x0f]); // lock bts [rdi], rcx
        assert_eq!(guest.get(DATA + byte), [1_u8 << bit], "{number}");
        assert_eq!(guest.state.registers.rflags & CARRY, 0);
        guest.works(&[0x48, 0x0f, 0xb3, 0x0f]); // btr [rdi], rcx
        assert_eq!(guest.get(DATA + byte), [0], "{number}");
        assert_eq!(guest.state.registers.rflags & CARRY, 1);
        assert_eq!(guest.state.registers.rcx, number as u64);
    }
}

#[test]
fn vector_instructions_work_on_the_guests_registers_only() {
    let mut guest = Guest::new();
    guest.change_vectors(|vectors| {
        set_vector(vectors, 0, &floats([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]));
        set_vector(vectors, 9, &floats([10.0; 8]));
    });
    guest.works(&[0xc4, 0xc1, 0x7c, 0x58, 0xc9]); // vaddps ymm1, ymm0, ymm9
    let expected = floats([11.0, 12.0, 13.0, 14.0, 15.0, 16.0, 17.0, 18.0]);
    assert_eq!(get_vector(&guest.vectors(), 1), expected);
    guest.put(DATA, &[1; 16]);
    guest.state.registers.rax = DATA;
    guest.works(&[0x66, 0x0f, 0xfe, 0x00]); // paddd xmm0, [rax]
    let sum = get_vector(&guest.vectors(), 0);
    assert_eq!(sum[..4], (1.0_f32.to_bits() + 0x0101_0101).to_le_bytes());
    assert_eq!(sum[16..20], 5.0_f32.to_le_bytes());
    // An operand that has to be aligned.
    guest.state.registers.rax = DATA + 1;
    guest.raises(&[0x66, 0x0f, 0xfe, 0x00], 13, Some(0));
    guest.works(&[0xf3, 0x0f, 0x7f, 0x00]); // movdqu [rax], xmm0
    assert_eq!(guest.get::<16>(DATA + 1), sum[..16]);
}

#[test]
fn operands_cross_pages_and_nothing_is_written_when_one_of_them_faults() {
    let mut guest = Guest::new();
    guest.change_vectors(|vectors| set_vector(vectors, 0, &[0xaa; 64]));
    let code = [0xc5, 0xfe, 0x7f, 0x00]; // vmovdqu [rax], ymm0
    guest.state.registers.rax = DATA + 0xff0;
    guest.works(&code);
    assert_eq!(guest.get::<32>(DATA + 0xff0), [0xaa; 32]);
    guest.put(DATA + 0xff0, &[0; 32]);
    guest.map(DATA + 0x1000, (DATA + 0x1000) | PRESENT);
    guest.state.special.cr0 |= 1 << 16;
    guest.raises(&code, 14, Some(3));
    assert_eq!(guest.state.special.cr2, DATA + 0x1000);
    assert_eq!(guest.get::<16>(DATA + 0xff0), [0; 16]);
    guest.map(DATA + 0x1000, 0);
    guest.raises(&code, 14, Some(2));
    guest.raises(&[0xc5, 0xfe, 0x6f, 0x00], 14, Some(0)); // vmovdqu ymm0, [rax]
}

#[test]
fn exceptions_of_arithmetic_are_the_guests() {
    let mut guest = Guest::new();
    guest.raises(&[0xf7, 0xf1], 0, None); // div ecx
    guest.change_vectors(|vectors| vectors.0[24..28].copy_from_slice(&0x1d00_u32.to_le_bytes()));
    guest.change_vectors(|vectors| set_vector(vectors, 1, &[0; 64]));
    guest.change_vectors(|vectors| set_vector(vectors, 0, &floats([1.0; 8])));
    guest.change_vectors(|vectors| vectors.0[24..28].copy_from_slice(&0x1d00_u32.to_le_bytes()));
    let divide = [0x0f, 0x5e, 0xc1]; // divps xmm0, xmm1
    guest.raises(&divide, 19, None);
    assert_eq!(guest.vectors().0[24] & 4, 4, "the flag says which exception it was");
    guest.state.special.cr4 &= !(1 << 10);
    guest.raises(&divide, 6, None);
}

#[test]
fn an_x87_exception_is_reported_at_the_next_instruction_of_the_unit() {
    let mut guest = Guest::new();
    guest.change_vectors(|vectors| {
        // Division by zero is not masked.
        vectors.0[..2].copy_from_slice(&0x37b_u16.to_le_bytes());
        vectors.0[512] |= 1;
    });
    guest.works(&[0xd9, 0xe8]); // fld1
    guest.works(&[0xd9, 0xee]); // fldz
    guest.works(&[0xde, 0xf9]); // fdivp
    assert_eq!(u64::from_le_bytes(guest.vectors().0[8..16].try_into().unwrap()), CODE);
    guest.raises(&[0xd9, 0xe8], 16, None);
    guest.raises(&[0x9b], 16, None);
    guest.works(&[0xdb, 0xe2]); // fnclex
    guest.works(&[0x9b]);
}

#[test]
fn what_the_system_has_not_enabled_is_not_available() {
    let avx = [0xc5, 0xfc, 0x58, 0xc0]; // vaddps ymm0, ymm0, ymm0
    let sse = [0x0f, 0x58, 0xc0];
    let mmx = [0x0f, 0xfc, 0xc0];
    let x87 = [0xd9, 0xe8];
    let set = |change: fn(&mut Guest)| {
        let mut guest = Guest::new();
        change(&mut guest);
        guest
    };
    let mut switched = set(|guest| guest.state.special.cr0 |= 8);
    [&avx[..], &sse, &mmx, &x87].into_iter().for_each(|code| switched.raises(code, 7, None));
    let mut emulated = set(|guest| guest.state.special.cr0 |= 4);
    emulated.raises(&sse, 6, None);
    emulated.raises(&mmx, 6, None);
    emulated.raises(&x87, 7, None);
    emulated.works(&avx);
    set(|guest| guest.state.special.cr4 &= !(1 << 9)).raises(&sse, 6, None);
    set(|guest| guest.state.special.cr4 &= !(1 << 18)).raises(&avx, 6, None);
    let mut sse_only = set(|guest| guest.state.xcrs = vec![(0, 3)]);
    sse_only.raises(&avx, 6, None);
    sse_only.works(&sse);
    let wide = [0x62, 0xf1, 0x7c, 0x48, 0x58, 0xc0]; // vaddps zmm0, zmm0, zmm0
    set(|guest| guest.state.xcrs = vec![(0, 7)]).raises(&wide, 6, None);
    let mut real = Guest::new().real();
    real.raises(&avx, 6, None);
    real.works(&sse);
}

#[test]
fn masked_stores_and_loads_touch_only_what_the_mask_names() {
    let mut guest = Guest::new();
    let mut mask = [0; 64];
    mask[3] = 0x80;
    mask[15] = 0x80;
    guest.change_vectors(|vectors| {
        set_vector(vectors, 0, &mask);
        set_vector(vectors, 1, &[0x11; 64]);
    });
    guest.map(DATA + 0x1000, 0);
    guest.state.registers.rax = DATA + 0xff0;
    guest.works(&[0xc4, 0xe2, 0x7d, 0x2e, 0x08]); // vmaskmovps [rax], ymm0, ymm1
    assert_eq!(
        guest.get::<16>(DATA + 0xff0),
        [0x11, 0x11, 0x11, 0x11, 0, 0, 0, 0, 0, 0, 0, 0, 0x11, 0x11, 0x11, 0x11]
    );
    guest.works(&[0xc4, 0xe2, 0x7d, 0x2c, 0x10]); // vmaskmovps ymm2, ymm0, [rax]
    assert_eq!(
        get_vector(&guest.vectors(), 2)[..20],
        [0x11, 0x11, 0x11, 0x11, 0, 0, 0, 0, 0, 0, 0, 0, 0x11, 0x11, 0x11, 0x11, 0, 0, 0, 0]
    );
    guest.state.registers.rax = DATA + 0xff4;
    guest.raises(&[0xc4, 0xe2, 0x7d, 0x2e, 0x08], 14, Some(2));
    guest.state.registers.rdi = DATA + 0x100;
    guest.works(&[0x66, 0x0f, 0xf7, 0xc8]); // maskmovdqu xmm1, xmm0
    assert_eq!((guest.word(DATA + 0x100), guest.word(DATA + 0x108)), (0x1100_0000, 0x11 << 56));
}

#[test]
fn a_gather_that_faults_keeps_what_it_has_and_says_what_is_left() {
    let mut guest = Guest::new();
    guest.map(DATA + 0x1000, 0);
    guest.put(DATA + 16, &0x1234_5678_u32.to_le_bytes());
    let mut indices = [0; 64];
    indices[0] = 4;
    indices[4..8].copy_from_slice(&0x400_u32.to_le_bytes());
    guest.change_vectors(|vectors| {
        set_vector(vectors, 1, &indices);
        set_vector(vectors, 2, &[0xff; 64]);
        set_vector(vectors, 0, &[0x55; 64]);
    });
    guest.state.registers.rax = DATA;
    let code = [0xc4, 0xe2, 0x69, 0x90, 0x04, 0x88]; // vpgatherdd xmm0, [rax + xmm1 * 4], xmm2
    guest.raises(&code, 14, Some(0));
    assert_eq!(guest.state.special.cr2, DATA + 0x1000);
    assert_eq!(get_vector(&guest.vectors(), 0)[..8], [0x78, 0x56, 0x34, 0x12, 0x55, 0x55, 0x55, 0x55]);
    assert_eq!(get_vector(&guest.vectors(), 2)[..8], [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    guest.map(DATA + 0x1000, (DATA + 0x1000) | PRESENT | WRITABLE | USER);
    guest.works(&code);
    assert_eq!(get_vector(&guest.vectors(), 2), [0; 64]);
}

#[test]
fn locked_instructions_are_atomic_against_others() {
    const ROUNDS: u64 = 20_000;
    let mut guest = Guest::new();
    let at = vm_memory::GuestAddress(DATA);
    let slice = guest.memory.mapped().get_slice(at, 8).unwrap();
    let pointer = slice.ptr_guard_mut().as_ptr() as usize;
    thread::scope(|scope| {
        scope.spawn(move || {
            // SAFETY: the guest's memory outlives the scope, and is used through atomics only.
            let counter = unsafe { AtomicU64::from_ptr(pointer as *mut u64) };
            for _ in 0..ROUNDS {
                counter.fetch_add(1, Ordering::SeqCst);
            }
        });
        guest.state.registers.rdi = DATA;
        for _ in 0..ROUNDS {
            guest.works(&[0xf0, 0x48, 0xff, 0x07]); // lock inc qword ptr [rdi]
        }
    });
    assert_eq!(guest.word(DATA), 2 * ROUNDS);
}

extern "C" fn use_registers(_: i32) {
    std::hint::black_box(std::hint::black_box([1.5_f64; 16]).map(f64::sqrt));
}

#[test]
fn signals_may_arrive_while_the_guests_registers_are_loaded() {
    let mut guest = Guest::new();
    guest.change_vectors(|vectors| set_vector(vectors, 1, &floats([1.0; 8])));
    // SAFETY: the handler calls nothing that a signal could disturb here; `pthread_self` names this thread,
    // which outlives the scope.
    let this = unsafe {
        libc::signal(libc::SIGURG, use_registers as *const () as libc::sighandler_t);
        libc::pthread_self()
    };
    let done = AtomicU64::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            while done.load(Ordering::Relaxed) == 0 {
                // SAFETY: as above.
                unsafe { libc::pthread_kill(this, libc::SIGURG) };
            }
        });
        for round in 1..=5_000_u16 {
            guest.works(&[0xc5, 0xfc, 0x58, 0xc1]); // vaddps ymm0, ymm0, ymm1
            assert_eq!(get_vector(&guest.vectors(), 0), floats([f32::from(round); 8]));
        }
        done.store(1, Ordering::Relaxed);
    });
}
