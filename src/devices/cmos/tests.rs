//! The clock as kernels read, set and poll it, and as hostile guests write to it.

use super::*;
use crate::bus::testing::Random;
use crate::saved;

/// A clock that stands where it is put.
struct TestClock(Mutex<Duration>);

impl Clock for TestClock {
    fn since_epoch(&self) -> Duration {
        *self.0.lock().unwrap()
    }
}

struct Machine {
    cmos: Cmos,
    clock: Arc<TestClock>,
}

/// 9 September 2001, 01:46:40, a Sunday.
const MOMENT: u64 = 1_000_000_000;

impl Machine {
    fn new(memory_size: u64) -> Self {
        let clock = Arc::new(TestClock(Mutex::new(Duration::from_secs(MOMENT))));
        Self { cmos: Cmos::new(memory_size, clock.clone()), clock }
    }

    fn advance(&self, by: Duration) {
        *self.clock.0.lock().unwrap() += by;
    }

    fn read(&self, register: u8) -> u8 {
        // With the NMI bit set, as Linux does it.
        self.cmos.write(0, 1, u64::from(register) | 0x80);
        self.cmos.read(1, 1) as u8
    }

    fn write(&self, register: u8, value: u8) {
        assert_eq!(self.cmos.write(0, 1, register.into()), Action::None);
        assert_eq!(self.cmos.write(1, 1, value.into()), Action::None);
    }

    /// Century, year, month, day, weekday, hour, minute, second.
    fn time(&self) -> [u8; 8] {
        [CENTURY, YEAR, MONTH, DAY, WEEKDAY, HOUR, MINUTE, SECOND].map(|register| self.read(register))
    }

    fn set_time(&self, time: [u8; 8]) {
        let b = self.read(STATUS_B);
        self.write(STATUS_B, b | B_SET);
        for (register, value) in
            [CENTURY, YEAR, MONTH, DAY, WEEKDAY, HOUR, MINUTE, SECOND].into_iter().zip(time)
        {
            self.write(register, value);
        }
        self.write(STATUS_B, b);
    }

    fn is_updating(&self) -> bool {
        self.read(STATUS_A) & A_UPDATE_IN_PROGRESS != 0
    }
}

#[test]
fn the_time_is_shown_in_the_format_that_register_b_asks_for() {
    let machine = Machine::new(1 << 20);
    machine.advance(Duration::from_secs(12 * 3600));
    assert_eq!(machine.read(STATUS_B), B_24_HOURS);
    assert_eq!(machine.time(), [0x20, 0x01, 0x09, 0x09, 0x01, 0x13, 0x46, 0x40]);
    machine.write(STATUS_B, B_24_HOURS | B_BINARY);
    assert_eq!(machine.time(), [20, 1, 9, 9, 1, 13, 46, 40]);
    machine.write(STATUS_B, 0);
    assert_eq!(machine.read(HOUR), 0x01 | HOUR_PM);
    machine.write(STATUS_B, B_BINARY);
    machine.advance(Duration::from_secs(10 * 3600));
    assert_eq!(machine.read(HOUR), 11 | HOUR_PM);
    machine.advance(Duration::from_secs(3600));
    assert_eq!(machine.read(HOUR), 12, "midnight");
    machine.advance(Duration::from_secs(12 * 3600));
    assert_eq!(machine.read(HOUR), 12 | HOUR_PM, "noon");
}

#[test]
fn the_host_clock_tells_the_real_time() {
    let cmos = Cmos::new(1 << 20, Arc::new(HostClock));
    cmos.write(0, 1, CENTURY.into());
    assert_eq!(cmos.read(1, 1), 0x20);
}

#[test]
fn status_registers_say_that_the_clock_runs_and_nothing_is_pending() {
    let machine = Machine::new(1 << 20);
    machine.write(STATUS_B, B_24_HOURS | 0x70);
    for register in [STATUS_C, STATUS_D] {
        machine.write(register, 0x55);
    }
    assert_eq!([STATUS_C, STATUS_D].map(|register| machine.read(register)), [0, D_VALID]);
    assert_eq!(machine.read(STATUS_A), A_INITIAL);
    machine.write(STATUS_A, 0xff);
    assert_eq!(machine.read(STATUS_A), 0x7f);
    assert_eq!(machine.cmos.read(0, 1), 0xff);
}

#[test]
fn setting_the_clock_keeps_an_offset_to_the_host() {
    let machine = Machine::new(1 << 20);
    machine.set_time([0x19, 0x99, 0x12, 0x31, 0x06, 0x23, 0x59, 0x59]);
    assert_eq!(machine.time(), [0x19, 0x99, 0x12, 0x31, 0x06, 0x23, 0x59, 0x59]);
    machine.advance(Duration::from_secs(1));
    assert_eq!(machine.time(), [0x20, 0x00, 0x01, 0x01, 0x07, 0x00, 0x00, 0x00]);
}

#[test]
fn the_time_stands_still_while_it_is_set() {
    let machine = Machine::new(1 << 20);
    machine.write(STATUS_B, B_24_HOURS | B_SET);
    machine.advance(Duration::from_millis(5_999));
    assert_eq!(machine.read(SECOND), 0x40);
    assert!(!machine.is_updating());
    machine.write(MINUTE, 0x00);
    machine.write(STATUS_B, B_24_HOURS);
    assert_eq!(machine.time()[5..], [0x01, 0x00, 0x40]);
}

