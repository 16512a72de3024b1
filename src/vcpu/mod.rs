//! One thread per virtual processor: run, answer the exit, count it, stop at a consistent point.
//!
//! `vm/` creates a [`VcpuThread`] for each processor and tells it when to run, pause and stop; accesses go to
//! the [`Bus`], and which device answers is not known here. A fatal exit ends the thread with a
//! [`FatalReport`]. Relies on `bus/`, `memory/`, `x86/` and the seam `hv/`.

mod completion;
mod counters;
mod fatal;
mod gate;
mod halted;
mod history;
mod kernel;
mod profile;
mod run;
mod signal;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use crate::bus::{Action, Bus};
use crate::hv::{self, Vcpu};
use crate::memory::GuestMemory;
use crate::threads;
use crate::x86::complete::Gaps;
use completion::{Completer, Help, Nobody};
pub use counters::Counters;
pub use fatal::{Cause, Code, FatalReport};
use gate::{Gate, Pass, Wanted};
pub use halted::all_halted_for_good;
pub use history::{DEPTH as HISTORY_DEPTH, History, Record};
use kernel::Kernel;
pub use kernel::Programs;
use profile::Sampled;
pub use profile::{Interval, IntervalError, Profile, Profiler, Sample};
use run::{Context, Left};

/// The stack of a vCPU's thread. Nothing here recurses or keeps large values, and devices are called on it.
const STACK_SIZE: usize = 256 << 10;

/// Why a vCPU's thread ended.
#[derive(Debug)]
pub enum Ending {
    /// It was told to.
    Stopped,
    /// The guest asked a device for something that ends the machine.
    Guest(Action),
    /// `hlt` without an interrupt controller: this processor will never go on.
    Halted,
    /// The guest cannot go on.
    Fatal(Box<FatalReport>),
    /// The hypervisor did not do what it was asked.
    Failed(hv::Error),
    /// A bug of this program; the message went to standard error.
    Panicked,
}

/// What a vCPU needs from the machine it belongs to.
#[derive(Clone)]
pub struct Surroundings {
    /// Who answers its accesses.
    pub bus: Arc<Bus>,
    /// What it executes; read for the report of a fatal exit, and where instructions are completed.
    pub memory: Arc<GuestMemory>,
    /// What the hypervisor lacks and is to be done in its place. If `syscall` is among it, writes to the
    /// [registers of `syscall`](crate::x86::complete::transition::TRAPPED) have to be exits.
    pub gaps: Gaps,
    /// Present where the guest's kernel is to be run by the software processor.
    pub kernel: Option<Arc<Programs>>,
}

/// A virtual processor and its thread.
pub struct VcpuThread<V> {
    id: u32,
    shared: Arc<Shared<V>>,
    thread: Option<JoinHandle<()>>,
}

struct Shared<V> {
    gate: Arc<Gate>,
    sampled: Arc<Sampled>,
    counters: Counters,
    /// Held by the thread while it runs the vCPU, free while it waits at the gate.
    vcpu: Mutex<V>,
}

impl<V> Shared<V> {
    fn vcpu(&self) -> MutexGuard<'_, V> {
        threads::lock(&self.vcpu)
    }
}

impl<V: Vcpu> VcpuThread<V> {
    /// Starts the thread `vcpu<id>`; it waits until [`resume`](Self::resume). `on_end` is called once, on that
    /// thread, when it ends for whatever reason.
    pub fn spawn(
        id: u32,
        vcpu: V,
        surroundings: Surroundings,
        on_end: impl FnOnce(Ending) + Send + 'static,
    ) -> hv::Result<Self> {
        signal::install();
        let mut counters = Counters::default();
        if surroundings.gaps.any() {
            counters = Counters::with_completions();
        }
        let gate = Arc::new(Gate::new(vcpu.kick_handle()?));
        let sampled = Arc::new(Sampled::new(id, Arc::clone(&gate)));
        let shared = Arc::new(Shared { gate, sampled, counters, vcpu: Mutex::new(vcpu) });
        let for_thread = Arc::clone(&shared);
        let life = move || {
            signal::unblock();
            for_thread.sampled.is_on_this_thread();
            let work = || live_helped(id, &for_thread, &surroundings);
            on_end(catch_unwind(AssertUnwindSafe(work)).unwrap_or(Ending::Panicked));
            for_thread.gate.end();
        };
        let builder = Builder::new().name(format!("vcpu{id}")).stack_size(STACK_SIZE);
        let thread = threads::without_signals(|| builder.spawn(life))
            .map_err(|source| hv::Error::Call { what: "start a thread for a processor", source })?;
        Ok(Self { id, shared, thread: Some(thread) })
    }

