//! From code bytes to operations that can be executed without looking at the bytes again.
//!
//! What an operation cannot express is [`Kind::Beyond`], and left to the hypervisor.

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

use super::alu::{Binary, Shift, Size, Unary};
use crate::hv::Direction;

/// Where an operand is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    None,
    /// A general register, by its number.
    Register(u8),
    /// Bits 8 to 15 of a general register.
    High(u8),
    Memory,
    Immediate,
}

/// How a memory operand's address is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The number of a general register, or [`NO_REGISTER`].
    pub base: u8,
    pub index: u8,
    /// By how much the index is shifted to the left.
    pub shift: u8,
    pub segment: Segment,
    pub displacement: u64,
}

/// The number of what is always zero.
pub const NO_REGISTER: u8 = 16;

impl Address {
    const NONE: Self =
        Self { base: NO_REGISTER, index: NO_REGISTER, shift: 0, segment: Segment::Flat, displacement: 0 };
}

/// The segments whose base counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Segment {
    Flat,
    Fs,
    Gs,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Not here.
    Beyond,
    /// Not here, and afterwards nothing that is known of the page tables holds.
    BeyondAndForget,
    /// `hlt`.
    Halt,
    /// To or from a port; many of them are the hypervisor's own.
    Port(Direction),
    /// A return from an interrupt or to another segment; the selector on the stack says to which ring.
    Return,
    /// A return from a system call, always to ring 3.
    ReturnToUser,
    Nothing,
    /// `invlpg`.
    ForgetPage,
    Fence,
    Move,
    SignExtend(Size),
    Load(Size),
    Address,
    Exchange,
    Binary(Binary),
    Compare,
    Test,
    Unary(Unary),
    Shift(Shift),
    /// To another register, without flags.
    ShiftInto(Shift),
    DoubleShift {
        left: bool,
    },
    Multiply {
        signed: bool,
    },
    MultiplyInto,
    Divide {
        signed: bool,
    },
    /// RAX to twice its width, within RAX.
    Widen,
    /// The sign of RAX to RDX.
    Sign,
    BitTest(BitChange),
    ScanForward,
    ScanBackward,
    CountTrailing,
    CountLeading,
    CountOnes,
    SwapBytes,
    SetIf(u8),
    MoveIf(u8),
    JumpIf(u8),
    Jump,
    JumpTo,
    Call,
    CallTo,
    Return2 {
        pop: u16,
    },
    Push,
    Pop,
    PushFlags,
    PopFlags,
    Leave,
    ExchangeAdd,
    CompareExchange,
    String(Str),
    SetFlag(u32),
    ClearFlag(u32),
    FlipCarry,
    EnableInterrupts,
    JumpIfZero,
    LoadFlags,
    StoreFlags,
}

impl Kind {
    /// Whether it is always the hypervisor's, or the caller's.
    #[inline]
    pub fn is_left(self) -> bool {
        matches!(
            self,
            Self::Beyond
                | Self::BeyondAndForget
                | Self::Halt
                | Self::Return
                | Self::ReturnToUser
                | Self::Port(_)
        )
    }
}

/// What `bt` and its kin do to the bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BitChange {
    Keep,
    Set,
    Clear,
    Flip,
}

/// String instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Str {
    Move,
    Store,
    Load,
    Scan,
    Compare,
}

/// How often a string instruction is executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeat {
    Once,
    /// RCX times; comparing ones stop when ZF is clear.
    WhileEqual,
    /// The same, but they stop when ZF is set.
    WhileDifferent,
}

/// One decoded instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    pub kind: Kind,
    pub size: Size,
    pub first: Place,
    pub second: Place,
    pub locked: bool,
    pub repeat: Repeat,
    pub length: u8,
    pub address: Address,
    /// The immediate operand, sign-extended; the target of a jump.
    pub immediate: u64,
    /// Whether the immediate is a third operand.
    pub third_is_immediate: bool,
}

/// The operation that `bytes` at `rip` are; none if more than these are needed.
pub fn decode(rip: u64, bytes: &[u8]) -> Option<Operation> {
    let mut decoder = Decoder::with_ip(64, &bytes[..bytes.len().min(15)], rip, DecoderOptions::NONE);
    let instruction = decoder.decode();
    if instruction.is_invalid() {
        // Incomplete, or undefined: the processor tells. All bytes had a say in it.
        return (bytes.len() >= 15).then_some(Operation::beyond(Kind::BeyondAndForget, 15));
    }
    let operation = lower(&instruction);
    let differs = branches(operation.kind) && has_operand_size_prefix(bytes);
    Some(if differs { Operation::beyond(Kind::Beyond, operation.length) } else { operation })
}

