//! Whole completions: what is left of the state afterwards, and hostile bytes.

use std::arch::asm;

use super::*;
use crate::hv::Exception;
use crate::x86::complete::testing::{CODE, DATA, Guest, SIZE};

const POPCNT: [u8; 4] = [0xf3, 0x0f, 0xb8, 0xc8]; // popcnt ecx, eax

#[test]
fn a_completed_instruction_is_told_by_its_name() {
    let mut guest = Guest::new();
    assert_eq!(guest.run(&POPCNT).unwrap().mnemonic, Mnemonic::Popcnt);
    assert_eq!(guest.state.registers.rip, CODE + 4);
}

#[test]
fn a_single_step_ends_behind_the_instruction_and_resume_is_over() {
    let mut guest = Guest::new();
    guest.state.registers.rflags |= RFLAGS_TF | RFLAGS_RF;
    guest.run(&POPCNT).unwrap();
    assert_eq!(guest.exceptions(), [Exception { vector: 1, error_code: None }]);
    assert_eq!(guest.state.registers.rip, CODE + 4);
    assert_eq!(guest.state.registers.rflags & (RFLAGS_TF | RFLAGS_RF), RFLAGS_TF);
    assert_eq!(guest.state.debug[4], 1 << 14, "DR6 says that it was a single step");
}

#[test]
fn a_fault_is_delivered_at_the_instruction_with_resume_set() {
    let mut guest = Guest::new();
    guest.state.registers.rflags |= RFLAGS_TF;
    guest.raises(&[0x0f, 0x0b], 6, None); // ud2
    assert_eq!(guest.state.registers.rflags, 2 | RFLAGS_TF | RFLAGS_RF);
}

#[test]
fn what_is_beyond_is_told_with_the_instruction_and_changes_nothing() {
    let mut guest = Guest::new();
    let before = guest.state.clone();
    let error = guest.run(&[0x0f, 0x22, 0xd8]).unwrap_err(); // mov cr3, rax
    assert!(error.text.starts_with("mov cr3,rax: "), "{error}");
    assert_eq!(guest.state, before);
    guest.state.registers.rax = SIZE;
    let error = guest.run(&[0xf3, 0x0f, 0xb8, 0x08]).unwrap_err();
    assert!(error.text.contains("where there is no memory"), "{error}");
}

/// Instructions that reach beyond computation, with names for the message of a failing test.
const DANGEROUS: [(&str, &[u8]); 66] = [
    ("syscall", &[0x0f, 0x05]),
    ("sysenter", &[0x0f, 0x34]),
    ("sysret", &[0x48, 0x0f, 0x07]),
    ("int 0x80", &[0xcd, 0x80]),
    ("iretq", &[0x48, 0xcf]),
    ("ret", &[0xc3]),
    ("call", &[0xe8, 0, 0, 0, 0]),
    ("call rax", &[0xff, 0xd0]),
    ("jmp", &[0xeb, 0]),
    ("jmp rax", &[0xff, 0xe0]),
    ("jmp [rip]", &[0xff, 0x25, 0, 0, 0, 0]),
    ("jne", &[0x75, 0]),
    ("loop", &[0xe2, 0]),
    ("push rax", &[0x50]),
    ("push [rbx]", &[0xff, 0x33]),
    ("pop rax", &[0x58]),
    ("pop rsp", &[0x5c]),
    ("popf", &[0x9d]),
    ("pushf", &[0x9c]),
    ("enter", &[0xc8, 0, 0, 0]),
    ("leave", &[0xc9]),
    ("mov cr0, rax", &[0x0f, 0x22, 0xc0]),
    ("mov dr7, rax", &[0x0f, 0x23, 0xf8]),
    ("mov ds, eax", &[0x8e, 0xd8]),
    ("mov fs, eax", &[0x8e, 0xe0]),
    ("mov eax, cs", &[0x8c, 0xc8]),
    ("lss esp, [rbx]", &[0x0f, 0xb2, 0x23]),
    ("lgdt", &[0x0f, 0x01, 0x13]),
    ("sgdt", &[0x0f, 0x01, 0x03]),
    ("lldt", &[0x0f, 0x00, 0xd0]),
    ("ltr", &[0x0f, 0x00, 0xd8]),
    ("wrfsbase", &[0xf3, 0x48, 0x0f, 0xae, 0xd0]),
    ("wrgsbase", &[0xf3, 0x48, 0x0f, 0xae, 0xd8]),
    ("rdgsbase", &[0xf3, 0x48, 0x0f, 0xae, 0xc8]),
    ("swapgs", &[0x0f, 0x01, 0xf8]),
    ("xgetbv", &[0x0f, 0x01, 0xd0]),
    ("xsetbv", &[0x0f, 0x01, 0xd1]),
    ("rdpkru", &[0x0f, 0x01, 0xee]),
    ("wrpkru", &[0x0f, 0x01, 0xef]),
    ("monitor", &[0x0f, 0x01, 0xc8]),
    ("mwait", &[0x0f, 0x01, 0xc9]),
    ("umwait", &[0xf2, 0x0f, 0xae, 0xf0]),
    ("tpause", &[0x66, 0x0f, 0xae, 0xf0]),
    ("umonitor", &[0xf3, 0x0f, 0xae, 0xf0]),
    ("clzero", &[0x0f, 0x01, 0xfc]),
    ("movdir64b", &[0x66, 0x0f, 0x38, 0xf8, 0x03]),
    ("enqcmd", &[0xf2, 0x0f, 0x38, 0xf8, 0x03]),
    ("xbegin", &[0xc7, 0xf8, 0, 0, 0, 0]),
    ("xend", &[0x0f, 0x01, 0xd5]),
    ("xabort", &[0xc6, 0xf8, 0]),
    ("rdtsc", &[0x0f, 0x31]),
    ("rdtscp", &[0x0f, 0x01, 0xf9]),
    ("cpuid", &[0x0f, 0xa2]),
    ("rdpid", &[0xf3, 0x0f, 0xc7, 0xf8]),
    ("rdpmc", &[0x0f, 0x33]),
    ("rdmsr", &[0x0f, 0x32]),
    ("wrmsr", &[0x0f, 0x30]),
    ("hlt", &[0xf4]),
    ("cli", &[0xfa]),
    ("in al, dx", &[0xec]),
    ("rep movsb", &[0xf3, 0xa4]),
    ("stosb", &[0xaa]),
    ("ldtilecfg", &[0xc4, 0xe2, 0x78, 0x49, 0x03]),
    ("tilezero", &[0xc4, 0xe2, 0x7b, 0x49, 0xc0]),
    ("rdsspq", &[0xf3, 0x48, 0x0f, 0x1e, 0xc8]),
    ("vmcall", &[0x0f, 0x01, 0xc1]),
];

