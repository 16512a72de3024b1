//! Generated chains for a device's queues, which are served in the test's own thread: thousands in the time of a
//! wake-up.

use std::sync::Arc;
use std::thread;

use virtio_queue::{Queue as Rings, QueueT};

use super::alone::{alone, cases, watched};
use super::{Target, chains};
use crate::devices::virtio::testing::{Driver, Numbers};
use crate::devices::virtio::{Device, Interrupt, Left, Misuse, Queue, VERSION_1};

/// Each chain ends in an answer or in misuse, and after that the device is as good as before. `test` is the one that
/// calls this.
#[track_caller]
pub fn queues<T: Target>(test: &impl Fn(), otherwise: u64, target: impl FnOnce() -> T) {
    alone(test, || {
        let target = target();
        let mut random = Numbers(1);
        let mut direct = Direct::new(&target, &mut random);
        let (mut answered, mut misused) = (0_u64, 0_u64);
        let count = cases(otherwise);
        for _ in watched(count) {
            if random.below(32) == 0 {
                target.disturb(&direct.device, &mut random);
            }
            match direct.attack(&mut random) {
                Ok(()) => answered += 1,
                Err(_) => misused += 1,
            }
        }
        println!("{answered} ended in an answer, {misused} in misuse");
        assert!(answered > count / 20 && misused > count / 20, "the cases are too much alike");
        let mut driver = Driver::new(target.device());
        target.check(&mut driver);
        drop((driver, direct));
        target.finish();
    });
}

/// A device without a transport.
struct Direct<'a, T: Target> {
    target: &'a T,
    device: Arc<T::Device>,
    driver: Driver,
    queues: Vec<Queue>,
}

impl<'a, T: Target> Direct<'a, T> {
    fn new(target: &'a T, random: &mut Numbers) -> Self {
        let device = target.device();
        // Its transport only connects it.
        let driver = Driver::unready(Arc::clone(&device) as _);
        let mut direct = Self { target, device, driver, queues: Vec::new() };
        direct.start(random);
        direct
    }

    /// Some features are agreed on, mostly all.
    fn start(&mut self, random: &mut Numbers) {
        let mask = if random.below(4) == 0 { random.below(u64::MAX) } else { u64::MAX };
        self.device.reset();
        self.device.start(self.device.features() & mask | VERSION_1);
        let event_index = random.below(4) == 0;
        let interrupt = Arc::new(Interrupt::new(self.driver.interrupt.try_clone().unwrap()));
        self.queues.clear();
        for (number, &size) in (0..).zip(self.device.queue_sizes()) {
            self.driver.clear(number);
            let [descriptors, available, used] = self.driver.rings(number).map(|at| Some(at as u32));
            let mut rings = Rings::new(size).unwrap();
            rings.set_size(16);
            rings.set_desc_table_address(descriptors, None);
            rings.set_avail_ring_address(available, None);
            rings.set_used_ring_address(used, None);
            rings.set_event_idx(event_index);
            rings.set_ready(true);
            let memory = Arc::clone(&self.driver.memory);
            self.queues.push(Queue::new(rings, memory, Arc::clone(&interrupt)).unwrap());
        }
    }

    /// Puts something into a queue and has it served. After misuse the device is reset.
    fn attack(&mut self, random: &mut Numbers) -> Result<(), Misuse> {
        let queue = random.below(self.queues.len() as u64) as u16;
        chains::put(self.target, &mut self.driver, queue, random);
        let mut result = Ok(Left::More);
        // An index can jump by 65,535 at most, and whoever never came to an end would stay here.
        for _ in 0..70_000 / 16 {
            result = self.device.serve(queue, &mut self.queues[usize::from(queue)]);
            match result {
                Ok(Left::More) => {}
                Ok(Left::After(time)) => thread::sleep(time),
                _ => break,
            }
        }
        match result {
            Ok(left) => {
                assert_eq!(left, Left::Nothing, "the device does not come to an end");
                Ok(())
            }
            Err(misuse) => {
                self.start(random);
                Err(misuse)
            }
        }
    }
}
