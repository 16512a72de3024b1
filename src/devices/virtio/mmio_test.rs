//! The registers, as good and bad drivers use them.

use super::super::rng::Rng;
use super::super::testing::{BUFFERS, Driver, MEMORY};
use super::super::{EVENT_INDEX, INDIRECT_DESCRIPTORS};
use super::*;
use crate::bus::Device as _;

/// Buffer, flags, next.
type Descriptor = ((u64, u32), u16, u16);

fn driver() -> Driver {
    Driver::new(Arc::new(Rng))
}

fn unready() -> Driver {
    Driver::unready(Arc::new(Rng))
}

#[test]
fn the_registers_tell_what_the_device_is() {
    let driver = unready();
    assert_eq!([0, 4, 8].map(|offset| driver.read(offset)), [0x7472_6976, 2, 4]);
    assert_eq!(driver.offered(), VERSION_1 | INDIRECT_DESCRIPTORS | EVENT_INDEX);
    driver.write(0x14, 2);
    assert_eq!(driver.read(0x10), 0, "there are 64 features");
    driver.write(0x30, 0);
    assert_eq!(driver.read(0x34), 64);
    driver.write(0x30, 1);
    assert_eq!((driver.read(0x34), driver.read(0x44)), (0, 0), "there is no such queue");
}

#[test]
fn registers_are_accessed_as_a_whole() {
    let driver = unready();
    for width in [1, 2, 8] {
        assert_eq!(driver.transport.read(0, width), 0);
        driver.transport.write(0x70, width, 1);
        assert_eq!(driver.read(0x70), 0);
    }
}

#[test]
fn random_bytes_fill_a_chain_of_buffers() {
    let mut driver = driver();
    driver.chain(0, &[(BUFFERS, 100, true), (BUFFERS + 0x1000, 50, true)]);
    assert_eq!(driver.finish(0), 150);
    assert!(driver.get::<100>(BUFFERS).iter().filter(|&&byte| byte == 0).count() < 20);
    assert!(driver.get::<50>(BUFFERS + 0x1000).iter().filter(|&&byte| byte == 0).count() < 15);
    assert_eq!(driver.get::<8>(BUFFERS + 100), [0; 8], "no more than was asked for");
    assert_eq!(driver.read(0x60), 1);
    assert_eq!(driver.interrupt.read().ok(), Some(1));
    driver.write(0x64, 1);
    assert_eq!(driver.read(0x60), 0);
}

#[test]
fn a_table_of_descriptors_is_a_chain_as_well() {
    let mut driver = driver();
    driver.indirect(
        0,
        0x8_0000,
        &[(BUFFERS, 10, true), (BUFFERS + 0x1000, 20, true), (BUFFERS + 0x2000, 30, true)],
    );
    assert_eq!(driver.finish(0), 60);
}

#[test]
fn what_waits_before_the_driver_is_ready_is_served_then() {
    let mut driver = unready();
    driver.agree(!EVENT_INDEX);
    driver.set_up(0, [0x8000, 0xa000, 0xc000]);
    driver.chain(0, &[(BUFFERS, 8, true)]);
    driver.write(0x70, 15);
    driver.until("it is served", || driver.used(0) == 1);
}

#[test]
fn features_that_were_not_offered_are_refused() {
    for features in [VERSION_1 | 1, INDIRECT_DESCRIPTORS, 0] {
        let driver = unready();
        driver.write(0x70, 3);
        for half in 0..2 {
            driver.write(0x24, half);
            driver.write(0x20, (features >> (32 * half)) as u32);
        }
        driver.write(0x70, 11);
        assert_eq!(driver.read(0x70), 3, "{features:#x}");
        driver.write(0x70, 15);
        assert_eq!(driver.read(0x70) & 4, 0, "not ready without features");
    }
}

#[test]
fn features_are_settled_once_they_are_agreed_on() {
    let driver = unready();
    assert_eq!(driver.agree(!0), 11);
    driver.write(0x24, 1);
    driver.write(0x20, 0);
    driver.set_up(0, [0x8000, 0xa000, 0xc000]);
    driver.write(0x70, 15);
    assert_eq!(driver.read(0x70), 15);
}

