//! From a number to a case: an instruction as kernels have them, and state with which it does something.

use iced_x86::{Code, Encoder, Instruction, Mnemonic as M, OpCodeOperandKind as K, OpKind, Register};

use crate::candidates;
use crate::contents::Contents;
use crate::encode::{decode, encode, memory_bytes};
use crate::place::PAGE;
use crate::random::Random;
use crate::vectors::word;

/// Two pages of code.
pub const CODE: u64 = 0x2000_0000;
pub const CODE_SIZE: u64 = 2 * PAGE;
/// Three pages of data, with nothing before and behind them.
pub const DATA: u64 = 0x2800_0000;
pub const DATA_SIZE: u64 = 3 * PAGE;
/// A page that can only be read, with nothing before and behind it.
pub const READ_ONLY: u64 = DATA + DATA_SIZE + PAGE;

const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RSP: usize = 4;
const RBP: usize = 5;
const RSI: usize = 6;
const RDI: usize = 7;

const STATUS: u64 = 0x8d5;
const TRAP: u64 = 1 << 8;
const INTERRUPT: u64 = 1 << 9;
const DIRECTION: u64 = 1 << 10;
const PRIVILEGE: u64 = 3 << 12;
const IDENTIFICATION: u64 = 1 << 21;
const ALWAYS: u64 = 1 << 1;

/// An instruction, and everything it can depend on.
pub struct Case {
    pub seed: u64,
    pub instruction: Instruction,
    pub bytes: Vec<u8>,
    /// The same bytes, perhaps with FS, which this process needs, in the place of GS.
    pub guest_bytes: Vec<u8>,
    pub rip: u64,
    pub general: [u64; 16],
    pub flags: u64,
    pub segment_base: u64,
    /// Whether the data lie in pages of the user's.
    pub user_data: bool,
    /// Where it jumps, if it does.
    pub landing: Option<u64>,
    /// Whether processors disagree about it.
    pub must_be_left: bool,
    pub data: Vec<u8>,
}

/// What an instruction leaves.
pub struct State<'a> {
    pub general: [u64; 16],
    pub flags: u64,
    pub rip: u64,
    pub data: &'a [u8],
}

/// What lies on the page that can only be read.
pub fn read_only() -> Vec<u8> {
    let mut random = Random::new(READ_ONLY);
    (0..PAGE).map(|_| random.next() as u8).collect()
}

/// Everything that can be compared.
pub fn codes() -> Vec<Code> {
    Code::values().filter(|code| is_ours(*code) || candidates::is_comparable(*code)).collect()
}

/// What only this comparison can do: what jumps, and what is different for kernels.
fn is_ours(code: Code) -> bool {
    let op = code.op_code();
    let is_jump =
        matches!(code.mnemonic(), M::Jmp | M::Call | M::Ret | M::Jrcxz | M::Pushfq | M::Popfq | M::Mov)
            || code.is_jcc_short_or_near();
    op.is_instruction()
        && op.mode64()
        && is_jump
        && op.op_kinds().iter().all(|kind| is_known(*kind))
        && !matches!(op.op_kind(0), K::br16_1 | K::br16_2 | K::br32_1 | K::br32_4)
}

fn is_known(kind: K) -> bool {
    !matches!(kind, K::farbr2_2 | K::farbr4_2 | K::seg_reg | K::cr_reg | K::dr_reg | K::tr_reg)
}

fn is_jump(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), M::Jmp | M::Call | M::Ret | M::Jrcxz | M::Jecxz)
        || instruction.is_jcc_short_or_near()
}

/// Makes cases.
pub struct Generator {
    contents: Contents,
}

impl Generator {
    pub fn new(random: &mut Random) -> Self {
        Self { contents: Contents::new(random) }
    }

