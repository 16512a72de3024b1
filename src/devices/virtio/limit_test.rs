//! Limits, by a clock that stands still until it is moved.

use super::super::testing::Numbers;
use super::*;

const MIB: u64 = 1 << 20;

fn rate(per_second: u64, burst: u64) -> Rate {
    let [per_second, burst] = [per_second, burst].map(|number| NonZeroU64::new(number).unwrap());
    Rate { per_second, burst }
}

fn bytes(per_second: u64, burst: u64) -> Limits {
    Limits { bytes: Some(rate(per_second, burst)), operations: None }
}

fn operations(per_second: u64, burst: u64) -> Limits {
    Limits { bytes: None, operations: Some(rate(per_second, burst)) }
}

struct Clocked {
    buckets: Buckets,
    now: Duration,
}

impl Clocked {
    fn new(limits: Limits) -> Self {
        let mut clocked = Self { buckets: Buckets::default(), now: Duration::from_secs(1000) };
        clocked.change(limits);
        clocked
    }

    fn change(&mut self, limits: Limits) {
        self.buckets.change(self.now, limits);
        assert_eq!(self.buckets.limits(), limits);
    }

    fn ask(&mut self, bytes: u64) -> Result<(), Duration> {
        self.buckets.admit(self.now, bytes)
    }

    /// As many requests as go now.
    fn all(&mut self, bytes: u64) -> u64 {
        let mut count = 0;
        while self.ask(bytes).is_ok() {
            count += 1;
        }
        count
    }

    /// Waits as long as it is told, for so many requests; how long that was.
    fn run(&mut self, requests: u64, bytes: u64) -> Duration {
        let start = self.now;
        for _ in 0..requests {
            while let Err(wait) = self.ask(bytes) {
                self.now += wait;
            }
        }
        self.now - start
    }
}

#[test]
fn operations_go_at_their_rate_after_their_burst() {
    let mut clocked = Clocked::new(operations(1000, 1));
    assert_eq!(clocked.run(300, 0), Duration::from_millis(299));
    let mut clocked = Clocked::new(operations(1000, 200));
    assert_eq!(clocked.all(4096), 200);
    assert_eq!(clocked.ask(4096), Err(Duration::from_millis(1)));
    assert_eq!(clocked.run(300, 4096), Duration::from_millis(300));
}

#[test]
fn a_rest_gives_the_burst_and_no_more() {
    let mut clocked = Clocked::new(operations(1000, 50));
    for (rest, count) in [(0, 50), (10, 10), (50, 50), (1_000_000, 50), (0, 0)] {
        clocked.now += Duration::from_millis(rest);
        assert_eq!(clocked.all(1), count, "{rest}");
    }
}

#[test]
fn bytes_go_at_their_rate_however_they_are_cut() {
    for length in [7, 512, 4096, 100_000, MIB, 3 * MIB] {
        let mut clocked = Clocked::new(bytes(10 * MIB, MIB));
        let total = 12 * MIB / length * length;
        let took = clocked.run(total / length, length).as_secs_f64();
        // The last request may go on credit; it has to be paid before the next.
        let least = (total - MIB - length) as f64 / (10 * MIB) as f64;
        let most = (total - MIB) as f64 / (10 * MIB) as f64;
        assert!((least - 1e-5..=most + 1e-5).contains(&took), "{length}: {took}");
    }
}

#[test]
fn a_request_larger_than_the_burst_goes_on_credit_and_the_next_pays() {
    let mut clocked = Clocked::new(bytes(1000, 100));
    assert_eq!(clocked.ask(5100), Ok(()));
    // Nothing is left of the burst, and 5000 are owed; then one is there.
    assert_eq!(clocked.ask(1), Err(Duration::from_millis(5001)));
    assert_eq!(clocked.ask(1 << 40), Err(Duration::from_millis(5001)));
    clocked.now += Duration::from_millis(5001);
    assert_eq!(clocked.ask(1), Ok(()));
    assert_eq!(clocked.ask(1), Err(Duration::from_millis(1)));
}

