//! Which instructions may be executed on the host's processor.
//!
//! The guest chooses the bytes, so everything is refused that is not known to be computation: registers and one
//! memory operand in, registers and that operand out. What an instruction is, is decided by the extension it
//! belongs to, and within the original instruction set, where the harmless and the dangerous are mixed, by name.

use iced_x86::{
    Code, CpuidFeature, EncodingKind, FlowControl, Instruction, InstructionInfo, Mnemonic, OpAccess, OpKind,
    Register, RflagsBits,
};

use crate::x86::complete::availability::Kind;
use crate::x86::complete::registers;

/// Flags that an instruction executed here may change.
const CHANGEABLE: u32 = RflagsBits::OF
    | RflagsBits::SF
    | RflagsBits::ZF
    | RflagsBits::AF
    | RflagsBits::CF
    | RflagsBits::PF
    | RflagsBits::DF
    | RflagsBits::C0
    | RflagsBits::C1
    | RflagsBits::C2
    | RflagsBits::C3;

/// Says why the instruction is not executed, or on which registers it works.
pub(super) fn allowed(instruction: &Instruction, info: &InstructionInfo) -> Result<Kind, &'static str> {
    if !is_known(instruction) {
        return Err("it is not one of those that can be executed here");
    }
    if !matches!(
        instruction.encoding(),
        EncodingKind::Legacy | EncodingKind::VEX | EncodingKind::EVEX | EncodingKind::XOP
    ) {
        return Err("its encoding is of another processor");
    }
    if instruction.is_privileged() || instruction.flow_control() != FlowControl::Next {
        return Err("it is privileged or leads elsewhere");
    }
    if instruction.is_stack_instruction() || instruction.is_string_instruction() {
        return Err("it uses the stack or works on strings");
    }
    if instruction.rflags_modified() & !CHANGEABLE != 0 {
        return Err("it changes flags that are the system's");
    }
    check_operands(instruction, info)?;
    Ok(kind(instruction, info))
}

/// Only registers of computation, constants, and at most one explicit memory operand. What else the instruction
/// uses must be a register, too, and not the stack pointer.
fn check_operands(instruction: &Instruction, info: &InstructionInfo) -> Result<(), &'static str> {
    const REFUSED: &str = "its operands are not only registers of computation and one place in memory";
    let mut in_memory = 0;
    let mut names_stack_pointer = false;
    for operand in 0..instruction.op_count() {
        match instruction.op_kind(operand) {
            OpKind::Register => {
                let register = instruction.op_register(operand);
                names_stack_pointer |= register.full_register() == Register::RSP;
                if !is_for_computation(register) {
                    return Err(REFUSED);
                }
            }
            OpKind::Memory => in_memory += 1,
            OpKind::Immediate8
            | OpKind::Immediate8_2nd
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64 => {}
            _ => return Err(REFUSED),
        }
    }
    let touched = info.used_memory().iter().filter(|memory| memory.access() != OpAccess::NoMemAccess).count();
    if in_memory > 1 || touched > in_memory {
        return Err(REFUSED);
    }
    let addresses_by_it = [instruction.memory_base(), instruction.memory_index()]
        .iter()
        .any(|register| register.full_register() == Register::RSP);
    let uses_it = info.used_registers().iter().any(|used| used.register().full_register() == Register::RSP);
    if uses_it && !names_stack_pointer && !addresses_by_it {
        return Err(REFUSED);
    }
    Ok(())
}

fn is_for_computation(register: Register) -> bool {
    register.is_gpr()
        || register.is_vector_register()
        || register.is_mm()
        || register.is_st()
        || register.is_k()
}

/// Whether the instruction is one of the x87 unit.
pub(super) fn uses_x87(instruction: &Instruction, info: &InstructionInfo) -> bool {
    kind(instruction, info) == Kind::X87
}

