//! The software processor, with one instruction to execute in a guest whose memory looks like this process's.

use std::sync::Arc;

use lodger::hv::{Registers, Segment, SpecialRegisters};
use lodger::memory::{GuestMemory, Layout, Options};
use lodger::x86::soft::{Leave, Soft};
use vm_memory::{Bytes, GuestAddress};

use super::cases::{CODE, CODE_SIZE, Case, DATA, DATA_SIZE, READ_ONLY, State};
use crate::place::PAGE;

const MEMORY: u64 = 1 << 20;
/// Page tables whose data pages are the supervisor's, and others whose are the user's.
const ROOTS: [u64; 2] = [0x1000, 0x6000];
const CODE_PAGES: [u64; 2] = [0x2f000, 0x20000];
/// Neighbours in the guest's linear address space, but not in its memory.
const DATA_PAGES: [u64; 3] = [0x35000, 0x31000, 0x38000];
const READ_ONLY_PAGE: u64 = 0x3a000;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const NO_EXECUTE: u64 = 1 << 63;

/// Paging, write protection, protected mode.
const CR0: u64 = 1 << 31 | 1 << 16 | 1;
const CR4_PAE: u64 = 1 << 5;
/// Long mode enabled and active, NX.
const EFER: u64 = 1 << 11 | 1 << 10 | 1 << 8;
/// Everywhere but where the instruction lies: for the hypervisor, so that a run ends there.
const HLT: u8 = 0xf4;

/// How far an instruction got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// It is left to the hypervisor.
    None,
    /// Some repetitions are done.
    Part,
    /// It was executed.
    Done,
}

/// A guest's processor.
pub struct Guest {
    memory: Arc<GuestMemory>,
    soft: Soft,
    special: SpecialRegisters,
    data: Vec<u8>,
}

impl Guest {
    pub fn new() -> Self {
        let layout = Layout::new(MEMORY, 48).unwrap();
        let memory = Arc::new(GuestMemory::map(layout, Options::default()).unwrap());
        let special = SpecialRegisters {
            cs: Segment { long: true, ..Segment::default() },
            cr0: CR0,
            cr4: CR4_PAE,
            efer: EFER,
            ..SpecialRegisters::default()
        };
        let soft = Soft::new(Arc::clone(&memory));
        let guest = Self { memory, soft, special, data: vec![0; DATA_SIZE as usize] };
        guest.map(ROOTS[0], 0);
        guest.map(ROOTS[1], USER);
        for page in CODE_PAGES {
            guest.write(page, &[HLT; PAGE as usize]);
        }
        guest
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.mapped().write_slice(bytes, GuestAddress(at)).unwrap();
    }

    fn map(&self, root: u64, user: u64) {
        let [pointers, directory, code, data] = [1, 2, 3, 4].map(|nth| root + nth * PAGE);
        let all = PRESENT | WRITABLE | user;
        let put = |table: u64, shift: u64, linear: u64, entry: u64| {
            self.write(table + (linear >> shift & 0x1ff) * 8, &entry.to_le_bytes());
        };
        put(root, 39, CODE, pointers | all);
        put(pointers, 30, CODE, directory | all);
        put(directory, 21, CODE, code | all);
        put(directory, 21, DATA, data | all);
        for (nth, page) in (0..).zip(CODE_PAGES) {
            put(code, 12, CODE + nth * PAGE, page | PRESENT);
        }
        for (nth, page) in (0..).zip(DATA_PAGES) {
            put(data, 12, DATA + nth * PAGE, page | all | NO_EXECUTE);
        }
        put(data, 12, READ_ONLY, READ_ONLY_PAGE | PRESENT | user);
        self.write(READ_ONLY_PAGE, &super::cases::read_only());
    }

    fn write_code(&self, rip: u64, bytes: &[u8]) {
        for (at, byte) in (rip - CODE..).zip(bytes) {
            assert!(at < CODE_SIZE);
            self.write(CODE_PAGES[(at / PAGE) as usize] + at % PAGE, &[*byte]);
        }
    }

    /// Executes the instruction, if the software processor does.
    pub fn run(&mut self, case: &Case) -> (Progress, State<'_>) {
        self.write_code(case.rip, &case.guest_bytes);
        for (page, bytes) in DATA_PAGES.iter().zip(case.data.chunks(PAGE as usize)) {
            self.write(*page, bytes);
        }
        self.special.cr3 = ROOTS[usize::from(case.user_data)];
        self.special.gs.base = case.segment_base;
        self.special.fs.base = case.segment_base;
        let mut registers = registers(case);
        let before = self.soft.executed();
        let leave = self.soft.run(&mut registers, &self.special);
        assert!(matches!(leave, Leave::Step | Leave::Halt | Leave::ToUser | Leave::Port(_)), "{leave:?}");
        let executed = self.soft.executed() - before;
        assert!(executed <= 1, "{executed} instructions");
        self.write_code(case.rip, &[HLT; 15][..case.guest_bytes.len()]);
        for (page, bytes) in DATA_PAGES.iter().zip(self.data.chunks_mut(PAGE as usize)) {
            self.memory.mapped().read_slice(bytes, GuestAddress(*page)).unwrap();
        }
        let after = state(&registers, &self.data);
        let changed = after.general != case.general;
        let progress = match executed {
            1 => Progress::Done,
            _ if case.instruction.is_string_instruction() && changed => Progress::Part,
            _ => Progress::None,
        };
        (progress, after)
    }
}

fn registers(case: &Case) -> Registers {
    let pointers = Registers { rip: case.rip, rflags: case.flags, ..Registers::default() };
    pointers.with_numbered(case.general)
}

fn state<'a>(g: &Registers, data: &'a [u8]) -> State<'a> {
    State { general: g.numbered(), flags: g.rflags, rip: g.rip, data }
}
