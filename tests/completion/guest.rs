//! The other side: the product, completing the instruction for a guest with page tables of its own.

use lodger::hv::fake::{FakeHypervisor, FakeVcpu};
use lodger::hv::{Hypervisor, Registers, SavedVcpu, Segment, SpecialRegisters, Vcpu, Vectors, Vm};
use lodger::memory::{GuestMemory, Layout, Options};
use lodger::x86::complete::{Beyond, complete};
use vm_memory::{Bytes, GuestAddress};

use crate::case::{Case, Outcome, Raised};
use crate::place::{CODE, DATA, PAGE, READ_ONLY};

const MEMORY: u64 = 1 << 20;
const ROOT: u64 = 0x1000;
const DIRECTORY_POINTERS: u64 = 0x2000;
const DIRECTORY: u64 = 0x3000;
const CODE_TABLE: u64 = 0x4000;
const DATA_TABLE: u64 = 0x5000;
/// Neighbours in the guest's linear address space, but not in its memory.
const CODE_PAGES: [u64; 2] = [0x2f000, 0x20000];
const DATA_PAGES: [u64; 3] = [0x35000, 0x31000, 0x38000];
const READ_ONLY_PAGE: u64 = 0x3a000;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;

/// Protected mode, paging, native x87 errors, write protection, alignment checks.
const CR0: u64 = 1 << 31 | 1 << 18 | 1 << 16 | 1 << 5 | 1 << 1 | 1 << 0;
/// PAE, OSFXSR, OSXMMEXCPT, FSGSBASE, OSXSAVE.
const CR4: u64 = 1 << 18 | 1 << 16 | 1 << 10 | 1 << 9 | 1 << 5;
/// SYSCALL, long mode enabled and active, NX.
const EFER: u64 = 1 << 11 | 1 << 10 | 1 << 8 | 1 << 0;

/// A guest that is stopped at one instruction after the other.
pub struct Guest {
    hypervisor: FakeHypervisor,
    vcpu: FakeVcpu,
    memory: GuestMemory,
}

impl Guest {
    /// A guest with the state components in XCR0.
    pub fn new(enabled_state: u64) -> Self {
        let hypervisor = FakeHypervisor::default();
        let vcpu = hypervisor.create_vm().unwrap().create_vcpu(0).unwrap();
        let state = SavedVcpu { xcrs: vec![(0, enabled_state)], ..SavedVcpu::default() };
        vcpu.restore(&state).unwrap();
        let memory = GuestMemory::map(Layout::new(MEMORY, 48).unwrap(), Options::default()).unwrap();
        let guest = Self { hypervisor, vcpu, memory };
        guest.map_pages();
        guest
    }

    fn map_pages(&self) {
        let all = PRESENT | WRITABLE | USER;
        let put = |table: u64, shift: u64, linear: u64, entry: u64| {
            let at = GuestAddress(table + (linear >> shift & 0x1ff) * 8);
            self.memory.mapped().write_obj(entry, at).unwrap();
        };
        put(ROOT, 39, CODE, DIRECTORY_POINTERS | all);
        put(DIRECTORY_POINTERS, 30, CODE, DIRECTORY | all);
        put(DIRECTORY, 21, CODE, CODE_TABLE | all);
        put(DIRECTORY, 21, DATA, DATA_TABLE | all);
        for (nth, page) in (0..).zip(CODE_PAGES) {
            put(CODE_TABLE, 12, CODE + nth * PAGE, page | all);
        }
        for (nth, page) in (0..).zip(DATA_PAGES) {
            put(DATA_TABLE, 12, DATA + nth * PAGE, page | all);
        }
        put(DATA_TABLE, 12, READ_ONLY, READ_ONLY_PAGE | PRESENT | USER);
    }

    /// Sets what lies on the page that cannot be written.
    pub fn fill_read_only(&self, bytes: &[u8]) {
        self.memory.mapped().write_slice(bytes, GuestAddress(READ_ONLY_PAGE)).unwrap();
    }

    /// What completion makes of it, or why it does not.
    pub fn run(&self, case: &Case) -> Result<Outcome, Beyond> {
        self.enter(case);
        complete(&self.vcpu, &self.memory).unwrap()?;
        Ok(self.outcome())
    }

    /// Completes something, whatever comes of it.
    pub fn warm_up(&self) {
        let popcnt = [0xf3, 0x0f, 0xb8, 0xc0];
        for (at, byte) in (CODE_PAGES[0]..).zip(popcnt) {
            self.memory.mapped().write_obj(byte, GuestAddress(at)).unwrap();
        }
        self.vcpu.set_registers(&Registers { rip: CODE, ..Registers::default() }).unwrap();
        self.vcpu.set_special_registers(&special(0, 0)).unwrap();
        let _ = complete(&self.vcpu, &self.memory).unwrap();
    }

    fn enter(&self, case: &Case) {
        let memory = self.memory.mapped();
        for (nth, byte) in (case.rip - CODE..).zip(&case.bytes) {
            let page = CODE_PAGES[(nth / PAGE) as usize];
            memory.write_obj(*byte, GuestAddress(page + nth % PAGE)).unwrap();
        }
        for (page, bytes) in DATA_PAGES.iter().zip(case.data.chunks(PAGE as usize)) {
            memory.write_slice(bytes, GuestAddress(*page)).unwrap();
        }
        self.hypervisor.log().exceptions.clear();
        self.vcpu.set_registers(&general(case)).unwrap();
        self.vcpu.set_special_registers(&special(case.privilege, case.gs_base)).unwrap();
        self.vcpu.set_vectors(&case.vectors).unwrap();
    }

    fn outcome(&self) -> Outcome {
        let general = self.vcpu.registers().unwrap();
        let special = self.vcpu.special_registers().unwrap();
        let mut vectors = Vectors::default();
        self.vcpu.read_vectors(&mut vectors).unwrap();
        let mut data = vec![0; DATA_PAGES.len() * PAGE as usize];
        for (page, bytes) in DATA_PAGES.iter().zip(data.chunks_mut(PAGE as usize)) {
            self.memory.mapped().read_slice(bytes, GuestAddress(*page)).unwrap();
        }
        let log = self.hypervisor.log();
        assert!(log.exceptions.len() <= 1);
        let raised = log.exceptions.first().map(|exception| Raised {
            vector: exception.vector,
            error: exception.error_code.unwrap_or(0),
            address: special.cr2,
        });
        Outcome {
            general: general.numbered(),
            flags: general.rflags,
            rip: general.rip,
            vectors: Box::new(vectors.0),
            data,
            raised,
        }
    }
}

fn general(case: &Case) -> Registers {
    let pointers = Registers { rip: case.rip, rflags: case.flags, ..Registers::default() };
    pointers.with_numbered(case.general)
}

fn special(privilege: u8, gs_base: u64) -> SpecialRegisters {
    let flat = |kind, long: bool| Segment {
        selector: 8 | u16::from(privilege),
        limit: 0xffff_ffff,
        kind,
        code_or_data: true,
        dpl: privilege,
        present: true,
        default_big: !long,
        long,
        granularity: true,
        ..Segment::default()
    };
    let data = flat(3, false);
    SpecialRegisters {
        cs: flat(11, true),
        ds: data,
        es: data,
        fs: data,
        gs: Segment { base: gs_base, ..data },
        ss: data,
        cr0: CR0,
        cr3: ROOT,
        cr4: CR4,
        efer: EFER,
        ..SpecialRegisters::default()
    }
}