#[test]
fn a_status_is_only_ever_added_to() {
    let driver = driver();
    driver.write(0x70, 1);
    assert_eq!(driver.read(0x70), 15);
    driver.write(0x70, 64);
    assert_eq!(driver.read(0x70), 15, "only the device asks for a reset");
    driver.write(0x70, 128);
    assert_eq!(driver.read(0x70), 0x8f);
}

#[test]
fn queues_outside_memory_are_refused_when_the_driver_is_ready() {
    for rings in
        [[MEMORY, 0xa000, 0xc000], [0x8000, MEMORY - 2, 0xc000], [0x8000, 0xa000, !3], [0xd000_0000; 3]]
    {
        let driver = unready();
        driver.agree(!0);
        driver.set_up(0, rings);
        driver.write(0x70, 15);
        assert!(driver.needs_reset(), "{rings:x?}");
        driver.write(0x70, 0);
        assert_eq!(driver.read(0x70), 0);
    }
}

#[test]
fn sizes_and_places_that_no_queue_has_are_refused_at_once() {
    for (register, value) in
        [(0x38, 0), (0x38, 3), (0x38, 128), (0x38, 0x1_0010), (0x80, 8), (0x90, 1), (0xa0, 2)]
    {
        let driver = unready();
        driver.agree(!0);
        driver.set_up(0, [0x8000, 0xa000, 0xc000]);
        driver.write(0x44, 0);
        assert!(!driver.needs_reset());
        driver.write(register, value);
        assert!(driver.needs_reset(), "{register:#x} {value:#x}");
        driver.write(0x44, 1);
        driver.write(0x70, 15);
        driver.ring(0);
        assert!(driver.needs_reset());
        assert_eq!((driver.interrupt.read().ok(), driver.used(0)), (Some(1), 0), "it says so once");
        driver.write(0x70, 0);
        assert_eq!(driver.read(0x70), 0);
    }
}

#[test]
fn a_queue_that_is_in_use_stays_where_it_is() {
    let mut driver = driver();
    driver.write(0x30, 0);
    driver.write(0x80, 0);
    driver.write(0x38, 3);
    driver.write(0x44, 0);
    driver.chain(0, &[(BUFFERS, 8, true)]);
    assert_eq!(driver.finish(0), 8);
}

#[test]
fn a_reset_at_any_moment_leaves_a_device_as_new() {
    let mut driver = driver();
    for round in 0..200_u16 {
        for _ in 0..round % 8 {
            driver.chain(0, &[(BUFFERS, 4096, true)]);
        }
        driver.ring(0);
        driver.start_again();
        driver.chain(0, &[(BUFFERS, 8, true)]);
        assert_eq!(driver.finish(0), 8);
    }
}

#[test]
fn doorbells_of_queues_that_there_are_not_ring_nothing() {
    let driver = driver();
    for queue in [1, 2, 0xffff, u32::MAX] {
        driver.write(0x50, queue);
    }
    assert_eq!((driver.used(0), driver.needs_reset()), (0, false));
}

#[test]
fn a_driver_that_wants_no_interrupts_gets_none() {
    const NO_INTERRUPT: u16 = 1;
    let mut driver = driver();
    driver.flag_available(0, NO_INTERRUPT);
    driver.chain(0, &[(BUFFERS, 8, true)]);
    driver.finish(0);
    assert_eq!((driver.read(0x60), driver.interrupt.read().is_ok()), (0, false));
    driver.flag_available(0, 0);
    driver.chain(0, &[(BUFFERS, 8, true)]);
    driver.finish(0);
    driver.until("the interrupt comes", || driver.read(0x60) == 1);
}

