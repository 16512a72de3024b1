//! The source of random numbers, attacked.

use std::sync::Arc;

use super::{Target, queues, transport};
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::testing::{BUFFERS, Driver, Numbers, Part};

struct Source;

impl Target for Source {
    type Device = Rng;

    fn device(&self) -> Arc<Rng> {
        Arc::new(Rng)
    }

    fn request(&self, _queue: u16, random: &mut Numbers, _driver: &Driver) -> Vec<Part> {
        let length = |random: &mut Numbers| [1, 8, 64, 255, 256, 257, 4096][random.below(7) as usize];
        (0..1 + random.below(4)).map(|part| (BUFFERS + part * 0x2000, length(random), true)).collect()
    }

    fn check(&self, driver: &mut Driver) {
        driver.chain(0, &[(BUFFERS, 64, true)]);
        assert_eq!(driver.finish(0), 64);
    }

    fn finish(self) {}
}

#[test]
fn hostile_requests_end_in_an_answer_or_a_reset() {
    queues(&hostile_requests_end_in_an_answer_or_a_reset, 100_000, || Source);
}

#[test]
fn hostile_registers_leave_a_device_that_works() {
    transport(&hostile_registers_leave_a_device_that_works, 60_000, || Source);
}
