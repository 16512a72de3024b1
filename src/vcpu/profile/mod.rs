//! Where the guest's processors spend their time, sampled from outside: the guest notices nothing.
//!
//! A thread of its own asks each vCPU for a sample in every interval. Asking is a nudge at the
//! [gate](super::gate): the vCPU leaves the guest at the next point where nothing is half done, notes where
//! it is, and goes on. It costs the guest an exit for each sample and nothing in between. A vCPU keeps one
//! answer, which the sampler fetches before it asks again, so no vCPU ever waits, allocates or competes for
//! anything here. `report` makes text of what was found.

mod interval;
mod report;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use super::VcpuThread;
use super::gate::Gate;
use super::signal::ThreadId;
use crate::hv::Vcpu;
use crate::threads::{self, lock};
use crate::x86::mode::{CR0_PE, linear_rip};
pub use interval::{Interval, IntervalError};

/// How many samples a profile keeps, which take 48 MiB: half an hour of one processor at a sample for each
/// millisecond. What comes later is counted only.
pub const MOST_SAMPLES: usize = 2 << 20;

/// The sampler's stack; it does little.
const STACK_SIZE: usize = 64 << 10;

/// Where a processor was at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// Nanoseconds since the profile began.
    pub nanoseconds: u64,
    /// The linear address of the instruction that it was to execute next.
    pub address: u64,
    /// The processor's number.
    pub vcpu: u32,
    /// The ring it was in.
    pub ring: u8,
}

/// All that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// The samples, in the order in which they were fetched: almost in the order of time.
    pub samples: Vec<Sample>,
    /// How often each processor was to be asked.
    pub interval: Interval,
    /// From the beginning to the end.
    pub duration: Duration,
    /// How many processors were asked.
    pub vcpus: usize,
    /// Samples for which there was no room any more.
    pub dropped: u64,
    /// How often a processor was to be asked while it still owed an answer. Its thread may have had to wait for
    /// a processor of the host, or for the console.
    pub late: u64,
}

/// Takes samples of a machine until it is finished or dropped.
#[derive(Debug)]
pub struct Profiler {
    stop: Arc<Stop>,
    /// Gone once it was waited for.
    thread: Option<JoinHandle<Profile>>,
}

impl Profiler {
    /// Begins to ask `vcpus` for a sample in each interval, while they run. Two profilers of one machine share
    /// the answers.
    pub fn start<V: Vcpu>(vcpus: &[VcpuThread<V>], interval: Interval) -> io::Result<Self> {
        let vcpus: Vec<_> = vcpus.iter().map(|vcpu| Arc::clone(&vcpu.shared.sampled)).collect();
        let stop = Arc::new(Stop::default());
        let sampler = Sampler { vcpus, interval, stop: Arc::clone(&stop) };
        let builder = Builder::new().name("profiler".to_owned()).stack_size(STACK_SIZE);
        let thread = threads::without_signals(|| builder.spawn(move || sampler.work()))?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Ends it and gives what was found. Of a machine that is at rest, nothing is missing.
    pub fn finish(mut self) -> Profile {
        match self.end() {
            Some(Ok(profile)) => profile,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => unreachable!("a profiler that is here was not waited for"),
        }
    }

    fn end(&mut self) -> Option<std::thread::Result<Profile>> {
        self.stop.set();
        self.thread.take().map(JoinHandle::join)
    }
}

impl Drop for Profiler {
    fn drop(&mut self) {
        // Nobody wants the profile, and a panic has been reported.
        drop(self.end());
    }
}

/// The end of sampling, as something that can be waited for.
#[derive(Debug, Default)]
struct Stop {
    wanted: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    fn set(&self) {
        *lock(&self.wanted) = true;
        self.changed.notify_all();
    }

