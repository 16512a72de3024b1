//! Machine code for an instruction with operands chosen at random.

use iced_x86::{
    Code, Decoder, DecoderError, DecoderOptions, Encoder, Instruction, MemorySize, OpCodeInfo,
    OpCodeOperandKind as K, OpKind, Register, RoundingControl,
};

use crate::random::Random;

/// Some encoding of `code` at `rip`; `target` is what a RIP-relative or absolute memory operand refers to.
pub fn encode(code: Code, rip: u64, target: u64, random: &mut Random) -> Option<Vec<u8>> {
    let op = code.op_code();
    let mut instruction = Instruction::new();
    instruction.set_code(code);
    let unique = op.requires_unique_reg_nums() || op.requires_unique_dest_reg_num();
    for operand in 0..op.op_count() {
        let mut tries = 0;
        loop {
            set_operand(&mut instruction, op, operand, target, random);
            tries += 1;
            let clashes = unique && tries < 32 && !random.one_in(64) && has_clash(&instruction, operand);
            if !clashes {
                break;
            }
        }
    }
    set_extras(&mut instruction, op, random);
    let mut encoder = Encoder::new(64);
    encoder.encode(&instruction, rip).ok()?;
    let mut bytes = encoder.take_buffer();
    if random.one_in(24) {
        bytes.insert(0, some_prefix(random));
    }
    (bytes.len() <= 15).then_some(bytes)
}

/// The instruction that bytes at `rip` are, if they are no less than one.
pub fn decode(bytes: &[u8], rip: u64) -> Option<Instruction> {
    let mut decoder = Decoder::with_ip(64, bytes, rip, DecoderOptions::NONE);
    let instruction = decoder.decode();
    (decoder.last_error() != DecoderError::NoMoreBytes).then_some(instruction)
}

/// The last prefix comes first here, so it may change the meaning, or be ignored.
fn some_prefix(random: &mut Random) -> u8 {
    match random.below(4) {
        0 => 0x40 | random.below(16) as u8,
        _ => random.pick(&[0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x2e, 0x36, 0x3e, 0x26, 0x65]),
    }
}

fn has_clash(instruction: &Instruction, last: u32) -> bool {
    let of = |operand| match instruction.op_kind(operand) {
        OpKind::Register => Some(instruction.op_register(operand).number()),
        _ => None,
    };
    let index = instruction.memory_index();
    let index = index.is_vector_register().then(|| index.number());
    let mut used: Vec<usize> = (0..=last).filter_map(of).chain(index).collect();
    let count = used.len();
    used.sort_unstable();
    used.dedup();
    used.len() != count
}

fn set_extras(instruction: &mut Instruction, op: &OpCodeInfo, random: &mut Random) {
    let has_memory = (0..op.op_count()).any(|operand| instruction.op_kind(operand) == OpKind::Memory);
    if op.can_use_op_mask_register() && (op.require_op_mask_register() || !random.one_in(3)) {
        instruction.set_op_mask(Register::K1 + random.below(7) as u32);
        instruction.set_zeroing_masking(op.can_use_zeroing_masking() && random.one_in(2));
    }
    if has_memory {
        instruction.set_is_broadcast(op.can_broadcast() && random.one_in(2));
        if op.can_use_lock_prefix() && instruction.op0_kind() == OpKind::Memory && random.one_in(2) {
            instruction.set_has_lock_prefix(true);
        }
    } else if op.can_use_rounding_control() && random.one_in(2) {
        let modes = [
            RoundingControl::RoundToNearest,
            RoundingControl::RoundDown,
            RoundingControl::RoundUp,
            RoundingControl::RoundTowardZero,
        ];
        instruction.set_rounding_control(random.pick(&modes));
    } else if op.can_suppress_all_exceptions() && random.one_in(2) {
        instruction.set_suppress_all_exceptions(true);
    }
    if op.can_use_rep_prefix() && random.one_in(3) {
        instruction.set_has_rep_prefix(true);
    } else if op.can_use_repne_prefix() && random.one_in(3) {
        instruction.set_has_repne_prefix(true);
    }
}

