//! Limits of what a device does in a time, whatever its driver asks for: so many bytes and so many operations a second,
//! and more at once after a rest.
//!
//! Each limit is a bucket that fills at its rate up to its burst. A request may go when one unit is there, and takes
//! all it needs, on credit if it must: so a large request goes at last however small the burst, and queues that share a
//! bucket wait for the same moment however large their requests. The buckets know no clock but the moments they are
//! told. Relied on by the block device.

use std::num::NonZeroU64;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::threads::lock;

/// In such units buckets count time, fine enough for any rate that a host can reach.
const PICOSECONDS: u128 = 1_000_000_000_000;

/// How much of something there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// In a second, in the long run.
    pub per_second: NonZeroU64,
    /// At once, after a rest.
    pub burst: NonZeroU64,
}

impl Rate {
    /// So much a second, and a tenth of it at once.
    pub fn new(per_second: NonZeroU64) -> Self {
        Self { per_second, burst: NonZeroU64::new(per_second.get() / 10).unwrap_or(NonZeroU64::MIN) }
    }
}

/// What a device may do; without a rate, as much as it can.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// The bytes that requests move or zero.
    pub bytes: Option<Rate>,
    /// The requests.
    pub operations: Option<Rate>,
}

/// The limits of one device, which all its threads share.
pub(super) struct Limiter {
    /// Moments are counted from here.
    start: Instant,
    /// Whether there is any limit: without, nothing is locked and no clock is read.
    any: AtomicBool,
    buckets: Mutex<Buckets>,
}

impl Limiter {
    /// None.
    pub fn new() -> Self {
        Self { start: Instant::now(), any: AtomicBool::new(false), buckets: Mutex::default() }
    }

    /// Those that there are.
    pub fn limits(&self) -> Limits {
        lock(&self.buckets).limits()
    }

    /// Exchanges them. Whoever waits should ask again.
    pub fn set(&self, limits: Limits) {
        let mut buckets = lock(&self.buckets);
        buckets.change(self.start.elapsed(), limits);
        self.any.store(limits != Limits::default(), Ordering::Relaxed);
    }

    /// Lets an operation go that moves so many bytes, or says how long it has to wait. Then it has to ask again.
    pub fn admit(&self, bytes: u64) -> Result<(), Duration> {
        if !self.any.load(Ordering::Relaxed) {
            return Ok(());
        }
        lock(&self.buckets).admit(self.start.elapsed(), bytes)
    }
}

#[derive(Debug, Default)]
struct Buckets {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
}

impl Buckets {
    fn limits(&self) -> Limits {
        let Self { bytes, operations } = self;
        let rate = |bucket: &Option<Bucket>| bucket.as_ref().map(|bucket| bucket.rate);
        Limits { bytes: rate(bytes), operations: rate(operations) }
    }

    fn change(&mut self, now: Duration, limits: Limits) {
        let now = picoseconds(now);
        let Self { bytes, operations } = self;
        for (bucket, rate) in [(bytes, limits.bytes), (operations, limits.operations)] {
            *bucket = rate.map(|rate| match &bucket {
                Some(bucket) => bucket.changed(now, rate),
                None => Bucket { rate, full: now },
            });
        }
    }

    /// What moves nothing waits for no bytes.
    fn admit(&mut self, now: Duration, bytes: u64) -> Result<(), Duration> {
        let now = picoseconds(now);
        let amounts = [(&mut self.bytes, bytes), (&mut self.operations, 1)];
        let mut asked =
            amounts.map(|(bucket, amount)| bucket.as_mut().filter(|_| amount > 0).zip(Some(amount)));
        let wait = asked.iter().flatten().map(|(bucket, _)| bucket.wait(now)).max().unwrap_or(0);
        if wait > 0 {
            return Err(duration(wait));
        }
        for (bucket, amount) in asked.iter_mut().flatten() {
            bucket.take(now, *amount);
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Bucket {
    rate: Rate,
    /// The moment at which it is full, if nothing is taken until then.
    full: u128,
}

impl Bucket {
    /// How long it takes to fill by so much.
    fn time(&self, amount: u128) -> u128 {
        amount.saturating_mul(PICOSECONDS).div_ceil(self.rate.per_second.get().into())
    }

    /// How long until something is in it.
    fn wait(&self, now: u128) -> u128 {
        let spare = u128::from(self.rate.burst.get() - 1);
        self.full.saturating_sub(self.time(spare)).saturating_sub(now)
    }

    fn take(&mut self, now: u128, amount: u64) {
        self.full = self.full.max(now).saturating_add(self.time(amount.into()));
    }

    /// One of another rate, which holds as much: a change is no rest.
    fn changed(&self, now: u128, rate: Rate) -> Self {
        let per_second = u128::from(self.rate.per_second.get());
        let missing = self.full.saturating_sub(now).saturating_mul(per_second).div_ceil(PICOSECONDS);
        let missing =
            missing.saturating_add(rate.burst.get().into()).saturating_sub(self.rate.burst.get().into());
        let mut bucket = Self { rate, full: now };
        bucket.full = now.saturating_add(bucket.time(missing));
        bucket
    }
}

fn picoseconds(time: Duration) -> u128 {
    time.as_nanos().saturating_mul(1000)
}

/// Not a moment less than so many picoseconds.
fn duration(picoseconds: u128) -> Duration {
    Duration::from_nanos(u64::try_from(picoseconds.div_ceil(1000)).unwrap_or(u64::MAX))
}

#[cfg(test)]
#[path = "limit_test.rs"]
mod tests;
