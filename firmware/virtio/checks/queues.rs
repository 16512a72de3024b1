//! Queues and interrupts (specification 1.2, section 2.7).

use super::subject::Subject;
use super::{Check, Failure, Outcome, Sample, holds, same};
use crate::virtio::feature::{EVENT_INDEX, INDIRECT_DESCRIPTORS};
use crate::virtio::queue::{NEXT, Part, Queue, WRITE};
use crate::virtio::reason;

/// More than the rings' indices can count.
const MANY: u32 = 66_000;
/// The smallest ring in which every sample has room.
const SMALL: u16 = 4;

pub const CHECKS: &[Check] = &[
    ("request, polled", polled),
    ("request, by interrupt", |subject| by_interrupt(subject, 0)),
    ("request, by interrupt at its index", |subject| by_interrupt(subject, EVENT_INDEX)),
    ("no interrupt unless wanted", |subject| quiet(subject, 0)),
    ("no interrupt before its index", |subject| quiet(subject, EVENT_INDEX)),
    ("one interrupt for a batch", one_for_a_batch),
    ("reasons of interrupts acknowledged", acknowledged),
    ("doorbell wanted when idle", doorbell_wanted),
    ("indirect descriptors", indirect),
    ("indirect descriptors behind direct ones", indirect_behind_direct),
    ("batches that fill the ring", |subject| batches(subject, u16::MAX, 0, 3)),
    ("smallest ring", |subject| batches(subject, SMALL, 0, 9)),
    ("smallest ring with event indices", |subject| batches(subject, SMALL, EVENT_INDEX, 9)),
    ("descriptors in any order", any_order),
];

/// What takes a tenth of a second or more.
pub const LONG: &[Check] = &[("ring indices wrap around", wrap)];

/// A device that runs with the queue that samples go into.
fn start(subject: &mut Subject, size: u16, features: u64) -> Result<(Sample, Queue), Failure> {
    subject.needs(features)?;
    let sample = subject.sample()?;
    let queue = subject.start(sample.queue, size, features)?;
    Ok((sample, queue))
}

fn polled(subject: &mut Subject) -> Outcome {
    let (sample, mut queue) = start(subject, u16::MAX, 0)?;
    subject.ask_sample(&mut queue, &sample)
}

fn by_interrupt(subject: &mut Subject, features: u64) -> Outcome {
    let (sample, mut queue) = start(subject, u16::MAX, features)?;
    for _ in 0..3 {
        let before = subject.interrupts()?;
        queue.interrupt_after(Some(1));
        subject.ask_sample(&mut queue, &sample)?;
        subject.interrupted(before)?;
        same("interrupts", subject.interrupts()? - before, 1_u64)?;
        same("reasons", subject.reasons(), reason::USED)?;
        subject.acknowledge(reason::USED);
    }
    Ok(())
}

fn quiet(subject: &mut Subject, features: u64) -> Outcome {
    let (sample, mut queue) = start(subject, u16::MAX, features)?;
    let before = subject.interrupts()?;
    for _ in 0..3 {
        subject.ask_sample(&mut queue, &sample)?;
    }
    subject.settle();
    same("interrupts", subject.interrupts()? - before, 0_u64)?;
    same("reasons", subject.reasons(), 0_u32)
}

/// With event indices, only the last of some requests interrupts.
fn one_for_a_batch(subject: &mut Subject) -> Outcome {
    const COUNT: u16 = 8;
    let (sample, mut queue) = start(subject, u16::MAX, EVENT_INDEX)?;
    let before = subject.interrupts()?;
    queue.interrupt_after(Some(COUNT));
    for number in 0..COUNT {
        same("interrupts", subject.interrupts()? - before, 0_u64)?;
        let written = ask_at(subject, &mut queue, &sample, number * sample.descriptors())?;
        sample.check(written)?;
    }
    subject.interrupted(before)?;
    subject.settle();
    same("interrupts", subject.interrupts()? - before, 1_u64)
}

fn ask_at(subject: &Subject, queue: &mut Queue, sample: &Sample, first: u16) -> Result<u32, Failure> {
    sample.prepare();
    queue.describe(first, sample.parts());
    queue.give(first);
    queue.show();
    subject.answer(queue, first)
}

