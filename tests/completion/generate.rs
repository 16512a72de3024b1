//! From a number to a case: an instruction, and state with which it does something.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use crate::candidates;
use crate::case::Case;
use crate::contents::Contents;
use crate::encode::{decode, encode, memory_bytes};
use crate::place::{CODE, DATA, DATA_SIZE, PAGE, READ_ONLY};
use crate::random::Random;
use crate::vectors::{HEADER, Layout, mxcsr};

const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RBX: usize = 3;
const RSP: usize = 4;
const RBP: usize = 5;
const RSI: usize = 6;
const RDI: usize = 7;

const CARRY_TO_OVERFLOW: u64 = 0x8d5;
const FLAGS_ALWAYS: u64 = 0x202;
const DIRECTION: u64 = 1 << 10;

/// Makes cases.
pub struct Generator {
    /// What memory and registers hold.
    pub contents: Contents,
    /// How vector state is laid out.
    pub layout: Layout,
}

impl Generator {
    /// The case that belongs to this number; not every number makes one.
    pub fn case(&self, code: Code, seed: u64) -> Option<Case> {
        let random = &mut Random::new(seed);
        let size = memory_bytes(code);
        let rip = CODE + if random.one_in(8) { PAGE - random.below(15) } else { random.below(2048) };
        let target = choose_target(code, size, random);
        let bytes = encode(code, rip, target, random)?;
        let instruction = decode(&bytes, rip)?;
        if !instruction.is_invalid() && instruction.len() != bytes.len() {
            return None;
        }
        // What is no instruction may also be one that is too long, which is another exception. No decoder can tell.
        if instruction.is_invalid() && bytes.len() == 15 {
            return None;
        }
        if !candidates::is_comparable_as_decoded(&instruction) {
            return None;
        }
        let mut case = Case {
            seed,
            instruction,
            bytes,
            rip,
            general: std::array::from_fn(|_| random.integer()),
            flags: FLAGS_ALWAYS | random.next() & CARRY_TO_OVERFLOW,
            gs_base: random.below(0x10_0000),
            privilege: random.pick(&[0, 0, 3]),
            vectors: self.layout.random(&self.contents, random),
            data: vec![0; DATA_SIZE as usize],
            target: None,
        };
        self.contents.fill(&mut case.data, random);
        set_flags(&mut case, random);
        self.suit(&mut case, target, random);
        self.aim(&mut case, target, random)?;
        Some(case)
    }

    /// Makes state for an instruction that with any other would do the same each time.
    fn suit(&self, case: &mut Case, target: u64, random: &mut Random) {
        use Mnemonic as M;
        let instruction = case.instruction;
        match instruction.mnemonic() {
            M::Div | M::Idiv => suit_division(case, random),
            M::Bt | M::Bts | M::Btr | M::Btc => suit_bit_offset(case, random),
            M::Cmpxchg | M::Cmpxchg8b | M::Cmpxchg16b => suit_comparison(case, target, random),
            M::Xsave | M::Xsave64 | M::Xsaveopt | M::Xsaveopt64 | M::Xsavec | M::Xsavec64 => {
                self.suit_request(case, random);
            }
            M::Xrstor | M::Xrstor64 => {
                self.suit_request(case, random);
                self.write_area(case, target, random);
            }
            M::Ldmxcsr | M::Vldmxcsr if !random.one_in(8) => {
                write(case, target, &mxcsr(random).to_le_bytes());
            }
            M::Fxrstor | M::Fxrstor64 if !random.one_in(8) => {
                write(case, target + 24, &mxcsr(random).to_le_bytes());
            }
            M::Clzero => case.general[RAX] = target,
            M::Xlatb => case.general[RBX] = target,
            M::Pcmpestri | M::Pcmpestrm | M::Vpcmpestri | M::Vpcmpestrm => {
                case.general[RAX] = random.below(40).wrapping_sub(20);
                case.general[RDX] = random.below(40).wrapping_sub(20);
            }
            _ => {}
        }
        for operand in 0..instruction.op_count() {
            let kind = instruction.op_kind(operand);
            match kind {
                OpKind::MemorySegRSI | OpKind::MemorySegESI | OpKind::MemorySegSI => {
                    case.general[RSI] = DATA + random.below(DATA_SIZE);
                    case.general[RCX] = random.below(40);
                }
                OpKind::MemoryESRDI
                | OpKind::MemoryESEDI
                | OpKind::MemoryESDI
                | OpKind::MemorySegRDI
                | OpKind::MemorySegEDI
                | OpKind::MemorySegDI => {
                    case.general[RDI] = target;
                    case.general[RCX] = random.below(40);
                }
                _ => {}
            }
        }
        if instruction.is_stack_instruction() {
            case.general[RSP] = target;
            case.general[RBP] = DATA + random.below(DATA_SIZE);
        }
    }

