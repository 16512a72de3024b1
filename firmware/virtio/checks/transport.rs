//! The registers (specification 1.2, sections 2.1, 3.1.1 and 4.2.2).

use super::subject::Subject;
use super::{Check, Outcome, holds, same};
use crate::virtio::{MAGIC, MODERN, feature, register, status};

/// No device has so many queues.
const NO_QUEUE: u32 = 1000;
/// Configurations are shorter.
const CONFIGURATION_END: u64 = 80;

pub const CHECKS: &[Check] = &[
    ("identity", identity),
    ("registers that are not there", no_registers),
    ("registers by other widths", widths_of_registers),
    ("status step by step", steps),
    ("status before features", too_early),
    ("features settled once accepted", settled),
    ("configuration by every width", widths),
    ("configuration generation", generation),
    ("queue sizes", sizes),
    ("queue ready", ready),
    ("reset of everything", reset),
    ("doorbell without a driver", early_doorbell),
    ("doorbell of no queue", doorbell_of_none),
];

fn identity(subject: &mut Subject) -> Outcome {
    let read = |offset| subject.registers.read(offset);
    same("magic", read(register::MAGIC), MAGIC)?;
    same("version", read(register::VERSION), MODERN)?;
    same("kind", read(register::KIND), subject.known.kind.0)?;
    holds(read(register::VENDOR) != 0, "it has no vendor")?;
    for offset in [register::MAGIC, register::VERSION, register::KIND, register::VENDOR] {
        let before = read(offset);
        subject.registers.write(offset, !before);
        same("a register that was written to", read(offset), before)?;
    }
    Ok(())
}

fn no_registers(subject: &mut Subject) -> Outcome {
    let read = |offset| subject.registers.read(offset);
    for offset in [0x18, 0x28, 0x3c, 0x48, 0x6c, 0xc8, 0xf8] {
        subject.registers.write(offset, u32::MAX);
        same("no register", read(offset), 0_u32)?;
    }
    // No shared memory (section 4.2.2).
    for offset in (register::SHARED_MEMORY..).step_by(4).take(4) {
        same("shared memory", read(offset), u32::MAX)?;
    }
    Ok(())
}

/// Registers are read and written as a whole (section 4.2.2.2).
fn widths_of_registers(subject: &mut Subject) -> Outcome {
    let registers = subject.registers;
    registers.write_as(register::STATUS, 1_u8);
    registers.write_as(register::STATUS, 1_u16);
    same("status", registers.status(), 0_u32)?;
    same("a byte", registers.read_as::<u8>(register::MAGIC), 0_u8)?;
    same("two bytes", registers.read_as::<u16>(register::MAGIC), 0_u16)?;
    same("eight bytes", registers.read_as::<u64>(register::MAGIC), 0_u64)
}

fn steps(subject: &mut Subject) -> Outcome {
    use status::{ACKNOWLEDGED, DRIVER, FEATURES_OK, RUNNING};
    let registers = subject.registers;
    let mut expected = 0;
    same("after reset: status", registers.status(), expected)?;
    for step in [ACKNOWLEDGED, DRIVER] {
        expected |= step;
        registers.write(register::STATUS, expected);
        same("status", registers.status(), expected)?;
    }
    registers.propose(feature::VERSION_1);
    for step in [FEATURES_OK, RUNNING] {
        expected |= step;
        registers.write(register::STATUS, expected);
        same("status", registers.status(), expected)?;
    }
    // What a driver has said it cannot take back but by a reset.
    registers.write(register::STATUS, ACKNOWLEDGED);
    same("status taken back", registers.status(), expected)
}

fn too_early(subject: &mut Subject) -> Outcome {
    use status::{ACKNOWLEDGED, DRIVER, FEATURES_OK, RUNNING};
    let registers = subject.registers;
    registers.write(register::STATUS, ACKNOWLEDGED | DRIVER | RUNNING);
    same("status", registers.status() & (RUNNING | FEATURES_OK), 0_u32)?;
    subject.works()
}

fn settled(subject: &mut Subject) -> Outcome {
    let registers = subject.registers;
    registers.agree(feature::VERSION_1)?;
    // Nobody offers that, but it is too late to matter.
    registers.write(register::ACCEPTED_HALF, 0);
    registers.write(register::ACCEPTED, u32::MAX);
    registers.run();
    same("status", registers.status(), 0xf_u32)?;
    registers.write(register::OFFERED_HALF, 2);
    same("features beyond all", registers.read(register::OFFERED), 0_u32)?;
    subject.works()
}