/// Kinds that make RIP. With an operand-size prefix AMD's processors cut it to 16 bits, and Intel's ignore that.
fn branches(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::JumpIf(_)
            | Kind::JumpIfZero
            | Kind::Jump
            | Kind::JumpTo
            | Kind::Call
            | Kind::CallTo
            | Kind::Return2 { .. }
    )
}

fn has_operand_size_prefix(bytes: &[u8]) -> bool {
    const OPERAND_SIZE: u8 = 0x66;
    let is_prefix = |byte: &&u8| matches!(**byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3);
    bytes.iter().take_while(is_prefix).any(|byte| *byte == OPERAND_SIZE)
}

impl Operation {
    /// One that is left.
    pub fn beyond(kind: Kind, length: u8) -> Self {
        Self {
            kind,
            size: Size(8),
            first: Place::None,
            second: Place::None,
            locked: false,
            repeat: Repeat::Once,
            length,
            address: Address::NONE,
            immediate: 0,
            third_is_immediate: false,
        }
    }
}

fn lower(instruction: &Instruction) -> Operation {
    let length = instruction.len() as u8;
    let kind = kind(instruction);
    operands(instruction, kind).unwrap_or(match kind {
        Kind::Return => Operation { size: returned_size(instruction), ..Operation::beyond(kind, length) },
        Kind::ReturnToUser | Kind::BeyondAndForget | Kind::Halt => Operation::beyond(kind, length),
        // To or from a control register, perhaps.
        Kind::Move => Operation::beyond(Kind::BeyondAndForget, length),
        _ => Operation::beyond(Kind::Beyond, length),
    })
}

/// With four levels of page tables. With five there are more such addresses, which are left to the hypervisor.
pub fn is_canonical(address: u64) -> bool {
    (address as i64) << 16 >> 16 == address as i64
}

/// The number of a general register of 16 bits or more, or of the low byte of one.
fn number(register: Register) -> Option<u8> {
    let high = matches!(register, Register::AH | Register::CH | Register::DH | Register::BH);
    (register.is_gpr() && !high).then(|| register.full_register().number() as u8)
}

fn place(instruction: &Instruction, operand: u32) -> Option<Place> {
    if operand >= instruction.op_count() {
        return Some(Place::None);
    }
    match instruction.op_kind(operand) {
        OpKind::Register => match instruction.op_register(operand) {
            high @ (Register::AH | Register::CH | Register::DH | Register::BH) => {
                Some(Place::High(high.full_register().number() as u8))
            }
            register => number(register).map(Place::Register),
        },
        OpKind::Memory => Some(Place::Memory),
        OpKind::Immediate8
        | OpKind::Immediate8to16
        | OpKind::Immediate8to32
        | OpKind::Immediate8to64
        | OpKind::Immediate16
        | OpKind::Immediate32
        | OpKind::Immediate32to64
        | OpKind::Immediate64 => Some(Place::Immediate),
        OpKind::NearBranch64 => Some(Place::None),
        _ => None,
    }
}

fn operand_size(instruction: &Instruction, operand: u32) -> Option<Size> {
    let bytes = match instruction.op_kind(operand) {
        OpKind::Register => instruction.op_register(operand).size(),
        OpKind::Memory => instruction.memory_size().size(),
        _ => return None,
    };
    matches!(bytes, 1 | 2 | 4 | 8).then_some(Size(bytes as u8))
}

fn address(instruction: &Instruction) -> Option<Address> {
    let has_memory =
        (0..instruction.op_count()).any(|operand| instruction.op_kind(operand) == OpKind::Memory);
    if !has_memory {
        return Some(Address::NONE);
    }
    // 32-bit addresses are cut, which nothing here does.
    let part = |register: Register| match register {
        Register::None | Register::RIP => Some(NO_REGISTER),
        register if register.is_gpr64() => number(register),
        _ => None,
    };
    let segment = match instruction.memory_segment() {
        Register::FS => Segment::Fs,
        Register::GS => Segment::Gs,
        _ => Segment::Flat,
    };
    if instruction.memory_base() == Register::EIP {
        return None;
    }
    Some(Address {
        base: part(instruction.memory_base())?,
        index: part(instruction.memory_index())?,
        shift: instruction.memory_index_scale().trailing_zeros() as u8,
        segment,
        displacement: instruction.memory_displacement64(),
    })
}