    fn suit_request(&self, case: &mut Case, random: &mut Random) {
        let all = self.layout.enabled();
        let one = 1 << random.below(8);
        let any = random.next();
        let asked = random.pick(&[u64::MAX, u64::MAX, all, one, 7, 3, 0, any]);
        let upper = random.next() << 32;
        case.general[RAX] = asked & 0xffff_ffff | upper;
        case.general[RDX] = asked >> 32 | upper;
    }

    /// An area to restore from: mostly one that can be.
    fn write_area(&self, case: &mut Case, target: u64, random: &mut Random) {
        let vectors = self.layout.random(&self.contents, random);
        write(case, target, &vectors.0[..HEADER]);
        let mut present = random.next() & self.layout.enabled();
        let mut format =
            if random.one_in(2) { 1 << 63 | present | random.next() & self.layout.enabled() } else { 0 };
        let mut reserved = [0; 48];
        match random.below(24) {
            0 => present |= 1 << random.below(64),
            1 => format ^= 1 << random.below(64),
            2 => reserved[random.below(48) as usize] = 1,
            3 => write(case, target + 24, &(random.next() as u32).to_le_bytes()),
            _ => {}
        }
        // The status word may claim what the processor has to correct.
        if random.one_in(4) {
            write(case, target, &random.next().to_le_bytes());
        }
        write(case, target + HEADER as u64, &present.to_le_bytes());
        write(case, target + HEADER as u64 + 8, &format.to_le_bytes());
        write(case, target + HEADER as u64 + 16, &reserved);
    }

    /// Makes registers so that the memory operand lies at `target`.
    fn aim(&self, case: &mut Case, target: u64, random: &mut Random) -> Option<()> {
        let instruction = case.instruction;
        let is_memory = |operand| instruction.op_kind(operand) == OpKind::Memory;
        if !(0..instruction.op_count()).any(is_memory) || instruction.mnemonic() == Mnemonic::Xlatb {
            return Some(());
        }
        case.target = Some(target);
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        let scale = u64::from(instruction.memory_index_scale());
        if instruction.segment_prefix() == Register::GS {
            case.gs_base = if base.is_gpr() || index.is_gpr() { random.below(0x10_0000) & !63 } else { 0 };
        } else if matches!(base, Register::RIP | Register::EIP)
            || base == Register::None && index == Register::None
        {
            return Some(());
        }
        let offset = target.wrapping_sub(gs_base(case));
        let rest = offset.wrapping_sub(instruction.memory_displacement64());
        if index.is_vector_register() {
            let place = base.is_gpr().then(|| base.full_register().number())?;
            case.general[place] = rest;
            self.scatter(case, index, scale, random);
            return Some(());
        }
        let narrow = base.size() == 4 || index.size() == 4;
        match (base.is_gpr(), index.is_gpr()) {
            (true, true) if base.full_register() == index.full_register() => {
                set(
                    case,
                    base,
                    rest.is_multiple_of(scale + 1).then_some(rest / (scale + 1))?,
                    narrow,
                    random,
                );
            }
            (true, has_index) => {
                let index = if has_index { case.general[index.full_register().number()] } else { 0 };
                set(case, base, rest.wrapping_sub(index.wrapping_mul(scale)), narrow, random);
            }
            (false, true) => {
                set(case, index, rest.is_multiple_of(scale).then_some(rest / scale)?, narrow, random);
            }
            (false, false) => {}
        }
        Some(())
    }

