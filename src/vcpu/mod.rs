//! One thread per virtual processor: run, answer the exit, count it, stop at a consistent point.
//!
//! `vm/` creates a [`VcpuThread`] for each processor and tells it when to run, pause and stop; accesses go to
//! the [`Bus`], and which device answers is not known here. A fatal exit ends the thread with a
//! [`FatalReport`]. Relies on `bus/`, `memory/`, `x86/` and the seam `hv/`.

mod counters;
mod fatal;
mod gate;
mod history;
mod run;
mod signal;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

use crate::bus::{Action, Bus};
use crate::hv::{self, Vcpu};
use crate::memory::GuestMemory;
use crate::threads;
pub use counters::Counters;
pub use fatal::{Cause, Code, FatalReport};
use gate::{Gate, Pass, Wanted};
pub use history::{DEPTH as HISTORY_DEPTH, History, Record};

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
    /// What it executes; read for the report of a fatal exit.
    pub memory: Arc<GuestMemory>,
}

/// A virtual processor and its thread.
pub struct VcpuThread<V> {
    id: u32,
    shared: Arc<Shared<V>>,
    thread: Option<JoinHandle<()>>,
}

struct Shared<V> {
    gate: Gate,
    counters: Counters,
    /// Held by the thread while it runs the vCPU, free while it waits at the gate.
    vcpu: Mutex<V>,
}

impl<V> Shared<V> {
    fn vcpu(&self) -> MutexGuard<'_, V> {
        self.vcpu.lock().unwrap_or_else(PoisonError::into_inner)
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
        let gate = Gate::new(vcpu.kick_handle()?);
        let shared = Arc::new(Shared { gate, counters: Counters::default(), vcpu: Mutex::new(vcpu) });
        let for_thread = Arc::clone(&shared);
        let life = move || {
            signal::unblock();
            let work = || live(id, &for_thread, &surroundings);
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

    /// Asks its thread to end, for good.
    pub fn request_stop(&self) {
        self.request(Wanted::Stop);
    }

    /// Calls `f` with the processor once it is at rest; waits for ever if nobody asked it to pause.
    pub fn while_at_rest<T>(&self, f: impl FnOnce(&V) -> T) -> T {
        self.wait_at_rest();
        f(&self.shared.vcpu())
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

/// The life of a vCPU's thread.
fn live<V: Vcpu>(id: u32, shared: &Shared<V>, surroundings: &Surroundings) -> Ending {
    let mut history = History::new();
    loop {
        if shared.gate.pass() == Pass::Stop {
            return Ending::Stopped;
        }
        let mut vcpu = shared.vcpu();
        match run::until_interrupted(&mut *vcpu, &surroundings.bus, &shared.counters, &mut history) {
            run::Left::Interrupted => {}
            run::Left::Ended(ending) => return ending,
            run::Left::Fatal(cause) => {
                let report = FatalReport::capture(id, cause, &*vcpu, &surroundings.memory, &history);
                return Ending::Fatal(Box::new(report));
            }
        }
    }
}

#[cfg(test)]
#[path = "vcpu_test.rs"]
mod tests;