#[test]
fn instructions_that_are_more_than_computation_are_never_executed() {
    for (name, code) in DANGEROUS {
        let mut guest = Guest::new();
        let registers = &mut guest.state.registers;
        (registers.rax, registers.rbx, registers.rcx) = (DATA, DATA, 0);
        guest.state.special.cr4 |= 1 << 22;
        let end = guest.run(code);
        assert!(end.is_err(), "{name} was executed: {end:?}, {:?}", guest.exceptions());
        assert_eq!(guest.get::<16>(DATA), [0; 16], "{name}");
    }
}

/// The control registers of this thread that guests' instructions have of their own.
fn host_control() -> (u32, u16) {
    let (mut mxcsr, mut control) = (0_u32, 0_u16);
    // SAFETY: both only store registers.
    unsafe {
        asm!("stmxcsr [{}]", in(reg) &raw mut mxcsr, options(nostack, preserves_flags));
        asm!("fnstcw [{}]", in(reg) &raw mut control, options(nostack, preserves_flags));
    }
    (mxcsr, control)
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Bytes that have good chances of being an instruction.
    fn code(&mut self) -> [u8; 24] {
        let mut bytes = [0; 24];
        bytes.iter_mut().for_each(|byte| *byte = self.next() as u8);
        let start: &[u8] = match self.next() % 12 {
            0 => &[0x0f],
            1 => &[0x66, 0x0f],
            2 => &[0xf3, 0x0f],
            3 => &[0xf2, 0x48, 0x0f],
            4 => &[0x0f, 0x38],
            5 => &[0x66, 0x0f, 0x3a],
            6 => &[0xc5],
            7 => &[0xc4],
            8 => &[0x62],
            9 => &[0xf0],
            _ => &[],
        };
        bytes[..start.len()].copy_from_slice(start);
        bytes
    }
}

#[test]
fn hostile_bytes_end_in_completion_an_exception_or_a_refusal() {
    let before = host_control();
    let mut random = Random(0x1234_5678_9abc_def1);
    let mut completed = 0;
    let mut guest = Guest::new();
    for round in 0..100_000 {
        if round % 500 == 0 {
            guest = match round / 500 % 4 {
                2 => Guest::new().protected(),
                3 => Guest::new().real(),
                _ => Guest::new(),
            };
        }
        let mut registers = guest.state.registers;
        let values = std::array::from_fn(|_| match random.next() % 3 {
            0 => random.next(),
            1 => DATA + random.next() % 0x2000,
            _ => random.next() % 64,
        });
        super::super::registers::set_all(&mut registers, &values);
        registers.rip = CODE;
        registers.rflags = random.next() & 0xcd5 | 2;
        guest.state.registers = registers;
        guest.change_vectors(|vectors| {
            for place in [0, 2, 4, 24, 40, 160, 200, 400, 512, 600, 1100, 2000] {
                let word = random.next().to_le_bytes();
                vectors.0[place..place + 8].copy_from_slice(&word);
            }
        });
        completed += u32::from(guest.run(&random.code()).is_ok());
        assert_eq!(host_control(), before);
    }
    assert!(completed > 30_000, "{completed}");
}