fn set_operand(
    instruction: &mut Instruction,
    op: &OpCodeInfo,
    operand: u32,
    target: u64,
    random: &mut Random,
) {
    let kind = op.op_kind(operand);
    let evex = op.encoding() == iced_x86::EncodingKind::EVEX;
    let vectors = if evex { 32 } else { 16 };
    let mut register = |first: Register, count: u64, random: &mut Random| {
        instruction.set_op_kind(operand, OpKind::Register);
        instruction.set_op_register(operand, first + random.below(count) as u32);
    };
    let memory_too = !random.one_in(3);
    match kind {
        K::mem => set_memory(instruction, operand, target, random),
        K::r8_or_mem | K::r16_or_mem | K::r32_or_mem | K::r64_or_mem if memory_too => {
            set_memory(instruction, operand, target, random);
        }
        K::mm_or_mem | K::xmm_or_mem | K::ymm_or_mem | K::zmm_or_mem | K::k_or_mem if memory_too => {
            set_memory(instruction, operand, target, random);
        }
        K::mem_vsib32x | K::mem_vsib64x => {
            set_vector_memory(instruction, operand, Register::XMM0, vectors, random);
        }
        K::mem_vsib32y | K::mem_vsib64y => {
            set_vector_memory(instruction, operand, Register::YMM0, vectors, random);
        }
        K::mem_vsib32z | K::mem_vsib64z => {
            set_vector_memory(instruction, operand, Register::ZMM0, vectors, random);
        }
        // AL to DH, SPL to R15L.
        K::r8_or_mem | K::r8_reg | K::r8_opcode => register(Register::AL, 20, random),
        K::r16_or_mem | K::r16_reg | K::r16_reg_mem | K::r16_rm | K::r16_opcode => {
            register(Register::AX, 16, random);
        }
        K::r32_or_mem | K::r32_reg | K::r32_reg_mem | K::r32_rm | K::r32_opcode | K::r32_vvvv => {
            register(Register::EAX, 16, random);
        }
        K::r64_or_mem | K::r64_reg | K::r64_reg_mem | K::r64_rm | K::r64_opcode | K::r64_vvvv => {
            register(Register::RAX, 16, random);
        }
        K::mm_or_mem | K::mm_reg | K::mm_rm => register(Register::MM0, 8, random),
        K::k_or_mem | K::k_reg | K::kp1_reg | K::k_rm | K::k_vvvv => register(Register::K0, 8, random),
        K::xmm_or_mem | K::xmm_reg | K::xmm_rm | K::xmm_vvvv | K::xmmp3_vvvv | K::xmm_is4 | K::xmm_is5 => {
            register(Register::XMM0, vectors, random);
        }
        K::ymm_or_mem | K::ymm_reg | K::ymm_rm | K::ymm_vvvv | K::ymm_is4 | K::ymm_is5 => {
            register(Register::YMM0, vectors, random);
        }
        K::zmm_or_mem | K::zmm_reg | K::zmm_rm | K::zmm_vvvv | K::zmmp3_vvvv => {
            register(Register::ZMM0, vectors, random);
        }
        K::al => register(Register::AL, 1, random),
        K::cl => register(Register::CL, 1, random),
        K::ax => register(Register::AX, 1, random),
        K::dx => register(Register::DX, 1, random),
        K::eax => register(Register::EAX, 1, random),
        K::rax => register(Register::RAX, 1, random),
        K::st0 => register(Register::ST0, 1, random),
        K::sti_opcode => register(Register::ST0, 8, random),
        _ => set_implied(instruction, kind, operand, random),
    }
}

