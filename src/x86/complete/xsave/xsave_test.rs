//! The family's rules one by one. Beside these, `tests/completion` compares with the host's processor.

use iced_x86::{Code, Decoder, DecoderOptions};
use vm_memory::{Bytes, GuestAddress};

use super::layout::{Component, EXTENDED};
use super::*;
use crate::hv::fake::{FakeHypervisor, FakeVcpu};
use crate::hv::{Hypervisor, Msr, SavedVcpu, Vcpu, Vectors, Vm};
use crate::memory::{GuestMemory, Layout as MemoryLayout, Options};
use crate::x86::mode::{CR0_PE, EFER_LME};

const AREA: u64 = 0x2000;
const AREA_SIZE: usize = 4096;
const UNTOUCHED: u8 = 0xa5;

const XSAVE: &[u8] = &[0x0f, 0xae, 0x20];
const XSAVE64: &[u8] = &[0x48, 0x0f, 0xae, 0x20];
const XSAVEOPT64: &[u8] = &[0x48, 0x0f, 0xae, 0x30];
const XSAVEC64: &[u8] = &[0x48, 0x0f, 0xc7, 0x20];
const XSAVES64: &[u8] = &[0x48, 0x0f, 0xc7, 0x28];
const XRSTOR: &[u8] = &[0x0f, 0xae, 0x28];
const XRSTOR64: &[u8] = &[0x48, 0x0f, 0xae, 0x28];
const XRSTORS64: &[u8] = &[0x48, 0x0f, 0xc7, 0x18];

/// A processor in 64-bit kernel mode with everything enabled that the host has, and its memory.
struct Machine {
    vcpu: FakeVcpu,
    memory: GuestMemory,
    saved: SavedVcpu,
}

impl Machine {
    fn new() -> Self {
        let vcpu = FakeHypervisor::default().create_vm().unwrap().create_vcpu(0).unwrap();
        let memory = GuestMemory::map(MemoryLayout::new(1 << 20, 48).unwrap(), Options::default()).unwrap();
        let mut saved = SavedVcpu { xsave: vec![0; AREA_SIZE], ..SavedVcpu::default() };
        saved.special.cr0 = CR0_PE;
        saved.special.cr4 = CR4_OSXSAVE;
        saved.special.efer = EFER_LMA | EFER_LME;
        saved.special.cs.long = true;
        saved.xcrs = vec![(0, Layout::host().known())];
        saved.registers.rax = u64::MAX;
        saved.registers.rdx = u64::MAX;
        memory.mapped().write_slice(&[UNTOUCHED; AREA_SIZE], GuestAddress(AREA)).unwrap();
        Self { vcpu, memory, saved }
    }

    fn requesting(mut self, components: u64) -> Self {
        self.saved.registers.rax = components & 0xffff_ffff;
        self.saved.registers.rdx = components >> 32;
        self
    }

    fn holding(mut self, vectors: &Vectors) -> Self {
        self.saved.xsave = vectors.0.to_vec();
        self
    }

    fn fill(&self, offset: usize, bytes: &[u8]) {
        self.memory.mapped().write_slice(bytes, GuestAddress(AREA + offset as u64)).unwrap();
    }

    fn area(&self) -> Vec<u8> {
        let mut bytes = vec![0; AREA_SIZE];
        self.memory.mapped().read_slice(&mut bytes, GuestAddress(AREA)).unwrap();
        bytes
    }

    fn vectors(&self) -> Vectors {
        let mut vectors = Vectors::default();
        self.vcpu.read_vectors(&mut vectors).unwrap();
        vectors
    }

    fn state(&self) -> State {
        State::new(&self.vectors(), Layout::host())
    }

    fn run_at(&self, code: &[u8], address: u64) -> Result<(), Stop> {
        let instruction = Decoder::new(64, code, DecoderOptions::NONE).decode();
        assert_ne!(instruction.code(), Code::INVALID);
        self.vcpu.restore(&self.saved).unwrap();
        let mut cpu = Cpu::load(&self.vcpu, &self.memory).unwrap();
        execute(&mut cpu, &instruction, address)?;
        cpu.store(None).unwrap();
        Ok(())
    }

    fn run(&self, code: &[u8]) -> Result<(), Stop> {
        self.run_at(code, AREA)
    }

