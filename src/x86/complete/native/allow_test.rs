//! The list of what is computation, against all instructions that the decoder knows.

use std::collections::HashSet;

use iced_x86::Code;

use super::*;

/// All that the list lets through, as far as it can be seen without operands.
fn listed() -> impl Iterator<Item = Instruction> {
    let instructions = Code::values().map(|code| {
        let mut instruction = Instruction::new();
        instruction.set_code(code);
        instruction
    });
    instructions.filter(|instruction| {
        is_known(instruction)
            && instruction.flow_control() == FlowControl::Next
            && !instruction.is_privileged()
            && !instruction.is_stack_instruction()
            && !instruction.is_string_instruction()
            && instruction.rflags_modified() & !CHANGEABLE == 0
    })
}

fn names() -> HashSet<String> {
    listed().map(|instruction| format!("{:?}", instruction.mnemonic())).collect()
}

#[test]
fn nothing_is_listed_that_is_more_than_computation() {
    let names = names();
    for name in [
        "Syscall",
        "Sysenter",
        "Sysexit",
        "Sysret",
        "Int",
        "Int3",
        "Iretq",
        "Ret",
        "Retf",
        "Call",
        "Jmp",
        "Jne",
        "Loop",
        "Push",
        "Pop",
        "Pushfq",
        "Popfq",
        "Enter",
        "Leave",
        "In",
        "Out",
        "Insb",
        "Outsb",
        "Hlt",
        "Cli",
        "Sti",
        "Clac",
        "Stac",
        "Clts",
        "Lgdt",
        "Sgdt",
        "Lidt",
        "Lldt",
        "Ltr",
        "Lmsw",
        "Smsw",
        "Str",
        "Sldt",
        "Verr",
        "Lar",
        "Lsl",
        "Lds",
        "Lss",
        "Lfs",
        "Lgs",
        "Arpl",
        "Bound",
        "Swapgs",
        "Rdfsbase",
        "Wrfsbase",
        "Rdgsbase",
        "Wrgsbase",
        "Rdmsr",
        "Wrmsr",
        "Rdpmc",
        "Rdtsc",
        "Rdtscp",
        "Rdpid",
        "Cpuid",
        "Xgetbv",
        "Xsetbv",
        "Xsave",
        "Xsaves",
        "Xrstor",
        "Xrstors",
        "Rdpkru",
        "Wrpkru",
        "Monitor",
        "Mwait",
        "Monitorx",
        "Mwaitx",
        "Umonitor",
        "Umwait",
        "Tpause",
        "Clzero",
        "Movdir64b",
        "Movdiri",
        "Enqcmd",
        "Enqcmds",
        "Xbegin",
        "Xend",
        "Xabort",
        "Xtest",
        "Invlpg",
        "Invd",
        "Wbinvd",
        "Invpcid",
        "Vmcall",
        "Vmmcall",
        "Vmlaunch",
        "Vmrun",
        "Vmread",
        "Vmwrite",
        "Stgi",
        "Clgi",
        "Skinit",
        "Getsec",
        "Encls",
        "Enclu",
        "Ptwrite",
        "Incsspq",
        "Rdsspq",
        "Wrssq",
        "Saveprevssp",
        "Rstorssp",
        "Clrssbsy",
        "Setssbsy",
        "Bndmk",
        "Bndcl",
        "Bndmov",
        "Ldtilecfg",
        "Tilezero",
        "Tileloadd",
        "Tdpbssd",
        "Senduipi",
        "Clui",
        "Stui",
        "Testui",
        "Uiret",
        "Hreset",
        "Serialize",
        "Pconfig",
        "Loadiwkey",
        "Aesenc128kl",
        "Encodekey128",
        "Llwpcb",
        "Slwpcb",
        "Lwpins",
        "Rdpru",
        "Mcommit",
        "Movsb",
        "Stosb",
        "Lodsb",
        "Scasb",
        "Cmpsb",
        "Ldmxcsr",
        "Stmxcsr",
        "Vldmxcsr",
        "V4fmaddps",
        "Vgatherpf0dps",
        "Xstore",
        "Femms",
        "Salc",
        "Xlatb",
        "Wait",
        "Clflush",
    ] {
        assert!(!names.contains(name), "{name}");
    }
}

#[test]
fn the_list_holds_what_kernels_use() {
    let names = names();
    for name in [
        "Popcnt",
        "Cmpxchg16b",
        "Crc32",
        "Paddd",
        "Vaddps",
        "Vpternlogq",
        "Aesenc",
        "Vaesenc",
        "Pclmulqdq",
        "Gf2p8mulb",
        "Sha256rnds2",
        "Mulx",
        "Adcx",
        "Andn",
        "Movbe",
        "Fninit",
        "Fnstsw",
        "Emms",
        "Kmovq",
        "Vzeroupper",
        "Movnti",
        "Fxsave64",
        "Rdrand",
    ] {
        assert!(names.contains(name), "{name}");
    }
}
