//! Guests of a few instructions, each doing one thing over and over, and the state in which they start.

use std::arch::global_asm;

use lodger::hv::{Registers, Segment, SpecialRegisters};

/// How much memory they get.
pub const MEMORY: u64 = 2 << 20;
/// Where their code lies.
pub const CODE: u64 = 0x10000;
/// A port nobody owns but the benchmark.
pub const PORT: u16 = 0x540;
/// A port with a doorbell.
pub const DOORBELL: u16 = 0x550;
/// An address without memory.
pub const ADDRESS: u64 = 0xd000_0000;
/// Bytes per string access. KVM gathers the elements of input, but not those of output.
pub const STRING: u64 = 64;
/// Bytes that [`burst`] prints.
pub const BURST: u64 = 50_000;
/// Doorbells rung between two writes to [`PORT`].
pub const RINGS: u64 = 100;

const TABLES: u64 = 0x1000;
const STACK: u64 = 0x9000;
const GDT: u64 = 0x6000;
const IDT: u64 = 0x7000;
const TIMER_VECTOR: u64 = 0x40;

macro_rules! guest {
    ($name:ident, $start:ident, $end:ident, $($code:literal),+ $(,)?) => {
        global_asm!(
            ".balign 64",
            concat!(".global ", stringify!($start)),
            concat!(stringify!($start), ":"),
            $($code,)+
            concat!(".global ", stringify!($end)),
            concat!(stringify!($end), ":"),
        );
        unsafe extern "C" {
            static $start: u8;
            static $end: u8;
        }
        /// The guest's machine code.
        pub fn $name() -> &'static [u8] {
            // SAFETY: both symbols are defined right above, around the code between them.
            unsafe {
                let start = &raw const $start;
                std::slice::from_raw_parts(start, (&raw const $end).offset_from(start) as usize)
            }
        }
    };
}

guest!(port_write, bench_port_write, bench_port_write_end, "mov dx, 0x540", "2: out dx, al", "jmp 2b");
guest!(port_read, bench_port_read, bench_port_read_end, "mov dx, 0x540", "2: in al, dx", "jmp 2b");
guest!(
    memory_write,
    bench_memory_write,
    bench_memory_write_end,
    "mov ebx, 0xd0000000",
    "2: mov [rbx], eax",
    "jmp 2b"
);
guest!(
    memory_read,
    bench_memory_read,
    bench_memory_read_end,
    "mov ebx, 0xd0000000",
    "2: mov eax, [rbx]",
    "jmp 2b"
);
guest!(
    string_write,
    bench_string_write,
    bench_string_write_end,
    "mov dx, 0x540",
    "2: mov esi, 0x10000",
    "mov ecx, 64",
    "rep outsb",
    "jmp 2b",
);
guest!(
    string_read,
    bench_string_read,
    bench_string_read_end,
    "mov dx, 0x540",
    "2: mov edi, 0x20000",
    "mov ecx, 64",
    "rep insb",
    "jmp 2b",
);
guest!(
    doorbell,
    bench_doorbell,
    bench_doorbell_end,
    "2: mov ecx, 100",
    "mov dx, 0x550",
    "3: out dx, al",
    "dec ecx",
    "jnz 3b",
    "mov dx, 0x540",
    "out dx, al",
    "jmp 2b",
);
guest!(
    write_pages,
    bench_write_pages,
    bench_write_pages_end,
    "2: mov eax, ecx",
    "and eax, 0x3f000",
    "mov [rax + 0x200000], rcx",
    "add ecx, 0x1000",
    "jmp 2b",
);
// Runs in ring 0: arms the local APIC's timer for ten microseconds, halts, and is woken by its interrupt. The
// handler lies at a fixed distance behind the start, where the interrupt table expects it.
guest!(
    timer,
    bench_timer,
    bench_timer_end,
    "mov ebx, 0xfee00000",
    "mov dword ptr [rbx + 0xf0], 0x1ff", // spurious interrupt register: enable
    "mov dword ptr [rbx + 0x3e0], 0xb",  // divide by 1
    "mov dword ptr [rbx + 0x320], 0x40", // one shot, vector 0x40
    "mov dx, 0x540",
    "2: mov dword ptr [rbx + 0x380], 10000",
    "sti",
    "hlt",
    "cli",
    "out dx, al",
    "jmp 2b",
    ".balign 64",
    "mov dword ptr [rbx + 0xb0], 0", // end of interrupt
    "iretq",
);

// Prints one byte and ends.
guest!(
    hello,
    bench_hello,
    bench_hello_end,
    "mov dx, 0x3f8",
    "mov al, 0x68",
    "out dx, al",
    "xor eax, eax",
    "out 0xf4, al",
    "hlt",
);
// Prints many bytes and ends.
guest!(
    burst,
    bench_burst,
    bench_burst_end,
    "mov dx, 0x3f8",
    "mov al, 0x68",
    "mov ecx, 50000",
    "2: out dx, al",
    "dec ecx",
    "jnz 2b",
    "xor eax, eax",
    "out 0xf4, al",
    "hlt",
);

// The next three begin with the number of their rounds, which `kernel` replaces.