    /// Waits until `moment`, or until the end; says whether it is the end.
    fn wait_until(&self, moment: Instant) -> bool {
        let left = moment.saturating_duration_since(Instant::now());
        let wait = self.changed.wait_timeout_while(lock(&self.wanted), left, |wanted| !*wanted);
        *wait.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// What the sampler and a vCPU's thread have in common.
pub(super) struct Sampled {
    vcpu: u32,
    gate: Arc<Gate>,
    thread: OnceLock<ThreadId>,
    asked: Arc<AtomicBool>,
    /// Held for a moment only, by whoever puts something there or fetches it.
    answer: Mutex<Option<Answer>>,
}

#[derive(Debug, Clone, Copy)]
struct Answer {
    moment: Instant,
    address: u64,
    ring: u8,
}

impl Sampled {
    pub(super) fn new(vcpu: u32, gate: Arc<Gate>) -> Self {
        Self { vcpu, gate, thread: OnceLock::new(), asked: Arc::default(), answer: Mutex::new(None) }
    }

    /// Called by the vCPU's thread before anything else.
    pub(super) fn is_on_this_thread(&self) {
        let _: Result<(), ThreadId> = self.thread.set(ThreadId::current());
    }

    /// Set while a sample is wanted, for what runs the guest without entering it.
    pub(super) fn wish(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.asked)
    }

    /// Called by the vCPU's thread after the guest was interrupted: notes where it is if that was asked.
    pub(super) fn answer(&self, vcpu: &impl Vcpu) {
        if self.asked.load(Ordering::Relaxed) {
            self.note(vcpu);
        }
    }

    #[cold]
    fn note(&self, vcpu: &impl Vcpu) {
        let registers = vcpu.registers().and_then(|general| Ok((general, vcpu.special_registers()?)));
        if let Ok((general, special)) = registers {
            // Real mode has no rings, and what stands in their place means nothing.
            let ring = if special.cr0 & CR0_PE == 0 { 0 } else { special.ss.dpl };
            let address = linear_rip(&general, &special);
            *lock(&self.answer) = Some(Answer { moment: Instant::now(), address, ring });
        }
        self.asked.store(false, Ordering::Release);
    }

    /// Asks for a sample if the vCPU is running; says whether it still owed the last one.
    fn ask(&self) -> bool {
        let mut owed = false;
        let ask = || owed = self.asked.swap(true, Ordering::AcqRel);
        let interrupt = || {
            if let Some(thread) = self.thread.get() {
                thread.interrupt();
            }
        };
        self.gate.nudge(ask, interrupt);
        owed
    }

    fn fetch(&self) -> Option<Answer> {
        lock(&self.answer).take()
    }

    /// Leaves nothing behind, neither for the guest nor for the next profile.
    fn forget(&self) {
        self.asked.store(false, Ordering::Release);
        self.fetch();
    }
}

/// What the sampler's thread works with.
struct Sampler {
    vcpus: Vec<Arc<Sampled>>,
    interval: Interval,
    stop: Arc<Stop>,
}

impl Sampler {
    fn work(self) -> Profile {
        let Self { vcpus, interval, stop } = self;
        let start = Instant::now();
        let mut profile = Profile {
            samples: Vec::new(),
            interval,
            duration: Duration::ZERO,
            vcpus: vcpus.len(),
            dropped: 0,
            late: 0,
        };
        let mut rhythm = Rhythm::new(interval.duration(), start);
        loop {
            let end = stop.wait_until(rhythm.next(Instant::now()));
            for vcpu in &vcpus {
                profile.keep(vcpu, start);
            }
            if end {
                vcpus.iter().for_each(|vcpu| vcpu.forget());
                profile.duration = start.elapsed();
                return profile;
            }
            profile.late += vcpus.iter().filter(|vcpu| vcpu.ask()).count() as u64;
        }
    }
}

impl Profile {
    fn keep(&mut self, vcpu: &Sampled, start: Instant) {
        let Some(Answer { moment, address, ring }) = vcpu.fetch() else { return };
        if self.samples.len() == MOST_SAMPLES {
            self.dropped += 1;
            return;
        }
        let since = moment.saturating_duration_since(start).as_nanos();
        let nanoseconds = u64::try_from(since).unwrap_or(u64::MAX);
        self.samples.push(Sample { nanoseconds, address, vcpu: vcpu.vcpu, ring });
    }
}

/// When samples are taken: in each interval once, an eighth of it earlier or later. A guest whose own timer
/// has the same or a related interval would otherwise always be seen in the same place.
struct Rhythm {
    interval: Duration,
    beat: Instant,
    random: u64,
}

impl Rhythm {
    fn new(interval: Duration, start: Instant) -> Self {
        Self { interval, beat: start, random: 0x2545_f491_4f6c_dd1d }
    }

    /// The next moment. What was missed because this thread had to wait is not made up for.
    fn next(&mut self, now: Instant) -> Instant {
        let beat = self.beat + self.interval;
        self.beat = if beat < now { now } else { beat };
        // xorshift64
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let eighth = self.interval / 8;
        self.beat + eighth * (self.random % 1024) as u32 / 512 - eighth
    }
}

#[cfg(test)]
#[path = "profile_test.rs"]
mod tests;
