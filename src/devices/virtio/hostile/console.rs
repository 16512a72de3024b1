//! The console and its ports, attacked.

use std::sync::Arc;

use super::{Target, queues, transport};
use crate::devices::virtio::Device;
use crate::devices::virtio::console::{Console, Peers, Port, Size};
use crate::devices::virtio::testing::{BUFFERS, Driver, Numbers, Part};
use crate::saved::{decode, encode};

const MESSAGES_IN: u16 = 2;
const MESSAGES_OUT: u16 = 3;
const DATA: u64 = BUFFERS + 0x1_0000;

/// A console, a port for one peer, and one for many.
struct Ports;

impl Target for Ports {
    type Device = Console;
    /// Those of the console's output are looked at whether or not there is input.
    const SERVED: u16 = 1;

    fn device(&self) -> Arc<Console> {
        let port = |name, peers| Arc::new(Port::new(name, peers).unwrap());
        let further = vec![port("log", Peers::One), port("agent", Peers::Many)];
        Arc::new(Console::new(Some(port("", Peers::One)), further))
    }

    fn moved(&self, old: &Console) -> Arc<Console> {
        let (saved, new) = (old.save(), self.device());
        // Who is at a port's other end is not what it was, and the guest is told.
        new.restore(&decode(&encode(&saved)).unwrap()).unwrap();
        new
    }

    fn request(&self, queue: u16, random: &mut Numbers, driver: &Driver) -> Vec<Part> {
        match queue {
            MESSAGES_OUT => {
                let message = [random.below(5) as u32, (random.below(9) | random.below(2) << 16) as u32];
                driver.put(BUFFERS, &message.map(u32::to_le_bytes).concat());
                vec![(BUFFERS, 8, false)]
            }
            MESSAGES_IN => vec![(DATA, 8 + random.below(100) as u32, true)],
            _ => {
                let written = queue.is_multiple_of(2);
                (0..1 + random.below(3)).map(|_| (DATA, 1 + random.below(5000) as u32, written)).collect()
            }
        }
    }

    fn disturb(&self, console: &Console, random: &mut Numbers) {
        let chosen = random.below(3) as usize;
        let Some(port) = console.ports().nth(chosen) else { return };
        match random.below(6) {
            0 => drop(port.offer_input(&[b'i'; 300][..random.below(300) as usize])),
            1 => port.output_taken(port.output(&mut [0; 4096])),
            2 => drop(port.arrive()),
            3 => port.leave(),
            4 => console.set_size(Size { columns: random.below(200) as u16, rows: 1 }),
            _ => console.write_config(random.below(20), &random.below(u64::MAX).to_le_bytes()),
        }
    }

    fn check(&self, driver: &mut Driver) {
        const READY: [u8; 8] = [0xff, 0xff, 0xff, 0xff, 0, 0, 1, 0];
        driver.put(BUFFERS, &READY);
        driver.chain(MESSAGES_OUT, &[(BUFFERS, 8, false)]);
        driver.finish(MESSAGES_OUT);
        // The console is told of first.
        driver.chain(MESSAGES_IN, &[(DATA, 100, true)]);
        assert_eq!(driver.finish(MESSAGES_IN), 8);
        assert_eq!(driver.get::<8>(DATA), [0, 0, 0, 0, 1, 0, 1, 0]);
    }

    fn finish(self) {}
}

#[test]
fn hostile_requests_end_in_an_answer_or_a_reset() {
    queues(&hostile_requests_end_in_an_answer_or_a_reset, 100_000, || Ports);
}

#[test]
fn hostile_registers_leave_a_device_that_works() {
    transport(&hostile_registers_leave_a_device_that_works, 60_000, || Ports);
}