fn operands(instruction: &Instruction, kind: Kind) -> Option<Operation> {
    if matches!(kind, Kind::Beyond | Kind::BeyondAndForget | Kind::Halt | Kind::Return | Kind::ReturnToUser) {
        return None;
    }
    let mut operation = Operation::beyond(kind, instruction.len() as u8);
    operation.locked = instruction.has_lock_prefix();
    if let Kind::String(what) = kind {
        return string(instruction, what, operation);
    }
    operation.first = place(instruction, 0)?;
    operation.second = place(instruction, 1)?;
    operation.address = address(instruction)?;
    operation.size = size(instruction, kind)?;
    let immediate = (0..instruction.op_count()).find_map(|operand| instruction.try_immediate(operand).ok());
    operation.immediate = match kind {
        Kind::JumpIf(_) | Kind::Jump | Kind::Call | Kind::JumpIfZero => instruction.near_branch64(),
        _ => immediate.unwrap_or(0),
    };
    if branches(kind) && !is_canonical(operation.immediate) {
        return None;
    }
    let third = place(instruction, 2)?;
    operation.third_is_immediate = third == Place::Immediate;
    if let (Kind::ShiftInto(_), Place::Register(number)) = (kind, third) {
        operation.immediate = number.into();
    }
    let fits = match kind {
        Kind::ShiftInto(_) => matches!(third, Place::Register(_) | Place::Immediate),
        Kind::MultiplyInto => matches!(third, Place::None | Place::Immediate),
        Kind::DoubleShift { .. } => operation.size.0 >= 4,
        Kind::Shift(_) | Kind::Binary(_) | Kind::Move | Kind::Nothing => true,
        _ => third == Place::None,
    };
    fits.then_some(operation)
}

fn size(instruction: &Instruction, kind: Kind) -> Option<Size> {
    match kind {
        Kind::Nothing
        | Kind::ForgetPage
        | Kind::Fence
        | Kind::SetFlag(_)
        | Kind::ClearFlag(_)
        | Kind::FlipCarry => Some(Size(8)),
        Kind::EnableInterrupts | Kind::LoadFlags | Kind::StoreFlags => Some(Size(8)),
        Kind::JumpIf(_) | Kind::Jump | Kind::Call | Kind::Return2 { .. } | Kind::Leave => Some(Size(8)),
        Kind::PushFlags | Kind::PopFlags | Kind::JumpIfZero => Some(Size(8)),
        // An immediate that is pushed says nothing of the size; all forms but those with a prefix push 8 bytes.
        Kind::Push if place(instruction, 0) == Some(Place::Immediate) => {
            (instruction.stack_pointer_increment() == -8).then_some(Size(8))
        }
        Kind::Push | Kind::Pop | Kind::JumpTo | Kind::CallTo => {
            operand_size(instruction, 0).filter(|size| size.0 == 8)
        }
        Kind::Widen => match instruction.code() {
            Code::Cbw => Some(Size(1)),
            Code::Cwde => Some(Size(2)),
            _ => Some(Size(4)),
        },
        Kind::Sign => match instruction.code() {
            Code::Cwd => Some(Size(2)),
            Code::Cdq => Some(Size(4)),
            _ => Some(Size(8)),
        },
        // The accumulator is the first operand of one and the second of the other.
        Kind::Port(Direction::Write) => operand_size(instruction, 1),
        Kind::Address => match instruction.op_register(0).size() {
            size @ (2 | 4 | 8) => Some(Size(size as u8)),
            _ => None,
        },
        _ => operand_size(instruction, 0),
    }
}

/// What a return finds on the stack for each register.
fn returned_size(instruction: &Instruction) -> Size {
    match instruction.code() {
        Code::Iretw | Code::Retfw | Code::Retfw_imm16 => Size(2),
        Code::Iretd | Code::Retfd | Code::Retfd_imm16 => Size(4),
        _ => Size(8),
    }
}

fn string(instruction: &Instruction, what: Str, mut operation: Operation) -> Option<Operation> {
    let memory = |operand: u32| {
        // 64-bit addresses, no segment with a base.
        let kind = instruction.op_kind(operand);
        let plain = matches!(kind, OpKind::MemorySegRSI | OpKind::MemoryESRDI | OpKind::Register);
        plain && !matches!(instruction.segment_prefix(), Register::FS | Register::GS)
    };
    if !memory(0) || !memory(1) {
        return None;
    }
    operation.size = match instruction.memory_size().size() {
        size @ (1 | 2 | 4 | 8) => Size(size as u8),
        _ => return None,
    };
    let comparing = matches!(what, Str::Scan | Str::Compare);
    operation.repeat = match (instruction.has_rep_prefix(), instruction.has_repne_prefix()) {
        (true, _) => Repeat::WhileEqual,
        (_, true) if comparing => Repeat::WhileDifferent,
        (_, true) => Repeat::WhileEqual,
        _ => Repeat::Once,
    };
    Some(operation)
}

