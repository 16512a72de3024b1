//! What the host's KVM cannot do for a guest: found once, by a few bytes of guest code.
//!
//! [`find`] runs them on a machine's own first processor before it boots, and leaves processor and memory as
//! they were. First `fwait` in ring 0, without paging: a KVM that gives up at it interprets ring 0, and no
//! interpreter has all that kernels use. It is not asked further, as its first entry to ring 3 costs 150 µs and
//! the memory for it another 100 (measured): everything counts as missing, and to watch for a gap that is none
//! costs time, but is never wrong. Otherwise ring 3 calls the system by `int 0x80` and `syscall`, which with
//! hardware virtualization takes a few microseconds. Relies on `hv/` and `memory/`; `vm/` calls it.

use vm_memory::{Bytes, GuestAddress};

use crate::hv::{self, DescriptorTable, Exit, Registers, Segment, SpecialRegisters, Vcpu};
use crate::memory::{GuestMemory, PAGE_SIZE};
use crate::x86::mode::{CR0_ET, CR0_PE, CR0_PG, CR4_PAE, EFER_LMA, EFER_LME, InitialState, Parameters};
use crate::x86::segments;

/// What is missing. On an ordinary host nothing is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gaps {
    /// `syscall` from ring 3 does not arrive in ring 0.
    pub syscall: bool,
    /// `int n` from ring 3 does not arrive.
    pub interrupt: bool,
    /// Plain instructions do not run in ring 0.
    pub instructions: bool,
}

impl Gaps {
    /// Everything that is looked for.
    pub const ALL: Self = Self { syscall: true, interrupt: true, instructions: true };

    /// Whether anything is missing.
    pub fn any(self) -> bool {
        self != Self::default()
    }
}

/// The port on which the probe reports. Whoever scripts a processor's exits answers it there.
pub const REPORT: u16 = 0x510;
/// What is reported: one bit for each thing that works.
const SYSCALL_WORKS: u8 = 1 << 0;
const INTERRUPT_WORKS: u8 = 1 << 1;
const INSTRUCTIONS_WORK: u8 = 1 << 2;
/// `int 0x80` has been refused already; a bit of the code's own.
const WAS_REFUSED: u8 = 1 << 3;
/// The report of a host without gaps.
pub const ALL_WORKS: u8 = SYSCALL_WORKS | INTERRUPT_WORKS | INSTRUCTIONS_WORK;

/// Where the plain code lies: on a page that every machine's boot data needs anyway.
const PLAIN_CODE: u64 = 0x1f00;
/// Where everything else lies: the lowest memory but for the first page, which real mode uses.
const BASE: u64 = PAGE_SIZE;
const TABLES: u64 = BASE;
const INTERRUPT_TABLE: u64 = BASE + 0x4000;
/// Descriptors, task state segment, ring 0's code, and its stack growing down from the page's end.
const KERNEL: u64 = BASE + 0x5000;
const USER: u64 = BASE + 0x6000;
const SIZE: usize = 0x7000;
const TASK: u64 = KERNEL + 0x100;
const CODE: u64 = KERNEL + 0x200;
const STACK: u64 = KERNEL + 0xf00;
/// Ring 3 does not use its stack, but `syscall` leaves it in place for ring 0.
const USER_STACK: u64 = KERNEL + 0x800;

const KERNEL_CODE: u16 = 0x08;
const KERNEL_DATA: u16 = 0x10;
const USER_DATA: u16 = 0x1b;
const USER_CODE: u16 = 0x23;
const TASK_SELECTOR: u16 = 0x28;
const DESCRIPTORS: u16 = 7;

const UNDEFINED: u8 = 6;
const PAGE_FAULT: u8 = 14;
const EXCEPTIONS: u8 = 32;
const SYSTEM_CALL: u8 = 0x80;

const CR0_MP_NE: u64 = 1 << 1 | 1 << 5;
const EFER_SCE: u64 = 1 << 0;
const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;

/// Runs the bytes on `vcpu`, which has not run yet, in the lowest memory.
///
/// An exit that nothing explains counts as a gap in what had not been reported by then.
pub fn find<V: Vcpu>(vcpu: &mut V, memory: &GuestMemory) -> hv::Result<Gaps> {
    vcpu.exchange_registers(true);
    let found = find_at_rest(vcpu, memory);
    vcpu.exchange_registers(false);
    found
}