/// The widest kind of registers that the instruction uses.
fn kind(instruction: &Instruction, info: &InstructionInfo) -> Kind {
    let uses = |is: fn(Register) -> bool| info.used_registers().iter().any(|used| is(used.register()));
    let of =
        |features: &[CpuidFeature]| instruction.cpuid_features().iter().any(|has| features.contains(has));
    let legacy = instruction.encoding() == EncodingKind::Legacy;
    if uses(|register| register.is_k()) {
        Kind::Masked
    } else if uses(|register| register.is_vector_register())
        || (!legacy && !of(&GENERAL_BUT_EXTENDED))
        || converts_to_integer(instruction.mnemonic())
    {
        Kind::Vector
    } else if uses(|register| register.is_mm()) || of(&[CpuidFeature::MMX]) {
        Kind::Mmx
    } else if uses(|register| register.is_st()) || of(&X87_UNIT) {
        Kind::X87
    } else {
        Kind::Scalar
    }
}

/// Conversions of one number: from memory they name no vector register, but MXCSR says how to round.
fn converts_to_integer(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(mnemonic, M::Cvtss2si | M::Cvttss2si | M::Cvtsd2si | M::Cvttsd2si)
}

/// Extensions that work on general registers although they are encoded like vector instructions.
const GENERAL_BUT_EXTENDED: [CpuidFeature; 3] = [CpuidFeature::BMI1, CpuidFeature::BMI2, CpuidFeature::TBM];

const X87_UNIT: [CpuidFeature; 4] =
    [CpuidFeature::FPU, CpuidFeature::FPU287, CpuidFeature::FPU387, CpuidFeature::FXSR];

/// Whether the instruction belongs to extensions that are computation or, if it belongs to none, is computation
/// by its name. The decoder counts forms of extensions' instructions among the original ones, too.
fn is_known(instruction: &Instruction) -> bool {
    let mnemonic = instruction.mnemonic();
    let mut extensions =
        instruction.cpuid_features().iter().filter(|feature| !is_original(**feature)).peekable();
    match extensions.peek() {
        None => is_basic(mnemonic),
        Some(_) => extensions.all(|&feature| is_computation(feature, mnemonic)),
    }
}

/// The original set, which holds everything from `add` to `hlt`.
fn is_original(feature: CpuidFeature) -> bool {
    use CpuidFeature as F;
    matches!(feature, F::INTEL8086 | F::INTEL186 | F::INTEL286 | F::INTEL386 | F::INTEL486 | F::X64)
}

/// Whether all of an extension, or the instruction among those of a mixed one, is computation.
fn is_computation(feature: CpuidFeature, mnemonic: Mnemonic) -> bool {
    use CpuidFeature as F;
    match feature {
        // Selections, counts, bits, long additions, swapped bytes, checksums on general registers.
        F::CMOV | F::POPCNT | F::LZCNT | F::BMI1 | F::BMI2 | F::TBM | F::ADX | F::MOVBE => true,
        // Compare and exchange of 8 and 16 bytes.
        F::CX8 | F::CMPXCHG16B => true,
        // Random numbers: the host's are as good as any.
        F::RDRAND | F::RDSEED => true,
        // The floating-point stack. Its environment, which these can store and load, is the guest's own.
        F::FPU | F::FPU287 | F::FPU387 => true,
        // Stores and loads the guest's own registers, in memory that was checked.
        F::FXSR => matches!(
            mnemonic,
            Mnemonic::Fxsave | Mnemonic::Fxsave64 | Mnemonic::Fxrstor | Mnemonic::Fxrstor64
        ),
        // Vector arithmetic on the guest's registers. The two control instructions of SSE are not done here.
        F::MMX | F::SSE | F::SSE2 | F::SSE3 | F::SSSE3 | F::SSE4_1 | F::SSE4_2 | F::SSE4A => {
            !matches!(mnemonic, Mnemonic::Ldmxcsr | Mnemonic::Stmxcsr)
        }
        F::AVX | F::AVX2 | F::FMA | F::FMA4 | F::F16C | F::XOP => {
            !matches!(mnemonic, Mnemonic::Vldmxcsr | Mnemonic::Vstmxcsr)
        }
        F::AVX_VNNI | F::AVX_IFMA | F::AVX_NE_CONVERT | F::AVX_VNNI_INT8 | F::AVX_VNNI_INT16 => true,
        F::AVX512F | F::AVX512VL | F::AVX512BW | F::AVX512DQ | F::AVX512CD | F::AVX512_FP16 => true,
        F::AVX512_IFMA | F::AVX512_VBMI | F::AVX512_VBMI2 | F::AVX512_VNNI | F::AVX512_BITALG => true,
        F::AVX512_VPOPCNTDQ | F::AVX512_BF16 | F::AVX512_VP2INTERSECT => true,
        // Ciphers and hashes on vector registers.
        F::AES | F::VAES | F::PCLMULQDQ | F::VPCLMULQDQ | F::GFNI => true,
        F::SHA | F::SHA512 | F::SM3 | F::SM4 => true,
        // Hints, which have no effect that a program could see.
        F::MULTIBYTENOP | F::PAUSE | F::PREFETCHW | F::PREFETCHWT1 => true,
        F::CET_IBT => matches!(mnemonic, Mnemonic::Endbr32 | Mnemonic::Endbr64),
        // Everything else: virtualization, key and state management, transactions, waiting, other processors.
        _ => false,
    }
}