/// Immediates, and memory that registers refer to which the instruction does not name.
fn set_implied(instruction: &mut Instruction, kind: K, operand: u32, random: &mut Random) {
    let value = random.integer();
    let mut small = |kind: OpKind| {
        instruction.set_op_kind(operand, kind);
        instruction.set_immediate_i32(operand, value as i8 as i32);
    };
    match kind {
        K::imm8 => {
            instruction.set_op_kind(operand, OpKind::Immediate8);
            instruction.set_immediate_i32(operand, i32::from(value as u8));
        }
        K::imm4_m2z => {
            instruction.set_op_kind(operand, OpKind::Immediate8);
            instruction.set_immediate_i32(operand, (value & 15) as i32);
        }
        K::imm8_const_1 => {
            instruction.set_op_kind(operand, OpKind::Immediate8);
            instruction.set_immediate_i32(operand, 1);
        }
        K::imm8sex16 => small(OpKind::Immediate8to16),
        K::imm8sex32 => small(OpKind::Immediate8to32),
        K::imm8sex64 => small(OpKind::Immediate8to64),
        K::imm16 => {
            instruction.set_op_kind(operand, OpKind::Immediate16);
            instruction.set_immediate_i32(operand, i32::from(value as u16));
        }
        K::imm32 => {
            instruction.set_op_kind(operand, OpKind::Immediate32);
            instruction.set_immediate_u32(operand, value as u32);
        }
        K::imm32sex64 => {
            instruction.set_op_kind(operand, OpKind::Immediate32to64);
            instruction.set_immediate_i64(operand, i64::from(value as i32));
        }
        K::imm64 => {
            instruction.set_op_kind(operand, OpKind::Immediate64);
            instruction.set_immediate_u64(operand, value);
        }
        K::seg_rSI => instruction.set_op_kind(operand, OpKind::MemorySegRSI),
        K::es_rDI => instruction.set_op_kind(operand, OpKind::MemoryESRDI),
        K::seg_rDI => instruction.set_op_kind(operand, OpKind::MemorySegRDI),
        K::seg_rBX_al => {
            instruction.set_op_kind(operand, OpKind::Memory);
            instruction.set_memory_base(Register::RBX);
            instruction.set_memory_index(Register::AL);
        }
        other => panic!("{:?}: no operand of kind {other:?} can be made", instruction.code()),
    }
}

fn set_memory(instruction: &mut Instruction, operand: u32, target: u64, random: &mut Random) {
    instruction.set_op_kind(operand, OpKind::Memory);
    // There may have been another try.
    instruction.set_memory_base(Register::None);
    instruction.set_memory_index(Register::None);
    if random.one_in(24) {
        instruction.set_segment_prefix(Register::GS);
    }
    let narrow = random.one_in(12);
    let first = if narrow { Register::EAX } else { Register::RAX };
    match random.below(12) {
        0 => {
            instruction.set_memory_base(if narrow { Register::EIP } else { Register::RIP });
            instruction.set_memory_displ_size(if narrow { 4 } else { 8 });
            instruction.set_memory_displacement64(target);
            return;
        }
        1 if target < 1 << 31 => {
            instruction.set_memory_displ_size(if narrow { 4 } else { 8 });
            instruction.set_memory_displacement64(target);
            return;
        }
        2..6 => {
            instruction.set_memory_base(first + random.below(16) as u32);
        }
        shape => {
            if shape > 6 {
                instruction.set_memory_base(first + random.below(16) as u32);
            }
            // RSP is not one.
            let index = (5 + random.below(15) as u32) % 16;
            instruction.set_memory_index(first + index);
            instruction.set_memory_index_scale(1 << random.below(4));
        }
    }
    set_displacement(instruction, narrow, random);
}

fn set_vector_memory(
    instruction: &mut Instruction,
    operand: u32,
    first: Register,
    count: u64,
    random: &mut Random,
) {
    instruction.set_op_kind(operand, OpKind::Memory);
    instruction.set_memory_base(Register::RAX + random.below(16) as u32);
    instruction.set_memory_index(first + random.below(count) as u32);
    instruction.set_memory_index_scale(1 << random.below(4));
    set_displacement(instruction, false, random);
}

fn set_displacement(instruction: &mut Instruction, narrow: bool, random: &mut Random) {
    let displacement = match random.below(3) {
        0 => 0,
        1 => random.next() as i8 as i64,
        _ => i64::from(random.next() as i32),
    };
    let cut = if narrow { displacement as u64 & 0xffff_ffff } else { displacement as u64 };
    instruction.set_memory_displ_size(if displacement == 0 { 0 } else { 1 });
    instruction.set_memory_displacement64(cut);
}

/// How many bytes a memory operand has, as far as the decoder knows.
pub fn memory_bytes(code: Code) -> u64 {
    let size = match code.op_code().memory_size() {
        MemorySize::Xsave | MemorySize::Xsave64 => 2432,
        MemorySize::Fxsave_512Byte | MemorySize::Fxsave64_512Byte => 512,
        size => size.size() as u64,
    };
    size.max(1)
}
