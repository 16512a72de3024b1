//! Noticing that the guest has halted for good, which the hypervisor never reports.
//!
//! Whoever waits for the machine's end looks now and then. A look at a guest that has been at work since the last
//! one is a question to the operating system's clocks; only a guest that did next to nothing is asked itself, and
//! that holds its processors up for some ten microseconds. "Next to nothing", because timers may go on ticking
//! after the guest has halted: each tick wakes its processor's thread, which finds interrupts off and sleeps again.
//! Taking samples does so, too, and so often that a guest of which samples are taken is always asked.

use std::sync::{Mutex, TryLockError};
use std::time::{Duration, Instant};

use crate::hv::Vcpu;
use crate::vcpu::{VcpuThread, all_halted_for_good};

/// How much time lies between two looks. What halts for good is noticed at the second.
pub const INTERVAL: Duration = Duration::from_millis(400);
/// A processor is idle if it used less than one in so many parts of the time: 1000 ticks a second do.
const IDLE_PART: u32 = 10;

/// What the last look saw.
#[derive(Default)]
pub struct Watch {
    last: Mutex<Option<Look>>,
}

struct Look {
    when: Instant,
    /// What each processor's thread had used by then.
    used: Vec<Option<Duration>>,
}

impl Watch {
    /// Whether the guest has halted for good; looks only if the last look was long enough ago.
    pub fn look<V: Vcpu>(&self, vcpus: &[VcpuThread<V>]) -> bool {
        let mut last = match self.last.try_lock() {
            Ok(last) => last,
            Err(TryLockError::Poisoned(last)) => last.into_inner(),
            // Somebody else is looking.
            Err(TryLockError::WouldBlock) => return false,
        };
        let when = Instant::now();
        if last.as_ref().is_some_and(|last| when - last.when < INTERVAL) {
            return false;
        }
        let look = Look { when, used: vcpus.iter().map(VcpuThread::time_used).collect() };
        let idle = last.as_ref().is_some_and(|last| look.is_idle_since(last));
        *last = Some(look);
        (idle || vcpus.iter().any(VcpuThread::is_sampled)) && all_halted_for_good(vcpus)
    }
}

impl Look {
    fn is_idle_since(&self, last: &Self) -> bool {
        let most = (self.when - last.when) / IDLE_PART;
        let is_idle = |(now, then): (&Option<Duration>, &Option<Duration>)| match (now, then) {
            (Some(now), Some(then)) => now.saturating_sub(*then) < most,
            _ => false,
        };
        self.used.iter().zip(&last.used).all(is_idle)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::bus::BusBuilder;
    use crate::hv::fake::{FakeHypervisor, Step};
    use crate::hv::{Hypervisor, Vm};
    use crate::memory::{GuestMemory, Layout, Options};
    use crate::vcpu::{Interval, Profiler, Surroundings};
    use crate::x86::complete::Gaps;

    /// One processor that sleeps with interrupts off.
    fn halted() -> [VcpuThread<impl Vcpu>; 1] {
        let memory = GuestMemory::map(Layout::new(1 << 20, 48).unwrap(), Options::default()).unwrap();
        let surroundings = Surroundings {
            bus: Arc::new(BusBuilder::new().build()),
            memory: Arc::new(memory),
            gaps: Gaps::default(),
            kernel: None,
        };
        let hypervisor = FakeHypervisor::new([Step::Sleep { rflags: 0x46 }]);
        let vcpu = hypervisor.create_vm().unwrap().create_vcpu(0).unwrap();
        [VcpuThread::spawn(0, vcpu, surroundings, drop).unwrap()]
    }

    #[test]
    fn a_guest_of_which_samples_are_taken_is_asked_however_busy_it_looks() {
        let vcpus = halted();
        vcpus[0].resume();
        while !all_halted_for_good(&vcpus) {}
        // Nothing is idle at a first look, which has none to compare with.
        let is_asked = || (0..20).any(|_| Watch::default().look(&vcpus));
        assert!(!is_asked());
        let profiler = Profiler::start(&vcpus, Interval::default()).unwrap();
        assert!(is_asked());
        profiler.finish();
        assert!(!is_asked());
    }

    #[test]
    fn only_guests_of_which_no_processor_did_much_are_idle() {
        let start = Instant::now();
        let look = |at, used: &[Option<u64>]| Look {
            when: start + Duration::from_millis(at),
            used: used.iter().map(|used| used.map(Duration::from_millis)).collect(),
        };
        let first = look(0, &[Some(1000), Some(0)]);
        for (used, idle) in [
            ([Some(1000), Some(0)], true),
            ([Some(1039), Some(39)], true),
            ([Some(1040), Some(0)], false),
            ([Some(1000), Some(40)], false),
            ([Some(1000), None], false),
        ] {
            assert_eq!(look(400, &used).is_idle_since(&first), idle, "{used:?}");
        }
    }
}