    /// The processor's number.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// What it did so far.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Lets it run.
    pub fn resume(&self) {
        self.request(Wanted::Run);
    }

    /// Asks it to pause; [`wait_at_rest`](Self::wait_at_rest) tells when it has. With several processors all
    /// are asked before the first is waited for.
    pub fn request_pause(&self) {
        self.request(Wanted::Pause);
    }

    /// Waits until it is paused, with no access half done, or has ended.
    pub fn wait_at_rest(&self) {
        self.shared.gate.wait_at_rest();
    }

    /// Whether it was asked to pause, or was never asked to run: then it is at rest, or soon will be.
    pub fn is_to_rest(&self) -> bool {
        self.shared.gate.wanted() == Wanted::Pause
    }

    /// Asks its thread to end, for good.
    pub fn request_stop(&self) {
        self.request(Wanted::Stop);
    }

    /// Calls `f` with the processor once it is at rest; waits for ever if nobody asked it to pause.
    pub fn while_at_rest<T>(&self, f: impl FnOnce(&V) -> T) -> T {
        self.wait_at_rest();
        f(&self.shared.vcpu())
    }

    /// How much processor time its thread has used, in the guest or for it. Costs one system call and disturbs
    /// nobody.
    pub fn time_used(&self) -> Option<Duration> {
        threads::time_used(self.thread.as_ref()?)
    }

    /// Whether a profiler takes samples of it, which costs time that is the thread's but not the guest's.
    pub fn is_sampled(&self) -> bool {
        // Each profiler holds it, besides this thread and its owner, who share one.
        Arc::strong_count(&self.shared.sampled) > 1
    }

    /// Holds it for a moment, if it is meant to run; see [`gate`].
    fn hold(&self) -> bool {
        self.shared.gate.hold(|| {
            if let Some(thread) = &self.thread {
                signal::send(thread);
            }
        })
    }

    fn request(&self, wanted: Wanted) {
        self.shared.gate.request(wanted, || {
            if let Some(thread) = &self.thread {
                signal::send(thread);
            }
        });
    }
}

impl<V> Drop for VcpuThread<V> {
    /// Stops the thread and waits for its end: a vCPU must not outlive the memory it runs in.
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.shared.gate.request(Wanted::Stop, || signal::send(&thread));
            // A panic was already reported through `on_end`.
            let _: Result<(), _> = thread.join();
        }
    }
}

/// The life of a vCPU's thread, with the help that this host needs.
fn live_helped<V: Vcpu>(id: u32, shared: &Shared<V>, surroundings: &Surroundings) -> Ending {
    let Surroundings { bus, memory, gaps, kernel } = surroundings;
    let counters = &shared.counters;
    let history = &mut History::new();
    if !gaps.any() {
        return live(id, shared, memory, None, Context { bus, counters, history, help: Nobody });
    }
    let help = Completer::new(*gaps, memory, counters);
    let kernel = kernel.as_ref().map(|programs| {
        Kernel::new(Arc::clone(memory), Arc::clone(programs)).leaving_at(shared.sampled.wish())
    });
    live(id, shared, memory, kernel, Context { bus, counters, history, help })
}

fn live<V: Vcpu, H: Help<V>>(
    id: u32,
    shared: &Shared<V>,
    memory: &GuestMemory,
    mut kernel: Option<Kernel>,
    mut context: Context<'_, H>,
) -> Ending {
    loop {
        if shared.gate.pass() == Pass::Stop {
            return Ending::Stopped;
        }
        let mut vcpu = shared.vcpu();
        match run(&mut *vcpu, &mut kernel, &mut context) {
            Ok(Left::Interrupted) => shared.sampled.answer(&*vcpu),
            Ok(Left::Ended(ending)) => return ending,
            Ok(Left::Fatal(cause)) => {
                let report = FatalReport::capture(id, cause, &*vcpu, memory, context.history);
                return Ending::Fatal(Box::new(report));
            }
            Err(error) => return Ending::Failed(error),
        }
    }
}

/// Runs the guest: its kernel by the software processor, where that is possible, and everything else by the hypervisor.
fn run<V: Vcpu, H: Help<V>>(
    vcpu: &mut V,
    kernel: &mut Option<Kernel>,
    context: &mut Context<'_, H>,
) -> hv::Result<Left> {
    context.help.enter(vcpu)?;
    if let Some(software) = kernel {
        if let Some(left) = software.run(vcpu, context)? {
            return Ok(left);
        }
        *kernel = None;
    }
    run::until_interrupted(vcpu, context)
}

#[cfg(test)]
#[path = "vcpu_test.rs"]
mod tests;