/// The original instructions that compute on registers and a memory operand.
fn is_basic(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    let arithmetic = matches!(
        mnemonic,
        M::Add
            | M::Adc
            | M::Sub
            | M::Sbb
            | M::And
            | M::Or
            | M::Xor
            | M::Cmp
            | M::Test
            | M::Inc
            | M::Dec
            | M::Neg
            | M::Not
            | M::Mul
            | M::Imul
            | M::Div
            | M::Idiv
            | M::Xadd
            | M::Cmpxchg
            | M::Xchg
            | M::Bswap
            | M::Cbw
            | M::Cwde
            | M::Cdqe
            | M::Cwd
            | M::Cdq
            | M::Cqo
    );
    let bits = matches!(
        mnemonic,
        M::Shl
            | M::Sal
            | M::Shr
            | M::Sar
            | M::Rol
            | M::Ror
            | M::Rcl
            | M::Rcr
            | M::Shld
            | M::Shrd
            | M::Bt
            | M::Bts
            | M::Btr
            | M::Btc
            | M::Bsf
            | M::Bsr
    );
    let moves = matches!(
        mnemonic,
        M::Mov | M::Lea | M::Movzx | M::Movsx | M::Movsxd | M::Lahf | M::Sahf | M::Nop | M::Movnti
    );
    let conditions = matches!(
        mnemonic,
        M::Seto
            | M::Setno
            | M::Setb
            | M::Setae
            | M::Sete
            | M::Setne
            | M::Setbe
            | M::Seta
            | M::Sets
            | M::Setns
            | M::Setp
            | M::Setnp
            | M::Setl
            | M::Setge
            | M::Setle
            | M::Setg
            | M::Clc
            | M::Stc
            | M::Cmc
            | M::Cld
            | M::Std
    );
    arithmetic || bits || moves || conditions
}

/// Whether the instruction is a hint, without an effect that a program could see. Some of them have room for
/// instructions that processors may get one day: none is executed.
pub(super) fn is_hint(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    // `prefetchw` of a register: some processors have that as a hint, others not at all.
    let is_doubtful = matches!(
        instruction.code(),
        Code::Reservednop_rm16_r16_0F0D | Code::Reservednop_rm32_r32_0F0D | Code::Reservednop_rm64_r64_0F0D
    ) && instruction.op0_kind() == OpKind::Register;
    !is_doubtful
        && matches!(
            instruction.mnemonic(),
            M::Nop
                | M::Reservednop
                | M::Pause
                | M::Endbr32
                | M::Endbr64
                | M::Prefetch
                | M::Prefetchnta
                | M::Prefetcht0
                | M::Prefetcht1
                | M::Prefetcht2
                | M::Prefetchw
                | M::Prefetchwt1
        )
}

/// Whether a register is one whose number leaves no room for another prefix.
pub(super) fn has_high_byte(instruction: &Instruction) -> bool {
    (0..instruction.op_count()).any(|operand| {
        instruction.op_kind(operand) == OpKind::Register
            && registers::is_high_byte(instruction.op_register(operand))
    })
}

#[cfg(test)]
#[path = "allow_test.rs"]
mod tests;