#[test]
fn both_limits_are_kept_and_what_has_to_wait_for_one_takes_nothing_of_the_other() {
    let both = Limits { bytes: Some(rate(1000, 1000)), operations: Some(rate(10, 10)) };
    let mut clocked = Clocked::new(both);
    assert_eq!(clocked.ask(3000), Ok(()));
    for _ in 0..100 {
        assert_eq!(clocked.ask(1), Err(Duration::from_millis(2001)));
    }
    // What moves nothing is one operation, and waits for no bytes.
    assert_eq!(clocked.all(0), 9);
    assert_eq!(clocked.ask(0), Err(Duration::from_millis(100)));
    assert_eq!(clocked.ask(1), Err(Duration::from_millis(2001)));
    clocked.now += Duration::from_secs(3);
    assert_eq!(clocked.all(1), 10);
}

#[test]
fn a_change_keeps_what_is_there_and_what_is_owed() {
    let mut clocked = Clocked::new(operations(10, 100));
    (0..70).for_each(|_| clocked.ask(0).unwrap());
    clocked.change(operations(1000, 100));
    assert_eq!(clocked.all(0), 30);
    clocked.change(operations(1, 1000));
    assert_eq!(clocked.all(0), 0, "a larger burst has to be waited for");
    clocked.now += Duration::from_secs(3);
    clocked.change(operations(1, 2));
    assert_eq!(clocked.all(0), 2, "a smaller one is one at once");
    clocked.change(Limits::default());
    assert_eq!((0..1000).filter(|_| clocked.ask(MIB).is_ok()).count(), 1000);
    clocked.change(bytes(1, 1));
    assert_eq!(clocked.ask(1000), Ok(()));
    assert_eq!(clocked.ask(1), Err(Duration::from_secs(1000)));
    clocked.change(bytes(1000, 1));
    assert_eq!(clocked.ask(1), Err(Duration::from_secs(1)));
    // Whoever adjusts limits again and again gives no burst each time.
    let mut clocked = Clocked::new(operations(100, 10));
    clocked.all(0);
    for round in 0..1000 {
        clocked.change(operations(100 + round % 2, 10 + round % 3));
        assert_eq!(clocked.all(0), 0);
    }
}

#[test]
fn a_tenth_of_a_second_is_the_burst_that_nobody_chose() {
    for (per_second, burst) in [(1, 1), (9, 1), (10, 1), (500, 50), (u64::MAX, u64::MAX / 10)] {
        assert_eq!(Rate::new(NonZeroU64::new(per_second).unwrap()), rate(per_second, burst));
    }
}

#[test]
fn nothing_overflows_and_every_wait_has_an_end() {
    let extreme = [1, 2, 511, 1_000_000_007, u64::MAX / 2, u64::MAX - 1, u64::MAX];
    let mut random = Numbers(1);
    let mut number = || match random.below(2) {
        0 => extreme[random.below(extreme.len() as u64) as usize],
        _ => {
            let shift = random.below(63);
            1 + random.below(u64::MAX >> shift)
        }
    };
    for _ in 0..2000 {
        let mut clocked = Clocked::new(Limits {
            bytes: Some(rate(number(), number())),
            operations: Some(rate(number(), number())),
        });
        for round in 0..20 {
            if let Err(wait) = clocked.ask(number()) {
                assert!(wait > Duration::ZERO);
                clocked.now = clocked.now.saturating_add(wait);
            }
            if round % 5 == 4 {
                clocked.now = clocked.now.saturating_add(Duration::from_nanos(number()));
                clocked.change(Limits { bytes: Some(rate(number(), number())), operations: None });
            }
        }
        clocked.now = Duration::MAX;
        let _: Result<(), Duration> = clocked.ask(u64::MAX);
    }
}