fn widths(subject: &mut Subject) -> Outcome {
    let registers = subject.registers;
    let mut bytes = [0_u8; CONFIGURATION_END as usize];
    for (byte, offset) in bytes.iter_mut().zip(register::CONFIGURATION..) {
        *byte = registers.read_as(offset);
    }
    for (at, offset) in (0..CONFIGURATION_END as usize).zip(register::CONFIGURATION..) {
        let expected =
            |length| (0..length).rev().fold(0, |value, index| value << 8 | u64::from(bytes[at + index]));
        if at % 2 == 0 {
            same("two bytes", registers.read_as::<u16>(offset), expected(2))?;
        }
        if at % 4 == 0 {
            same("four bytes", registers.read_as::<u32>(offset), expected(4))?;
        }
        if at % 8 == 0 {
            same("eight bytes", registers.read_as::<u64>(offset), expected(8))?;
        }
    }
    holds(bytes[64..].iter().all(|&byte| byte == 0), "something lies behind its end")
}

fn generation(subject: &mut Subject) -> Outcome {
    let generation = || subject.registers.read(register::GENERATION);
    let before = generation();
    subject.registers.wide_configuration(0);
    same("with nothing changed: generation", generation(), before)
}

fn sizes(subject: &mut Subject) -> Outcome {
    let registers = subject.registers;
    let count = (subject.known.queues)(subject);
    for queue in 0..count {
        registers.write(register::QUEUE, queue);
        let most = registers.read(register::QUEUE_MOST);
        holds(most.is_power_of_two() && most <= 1 << 15, "a size that no queue has")?;
    }
    for queue in [count, NO_QUEUE, u32::MAX] {
        registers.write(register::QUEUE, queue);
        same("size of no queue", registers.read(register::QUEUE_MOST), 0_u32)?;
        registers.write(register::QUEUE_READY, 1);
        same("no queue is ready", registers.read(register::QUEUE_READY), 0_u32)?;
    }
    Ok(())
}

fn ready(subject: &mut Subject) -> Outcome {
    let registers = subject.registers;
    let is_ready = || registers.read(register::QUEUE_READY);
    registers.write(register::QUEUE_READY, 1);
    same("before features are agreed on: ready", is_ready(), 0_u32)?;
    registers.agree(feature::VERSION_1)?;
    subject.queue(0, u16::MAX, feature::VERSION_1)?;
    same("ready", is_ready(), 1_u32)?;
    registers.write(register::QUEUE_READY, 0);
    same("after it was taken back: ready", is_ready(), 0_u32)?;
    registers.write(register::QUEUE_READY, 1);
    registers.run();
    // In use, a queue stays what it is.
    registers.write(register::QUEUE_READY, 0);
    same("in use: ready", is_ready(), 1_u32)
}

fn reset(subject: &mut Subject) -> Outcome {
    let sample = subject.sample()?;
    let mut queue = subject.start(sample.queue, u16::MAX, 0)?;
    queue.interrupt_after(Some(1));
    subject.ask_sample(&mut queue, &sample)?;
    let registers = subject.registers;
    registers.write(register::STATUS, 0);
    same("status", registers.status(), 0_u32)?;
    same("reasons of interrupts", subject.reasons(), 0_u32)?;
    for queue in 0..(subject.known.queues)(subject) {
        registers.write(register::QUEUE, queue);
        same("ready", registers.read(register::QUEUE_READY), 0_u32)?;
    }
    subject.works()
}

fn early_doorbell(subject: &mut Subject) -> Outcome {
    let sample = subject.sample()?;
    let registers = subject.registers;
    registers.write(register::DOORBELL, sample.queue.into());
    registers.agree(feature::VERSION_1)?;
    let mut queue = subject.queue(sample.queue, u16::MAX, feature::VERSION_1)?;
    sample.prepare();
    queue.describe(0, sample.parts());
    queue.give(0);
    queue.show();
    subject.settle();
    holds(queue.take().is_none(), "it serves a driver that is not ready")?;
    // What waits is found without another ring.
    registers.run();
    let written = subject.answer(&mut queue, 0)?;
    sample.check(written)
}

fn doorbell_of_none(subject: &mut Subject) -> Outcome {
    let sample = subject.sample()?;
    let mut queue = subject.start(sample.queue, u16::MAX, 0)?;
    for number in [(subject.known.queues)(subject), NO_QUEUE, u32::MAX] {
        subject.registers.write(register::DOORBELL, number);
    }
    subject.ask_sample(&mut queue, &sample)?;
    same("status", subject.registers.status(), 0xf_u32)
}
