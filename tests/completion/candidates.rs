//! Which instructions are generated: all that there are in 64-bit code, but for those that cannot be compared here.

use iced_x86::{Code, EncodingKind, FlowControl, Instruction, Mnemonic, OpCodeOperandKind, Register};

/// Instructions that answer something else each time, or whose answer is the system's.
const NOT_REPEATABLE: [Mnemonic; 14] = [
    Mnemonic::Rdtsc,
    Mnemonic::Rdtscp,
    Mnemonic::Rdpmc,
    Mnemonic::Rdpru,
    Mnemonic::Rdrand,
    Mnemonic::Rdseed,
    Mnemonic::Rdpid,
    Mnemonic::Cpuid,
    Mnemonic::Lar,
    Mnemonic::Lsl,
    Mnemonic::Verr,
    Mnemonic::Verw,
    Mnemonic::Pushf,
    Mnemonic::Pushfq,
];

/// Instructions that Linux emulates or forbids for a program, or that would break this one.
const NOT_FOR_PROGRAMS: [Mnemonic; 23] = [
    Mnemonic::Int1,
    Mnemonic::Sgdt,
    Mnemonic::Sidt,
    Mnemonic::Sldt,
    Mnemonic::Str,
    Mnemonic::Smsw,
    Mnemonic::Cli,
    Mnemonic::Sti,
    Mnemonic::Rdfsbase,
    Mnemonic::Wrfsbase,
    Mnemonic::Rdgsbase,
    Mnemonic::Wrgsbase,
    Mnemonic::Popf,
    Mnemonic::Popfq,
    Mnemonic::Monitorx,
    Mnemonic::Mwaitx,
    Mnemonic::Umonitor,
    Mnemonic::Umwait,
    Mnemonic::Tpause,
    Mnemonic::Xsetbv,
    Mnemonic::Xgetbv,
    Mnemonic::Enqcmd,
    Mnemonic::Iretq,
];

/// Exceptions as instructions: they do not go on, but what they raise can be compared. Not `int1`: hypervisors are
/// known to report it with RIP at the instruction instead of behind it, and this host may be a guest.
const RAISING: [Mnemonic; 4] = [Mnemonic::Int3, Mnemonic::Ud0, Mnemonic::Ud1, Mnemonic::Ud2];

/// What kernels of the measured hosts stop at, or what has more rules than others. Each gets more cases.
const SPECIAL: [Mnemonic; 38] = [
    Mnemonic::Popcnt,
    Mnemonic::Cmpxchg8b,
    Mnemonic::Cmpxchg16b,
    Mnemonic::Cmpxchg,
    Mnemonic::Xadd,
    Mnemonic::Int3,
    Mnemonic::Wait,
    Mnemonic::Ldmxcsr,
    Mnemonic::Stmxcsr,
    Mnemonic::Vldmxcsr,
    Mnemonic::Vstmxcsr,
    Mnemonic::Xsave,
    Mnemonic::Xsave64,
    Mnemonic::Xsaveopt,
    Mnemonic::Xsaveopt64,
    Mnemonic::Xsavec,
    Mnemonic::Xsavec64,
    Mnemonic::Xrstor,
    Mnemonic::Xrstor64,
    Mnemonic::Div,
    Mnemonic::Idiv,
    Mnemonic::Bts,
    Mnemonic::Btc,
    Mnemonic::Crc32,
    Mnemonic::Movaps,
    Mnemonic::Vmovdqa,
    Mnemonic::Vmovdqa64,
    Mnemonic::Divps,
    Mnemonic::Divsd,
    Mnemonic::Vaddpd,
    Mnemonic::Cvttsd2si,
    Mnemonic::Fxsave,
    Mnemonic::Fxrstor,
    Mnemonic::Fld,
    Mnemonic::Fstp,
    Mnemonic::Fdiv,
    Mnemonic::Fist,
    Mnemonic::Maskmovdqu,
];

/// Everything that can be compared.
pub fn all() -> Vec<Code> {
    Code::values().filter(|code| is_comparable(*code)).collect()
}

/// Those of `all` that are to be tried more often.
pub fn special(all: &[Code]) -> Vec<Code> {
    all.iter().copied().filter(|code| SPECIAL.contains(&code.mnemonic())).collect()
}

/// Whether an instruction of this kind can be executed here and there with the same result.
pub fn is_comparable(code: Code) -> bool {
    let op = code.op_code();
    let mnemonic = code.mnemonic();
    let goes_on = code.flow_control() == FlowControl::Next || RAISING.contains(&mnemonic);
    let excluded = NOT_REPEATABLE.contains(&mnemonic) || NOT_FOR_PROGRAMS.contains(&mnemonic);
    let privileged = op.must_be_cpl0() || op.is_privileged() || op.is_input_output() || !op.cpl3();
    op.is_instruction()
        && op.encoding() != EncodingKind::MVEX
        && op.mode64()
        && goes_on
        && !excluded
        && !privileged
        && op.op_kinds().iter().all(|kind| is_known(*kind))
}

/// Whether an instruction as decoded is one: prefixes may have made it another.
pub fn is_comparable_as_decoded(instruction: &Instruction) -> bool {
    // The FS segment holds this process's own thread data.
    let other_segment = instruction.segment_prefix() == Register::FS;
    instruction.is_invalid() || is_comparable(instruction.code()) && !other_segment
}

fn is_known(kind: OpCodeOperandKind) -> bool {
    use OpCodeOperandKind as K;
    !matches!(
        kind,
        K::mem_offs
            | K::farbr2_2
            | K::farbr4_2
            | K::seg_reg
            | K::cr_reg
            | K::dr_reg
            | K::tr_reg
            | K::bnd_reg
            | K::mem_mib
            | K::mem_mpx
            | K::r32_or_mem_mpx
            | K::r64_or_mem_mpx
            | K::bnd_or_mem_mpx
            | K::es
            | K::cs
            | K::ss
            | K::ds
            | K::fs
            | K::gs
            | K::sibmem
            | K::tmm_reg
            | K::tmm_rm
            | K::tmm_vvvv
    )
}