fn kind(instruction: &Instruction) -> Kind {
    use super::alu::flag;
    use Mnemonic as M;
    let memory_size = || operand_size(instruction, 1);
    if instruction.is_jcc_short_or_near() {
        return Kind::JumpIf(condition(instruction));
    }
    match instruction.mnemonic() {
        // What has another prefix or a REX is not always this: with REX.B processors exchange R8 and RAX.
        M::Pause if instruction.len() == 2 => Kind::Nothing,
        M::Pause => Kind::Beyond,
        M::Nop
        | M::Endbr64
        | M::Prefetcht0
        | M::Prefetcht1
        | M::Prefetcht2
        | M::Prefetchnta
        | M::Prefetchw => Kind::Nothing,
        M::Invlpg => Kind::ForgetPage,
        M::Mfence | M::Lfence | M::Sfence => Kind::Fence,
        M::Mov | M::Movnti => Kind::Move,
        M::Movzx => memory_size().map_or(Kind::Beyond, Kind::Load),
        // How much it reads of memory depends on who made the processor.
        M::Movsxd if instruction.code() == Code::Movsxd_r16_rm16 => Kind::Beyond,
        M::Movsx | M::Movsxd => memory_size().map_or(Kind::Beyond, Kind::SignExtend),
        M::Lea => Kind::Address,
        M::Xchg => Kind::Exchange,
        M::Add => Kind::Binary(Binary::Add),
        M::Adc => Kind::Binary(Binary::Adc),
        M::Sub => Kind::Binary(Binary::Sub),
        M::Sbb => Kind::Binary(Binary::Sbb),
        M::And => Kind::Binary(Binary::And),
        M::Or => Kind::Binary(Binary::Or),
        M::Xor => Kind::Binary(Binary::Xor),
        M::Cmp => Kind::Compare,
        M::Test => Kind::Test,
        M::Inc => Kind::Unary(Unary::Inc),
        M::Dec => Kind::Unary(Unary::Dec),
        M::Neg => Kind::Unary(Unary::Neg),
        M::Not => Kind::Unary(Unary::Not),
        M::Shl | M::Sal => Kind::Shift(Shift::Left),
        M::Shr => Kind::Shift(Shift::Right),
        M::Sar => Kind::Shift(Shift::Arithmetic),
        M::Rol => Kind::Shift(Shift::RotateLeft),
        M::Ror => Kind::Shift(Shift::RotateRight),
        M::Shlx if is_x86_feature_detected!("bmi2") => Kind::ShiftInto(Shift::Left),
        M::Shrx if is_x86_feature_detected!("bmi2") => Kind::ShiftInto(Shift::Right),
        M::Sarx if is_x86_feature_detected!("bmi2") => Kind::ShiftInto(Shift::Arithmetic),
        M::Rorx if is_x86_feature_detected!("bmi2") => Kind::ShiftInto(Shift::RotateRight),
        M::Shld => Kind::DoubleShift { left: true },
        M::Shrd => Kind::DoubleShift { left: false },
        M::Mul => Kind::Multiply { signed: false },
        M::Imul if instruction.op_count() == 1 => Kind::Multiply { signed: true },
        M::Imul => Kind::MultiplyInto,
        M::Div => Kind::Divide { signed: false },
        M::Idiv => Kind::Divide { signed: true },
        M::Cbw | M::Cwde | M::Cdqe => Kind::Widen,
        M::Cwd | M::Cdq | M::Cqo => Kind::Sign,
        M::Bt => Kind::BitTest(BitChange::Keep),
        M::Bts => Kind::BitTest(BitChange::Set),
        M::Btr => Kind::BitTest(BitChange::Clear),
        M::Btc => Kind::BitTest(BitChange::Flip),
        M::Bsf => Kind::ScanForward,
        M::Bsr => Kind::ScanBackward,
        // Where the host's processor lacks them, the same bytes mean something else.
        M::Tzcnt if is_x86_feature_detected!("bmi1") => Kind::CountTrailing,
        M::Lzcnt if is_x86_feature_detected!("lzcnt") => Kind::CountLeading,
        M::Popcnt if is_x86_feature_detected!("popcnt") => Kind::CountOnes,
        M::Bswap => Kind::SwapBytes,
        M::Jmp if instruction.is_jmp_short_or_near() => Kind::Jump,
        M::Jmp if instruction.is_jmp_near_indirect() => Kind::JumpTo,
        M::Call if instruction.is_call_near() => Kind::Call,
        M::Call if instruction.is_call_near_indirect() => Kind::CallTo,
        M::Ret if instruction.op_count() == 0 => Kind::Return2 { pop: 0 },
        M::Ret => Kind::Return2 { pop: instruction.immediate16() },
        M::Push => Kind::Push,
        M::Pop => Kind::Pop,
        M::Pushfq => Kind::PushFlags,
        M::Popfq => Kind::PopFlags,
        M::Leave if instruction.code() == Code::Leaveq => Kind::Leave,
        M::Xadd => Kind::ExchangeAdd,
        M::Cmpxchg => Kind::CompareExchange,
        M::Movsb | M::Movsw | M::Movsq => Kind::String(Str::Move),
        M::Movsd if instruction.is_string_instruction() => Kind::String(Str::Move),
        M::Stosb | M::Stosw | M::Stosd | M::Stosq => Kind::String(Str::Store),
        M::Lodsb | M::Lodsw | M::Lodsd | M::Lodsq => Kind::String(Str::Load),
        M::Scasb | M::Scasw | M::Scasd | M::Scasq => Kind::String(Str::Scan),
        M::Cmpsb | M::Cmpsw | M::Cmpsq => Kind::String(Str::Compare),
        M::Cmpsd if instruction.is_string_instruction() => Kind::String(Str::Compare),
        M::Cli => Kind::ClearFlag(flag::INTERRUPT as u32),
        M::Sti => Kind::EnableInterrupts,
        M::Cld => Kind::ClearFlag(flag::DIRECTION as u32),
        M::Std => Kind::SetFlag(flag::DIRECTION as u32),
        M::Clc => Kind::ClearFlag(flag::CARRY as u32),
        M::Stc => Kind::SetFlag(flag::CARRY as u32),
        M::Clac => Kind::ClearFlag(flag::ALIGNMENT as u32),
        M::Stac => Kind::SetFlag(flag::ALIGNMENT as u32),
        M::Cmc => Kind::FlipCarry,
        M::Jrcxz => Kind::JumpIfZero,
        M::Lahf => Kind::LoadFlags,
        M::Sahf => Kind::StoreFlags,
        M::Iretq | M::Iretd | M::Iret | M::Retf => Kind::Return,
        M::Sysretq | M::Sysret | M::Sysexit | M::Sysexitq => Kind::ReturnToUser,
        // These change nothing that is remembered here.
        M::Hlt if instruction.len() == 1 => Kind::Halt,
        M::In => Kind::Port(Direction::Read),
        M::Out => Kind::Port(Direction::Write),
        M::Rdtsc
        | M::Rdtscp
        | M::Rdmsr
        | M::Cpuid
        | M::Wbinvd
        | M::Rdrand
        | M::Rdseed
        | M::Int3
        | M::Ud2
        | M::Int => Kind::Beyond,
        _ if instruction.is_string_instruction() => Kind::Beyond,
        _ => setting(instruction),
    }
}

