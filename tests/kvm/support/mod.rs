//! What the tests share.

mod board;
mod code;
mod devices;
pub mod programs;
mod saved;
mod state;

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use lodger::boot::Flat;
use lodger::devices::Collected;
use lodger::hv::Hypervisor;
use lodger::hv::kvm::{Kvm, KvmVm};
use lodger::vm::{Config, Kernel, Machine, MemorySpec};
use lodger::x86::cpuid::{VcpuIdentity, guest_cpuid};

pub use board::{Bare, Board, ENDS_WITHIN, Plan, put, read_u64, through_bytes};
pub(crate) use code::machine_code;
pub use devices::{Access, Consecutive, Ledger, Recorder};
pub use saved::{Scratch, restore};
pub use state::{CODE, DATA, HANDLER, PORT, SECOND_CODE, TABLES, gate, long_mode, write_tables};

/// The hypervisor, without which none of these tests means anything.
pub fn kvm() -> Kvm {
    Kvm::open().unwrap_or_else(|error| panic!("this test runs guests on the real KVM: {error}"))
}

/// Whether guests are told of the local APIC's deadline timer.
pub fn guests_have_deadline_timers() -> bool {
    const DEADLINE: u32 = 1 << 24;
    let features = kvm().supported_cpuid().expect("KVM says what it can do");
    let cpuid = guest_cpuid(&features, VcpuIdentity::single(0));
    cpuid.iter().any(|leaf| leaf.function == 1 && leaf.ecx & DEADLINE != 0)
}

/// A machine with 2 MiB that boots `image` in long mode at 1 MiB, and its output.
pub fn machine(image: &[u8]) -> (Machine<KvmVm>, Arc<Collected>) {
    machine_with(image, |_| {})
}

/// The same, with a description that `change` has changed.
pub fn machine_with(image: &[u8], change: impl FnOnce(&mut Config)) -> (Machine<KvmVm>, Arc<Collected>) {
    let mut config = Config {
        kernel: Kernel::Bytes(image.to_vec()),
        flat: Some(Flat::default()),
        memory: MemorySpec::of_size(2 << 20),
        ..Config::default()
    };
    change(&mut config);
    let output = Arc::new(Collected::default());
    let machine = Machine::new(&kvm(), &config, output.clone()).expect("the machine can be built");
    (machine, output)
}

/// Does `work` on a thread of its own, so that one that never returns fails the test instead of hanging it.
pub fn within<T: Send + 'static>(limit: Duration, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, result) = channel();
    let worker = thread::spawn(move || {
        // The receiver is gone only if the time was up.
        let _: Result<(), _> = sender.send(work());
    });
    match result.recv_timeout(limit) {
        Ok(value) => {
            worker.join().expect("it has sent its result");
            value
        }
        Err(RecvTimeoutError::Timeout) => panic!("not done within {limit:?}"),
        Err(RecvTimeoutError::Disconnected) => match worker.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) => unreachable!("it ended without a result and without a panic"),
        },
    }
}

/// Waits until `condition` holds; fails when it does not within a generous time.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + ENDS_WITHIN;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {ENDS_WITHIN:?}: {what}");
        thread::sleep(Duration::from_micros(10));
    }
}

/// A generator of numbers, the same in every run.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(2).wrapping_add(1))
    }

    /// A number below `end` (xorshift64*).
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % end
    }

    /// Lets up to so many microseconds pass. Asleep: on a loaded machine a thread that spins is the last to be
    /// given a processor when the guest has to answer.
    pub fn dawdle(&mut self, microseconds: u64) {
        thread::sleep(Duration::from_nanos(self.below(microseconds * 1000)));
    }
}