#[test]
fn a_format_chosen_while_the_clock_is_set_applies_to_what_is_written_then() {
    let machine = Machine::new(1 << 20);
    machine.write(STATUS_B, B_SET | B_BINARY);
    for (register, value) in [(HOUR, 11 | HOUR_PM), (MINUTE, 59), (SECOND, 58), (CENTURY, 20), (YEAR, 30)] {
        machine.write(register, value);
    }
    machine.write(STATUS_B, B_BINARY);
    machine.advance(Duration::from_secs(1));
    assert_eq!([HOUR, MINUTE, SECOND].map(|register| machine.read(register)), [11 | HOUR_PM, 59, 59]);
    machine.write(STATUS_B, B_24_HOURS);
    assert_eq!([YEAR, HOUR, MINUTE].map(|register| machine.read(register)), [0x30, 0x23, 0x59]);
}

#[test]
fn a_time_register_can_be_written_without_stopping_the_clock() {
    let machine = Machine::new(1 << 20);
    machine.write(YEAR, 0x25);
    machine.advance(Duration::from_secs(20));
    assert_eq!(machine.time(), [0x20, 0x25, 0x09, 0x09, 0x03, 0x01, 0x47, 0x00]);
}

#[test]
fn an_update_is_announced_at_the_end_of_a_second() {
    let machine = Machine::new(1 << 20);
    assert!(!machine.is_updating());
    machine.advance(Duration::from_micros(999_700));
    assert!(!machine.is_updating());
    machine.advance(Duration::from_micros(100));
    assert!(machine.is_updating());
}

#[test]
fn a_guest_that_polls_slowly_sees_every_update_once() {
    let machine = Machine::new(1 << 20);
    let mut seen = 0;
    assert!(!machine.is_updating());
    // Every 0.3 seconds, never within the last 244 µs.
    for _ in 0..10 {
        machine.advance(Duration::from_millis(300));
        seen += usize::from(machine.is_updating());
        assert!(!machine.is_updating());
    }
    assert_eq!(seen, 3);
    // Who asks rarely is not held up.
    machine.advance(Duration::from_secs(60));
    assert!(!machine.is_updating());
}

#[test]
fn the_memory_says_how_much_memory_there_is() {
    const GIB: u64 = 1 << 30;
    let read = |size, registers: &[u8]| {
        let machine = Machine::new(size);
        registers.iter().rev().fold(0_u64, |value, register| value << 8 | u64::from(machine.read(*register)))
    };
    for (size, base, extended, above_16_mib, above_4_gib) in [
        (1 << 20, 640, 0, 0, 0),
        (16 << 20, 640, 15 << 10, 0, 0),
        (128 << 20, 640, 0xffff, 112 * 16, 0),
        (3 * GIB, 640, 0xffff, 3056 * 16, 0),
        (5 * GIB, 640, 0xffff, 3056 * 16, 2 << 14),
        (1 << 50, 640, 0xffff, 3056 * 16, 0xff_ffff),
    ] {
        assert_eq!(read(size, &[0x15, 0x16]), base);
        assert_eq!(read(size, &[0x17, 0x18]), extended);
        assert_eq!(read(size, &[0x30, 0x31]), extended);
        assert_eq!(read(size, &[0x34, 0x35]), above_16_mib);
        assert_eq!(read(size, &[0x5b, 0x5c, 0x5d]), above_4_gib);
    }
}

#[test]
fn the_other_bytes_are_memory() {
    let machine = Machine::new(1 << 20);
    for register in (0x0e..0x80).filter(|register| *register != CENTURY) {
        machine.write(register, register ^ 0x5a);
    }
    for register in (0x0e..0x80).filter(|register| *register != CENTURY) {
        assert_eq!(machine.read(register), register ^ 0x5a);
    }
}

fn restored(saved: &SavedCmos) -> Machine {
    let machine = Machine::new(1 << 20);
    machine.cmos.restore(&saved::decode(&saved::encode(saved)).unwrap()).unwrap();
    machine
}

#[test]
fn a_restored_clock_keeps_its_offset_and_shows_the_time_of_now() {
    let machine = Machine::new(1 << 20);
    machine.set_time([0x19, 0x99, 0x12, 0x31, 0x06, 0x23, 0x59, 0x59]);
    let twin = restored(&machine.cmos.save());
    twin.advance(Duration::from_secs(61));
    assert_eq!(twin.time(), [0x20, 0x00, 0x01, 0x01, 0x07, 0x00, 0x01, 0x00]);
}

#[test]
fn saved_states_that_no_clock_was_ever_in_are_refused() {
    let machine = Machine::new(1 << 20);
    let good = machine.cmos.save();
    for bad in [
        SavedCmos { index: 0x80, ..good.clone() },
        SavedCmos { bytes: vec![0; 127], ..good.clone() },
        SavedCmos { offset: i64::MIN, ..good.clone() },
        SavedCmos { offset: MAX_OFFSET as i64 + 1, ..good.clone() },
    ] {
        assert!(machine.cmos.restore(&bad).is_err());
    }
    assert_eq!(machine.cmos.save(), good);
}

#[test]
fn generated_accesses_do_no_harm_and_every_state_can_be_saved() {
    let mut random = Random::new(4);
    let mut machine = Machine::new(1 << 20);
    *machine.clock.0.lock().unwrap() = Duration::MAX;
    machine.time();
    for _ in 0..20_000 {
        let register = random.pick(&[&TIME[..], &[STATUS_A, STATUS_B, STATUS_C, 0x40, 0xff]].concat());
        if random.below(2) == 0 {
            machine.write(register, random.byte());
        } else {
            machine.read(register);
        }
        if random.below(64) == 0 {
            let extremes = [0, MOMENT, LAST_SECOND, u64::MAX, random.next()];
            *machine.clock.0.lock().unwrap() = Duration::from_secs(random.pick(&extremes));
        }
        let saved = machine.cmos.save();
        let twin = restored(&saved);
        assert_eq!(twin.cmos.save(), saved);
        if random.below(8) == 0 {
            machine = twin;
        }
    }
}