    fn fault(&self, code: &[u8]) -> Fault {
        match self.run(code) {
            Err(Stop::Fault(fault)) => fault,
            other => panic!("{other:?}"),
        }
    }
}

/// State in which every byte that software can set differs from its neighbours.
fn busy() -> Vectors {
    let mut vectors = Vectors::default();
    for (at, byte) in vectors.0.iter_mut().enumerate() {
        *byte = (at * 7 + at / 256 + 1) as u8;
    }
    vectors.0[0..2].copy_from_slice(&0x37f_u16.to_le_bytes());
    vectors.0[2..4].copy_from_slice(&0x3800_u16.to_le_bytes());
    vectors.0[24..28].copy_from_slice(&0x3fa0_u32.to_le_bytes());
    vectors.0[HEADER..EXTENDED].fill(0);
    vectors.0[HEADER..HEADER + 8].copy_from_slice(&Layout::host().known().to_le_bytes());
    let mut state = State::new(&vectors, Layout::host());
    state.settle_x87();
    state.finish()
}

fn initial() -> Vectors {
    State::new(&Vectors::default(), Layout::host()).finish()
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte))
}

/// Everything that an instruction can see of the state.
fn same(one: &State, other: &State) -> bool {
    let layout = Layout::host();
    let mut parts = numbers(layout.known()).flat_map(|number| layout.parts(number, true));
    one.mxcsr() == other.mxcsr() && parts.all(|part| one.bytes(part.clone()) == other.bytes(part))
}

#[test]
fn what_each_instruction_saves_is_restored() {
    for (save, restore) in [
        (XSAVE64, XRSTOR64),
        (XSAVEOPT64, XRSTOR64),
        (XSAVEC64, XRSTOR64),
        (XSAVES64, XRSTOR64),
        (XSAVES64, XRSTORS64),
        (XSAVEC64, XRSTORS64),
    ] {
        for (held, other) in [(busy(), initial()), (initial(), busy())] {
            let machine = Machine::new().holding(&held);
            machine.fill(HEADER, &[0; 64]);
            machine.run(save).unwrap();
            let machine = Machine { memory: machine.memory, ..Machine::new() }.holding(&other);
            machine.run(restore).unwrap();
            assert!(same(&machine.state(), &State::new(&held, Layout::host())), "{save:x?} {restore:x?}");
        }
    }
}

#[test]
fn the_privileged_saves_write_what_the_others_write() {
    for vectors in [busy(), initial()] {
        let [one, other] = [XSAVEC64, XSAVES64].map(|code| {
            let machine = Machine::new().holding(&vectors);
            machine.run(code).unwrap();
            machine.area()
        });
        assert_eq!(one, other);
    }
}

#[test]
fn bytes_that_belong_to_no_requested_component_are_left_alone() {
    let machine = Machine::new().holding(&busy()).requesting(SSE);
    machine.fill(HEADER, &0xff00_ff00_u64.to_le_bytes());
    machine.run(XSAVE64).unwrap();
    let area = machine.area();
    let untouched = |part: std::ops::Range<usize>| area[part].iter().all(|byte| *byte == UNTOUCHED);
    assert!(untouched(0..24) && untouched(32..160) && untouched(416..512) && untouched(520..AREA_SIZE));
    assert_eq!(area[160..416], busy().0[160..416]);
    assert_eq!(word(&area, 24), u64::from(mxcsr_mask()) << 32 | 0x3fa0);
    // Bits that were not asked for stay.
    assert_eq!(word(&area, HEADER), 0xff00_ff00 | SSE);
}

#[test]
fn what_is_initial_is_written_by_xsave_only() {
    for (code, legacy_byte, format) in [
        (XSAVE64, 0x7f, word(&[UNTOUCHED; 8], 0)),
        (XSAVEOPT64, UNTOUCHED, word(&[UNTOUCHED; 8], 0)),
        (XSAVEC64, UNTOUCHED, COMPACTED | X87 | SSE | AVX),
    ] {
        let machine = Machine::new().holding(&initial()).requesting(X87 | SSE | AVX);
        machine.run(code).unwrap();
        let area = machine.area();
        assert_eq!(area[0], legacy_byte);
        assert_eq!(word(&area, HEADER) & (X87 | SSE | AVX), 0);
        assert_eq!(word(&area, HEADER + 8), format);
    }
}