    /// Makes the lanes of a vector index small, but now and then one that leads out of the data.
    fn scatter(&self, case: &mut Case, index: Register, scale: u64, random: &mut Random) {
        let wide = case.instruction.is_vsib64();
        let out = random.one_in(12);
        let parts: Vec<_> = self.layout.register(index.number());
        let header = &mut case.vectors.0;
        let all = self.layout.enabled().to_le_bytes();
        header[HEADER..HEADER + 8].copy_from_slice(&all);
        for lane in parts.into_iter().flatten().collect::<Vec<_>>().chunks(if wide { 8 } else { 4 }) {
            let far = if out && random.one_in(4) { 3 * PAGE } else { 0 };
            let value = random.below(512) / scale + far;
            let value = if random.one_in(3) { 0_u64.wrapping_sub(value / 4) } else { value };
            for (at, byte) in lane.iter().zip(value.to_le_bytes()) {
                header[*at] = byte;
            }
        }
    }
}

fn gs_base(case: &Case) -> u64 {
    if case.instruction.segment_prefix() == Register::GS { case.gs_base } else { 0 }
}

fn set(case: &mut Case, register: Register, value: u64, narrow: bool, random: &mut Random) {
    let upper = if narrow { random.next() << 32 } else { 0 };
    case.general[register.full_register().number()] =
        if narrow { value & 0xffff_ffff | upper } else { value };
}

fn set_flags(case: &mut Case, random: &mut Random) {
    if random.one_in(8) {
        case.flags |= DIRECTION;
    }
}

/// Somewhere in the data, or at its edges, or outside.
fn choose_target(code: Code, size: u64, random: &mut Random) -> u64 {
    let area = code.op_code().is_save_restore();
    let alignment = if area { 64 } else { size.next_power_of_two().min(64) };
    let inside = random.below(DATA_SIZE - size);
    match random.below(24) {
        0 | 1 => DATA + PAGE * (1 + random.below(2)) - 1 - random.below(size),
        2 => DATA + DATA_SIZE - random.below(size),
        3 => DATA - random.below(size),
        4 => READ_ONLY + random.below(PAGE) / alignment * alignment,
        5 => random.pick(&[READ_ONLY + PAGE, 1 << 47, 0x7fff_ffff_ffff_fff8, DATA - PAGE - 1, 0]),
        6..10 => DATA + inside,
        _ => DATA + inside / alignment * alignment,
    }
}

fn suit_division(case: &mut Case, random: &mut Random) {
    match random.below(4) {
        0 => {}
        1 => case.general[RDX] = 0,
        2 => case.general[RDX] = random.below(100),
        _ => case.general[RDX] = ((case.general[RAX] as i64) >> 63) as u64,
    }
    if random.one_in(2) {
        case.general[RAX] >>= random.below(64);
    }
}

/// A bit offset in a register reaches far around the operand: keep it within the data.
fn suit_bit_offset(case: &mut Case, random: &mut Random) {
    if case.instruction.op1_kind() == OpKind::Register {
        let number = case.instruction.op1_register().full_register().number();
        case.general[number] = random.below(8192).wrapping_sub(4096);
    }
}

/// What is compared with memory is there half of the time.
fn suit_comparison(case: &mut Case, target: u64, random: &mut Random) {
    let Some(at) = target.checked_sub(DATA).filter(|at| at + 16 <= DATA_SIZE) else { return };
    if random.one_in(2) {
        return;
    }
    let word = crate::vectors::word(&case.data, at as usize);
    let next = crate::vectors::word(&case.data, at as usize + 8);
    match case.instruction.mnemonic() {
        Mnemonic::Cmpxchg16b => (case.general[RAX], case.general[RDX]) = (word, next),
        Mnemonic::Cmpxchg8b => (case.general[RAX], case.general[RDX]) = (word & 0xffff_ffff, word >> 32),
        _ => case.general[RAX] = word,
    }
}

/// Writes to the data, as far as it reaches.
fn write(case: &mut Case, target: u64, bytes: &[u8]) {
    for (at, byte) in (target..).zip(bytes) {
        if let Some(place) = at.checked_sub(DATA).and_then(|at| case.data.get_mut(at as usize)) {
            *place = *byte;
        }
    }
}

/// Whether the operand may be an index into bits far from the operand, with the register it is in also used for its
/// address: then nobody knows where it leads.
pub fn leads_anywhere(instruction: &Instruction) -> bool {
    let is_bit =
        matches!(instruction.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc);
    let offset = instruction.op1_register().full_register();
    let address = [instruction.memory_base(), instruction.memory_index()];
    is_bit && address.iter().any(|register| register.full_register() == offset && offset != Register::None)
}