fn acknowledged(subject: &mut Subject) -> Outcome {
    let (sample, mut queue) = start(subject, u16::MAX, 0)?;
    queue.interrupt_after(Some(1));
    subject.ask_sample(&mut queue, &sample)?;
    subject.wait_until("there is no reason", || subject.reasons() == reason::USED)?;
    subject.acknowledge(!reason::USED);
    same("others acknowledged: reasons", subject.reasons(), reason::USED)?;
    subject.acknowledge(reason::USED);
    same("acknowledged: reasons", subject.reasons(), 0_u32)
}

/// A device that sleeps has to be rung for, whichever way that is told.
fn doorbell_wanted(subject: &mut Subject) -> Outcome {
    for features in [0, EVENT_INDEX & subject.offered] {
        let (sample, mut queue) = start(subject, u16::MAX, features)?;
        for _ in 0..3 {
            subject.settle();
            queue.describe(0, sample.parts());
            queue.give(0);
            holds(queue.show(), "it wants no doorbell although it is idle")?;
            subject.answer(&mut queue, 0)?;
        }
    }
    Ok(())
}

fn indirect(subject: &mut Subject) -> Outcome {
    let (sample, mut queue) = start(subject, SMALL, INDIRECT_DESCRIPTORS)?;
    let table = subject.memory(64)?;
    for index in (0..SMALL).cycle().take(9) {
        sample.prepare();
        queue.describe_in_table(index, table, sample.parts());
        queue.give(index);
        queue.show();
        let written = subject.answer(&mut queue, index)?;
        sample.check(written)?;
    }
    Ok(())
}

/// Section 2.7.5.3.2: the last of a chain may refer to a table.
fn indirect_behind_direct(subject: &mut Subject) -> Outcome {
    let (sample, mut queue) = start(subject, u16::MAX, INDIRECT_DESCRIPTORS)?;
    let table = subject.memory(64)?;
    let [first, rest @ ..] = sample.parts() else { return Err(Failure::Said("it has no sample")) };
    sample.prepare();
    queue.describe_in_table(1, table, rest);
    let flags = NEXT | if first.written { WRITE } else { 0 };
    queue.descriptor(0, (first.address, first.length), flags, 1);
    queue.give(0);
    queue.show();
    let written = subject.answer(&mut queue, 0)?;
    sample.check(written)
}

/// As many as fit, again and again.
fn batches(subject: &mut Subject, size: u16, features: u64, times: u32) -> Outcome {
    let (sample, mut queue) = start(subject, size, features)?;
    let most = sample.fill(&queue);
    (0..times).try_for_each(|_| batch(subject, &mut queue, &sample, most))
}

fn batch(subject: &Subject, queue: &mut Queue, sample: &Sample, count: u16) -> Outcome {
    sample.prepare();
    (0..count).for_each(|number| queue.give(number * sample.descriptors()));
    queue.show();
    let mut sum: u32 = 0;
    for _ in 0..count {
        let mut answer = None;
        subject.wait_until("a request has no answer", || {
            answer = queue.take();
            answer.is_some()
        })?;
        let (head, written) = answer.unwrap_or_default();
        sample.check(written)?;
        sum += u32::from(head);
    }
    // Each was used once: devices may choose the order.
    let expected = u32::from(count) * u32::from(count - 1) / 2 * u32::from(sample.descriptors());
    same("the sum of what was used", sum, expected)
}

/// A chain whose descriptors do not follow each other.
fn any_order(subject: &mut Subject) -> Outcome {
    let (sample, mut queue) = start(subject, u16::MAX, 0)?;
    let last = queue.size() - 1;
    let place = |index: usize| (last - index as u16 * 5) % queue.size();
    for (index, Part { address, length, written }) in sample.parts().iter().copied().enumerate() {
        let next = if index + 1 < sample.parts().len() { NEXT } else { 0 };
        let flags = next | if written { WRITE } else { 0 };
        queue.descriptor(place(index), (address, length), flags, place(index + 1));
    }
    sample.prepare();
    queue.give(last);
    queue.show();
    let written = subject.answer(&mut queue, last)?;
    sample.check(written)
}

/// With event indices, which wrap around as well.
fn wrap(subject: &mut Subject) -> Outcome {
    let (sample, mut queue) = start(subject, u16::MAX, EVENT_INDEX & subject.offered)?;
    let most = sample.fill(&queue);
    (0..MANY / u32::from(most)).try_for_each(|_| batch(subject, &mut queue, &sample, most))?;
    same("status", subject.registers.status(), 0xf_u32)
}