    /// The case that belongs to this number; not every number makes one.
    pub fn case(&self, code: Code, seed: u64) -> Option<Case> {
        let random = &mut Random::new(seed);
        let size = memory_bytes(code);
        let rip = CODE + if random.one_in(8) { PAGE - random.below(15) } else { 128 + random.below(2048) };
        let mut target = choose_target(size, random);
        let landing = choose_landing(code, rip, random);
        let bytes = match code.op_code().op_kind(0) {
            K::br64_1 | K::br64_4 => encode_branch(code, rip, landing, random)?,
            _ => match moffs(code) {
                Some(operand) => encode_moffs(code, operand, rip, target, random)?,
                None => encode(code, rip, target, random)?,
            },
        };
        let instruction = decode(&bytes, rip)?;
        if instruction.is_invalid() || instruction.len() != bytes.len() {
            return None;
        }
        if !is_ours(instruction.code()) && !candidates::is_comparable_as_decoded(&instruction) {
            return None;
        }
        let mut case = Case {
            seed,
            instruction,
            guest_bytes: bytes.clone(),
            bytes,
            rip,
            general: std::array::from_fn(|_| random.integer()),
            flags: ALWAYS | INTERRUPT | random.next() & (STATUS | IDENTIFICATION),
            segment_base: 0,
            user_data: random.one_in(8),
            landing: None,
            must_be_left: false,
            data: vec![0; DATA_SIZE as usize],
        };
        if random.one_in(6) {
            case.flags |= DIRECTION;
        }
        self.contents.fill(&mut case.data, random);
        suit(&mut case, target, random);
        aim(&mut case, &mut target, random)?;
        suit_comparison(&mut case, target, random);
        suit_jump(&mut case, landing, target)?;
        if case.instruction.mnemonic() == M::Popfq && case.general[RSP] >= READ_ONLY {
            return None;
        }
        use_fs(&mut case, random);
        (!crate::generate::leads_anywhere(&case.instruction)).then_some(case)
    }
}

/// Somewhere in the data, or at its edges, or outside.
fn choose_target(size: u64, random: &mut Random) -> u64 {
    let alignment = size.next_power_of_two().min(8);
    let inside = random.below(DATA_SIZE - size);
    match random.below(16) {
        0 | 1 => DATA + PAGE * (1 + random.below(2)) - 1 - random.below(size),
        2 => DATA + DATA_SIZE - random.below(size + 1),
        3 => DATA - random.below(size),
        4 => READ_ONLY + random.below(PAGE - 8) / alignment * alignment,
        5..8 => DATA + inside,
        _ => DATA + inside / alignment * alignment,
    }
}

/// A place in the code that neither the instruction nor what follows it needs.
fn choose_landing(code: Code, rip: u64, random: &mut Random) -> u64 {
    let near = code.op_code().op_kind(0) == K::br64_1;
    loop {
        let landing = match random.below(2) {
            _ if !near => CODE + random.below(CODE_SIZE - 16),
            0 => rip + 24 + random.below(80),
            _ => rip - 16 - random.below(90),
        };
        if landing + 8 <= rip || landing >= rip + 24 {
            return landing;
        }
    }
}

fn encode_branch(code: Code, rip: u64, landing: u64, random: &mut Random) -> Option<Vec<u8>> {
    // A prefix comes before what is encoded.
    let prefix = random.one_in(6).then(|| random.pick(&[0x2e, 0x3e, 0x36, 0x65, 0xf2, 0x48, 0x66, 0x67]));
    let at = rip + u64::from(prefix.is_some());
    let mut encoder = Encoder::new(64);
    encoder.encode(&Instruction::with_branch(code, landing).ok()?, at).ok()?;
    let mut bytes: Vec<u8> = prefix.into_iter().collect();
    bytes.extend(encoder.take_buffer());
    Some(bytes)
}

/// Which operand is an address without any register, if one is.
fn moffs(code: Code) -> Option<u32> {
    let op = code.op_code();
    (0..op.op_count()).find(|operand| op.op_kind(*operand) == K::mem_offs)
}

fn encode_moffs(code: Code, operand: u32, rip: u64, target: u64, random: &mut Random) -> Option<Vec<u8>> {
    let mut instruction = Instruction::new();
    instruction.set_code(code);
    let other = code.op_code().op_kind(1 - operand);
    let register = match other {
        K::al => Register::AL,
        K::ax => Register::AX,
        K::eax => Register::EAX,
        _ => Register::RAX,
    };
    instruction.set_op_kind(operand, OpKind::Memory);
    instruction.set_memory_displ_size(random.pick(&[4, 8]));
    instruction.set_memory_displacement64(target);
    if random.one_in(3) {
        instruction.set_segment_prefix(Register::GS);
    }
    instruction.set_op_kind(1 - operand, OpKind::Register);
    instruction.set_op_register(1 - operand, register);
    let mut encoder = Encoder::new(64);
    encoder.encode(&instruction, rip).ok()?;
    Some(encoder.take_buffer())
}

