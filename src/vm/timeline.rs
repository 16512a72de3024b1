//! When each phase of a machine's start was done, for `lodger run --timing`.

use std::time::{Duration, Instant};

/// Moments in the order in which they were reached.
#[derive(Debug, Clone)]
pub struct Timeline {
    start: Instant,
    /// Processor time that this process had used by then.
    used_before: Duration,
    marks: Vec<(&'static str, Instant)>,
}

impl Timeline {
    /// A timeline that begins now.
    pub fn start() -> Self {
        Self { start: Instant::now(), used_before: process_time(), marks: Vec::with_capacity(16) }
    }

    /// How much processor time the process had used when the timeline began. For a timeline that begins with
    /// `main`, that is what loading and linking the program cost.
    pub fn used_before(&self) -> Duration {
        self.used_before
    }

    /// Notes that `phase` has just been finished.
    pub fn mark(&mut self, phase: &'static str) {
        self.mark_at(phase, Instant::now());
    }

    /// Notes that `phase` was finished at `moment`.
    pub fn mark_at(&mut self, phase: &'static str, moment: Instant) {
        self.marks.push((phase, moment));
    }

    /// Each phase with its own duration and the time since the beginning.
    pub fn phases(&self) -> impl Iterator<Item = (&'static str, Duration, Duration)> {
        let before = std::iter::once(self.start).chain(self.marks.iter().map(|&(_, moment)| moment));
        self.marks.iter().zip(before).map(|(&(phase, moment), before)| {
            (phase, moment.saturating_duration_since(before), moment.saturating_duration_since(self.start))
        })
    }
}

/// The processor time that this process has used.
fn process_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel fills in the structure it is given.
    match unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) } {
        0 => Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32),
        _ => Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_add_up_to_the_whole() {
        let mut timeline = Timeline::start();
        for (phase, milliseconds) in [("one", 3), ("two", 7), ("three", 7)] {
            timeline.mark_at(phase, timeline.start + Duration::from_millis(milliseconds));
        }
        let phases: Vec<_> = timeline
            .phases()
            .map(|(phase, own, since)| (phase, own.as_millis(), since.as_millis()))
            .collect();
        assert_eq!(phases, [("one", 3, 3), ("two", 4, 7), ("three", 0, 7)]);
    }
}
