//! Repeated measurements and what they say. Pure, so that the package's own tests can include it.

/// The most that is kept of one series.
pub const CAPACITY: usize = 2000;

/// A series of measurements in clock ticks.
pub struct Samples {
    ticks: [u32; CAPACITY],
    used: usize,
}

/// The figures of a series, in clock ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Figures {
    pub least: u64,
    pub median: u64,
}

impl Samples {
    /// An empty series.
    pub const fn new() -> Self {
        Self { ticks: [0; CAPACITY], used: 0 }
    }

    /// Starts a new series.
    pub fn clear(&mut self) {
        self.used = 0;
    }

    /// Adds a measurement, if there is room.
    pub fn add(&mut self, ticks: u64) {
        if let Some(place) = self.ticks.get_mut(self.used) {
            *place = u32::try_from(ticks).unwrap_or(u32::MAX);
            self.used += 1;
        }
    }

    /// What the series says; nothing if it is empty.
    pub fn figures(&mut self) -> Option<Figures> {
        let ticks = &mut self.ticks[..self.used];
        ticks.sort_unstable();
        let (&least, &median) = (ticks.first()?, ticks.get(ticks.len() / 2)?);
        Some(Figures { least: least.into(), median: median.into() })
    }
}

impl Figures {
    /// The figures of a series without what measuring itself costs.
    pub fn without(self, cost: u64) -> Self {
        Self { least: self.least.saturating_sub(cost), median: self.median.saturating_sub(cost) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_do_not_depend_on_the_order() {
        let mut samples = Samples::new();
        for ticks in [30, 10, 20, 1_000_000, 15] {
            samples.add(ticks);
        }
        assert_eq!(samples.figures(), Some(Figures { least: 10, median: 20 }));
    }

    #[test]
    fn what_measuring_costs_is_taken_off_but_never_more_than_there_is() {
        let figures = Figures { least: 10, median: 30 };
        assert_eq!(figures.without(20), Figures { least: 0, median: 10 });
    }

    #[test]
    fn an_empty_series_says_nothing() {
        let mut samples = Samples::new();
        assert_eq!(samples.figures(), None);
        samples.add(1);
        samples.clear();
        assert_eq!(samples.figures(), None);
    }

    #[test]
    fn too_many_and_too_long_measurements_are_harmless() {
        let mut samples = Samples::new();
        for _ in 0..=CAPACITY {
            samples.add(u64::MAX);
        }
        assert_eq!(samples.figures(), Some(Figures { least: u32::MAX.into(), median: u32::MAX.into() }));
    }
}
