//! What is said of a driver that breaks the rules: enough to find it, and not as much as a guest would like to fill a
//! log with.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::Misuse;
use crate::threads::lock;

/// So many of one device are told in each such time.
const MOST: u32 = 3;
const TIME: Duration = Duration::from_secs(1);

/// The complaints about one device's driver.
pub(super) struct Complaints {
    name: &'static str,
    told: Mutex<Told>,
}

/// What was said lately.
#[derive(Debug, Default)]
struct Told {
    since: Option<Instant>,
    count: u32,
    left_out: u64,
}

impl Complaints {
    pub fn of(name: &'static str) -> Self {
        Self { name, told: Mutex::default() }
    }

    /// A guest can cause one for each reset of the device. The driver is told only that it is to reset.
    pub fn add(&self, misuse: Misuse) {
        let Some(before) = lock(&self.told).admit(Instant::now()) else { return };
        self.tell_of_others(before);
        log::warn!("the guest's driver misuses {}, which stops until it is reset: {misuse}", self.name);
    }

    fn tell_of_others(&self, count: u64) {
        if count > 0 {
            log::warn!("the guest's driver misused {} another {count} times, not listed", self.name);
        }
    }
}

impl Drop for Complaints {
    fn drop(&mut self) {
        let left_out = lock(&self.told).left_out;
        self.tell_of_others(left_out);
    }
}

impl Told {
    /// Whether one may be told now; if so, how many before it were not.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        let is_over = self.since.is_none_or(|since| now.saturating_duration_since(since) >= TIME);
        if is_over {
            (self.since, self.count) = (Some(now), 0);
        }
        if self.count == MOST {
            self.left_out += 1;
            return None;
        }
        self.count += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handful_is_told_in_each_second_and_then_how_many_were_not() {
        let (mut told, start) = (Told::default(), Instant::now());
        let mut admit = |milliseconds| told.admit(start + Duration::from_millis(milliseconds));
        let first: Vec<_> = (0..40).map(|number| admit(number * 10)).collect();
        assert_eq!(first[..3], [Some(0); 3]);
        assert!(first[3..].iter().all(Option::is_none));
        assert_eq!([999, 1000, 1001, 1500, 1999].map(&mut admit), [None, Some(38), Some(0), Some(0), None]);
        // What is rare is told each time.
        assert_eq!([5000, 7000, 9000].map(&mut admit), [Some(1), Some(0), Some(0)]);
        assert_eq!(told.left_out, 0);
    }
}