/// Makes state for an instruction that with any other would do the same each time.
fn suit(case: &mut Case, target: u64, random: &mut Random) {
    let instruction = case.instruction;
    let general = &mut case.general;
    match instruction.mnemonic() {
        M::Div | M::Idiv => {
            match random.below(4) {
                0 => {}
                1 => general[RDX] = 0,
                2 => general[RDX] = random.below(100),
                _ => general[RDX] = ((general[RAX] as i64) >> 63) as u64,
            }
            general[RAX] >>= random.pick(&[0, 0, 1, 8, 20, 40, 56]);
        }
        // A bit offset in a register reaches far around the operand: keep it within the data.
        M::Bt | M::Bts | M::Btr | M::Btc if instruction.op1_kind() == OpKind::Register => {
            let number = instruction.op1_register().full_register().number();
            general[number] = random.below(8192).wrapping_sub(4096);
        }
        M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Shld | M::Shrd if random.one_in(2) => {
            general[RCX] = general[RCX] & !0xff | random.below(72);
        }
        M::Jrcxz if random.one_in(2) => general[RCX] = 0,
        _ => {}
    }
    for operand in 0..instruction.op_count() {
        match instruction.op_kind(operand) {
            OpKind::MemorySegRSI | OpKind::MemorySegESI => {
                general[RSI] = DATA + random.below(DATA_SIZE);
                general[RCX] = random.below(40);
            }
            OpKind::MemoryESRDI | OpKind::MemoryESEDI => {
                general[RDI] = target;
                general[RCX] = random.below(40);
            }
            _ => {}
        }
    }
    if instruction.is_string_instruction() && random.one_in(2) {
        suit_string(case, target, random);
    }
    if instruction.is_stack_instruction() {
        case.general[RSP] = target;
        case.general[RBP] = DATA + random.below(DATA_SIZE);
    }
    if instruction.mnemonic() == M::Popfq {
        // This process cannot change its privilege, or refuse interrupts.
        let value = random.next() & !(TRAP | PRIVILEGE) | INTERRUPT;
        let value = if random.one_in(8) { value | TRAP } else { value };
        write(case, target, &value.to_le_bytes());
    }
}

/// Long repetitions, and data that are equal for a while.
fn suit_string(case: &mut Case, target: u64, random: &mut Random) {
    let distance = random.pick(&[1, 2, 3, 7, 8, 9, 64, 1000, PAGE]);
    case.general[RSI] =
        target.wrapping_sub(if random.one_in(2) { distance } else { distance.wrapping_neg() });
    let most = random.pick(&[300, 300, 300, 1500]);
    case.general[RCX] = random.below(most);
    let start = target.saturating_sub(DATA).min(DATA_SIZE) as usize / 2;
    if random.one_in(2) {
        let length = random.below(3000) as usize;
        let value = case.general[RAX].to_le_bytes();
        for (nth, byte) in case.data[start..].iter_mut().take(length).enumerate() {
            *byte = value[nth % 8];
        }
    }
}

