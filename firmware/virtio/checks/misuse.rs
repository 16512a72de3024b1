//! What no driver should do. The device stops and says that it has to be reset (specification 1.2, section 2.1.2), and
//! after that it works again.

use super::subject::Subject;
use super::{Count, ENOUGH, Failure, Outcome, Sample, holds, same};
use crate::virtio::queue::{INDIRECT, NEXT, Queue, WRITE};
use crate::virtio::{feature, reason, register, status};

/// No memory is there: devices are, or nothing.
const NO_MEMORY: u64 = 0xd000_0000;
const FAR: u64 = 1 << 45;

/// What is done to a queue; the doorbell is rung behind it.
type Spoil = fn(&mut Subject, &mut Queue, &Sample) -> Outcome;

const IN_QUEUES: &[(&str, Spoil)] = &[
    ("an index that jumps", |_, queue, _| {
        queue.jump(queue.size() + 1);
        Ok(())
    }),
    ("a head outside of the table", |_, queue, _| give(queue, queue.size())),
    ("a chain that goes round", |_, queue, sample| {
        let (part, flags) = part(sample);
        queue.descriptor(0, part, flags | NEXT, 0);
        give(queue, 0)
    }),
    ("a chain that leaves the table", |_, queue, sample| {
        let (part, flags) = part(sample);
        queue.descriptor(0, part, flags | NEXT, queue.size());
        give(queue, 0)
    }),
    ("an empty buffer", |_, queue, sample| {
        let ((address, _), flags) = part(sample);
        queue.descriptor(0, (address, 0), flags, 0);
        give(queue, 0)
    }),
    ("a buffer outside of memory", |_, queue, sample| {
        queue.descriptor(0, (NO_MEMORY, 16), part(sample).1, 0);
        give(queue, 0)
    }),
    ("a buffer that is far too long", |_, queue, sample| {
        let ((address, _), flags) = part(sample);
        queue.descriptor(0, (address, u32::MAX), flags, 0);
        give(queue, 0)
    }),
    ("a buffer at the end of all addresses", |_, queue, sample| {
        queue.descriptor(0, (u64::MAX - 7, 16), part(sample).1, 0);
        give(queue, 0)
    }),
    ("a buffer to read behind one to write", |_, queue, sample| {
        let ((address, length), _) = part(sample);
        queue.descriptor(0, (address, length), NEXT | WRITE, 1);
        queue.descriptor(1, (address, length), 0, 0);
        give(queue, 0)
    }),
    ("buffers in the wrong direction", |_, queue, sample| {
        queue.describe(0, sample.turned().parts());
        give(queue, 0)
    }),
    ("a table within a table", |subject, queue, sample| {
        let table = subject.memory(32)?;
        queue.describe_in_table(0, table, sample.parts());
        // The table's own descriptor, copied into it.
        crate::memory::write(table, table, 8);
        crate::memory::write(table + 8, 16 | u64::from(INDIRECT) << 32, 8);
        give(queue, 0)
    }),
    ("a table of half a descriptor", |subject, queue, _| {
        let table = subject.memory(32)?;
        queue.descriptor(0, (table, 24), INDIRECT, 0);
        give(queue, 0)
    }),
    ("a table outside of memory", |_, queue, _| {
        queue.descriptor(0, (NO_MEMORY, 32), INDIRECT, 0);
        give(queue, 0)
    }),
    ("an empty table", |subject, queue, _| {
        let table = subject.memory(32)?;
        queue.descriptor(0, (table, 0), INDIRECT, 0);
        give(queue, 0)
    }),
];

/// A register of a queue, and what it must not be.
const IN_SET_UP: &[(&str, u64, u64)] = &[
    ("a ring of no size", register::QUEUE_SIZE, 0),
    ("a ring of a size that is no power of two", register::QUEUE_SIZE, 3),
    ("a ring that is too large", register::QUEUE_SIZE, 1 << 15),
    ("descriptors that are not aligned", register::DESCRIPTORS, 0x10_0008),
    ("an available ring that is not aligned", register::AVAILABLE, 0x10_0001),
    ("a used ring that is not aligned", register::USED, 0x10_0002),
    ("descriptors outside of memory", register::DESCRIPTORS, FAR),
    ("an available ring outside of memory", register::AVAILABLE, FAR),
    ("a used ring outside of memory", register::USED, FAR),
];

/// The first part of a sample, and its flags.
fn part(sample: &Sample) -> ((u64, u32), u16) {
    let part = sample.parts()[0];
    ((part.address, part.length), if part.written { WRITE } else { 0 })
}

fn give(queue: &mut Queue, head: u16) -> Outcome {
    queue.give(head);
    queue.show();
    Ok(())
}

pub fn run(subject: &mut Subject, count: &mut Count) {
    let (name, before) = (subject.known.name, count.failed);
    for &(what, spoil) in IN_QUEUES {
        if count.failed - before >= ENOUGH {
            return;
        }
        subject.renew();
        let outcome = in_queue(subject, spoil);
        count.note(name, format_args!("misuse: {what}"), outcome);
    }
    for &(what, offset, value) in IN_SET_UP {
        subject.renew();
        let outcome = in_set_up(subject, offset, value);
        count.note(name, format_args!("misuse: {what}"), outcome);
    }
}

fn in_queue(subject: &mut Subject, spoil: Spoil) -> Outcome {
    let sample = subject.sample()?;
    let mut queue = subject.start(sample.queue, u16::MAX, feature::INDIRECT_DESCRIPTORS & subject.offered)?;
    // Until then all is well.
    subject.ask_sample(&mut queue, &sample)?;
    misused(subject, |subject| spoil(subject, &mut queue, &sample))?;
    holds(queue.take().is_none(), "it answers what is no request")?;
    subject.works()
}

fn in_set_up(subject: &mut Subject, offset: u64, value: u64) -> Outcome {
    let sample = subject.sample()?;
    let registers = subject.registers;
    registers.agree(feature::VERSION_1)?;
    subject.queue(sample.queue, u16::MAX, feature::VERSION_1)?;
    registers.write(register::QUEUE_READY, 0);
    misused(subject, |_| {
        match offset {
            register::QUEUE_SIZE => registers.write(offset, value as u32),
            _ => registers.write_address(offset, value),
        }
        registers.write(register::QUEUE_READY, 1);
        registers.run();
        Ok(())
    })?;
    subject.works()
}

/// Does what makes the device stop, and sees how it tells.
fn misused(subject: &mut Subject, misuse: impl FnOnce(&mut Subject) -> Outcome) -> Outcome {
    let registers = subject.registers;
    let before = (subject.interrupts()?, registers.read(register::GENERATION));
    misuse(subject)?;
    subject.stops()?;
    subject.wait_until("no reason of its interrupt says so", || {
        subject.reasons() & reason::CONFIGURATION != 0
    })?;
    subject.interrupted(before.0)?;
    holds(registers.read(register::GENERATION) != before.1, "its configuration has the same generation")?;
    subject.acknowledge(reason::CONFIGURATION);
    same("acknowledged: reasons", subject.reasons(), 0_u32)?;
    // It does not begin anew by itself.
    registers.run();
    same("status", registers.status() & status::NEEDS_RESET, status::NEEDS_RESET)?;
    registers.reset();
    match registers.status() {
        0 => Ok(()),
        status => Err(Failure::Seen { what: "after reset: status", seen: status.into(), expected: 0 }),
    }
}