/// `setcc`, `cmovcc`, and what is left.
fn setting(instruction: &Instruction) -> Kind {
    let name = instruction.condition_code();
    if name == iced_x86::ConditionCode::None {
        // Only ring 0 changes what page tables mean, by itself or by asking the hypervisor.
        let asks = matches!(instruction.mnemonic(), Mnemonic::Vmcall | Mnemonic::Vmmcall);
        return if asks || instruction.is_privileged() { Kind::BeyondAndForget } else { Kind::Beyond };
    }
    match (instruction.op_count(), instruction.op0_kind()) {
        (1, OpKind::Register | OpKind::Memory) => Kind::SetIf(condition(instruction)),
        (2, OpKind::Register) => Kind::MoveIf(condition(instruction)),
        _ => Kind::Beyond,
    }
}

/// The condition's number as it is encoded.
fn condition(instruction: &Instruction) -> u8 {
    use iced_x86::ConditionCode as C;
    match instruction.condition_code() {
        C::o | C::None => 0,
        C::no => 1,
        C::b => 2,
        C::ae => 3,
        C::e => 4,
        C::ne => 5,
        C::be => 6,
        C::a => 7,
        C::s => 8,
        C::ns => 9,
        C::p => 10,
        C::np => 11,
        C::l => 12,
        C::ge => 13,
        C::le => 14,
        C::g => 15,
    }
}