/// Makes registers so that the memory operand lies at `target`, which moves where that is not possible.
fn aim(case: &mut Case, target: &mut u64, random: &mut Random) -> Option<()> {
    let instruction = case.instruction;
    let is_memory = |operand| instruction.op_kind(operand) == OpKind::Memory;
    if !(0..instruction.op_count()).any(is_memory) || instruction.mnemonic() == M::Xlatb {
        return Some(());
    }
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    let scale = u64::from(instruction.memory_index_scale());
    let has_base = instruction.segment_prefix() == Register::GS;
    if matches!(base, Register::RIP | Register::EIP) || base == Register::None && index == Register::None {
        if has_base {
            case.segment_base = random.below(64);
        }
        // A prefix that was put in front has moved it.
        *target = instruction.memory_displacement64() + case.segment_base;
        return Some(());
    }
    if index.is_vector_register() {
        return None;
    }
    if has_base {
        case.segment_base = random.below(0x10_0000);
    }
    let rest = target.wrapping_sub(case.segment_base).wrapping_sub(instruction.memory_displacement64());
    let narrow = base.size() == 4 || index.size() == 4;
    let mut set = |register: Register, value: u64| {
        let upper = if narrow { random.next() << 32 } else { 0 };
        case.general[register.full_register().number()] =
            if narrow { value & 0xffff_ffff | upper } else { value };
    };
    match (base.is_gpr(), index.is_gpr()) {
        (true, true) if base.full_register() == index.full_register() => {
            set(base, rest.is_multiple_of(scale + 1).then_some(rest / (scale + 1))?);
        }
        (true, true) => {
            let index = case.general[index.full_register().number()];
            let rest = rest.wrapping_sub(index.wrapping_mul(scale));
            let upper = if narrow { random.next() << 32 } else { 0 };
            case.general[base.full_register().number()] =
                if narrow { rest & 0xffff_ffff | upper } else { rest };
        }
        (true, false) => set(base, rest),
        (false, _) => set(index, rest.is_multiple_of(scale).then_some(rest / scale)?),
    }
    Some(())
}

/// What is compared with memory is there half of the time.
fn suit_comparison(case: &mut Case, target: u64, random: &mut Random) {
    let inside = target.checked_sub(DATA).filter(|at| at + 8 <= DATA_SIZE);
    if case.instruction.mnemonic() != M::Cmpxchg || random.one_in(2) {
        return;
    }
    match (case.instruction.op0_kind(), inside) {
        (OpKind::Memory, Some(at)) if uses(&case.instruction, Register::RAX) => {
            let value = case.general[RAX];
            write(case, DATA + at, &value.to_le_bytes());
        }
        (OpKind::Memory, Some(at)) => case.general[RAX] = word(&case.data, at as usize),
        (OpKind::Register, _) => {
            let number = case.instruction.op0_register().full_register().number();
            // With other bits above those that are compared.
            case.general[RAX] = case.general[number] ^ random.pick(&[0, 1 << 63, 1 << 32]);
        }
        _ => {}
    }
}

fn uses(instruction: &Instruction, register: Register) -> bool {
    [instruction.memory_base(), instruction.memory_index()]
        .iter()
        .any(|used| used.full_register() == register)
}

/// Has what jumps go to `landing`.
fn suit_jump(case: &mut Case, landing: u64, target: u64) -> Option<()> {
    let instruction = case.instruction;
    if !is_jump(&instruction) {
        return Some(());
    }
    case.landing = Some(landing);
    // With an operand-size prefix some processors cut RIP to 16 bits, and others ignore it.
    case.must_be_left = case.bytes.iter().take_while(|byte| is_prefix(**byte)).any(|byte| *byte == 0x66);
    match instruction.op0_kind() {
        _ if instruction.mnemonic() == M::Ret => write(case, case.general[RSP], &landing.to_le_bytes()),
        OpKind::Register => {
            let register = instruction.op0_register().full_register();
            if register == Register::RSP {
                return None;
            }
            case.general[register.number()] = landing;
        }
        OpKind::NearBranch64 => {}
        _ => write(case, target, &landing.to_le_bytes()),
    }
    if instruction.mnemonic() == M::Call && !uses(&instruction, Register::RSP) {
        case.general[RSP] = DATA + 8 + landing % (DATA_SIZE - 8);
    }
    Some(())
}

fn is_prefix(byte: u8) -> bool {
    matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3)
}

/// FS is this process's own: where the guest uses it, this process uses GS.
fn use_fs(case: &mut Case, random: &mut Random) {
    if case.instruction.segment_prefix() == Register::GS && random.one_in(2) {
        let prefixes = case.guest_bytes.iter().take_while(|byte| is_prefix(**byte)).count();
        for byte in &mut case.guest_bytes[..prefixes] {
            if *byte == 0x65 {
                *byte = 0x64;
            }
        }
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