#[test]
fn an_unusual_mxcsr_makes_the_sse_component_used_for_the_compacting_instructions() {
    let mut state = State::new(&initial(), Layout::host());
    state.set_mxcsr(0x1fa0);
    let vectors = state.finish();
    for (code, requested, present, written) in [
        (XSAVEC64, SSE | AVX, SSE, true),
        (XSAVEC64, AVX, 0, false),
        (XSAVEOPT64, SSE, 0, true),
        (XSAVEOPT64, AVX, 0, true),
        (XSAVEOPT64, X87, 0, false),
        (XSAVE64, AVX, 0, true),
    ] {
        let machine = Machine::new().holding(&vectors).requesting(requested);
        machine.fill(HEADER, &[0; 64]);
        machine.run(code).unwrap();
        let area = machine.area();
        assert_eq!(word(&area, HEADER), present, "{code:x?} {requested:#x}");
        assert_eq!(area[24..26] == [0xa0, 0x1f], written, "{code:x?} {requested:#x}");
    }
}

/// An area with all components absent.
fn empty(machine: &Machine, format: u64, mxcsr: u32) {
    machine.fill(0, &[0; 600]);
    machine.fill(24, &mxcsr.to_le_bytes());
    machine.fill(HEADER + 8, &format.to_le_bytes());
}

#[test]
fn mxcsr_is_restored_by_the_rules_of_each_format() {
    let compacted = COMPACTED | X87 | SSE | AVX;
    for (format, present, requested, expected) in [
        (0, 0, X87, 0x3fa0),
        (0, 0, SSE, 0x5f80),
        (0, 0, AVX, 0x5f80),
        (0, AVX, X87, 0x3fa0),
        (compacted, 0, SSE, 0x1f80),
        (compacted, SSE, SSE, 0x5f80),
        (compacted, 0, AVX, 0x3fa0),
        (compacted, AVX, AVX, 0x3fa0),
    ] {
        let machine = Machine::new().holding(&busy()).requesting(requested);
        empty(&machine, format, 0x5f80);
        machine.fill(HEADER, &u64::to_le_bytes(present));
        machine.run(XRSTOR64).unwrap();
        assert_eq!(machine.state().mxcsr(), expected, "{format:#x} {present} {requested}");
    }
}

#[test]
fn mxcsr_bits_that_the_processor_lacks_are_a_fault_where_they_are_loaded() {
    for (requested, faults) in [(X87, false), (SSE, true), (AVX, true)] {
        let machine = Machine::new().requesting(requested);
        empty(&machine, 0, 0x8000_1f80);
        assert_eq!(machine.run(XRSTOR64).is_err(), faults);
    }
}

#[test]
fn headers_that_say_what_cannot_be_are_faults_and_change_nothing() {
    let good = COMPACTED | X87 | SSE;
    let headers: [(usize, u64, u64); 7] = [
        (HEADER, 1 << 62, 0),
        (HEADER, 1 << 62, good),
        (HEADER, AVX, good),
        (HEADER + 8, 0, X87),
        (HEADER + 8, 0, COMPACTED | 1 << 62),
        (HEADER + 16, 1, 0),
        (HEADER + 56, 1 << 63, good),
    ];
    for (at, value, format) in headers {
        let machine = Machine::new().holding(&busy());
        empty(&machine, format, 0x1f80);
        if at != HEADER + 8 {
            machine.fill(at, &value.to_le_bytes());
        }
        assert_eq!(machine.fault(XRSTOR64), Fault::PROTECTION, "{at} {value:#x} {format:#x}");
        assert!(machine.vectors() == busy());
    }
    let machine = Machine::new();
    empty(&machine, 0, 0x1f80);
    machine.fill(HEADER + 56, &[1; 8]);
    machine.run(XRSTOR64).unwrap();
    assert_eq!(machine.fault(XRSTORS64), Fault::PROTECTION);
}