// What compilers make: arithmetic, calls, a stack, loads and stores, branches. Nineteen instructions a round.
guest!(
    compute,
    bench_compute,
    bench_compute_end,
    "mov ebp, 0x11111111",
    "mov ebx, 0x200000",
    "2: mov eax, ebp",
    "and eax, 0xff8",
    "mov rcx, [rbx + rax]",
    "lea rdx, [rcx + rax * 4 + 7]",
    "call 3f",
    "mov [rbx + rax], rdx",
    "test dl, 1",
    "je 4f",
    "inc r8",
    "jmp 5f",
    "4: dec r9",
    "nop",
    "5: cmp rdx, rcx",
    "cmovb rcx, rdx",
    "sub ebp, 1",
    "jnz 2b",
    "xor eax, eax",
    "out 0xf4, al",
    "3: push rsi",
    "xor rdx, rcx",
    "shr rdx, 3",
    "pop rsi",
    "ret",
);
// Eight bytes at a time from one place to another, in a loop. Six instructions a round.
guest!(
    copy,
    bench_copy,
    bench_copy_end,
    "mov ebp, 0x11111111",
    "mov esi, 0x200000",
    "mov edi, 0x210000",
    "2: mov ecx, ebp",
    "and ecx, 0x1fff",
    "mov rax, [rsi + rcx * 8]",
    "mov [rdi + rcx * 8], rax",
    "sub ebp, 1",
    "jnz 2b",
    "xor eax, eax",
    "out 0xf4, al",
);
// A page in one instruction, and five around it.
guest!(
    string_copy,
    bench_string_copy,
    bench_string_copy_end,
    "mov ebp, 0x11111111",
    "2: mov esi, 0x200000",
    "mov edi, 0x210000",
    "mov ecx, 512",
    "rep movsq",
    "sub ebp, 1",
    "jnz 2b",
    "xor eax, eax",
    "out 0xf4, al",
);

/// A kernel that is entered in 64-bit mode and ring 0: `code`, which begins with the number of its rounds, as an ELF
/// file.
pub fn kernel(code: &[u8], rounds: u32) -> Vec<u8> {
    const START: u64 = 0x10_0000;
    const HEADERS: u64 = 64 + 56;
    let length = code.len() as u64;
    let words = |words: &[u64]| -> Vec<u8> { words.iter().flat_map(|word| word.to_le_bytes()).collect() };
    // 64 bits, little-endian; an executable for x86-64 with one program header and no sections.
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    file.extend(words(&[START, 64, 0]));
    file.extend(b"\0\0\0\0\x40\0\x38\0\x01\0\x40\0\0\0\0\0");
    file.extend(b"\x01\0\0\0\x07\0\0\0");
    file.extend(words(&[HEADERS, START, START, length, length, 4]));
    file.extend(code);
    let number = HEADERS as usize + 1;
    assert_eq!(file[number..number + 4], [0x11; 4]);
    file[number..number + 4].copy_from_slice(&rounds.to_le_bytes());
    file
}

/// Where the timer's handler begins within [`timer`].
const HANDLER: u64 = 64;

/// Something that guest memory can be written through.
pub trait Memory {
    /// Writes `bytes` at a guest-physical address.
    fn write(&self, address: u64, bytes: &[u8]);
}

/// Puts code, page tables, segment and interrupt tables into memory.
pub fn load(memory: &impl Memory, code: &[u8]) {
    const USER: u64 = 7;
    const LARGE: u64 = 0x80;
    let put = |address, value: u64| memory.write(address, &value.to_le_bytes());
    let [root, upper, low, high] = [0, 1, 2, 3].map(|page| TABLES + page * 0x1000);
    put(root, upper | USER);
    put(upper, low | USER);
    put(upper + 3 * 8, high | USER);
    put(low, USER | LARGE);
    for device in [ADDRESS, 0xfee0_0000] {
        put(high + (device >> 21 & 0x1ff) * 8, device | USER | LARGE);
    }
    put(GDT + 8, 0x00af_9b00_0000_ffff);
    put(GDT + 16, 0x00cf_9300_0000_ffff);
    let handler = CODE + HANDLER;
    put(IDT + TIMER_VECTOR * 16, handler & 0xffff | 8 << 16 | 0x8e00 << 32 | (handler >> 16) << 48);
    memory.write(CODE, code);
}

/// The state in which a guest starts: 64-bit mode, in ring 3 with all ports allowed, or in ring 0.
pub fn state(reset: &SpecialRegisters, ring: u8) -> (Registers, SpecialRegisters) {
    let segment = |selector: u16, kind, long| Segment {
        selector: selector | u16::from(ring),
        base: 0,
        limit: 0xffff_ffff,
        kind,
        code_or_data: true,
        dpl: ring,
        present: true,
        available: false,
        long,
        default_big: !long,
        granularity: true,
        unusable: false,
    };
    let data = segment(0x10, 3, false);
    let special = SpecialRegisters {
        cs: segment(8, 11, true),
        ss: data,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        gdt: lodger::hv::DescriptorTable { base: GDT, limit: 0xff },
        idt: lodger::hv::DescriptorTable { base: IDT, limit: 0xfff },
        cr0: 0x8000_0033,
        cr3: TABLES,
        cr4: 0x20,
        efer: 0x500,
        ..*reset
    };
    let io_privilege = u64::from(ring) << 12;
    (Registers { rip: CODE, rsp: STACK, rflags: 2 | io_privilege, ..Registers::default() }, special)
}