fn find_at_rest<V: Vcpu>(vcpu: &mut V, memory: &GuestMemory) -> hv::Result<Gaps> {
    let reset = (vcpu.registers()?, vcpu.special_registers()?);
    let plain = registers_for_plain_code(&reset.1);
    let works = with_memory(memory, PLAIN_CODE, &PLAIN, || run(vcpu, &plain))?;
    let works = if works & INSTRUCTIONS_WORK == 0 {
        works
    } else {
        let calls = registers_for_calls(&reset.1);
        works | with_memory(memory, BASE, &Image::new().bytes, || run(vcpu, &calls))?
    };
    if works != 0 {
        end_last_access(vcpu)?;
    }
    vcpu.set_special_registers(&reset.1)?;
    vcpu.set_registers(&reset.0)?;
    let lacks = |bit: u8| works & bit == 0;
    Ok(Gaps {
        syscall: lacks(SYSCALL_WORKS),
        interrupt: lacks(INTERRUPT_WORKS),
        instructions: lacks(INSTRUCTIONS_WORK),
    })
}

/// Does `work` while `bytes` lie at `address`.
fn with_memory<T>(
    memory: &GuestMemory,
    address: u64,
    bytes: &[u8],
    work: impl FnOnce() -> hv::Result<T>,
) -> hv::Result<T> {
    let no_room = |_| hv::Error::Call {
        what: "find out what this KVM can run",
        source: std::io::Error::other("the guest has no memory at its lowest addresses"),
    };
    let address = GuestAddress(address);
    let mut kept = vec![0; bytes.len()];
    memory.mapped().read_slice(&mut kept, address).map_err(no_room)?;
    memory.mapped().write_slice(bytes, address).map_err(no_room)?;
    let result = work();
    memory.mapped().write_slice(&kept, address).map_err(no_room)?;
    result
}

/// What works, as far as the code could tell.
fn run<V: Vcpu>(vcpu: &mut V, start: &(Registers, SpecialRegisters)) -> hv::Result<u8> {
    vcpu.set_special_registers(&start.1)?;
    vcpu.set_registers(&start.0)?;
    loop {
        match vcpu.run()? {
            Exit::Pio(pio) if pio.port == REPORT => return Ok(pio.data.first().copied().unwrap_or(0)),
            // A signal to this process, which has nothing to do with the guest.
            Exit::Interrupted => {}
            _ => return Ok(0),
        }
    }
}

/// The last exit was an access, which the hypervisor ends at the next entry.
fn end_last_access<V: Vcpu>(vcpu: &mut V) -> hv::Result<()> {
    let kick = vcpu.kick_handle()?;
    kick.set(true);
    let ended = vcpu.run().map(|_| ());
    kick.set(false);
    ended
}

/// `fwait; mov al, …; mov dx, REPORT; out dx, al`
const PLAIN: [u8; 8] = {
    let [low, high] = REPORT.to_le_bytes();
    [0x9b, 0xb0, INSTRUCTIONS_WORK, 0x66, 0xba, low, high, 0xee]
};

/// 32-bit mode without paging, which needs no memory but for the code itself.
fn registers_for_plain_code(reset: &SpecialRegisters) -> (Registers, SpecialRegisters) {
    InitialState::Protected { entry: PLAIN_CODE as u32, parameters: Parameters::Ebx(0), descriptors: 0 }
        .registers(reset)
}

/// 64-bit mode, ring 0, from where the code goes to ring 3.
fn registers_for_calls(reset: &SpecialRegisters) -> (Registers, SpecialRegisters) {
    let data = data(0);
    let special = SpecialRegisters {
        cs: code(0),
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: task(),
        ldt: segments::no_ldt(),
        gdt: DescriptorTable { base: KERNEL, limit: DESCRIPTORS * 8 - 1 },
        idt: DescriptorTable { base: INTERRUPT_TABLE, limit: (u16::from(SYSTEM_CALL) + 1) * 16 - 1 },
        cr0: CR0_PE | CR0_ET | CR0_PG | CR0_MP_NE,
        cr3: TABLES,
        cr4: CR4_PAE,
        efer: EFER_LME | EFER_LMA | EFER_SCE,
        apic_base: reset.apic_base,
        ..SpecialRegisters::default()
    };
    (Registers { rip: CODE, rsp: STACK, rflags: 2, ..Registers::default() }, special)
}

/// What lies in memory while the bytes run.
struct Image {
    bytes: Vec<u8>,
}

impl Image {
    fn new() -> Self {
        let mut image = Self { bytes: vec![0; SIZE] };
        image.put_tables();
        image.put_code();
        image
    }

    fn put(&mut self, address: u64, bytes: &[u8]) {
        let start = (address - BASE) as usize;
        self.bytes[start..start + bytes.len()].copy_from_slice(bytes);
    }

    fn put_words(&mut self, address: u64, words: &[u64]) {
        words.iter().zip(0..).for_each(|(word, number)| self.put(address + 8 * number, &word.to_le_bytes()));
    }