#[test]
fn chains_that_no_driver_makes_stop_the_device_until_it_is_reset() {
    const NEXT: u16 = 1;
    const WRITE: u16 = 2;
    const INDIRECT: u16 = 4;
    let good = (BUFFERS, 8);
    let cases: [(&str, &[Descriptor]); 10] = [
        ("to itself", &[(good, NEXT | WRITE, 0)]),
        ("in a circle", &[(good, NEXT | WRITE, 1), (good, NEXT | WRITE, 0)]),
        ("out of the table", &[(good, NEXT | WRITE, 16)]),
        ("far out of the table", &[(good, NEXT | WRITE, 0xffff)]),
        ("empty", &[((BUFFERS, 0), WRITE, 0)]),
        ("outside memory", &[((MEMORY, 8), WRITE, 0)]),
        ("over the end of memory", &[((MEMORY - 4, 8), WRITE, 0)]),
        ("around the end of addresses", &[((u64::MAX - 3, 8), WRITE, 0)]),
        ("reading behind writing", &[(good, NEXT | WRITE, 1), (good, 0, 0)]),
        ("a table that is no table", &[((BUFFERS, 17), INDIRECT, 0)]),
    ];
    let mut driver = driver();
    for (what, descriptors) in cases {
        println!("{what}");
        for (index, (buffer, flags, next)) in (0..).zip(descriptors) {
            driver.describe(0, index, *buffer, *flags, *next);
        }
        driver.offer(0, 0);
        driver.expect_misuse(0);
    }
}

#[test]
fn heads_and_indices_that_jump_stop_the_device() {
    let mut driver = driver();
    driver.offer(0, 16);
    driver.expect_misuse(0);
    driver.offer(0, 0xffff);
    driver.expect_misuse(0);
    for index in [17, 0x8000, 0xffff] {
        driver.jump(0, index);
        driver.expect_misuse(0);
    }
}

#[test]
fn a_driver_that_never_stops_asking_can_be_reset() {
    let mut driver = driver();
    // The chain that is available is so again as soon as it was used.
    driver.describe(0, 0, (BUFFERS, 0x1_0000), 2, 0);
    for _ in 0..20 {
        for _ in 0..16 {
            driver.offer(0, 0);
        }
        driver.ring(0);
        driver.start_again();
        driver.describe(0, 0, (BUFFERS, 0x1_0000), 2, 0);
    }
}

#[test]
fn a_paused_device_uses_nothing_and_goes_on_where_it_was() {
    let mut driver = driver();
    for round in 1..=100 {
        driver.transport.pause();
        driver.chain(0, &[(BUFFERS, 8, true)]);
        driver.ring(0);
        assert_eq!(driver.used(0), round - 1);
        driver.transport.resume();
        assert_eq!(driver.finish(0), 8);
    }
}

#[test]
fn a_device_can_be_moved_at_any_moment() {
    let mut driver = driver();
    for round in 0..100_u16 {
        for _ in 0..round % 16 {
            driver.chain(0, &[(BUFFERS, 2048, true)]);
        }
        driver.ring(0);
        driver = driver.move_to(Arc::new(Rng));
        driver.chain(0, &[(BUFFERS, 8, true)]);
        driver.finish(0);
    }
    driver.jump(0, 0x7777);
    driver.ring(0);
    driver.until("it asks to be reset", || driver.needs_reset());
    let mut driver = driver.move_to(Arc::new(Rng));
    assert!(driver.needs_reset());
    driver.start_again();
    driver.chain(0, &[(BUFFERS, 8, true)]);
    assert_eq!(driver.finish(0), 8);
}

#[test]
fn saved_state_that_is_not_this_devices_is_refused() {
    let driver = driver();
    driver.transport.pause();
    let saved = driver.transport.save();
    let other = unready().transport;
    let mut features = saved.clone();
    features.registers.features |= 1;
    let mut queues = saved.clone();
    queues.queues.clear();
    let mut size = saved.clone();
    size.queues[0].size = 3;
    for (what, saved) in [("features", features), ("number of queues", queues), ("size", size)] {
        let said = other.restore(&saved).unwrap_err().to_string();
        assert!(said.contains(what), "{said}");
    }
}