#[test]
fn each_precondition_has_its_fault() {
    for code in [XSAVE64, XSAVEOPT64, XSAVEC64, XSAVES64, XRSTOR64, XRSTORS64] {
        let mut machine = Machine::new();
        assert!(matches!(machine.run_at(code, AREA + 16), Err(Stop::Fault(Fault::PROTECTION))));
        machine.saved.special.cr0 |= CR0_TS;
        assert_eq!(machine.fault(code), Fault::NO_VECTORS);
        machine.saved.special.cr4 = 0;
        assert_eq!(machine.fault(code), Fault::UNDEFINED);
    }
    for code in [XSAVES64, XRSTORS64] {
        let mut machine = Machine::new();
        machine.saved.special.ss.dpl = 3;
        assert_eq!(machine.fault(code), Fault::PROTECTION);
    }
}

#[test]
fn the_other_forms_have_pointers_of_32_bits() {
    let pending = |machine: &Machine| {
        empty(machine, 0, 0x1f80);
        // An unmasked exception, so that every processor keeps the pointers.
        machine.fill(0, &[0x7e, 3, 1, 0, 0, 0, 0x55, 1]);
        machine.fill(8, &[0x11; 8]);
        machine.fill(16, &[0x22; 8]);
        machine.fill(HEADER, &X87.to_le_bytes());
    };
    let machine = Machine::new();
    pending(&machine);
    machine.run(XRSTOR).unwrap();
    assert_eq!(word(&machine.vectors().0, 8), 0x1111_1111);
    assert_eq!(word(&machine.vectors().0, 16), 0x2222_2222);

    pending(&machine);
    machine.run(XRSTOR64).unwrap();
    assert_eq!(word(&machine.vectors().0, 0), 0x155_0000_8081_037e);
    assert_eq!(word(&machine.vectors().0, 8), 0x1111_1111_1111_1111);
    let machine = Machine::new().holding(&machine.vectors()).requesting(X87);
    machine.run(XSAVE).unwrap();
    assert_eq!(word(&machine.area(), 8), 0x1111_1111);
    machine.run(XSAVE64).unwrap();
    assert_eq!(word(&machine.area(), 8), 0x1111_1111_1111_1111);
}

#[test]
fn outside_64_bit_mode_there_are_eight_vector_registers() {
    let mut machine = Machine::new().holding(&busy());
    machine.saved.special.cs.long = false;
    machine.fill(HEADER, &[0; 64]);
    machine.run(XSAVE).unwrap();
    let area = machine.area();
    assert_eq!(area[160..288], busy().0[160..288]);
    assert!(area[288..416].iter().all(|byte| *byte == UNTOUCHED));

    empty(&machine, 0, 0x1f80);
    machine.run(XRSTOR).unwrap();
    let vectors = machine.vectors();
    assert!(vectors.0[160..288].iter().all(|byte| *byte == 0));
    assert_eq!(vectors.0[288..416], busy().0[288..416]);
}

#[test]
fn supervisor_state_is_beyond_this_and_said_so() {
    let mut machine = Machine::new();
    machine.saved.msrs.push(Msr { index: IA32_XSS, value: 1 << 11 });
    let Err(Stop::Beyond(beyond)) = machine.run(XSAVES64) else { panic!() };
    assert!(beyond.text.contains("state component 11"), "{}", beyond.text);
    machine.run(XSAVE64).unwrap();
}

#[test]
fn compacted_components_follow_each_other_aligned_where_they_want_it() {
    let component = |number, offset, size, aligned| Component { number, offset, size, aligned };
    let layout = Layout::new(vec![
        component(2, 576, 256, false),
        component(5, 1088, 64, false),
        component(8, 2688, 8, false),
        component(9, 2696, 8, false),
        component(10, 2752, 128, true),
        component(17, 4096, 64, true),
    ]);
    assert_eq!(layout.known(), X87 | SSE | AVX | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 10);
    let place = |number, offset: u64, contents| layout.moved(number, contents).wrapping_add(offset);
    assert_eq!(place(2, 576, layout.known()), 576);
    assert_eq!(place(5, 1088, layout.known()), 832);
    assert_eq!(place(9, 2696, layout.known()), 904);
    assert_eq!(place(10, 2752, layout.known()), 960);
    assert_eq!(place(10, 2752, 1 << 10 | 1 << 8), 640);
    assert_eq!(place(8, 2688, 1 << 10 | 1 << 8), 576);
    assert_eq!(layout.parts(0, true).collect::<Vec<_>>(), [0..24, 32..160]);
    assert!(layout.parts(10, false).eq(std::iter::once(2752..2880)));
    assert_eq!(layout.parts(17, true).count(), 0);
}