    fn put_tables(&mut self) {
        const OPEN: u64 = 7;
        const CLOSED: u64 = 3;
        for level in 0..3 {
            let table = TABLES + level * PAGE_SIZE;
            self.put_words(table, &[(table + PAGE_SIZE) | OPEN]);
        }
        for page in BASE / PAGE_SIZE..(BASE + SIZE as u64) / PAGE_SIZE {
            let address = page * PAGE_SIZE;
            let rights = if address == USER { OPEN } else { CLOSED };
            self.put_words(TABLES + 3 * PAGE_SIZE + 8 * page, &[address | rights]);
        }
        let task = task();
        let descriptors = [
            0,
            segments::encode(&code(0)),
            segments::encode(&data(0)),
            segments::encode(&data(3)),
            segments::encode(&code(3)),
            segments::encode(&task),
            segments::encode_upper(&task),
        ];
        self.put_words(KERNEL, &descriptors);
        self.put(TASK + 4, &STACK.to_le_bytes());
    }

    /// The code, whose labels are found while it is put together.
    fn put_code(&mut self) {
        let end = {
            let [low, high] = REPORT.to_le_bytes();
            // mov eax, ebx; mov dx, REPORT; out dx, al
            [0x89, 0xd8, 0x66, 0xba, low, high, 0xee]
        };
        // What an unexpected exception leads to.
        let give_up = CODE + 0x100;
        self.put(give_up, &end);

        let landing = CODE + 0x120;
        let mut start = write_msr(STAR, 0, KERNEL_CODE.into());
        start.extend(write_msr(LSTAR, landing as u32, 0));
        // push USER_DATA; push USER_STACK; push flags; push USER_CODE; push USER; iretq
        for word in [u32::from(USER_DATA), USER_STACK as u32, 2, u32::from(USER_CODE), USER as u32] {
            start.push(0x68);
            start.extend(word.to_le_bytes());
        }
        start.extend([0x48, 0xcf]);
        self.put(CODE, &start);
        self.put(USER, &[0xcd, SYSTEM_CALL, 0x0f, 0x05, 0x0f, 0x0b]); // int 0x80; syscall; ud2

        // Nothing of LSTAR and STAR shall be left.
        let forget = [write_msr(LSTAR, 0, 0), write_msr(STAR, 0, 0)].concat();
        let note = [0x80, 0xcb, SYSCALL_WORKS]; // or bl, …
        self.put(landing, &[note.as_slice(), &forget, &end].concat());
        // A page fault is what `syscall` ends in where it stays in ring 3.
        let page_fault = CODE + 0x160;
        self.put(page_fault, &[forget.as_slice(), &end].concat());

        let system_call = CODE + 0x1b0;
        self.put(system_call, &[0x80, 0xcb, INTERRUPT_WORKS, 0x48, 0xcf]); // or bl, …; iretq
        // Refused: go on behind it, but only once.
        let undefined = CODE + 0x1c0;
        #[rustfmt::skip]
        let skip = [
            0xf6, 0xc3, WAS_REFUSED,      // test bl, …
            0x75, 0x0d,                   // jnz to the end
            0x80, 0xcb, WAS_REFUSED,      // or bl, …
            0x48, 0xc7, 0x04, 0x24,       // mov qword [rsp], …
        ];
        let behind = ((USER + 2) as u32).to_le_bytes();
        self.put(undefined, &[&skip[..], &behind, &[0x48, 0xcf], &end].concat());

        for vector in 0..EXCEPTIONS {
            self.put_gate(vector, give_up);
        }
        self.put_gate(UNDEFINED, undefined);
        self.put_gate(PAGE_FAULT, page_fault);
        self.put_gate(SYSTEM_CALL, system_call);
    }

    fn put_gate(&mut self, vector: u8, handler: u64) {
        let access: u64 = if vector == SYSTEM_CALL { 0xee } else { 0x8e };
        let low =
            handler & 0xffff | u64::from(KERNEL_CODE) << 16 | access << 40 | (handler >> 16 & 0xffff) << 48;
        self.put_words(INTERRUPT_TABLE + 16 * u64::from(vector), &[low, handler >> 32]);
    }
}

/// `mov ecx, msr; mov eax, low; mov edx, high; wrmsr`
fn write_msr(msr: u32, low: u32, high: u32) -> Vec<u8> {
    let load = |opcode: u8, value: u32| [&[opcode][..], &value.to_le_bytes()].concat();
    [load(0xb9, msr), load(0xb8, low), load(0xba, high), vec![0x0f, 0x30]].concat()
}

fn code(ring: u8) -> Segment {
    let selector = if ring == 0 { KERNEL_CODE } else { USER_CODE };
    Segment { selector, dpl: ring, ..segments::code64() }
}

fn data(ring: u8) -> Segment {
    let selector = if ring == 0 { KERNEL_DATA } else { USER_DATA };
    Segment { selector, dpl: ring, ..segments::data() }
}

fn task() -> Segment {
    Segment { base: TASK, selector: TASK_SELECTOR, ..segments::task() }
}

#[cfg(test)]
#[path = "gaps_test.rs"]
mod tests;
