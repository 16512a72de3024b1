//! Where things lie in the memory of a [`Board`](super::Board)'s guest, and the state in which it starts.
//!
//! ```text
//! 0x01000  page tables: the first 8 GiB mapped one to one, open to ring 3
//! 0x0c000  descriptor table: kernel code 0x08 and data 0x10, user data 0x1b and code 0x23, task 0x28
//! 0x0d000  task state segment, with a bitmap that allows the first 2048 ports: IOPL 3 should make it
//!          unnecessary, but there are hosts that lose the IOPL of a guest's ring 3
//! 0x0e000  interrupt table: every entry unused, except those that the plan names
//! 0x20000  stack of rings 1 to 3, growing down; 0x1f000 ring 0; 0x1e000 interrupts from ring 3
//! ```

use lodger::hv::{DescriptorTable, Registers, Segment, SpecialRegisters};
use lodger::memory::GuestMemory;
use lodger::x86::mode::{CR0_ET, CR0_PE, CR0_PG, CR4_PAE, EFER_LMA, EFER_LME};
use lodger::x86::segments::{encode, encode_upper};

use super::put;

/// Where the code lies.
pub const CODE: u64 = 0x10_0000;
/// Where code for another processor lies: reachable in real mode, and a page that a start-up interrupt can name.
pub const SECOND_CODE: u64 = 0x3_0000;
/// Where guests leave their results.
pub const DATA: u64 = 0x18_0000;
/// The first of eight ports for the test's own device.
pub const PORT: u16 = 0x540;
/// The first of 4096 addresses for the test's own device.
pub const MMIO: u64 = 0xd000_0000;
/// How far behind the start of its code a guest's interrupt handler lies.
pub const HANDLER: u64 = 0x100;

pub const TABLES: u64 = 0x1000;
const GDT: u64 = 0xc000;
pub const TASK: u64 = 0xd000;
pub const IDT: u64 = 0xe000;
const TASK_SIZE: u32 = 0x68;
const PORT_BITMAP_SIZE: u32 = 2048 / 8;
const USER_STACK: u64 = 0x2_0000;
const KERNEL_STACK: u64 = 0x1_f000;
const INTERRUPT_STACK: u64 = 0x1_e000;
const CR4_OSFXSR: u64 = 1 << 9;
const CR4_OSXMMEXCPT: u64 = 1 << 10;
const CR0_MP: u64 = 1 << 1;
const CR0_NE: u64 = 1 << 5;

/// Writes page tables, descriptors and an interrupt table with the given (vector, address) entries.
pub fn write_tables(memory: &GuestMemory, handlers: &[(u8, u64)]) {
    const GIBS: u64 = 8;
    const OPEN: u64 = 7;
    const LARGE: u64 = 1 << 7;
    put(memory, TABLES, &((TABLES + 0x1000) | OPEN).to_le_bytes());
    for gib in 0..GIBS {
        let directory = TABLES + 0x2000 + gib * 0x1000;
        put(memory, TABLES + 0x1000 + gib * 8, &(directory | OPEN).to_le_bytes());
        let pages = (0..512).flat_map(|page| (gib << 30 | page << 21 | OPEN | LARGE).to_le_bytes());
        put(memory, directory, &pages.collect::<Vec<u8>>());
    }
    let descriptors = [
        0,
        encode(&code(0)),
        encode(&data(0)),
        encode(&data(3)),
        encode(&code(3)),
        encode(&task()),
        encode_upper(&task()),
    ];
    put(memory, GDT, &descriptors.map(u64::to_le_bytes).concat());
    put(memory, TASK + 4, &INTERRUPT_STACK.to_le_bytes());
    put(memory, TASK + 0x66, &(TASK_SIZE as u16).to_le_bytes());
    // Behind the bitmap has to be a byte of ones.
    put(memory, TASK + u64::from(TASK_SIZE + PORT_BITMAP_SIZE), &[0xff]);
    for &(vector, handler) in handlers {
        put(memory, IDT + u64::from(vector) * 16, &gate(handler, code(0).selector));
    }
}

/// Takes all of memory away from ring 3, in tables that [`write_tables`] has written.
pub fn close_to_ring_3(memory: &GuestMemory) {
    const RING_0_ONLY: u64 = 3;
    put(memory, TABLES, &((TABLES + 0x1000) | RING_0_ONLY).to_le_bytes());
}

/// An interrupt gate to `handler`.
pub fn gate(handler: u64, selector: u16) -> [u8; 16] {
    let low = handler & 0xffff | u64::from(selector) << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48;
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&low.to_le_bytes());
    bytes[8..12].copy_from_slice(&((handler >> 32) as u32).to_le_bytes());
    bytes
}

/// The registers of a processor that starts at [`CODE`] in long mode, in ring 0 or 3, with all ports allowed.
pub fn long_mode(reset: &SpecialRegisters, ring: u8) -> (Registers, SpecialRegisters) {
    let data = data(ring);
    let special = SpecialRegisters {
        cs: code(ring),
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: task(),
        ldt: lodger::x86::segments::no_ldt(),
        gdt: DescriptorTable { base: GDT, limit: 7 * 8 - 1 },
        idt: DescriptorTable { base: IDT, limit: 0xfff },
        cr0: CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_PG,
        cr3: TABLES,
        cr4: CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT,
        efer: EFER_LME | EFER_LMA,
        apic_base: reset.apic_base,
        ..SpecialRegisters::default()
    };
    let rsp = if ring == 0 { KERNEL_STACK } else { USER_STACK };
    (Registers { rip: CODE, rsp, rflags: 2 | 3 << 12, ..Registers::default() }, special)
}

fn code(ring: u8) -> Segment {
    let selector = if ring == 0 { 0x08 } else { 0x23 };
    Segment { selector, kind: 0xb, long: true, ..flat(ring) }
}

fn data(ring: u8) -> Segment {
    let selector = if ring == 0 { 0x10 } else { 0x1b };
    Segment { selector, kind: 0x3, default_big: true, ..flat(ring) }
}

fn task() -> Segment {
    let limit = TASK_SIZE + PORT_BITMAP_SIZE;
    Segment { base: TASK, limit, selector: 0x28, ..lodger::x86::segments::task() }
}

fn flat(dpl: u8) -> Segment {
    Segment {
        limit: u32::MAX,
        code_or_data: true,
        present: true,
        granularity: true,
        dpl,
        ..Segment::default()
    }
}
