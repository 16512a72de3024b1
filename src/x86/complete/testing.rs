//! What the tests of this room share: a guest whose processor exists only on paper.

use std::arch::x86_64::_fxsave64;

use vm_memory::{Bytes, GuestAddress};

use super::{Beyond, Completed, complete};
use crate::hv::fake::{FakeHypervisor, FakeVcpu};
use crate::hv::{Exception, Hypervisor, Registers, SavedVcpu, SpecialRegisters, Vcpu, Vectors, Vm};
use crate::memory::{GuestMemory, Layout, Options};
use crate::x86::mode::{CR0_PE, CR0_PG, CR4_PAE, EFER_LMA, EFER_LME};
use crate::x86::segments;

/// How much memory it has: half of what its tables map.
pub const SIZE: u64 = 1 << 20;
/// The table whose entries map 4 KiB each, every page to itself.
pub const LAST_TABLE: u64 = 0x4000;
/// Where code is put.
pub const CODE: u64 = 0x8000;
/// A page for data.
pub const DATA: u64 = 0x1_0000;

pub const PRESENT: u64 = 1;
pub const WRITABLE: u64 = 2;
pub const USER: u64 = 4;

const CR0_MP: u64 = 1 << 1;
const CR0_NE: u64 = 1 << 5;
const CR4_OSFXSR: u64 = 1 << 9;
const CR4_OSXMMEXCPT: u64 = 1 << 10;
const CR4_OSXSAVE: u64 = 1 << 18;

/// A guest in ring 0 of long mode, with everything enabled that vector instructions need.
pub struct Guest {
    hypervisor: FakeHypervisor,
    pub vcpu: FakeVcpu,
    pub memory: GuestMemory,
    pub state: SavedVcpu,
}

impl Guest {
    pub fn new() -> Self {
        let hypervisor = FakeHypervisor::default();
        let vcpu = hypervisor.create_vm().and_then(|vm| vm.create_vcpu(0)).unwrap();
        let memory = GuestMemory::map(Layout::new(SIZE, 48).unwrap(), Options::default()).unwrap();
        let registers = Registers { rip: CODE, rflags: 2, rsp: 0x9000, ..Registers::default() };
        let special = SpecialRegisters {
            cs: segments::code64(),
            ds: segments::data(),
            es: segments::data(),
            fs: segments::data(),
            gs: segments::data(),
            ss: segments::data(),
            cr0: CR0_PE | CR0_PG | CR0_MP | CR0_NE,
            cr3: 0x1000,
            cr4: CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE,
            efer: EFER_LME | EFER_LMA,
            ..SpecialRegisters::default()
        };
        let xcrs = vec![(0, 0xe7)];
        let xsave = initial_vectors().0.to_vec();
        let state = SavedVcpu { registers, special, xcrs, xsave, ..SavedVcpu::default() };
        let guest = Self { hypervisor, vcpu, memory, state };
        for (table, next) in [(0x1000, 0x2000), (0x2000, 0x3000), (0x3000, LAST_TABLE)] {
            guest.put(table, &u64::to_le_bytes(next | PRESENT | WRITABLE | USER));
        }
        for page in 0..512 {
            guest.map(page * 0x1000, (page * 0x1000) | PRESENT | WRITABLE);
        }
        guest
    }

    /// Sets the entry that maps a page.
    pub fn map(&self, linear: u64, entry: u64) {
        self.put(LAST_TABLE + (linear >> 12) * 8, &entry.to_le_bytes());
    }

    pub fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.mapped().write_slice(bytes, GuestAddress(at)).unwrap();
    }

    pub fn get<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory.mapped().read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    pub fn word(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.get(at))
    }

    /// Completes `code` at RIP.
    pub fn run(&mut self, code: &[u8]) -> Result<Completed, Beyond> {
        self.put(self.state.special.cs.base.wrapping_add(self.state.registers.rip) & (SIZE - 1), code);
        self.go()
    }

    /// Completes whatever lies at RIP.
    pub fn go(&mut self) -> Result<Completed, Beyond> {
        self.vcpu.restore(&self.state).unwrap();
        let end = complete(&self.vcpu, &self.memory).unwrap();
        self.state = self.vcpu.save(&[]).unwrap();
        end
    }

    /// Completes `code`, which must not raise anything.
    #[track_caller]
    pub fn works(&mut self, code: &[u8]) {
        let (before, start) = (self.exceptions().len(), self.state.registers.rip);
        self.run(code).unwrap();
        assert_eq!(self.exceptions().get(before..), Some([].as_slice()));
        assert_eq!(self.state.registers.rip, start + code.len() as u64);
        self.state.registers.rip = start;
    }

    /// Completes `code`, which must raise an exception that leaves RIP where it is.
    #[track_caller]
    pub fn raises(&mut self, code: &[u8], vector: u8, error_code: Option<u32>) {
        let (before, start) = (self.exceptions().len(), self.state.registers.rip);
        self.run(code).unwrap();
        assert_eq!(self.exceptions()[before..], [Exception { vector, error_code }]);
        assert_eq!(self.state.registers.rip, start);
    }

    pub fn exceptions(&self) -> Vec<Exception> {
        self.hypervisor.log().exceptions.clone()
    }

    pub fn vectors(&self) -> Vectors {
        let mut vectors = Vectors::default();
        self.vcpu.read_vectors(&mut vectors).unwrap();
        vectors
    }

    pub fn change_vectors(&mut self, change: impl FnOnce(&mut Vectors)) {
        let mut vectors = Vectors::default();
        vectors.0.copy_from_slice(&self.state.xsave);
        change(&mut vectors);
        self.state.xsave = vectors.0.to_vec();
    }

    /// Makes it 32-bit code of ring 0, with the same tables' memory but no paging.
    pub fn protected(mut self) -> Self {
        self.state.special.cs = segments::code32();
        self.state.special.cr0 &= !CR0_PG;
        self.state.special.efer = 0;
        self
    }

    /// Makes it real-mode code.
    pub fn real(mut self) -> Self {
        self = self.protected();
        self.state.special.cr0 &= !CR0_PE;
        let data = segments::real_data(0);
        let special = &mut self.state.special;
        special.cs = segments::real_code(0);
        [special.ds, special.es, special.fs, special.gs, special.ss] = [data; 5];
        self
    }
}

/// The state of a processor on which nothing has run, as this host's processor lays it out.
fn initial_vectors() -> Vectors {
    let mut vectors = Vectors::default();
    let mut host = Vectors::default();
    // SAFETY: the area is larger and better aligned than wanted.
    unsafe { _fxsave64(host.0.as_mut_ptr()) };
    vectors.0[..2].copy_from_slice(&0x37f_u16.to_le_bytes());
    vectors.0[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
    vectors.0[28..32].copy_from_slice(&host.0[28..32]);
    vectors
}
