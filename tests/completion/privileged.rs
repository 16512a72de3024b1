//! Instructions that this process may not execute: compared with what the manuals say, or with a relative.

use iced_x86::{Code, Encoder, Instruction, MemoryOperand, Register};
use lodger::hv::Vectors;

use crate::Bench;
use crate::case::{Case, Outcome};
use crate::compare;
use crate::encode;
use crate::place::{CODE, DATA, DATA_SIZE};
use crate::random::Random;
use crate::vectors::{HEADER, word};

const RAX: usize = 0;
const RDX: usize = 2;
const RSI: usize = 6;
const ALIGNMENT_FLAG: u64 = 1 << 18;
const PROTECTION: u8 = 13;
const UNDEFINED: u8 = 6;
const SMAP: u32 = 1 << 20;
const ROUNDS: u64 = 2000;

/// A case for the kernel of a guest, with `instruction` at the beginning of the code.
fn case(bench: &Bench, instruction: &Instruction, random: &mut Random) -> Case {
    let mut encoder = Encoder::new(64);
    encoder.encode(instruction, CODE).unwrap();
    let bytes = encoder.take_buffer();
    let mut case = Case {
        seed: 0,
        instruction: encode::decode(&bytes, CODE).unwrap(),
        bytes,
        rip: CODE,
        general: std::array::from_fn(|_| random.integer()),
        flags: 0x202 | random.next() & ALIGNMENT_FLAG,
        gs_base: 0,
        privilege: 0,
        vectors: bench.generator.layout.random(&bench.generator.contents, random),
        data: vec![0; DATA_SIZE as usize],
        target: None,
    };
    bench.generator.contents.fill(&mut case.data, random);
    case
}

/// An instruction on the state at RSI, with a mask of components.
fn with_area(bench: &Bench, code: Code, random: &mut Random) -> Case {
    let memory = MemoryOperand::with_base(Register::RSI);
    let mut case = case(bench, &Instruction::with1(code, memory).unwrap(), random);
    let asked = random.pick(&[u64::MAX, 7, 3, 0xe0]) & random.next();
    (case.general[RAX], case.general[RDX]) = (asked & 0xffff_ffff, asked >> 32);
    case.general[RSI] = DATA + random.below(DATA_SIZE - 4096) / 64 * 64;
    case
}

fn complete(bench: &Bench, case: &Case) -> Outcome {
    bench.guest.run(case).unwrap_or_else(|beyond| panic!("{beyond}"))
}

/// The same case for another instruction of the same length.
fn exchange(case: &mut Case, code: Code) {
    let mut encoder = Encoder::new(64);
    let instruction = Instruction::with1(code, MemoryOperand::with_base(Register::RSI)).unwrap();
    encoder.encode(&instruction, CODE).unwrap();
    case.bytes = encoder.take_buffer();
    case.instruction = instruction;
}

fn assert_same(bench: &Bench, case: &Case, native: &mut Outcome, completed: &mut Outcome) {
    let found = compare::differences(&bench.generator.layout, case, native, completed);
    assert!(found.is_empty(), "{}\n    {}", compare::describe(case), found.join("\n    "));
}

#[test]
fn the_kernels_save_writes_what_the_processors_compacting_save_writes() {
    let bench = Bench::new(1);
    let random = &mut Random::new(2);
    for round in 0..ROUNDS {
        let (kernels, programs) = match round % 2 {
            0 => (Code::Xsaves64_mem, Code::Xsavec64_mem),
            _ => (Code::Xsaves_mem, Code::Xsavec_mem),
        };
        let mut case = with_area(&bench, kernels, random);
        let mut completed = complete(&bench, &case);
        exchange(&mut case, programs);
        let mut native = bench.native.run(&case);
        assert_same(&bench, &case, &mut native, &mut completed);
    }
}

#[test]
fn the_kernels_restore_loads_what_the_processors_restore_loads_from_a_compacted_area() {
    let bench = Bench::new(3);
    let random = &mut Random::new(4);
    for round in 0..ROUNDS {
        let (save, kernels, programs) = match round % 2 {
            0 => (Code::Xsavec64_mem, Code::Xrstors64_mem, Code::Xrstor64_mem),
            _ => (Code::Xsavec_mem, Code::Xrstors_mem, Code::Xrstor_mem),
        };
        let mut case = with_area(&bench, save, random);
        let at = (case.general[RSI] - DATA) as usize;
        case.data[at + HEADER..at + HEADER + 64].fill(0);
        case.data = bench.native.run(&case).data;
        assert_eq!(word(&case.data, at + HEADER + 8) >> 63, 1);
        case.vectors = bench.generator.layout.random(&bench.generator.contents, random);
        (case.general[RAX], case.general[RDX]) = (random.next(), random.next());
        exchange(&mut case, kernels);
        let mut completed = complete(&bench, &case);
        exchange(&mut case, programs);
        let mut native = bench.native.run(&case);
        assert_same(&bench, &case, &mut native, &mut completed);
    }
}

#[test]
fn programs_may_not_use_the_kernels_save_and_restore() {
    let bench = Bench::new(5);
    let random = &mut Random::new(6);
    for code in [Code::Xsaves64_mem, Code::Xsaves_mem, Code::Xrstors64_mem, Code::Xrstors_mem] {
        let mut case = with_area(&bench, code, random);
        case.privilege = 3;
        let outcome = complete(&bench, &case);
        assert_eq!(outcome.raised.map(|raised| raised.vector), Some(PROTECTION));
        assert!(outcome.data == case.data);
        assert!(Vectors(*outcome.vectors) == *case.vectors);
    }
}

#[test]
fn the_alignment_flag_is_set_and_cleared_by_the_kernel_only() {
    if std::arch::x86_64::__cpuid_count(7, 0).ebx & SMAP == 0 {
        return;
    }
    let bench = Bench::new(7);
    let random = &mut Random::new(8);
    for round in 0..64 {
        for (code, flag) in [(Code::Clac, 0), (Code::Stac, ALIGNMENT_FLAG)] {
            let mut case = case(&bench, &Instruction::with(code), random);
            case.privilege = if round % 2 == 0 { 0 } else { 3 };
            let mut expected = Outcome {
                general: case.general,
                flags: case.flags,
                rip: case.rip,
                vectors: Box::new(case.vectors.0),
                data: case.data.clone(),
                raised: None,
            };
            bench.generator.layout.settle(&mut expected.vectors);
            let mut completed = complete(&bench, &case);
            if case.privilege == 3 {
                assert_eq!(completed.raised.map(|raised| raised.vector), Some(UNDEFINED));
                expected.raised = completed.raised;
            } else {
                expected.flags = case.flags & !ALIGNMENT_FLAG | flag;
                expected.rip += 3;
            }
            assert_same(&bench, &case, &mut expected, &mut completed);
        }
    }
}
