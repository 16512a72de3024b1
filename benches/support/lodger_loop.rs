//! The same guests in lodger's own vCPU thread, with its bus, counters and history of exits.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lodger::bus::{Action, BusBuilder, Claim, Device, Widths};
use lodger::hv::kvm::{Kvm, KvmVm};
use lodger::hv::{Doorbell, Hypervisor, Vcpu, Vm};
use lodger::memory::{GuestMemory, Layout, Options};
use lodger::vcpu::{Surroundings, VcpuThread};
use lodger::x86::complete::Gaps;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::guests::{self, Memory};

/// A guest in lodger's run loop.
pub struct Ours {
    thread: VcpuThread<<KvmVm as Vm>::Vcpu>,
    meter: Arc<Meter>,
    finished: Receiver<Duration>,
    _vm: KvmVm,
    _memory: Arc<GuestMemory>,
    _doorbell: EventFd,
}

/// A device that counts accesses and takes the time from the first to the last of a measurement.
struct Meter {
    total: AtomicU64,
    left: AtomicU64,
    start: Mutex<Option<Instant>>,
    finished: Sender<Duration>,
}

const IDLE: u64 = u64::MAX;

impl Meter {
    fn access(&self) {
        // Only the vCPU's thread is here while it runs.
        let left = self.left.load(Ordering::Relaxed);
        if left == IDLE {
            return;
        }
        if left == self.total.load(Ordering::Relaxed) {
            *self.start.lock().unwrap() = Some(Instant::now());
        }
        self.left.store(left.wrapping_sub(1), Ordering::Relaxed);
        if left == 0 {
            let start = self.start.lock().unwrap().take().expect("a measurement began");
            self.finished.send(start.elapsed()).unwrap();
        }
    }
}

impl Device for Meter {
    fn read(&self, _offset: u64, _width: u8) -> u64 {
        self.access();
        0
    }

    fn write(&self, _offset: u64, _width: u8, _value: u64) -> Action {
        self.access();
        Action::None
    }
}

impl Memory for GuestMemory {
    fn write(&self, address: u64, bytes: &[u8]) {
        self.mapped().write_slice(bytes, GuestAddress(address)).unwrap();
    }
}

impl Ours {
    /// A machine that runs `code` in the given ring.
    pub fn new(code: &[u8], ring: u8) -> Self {
        let vm = Kvm::open().unwrap().create_vm().unwrap();
        let layout = Layout::new(guests::MEMORY, 48).unwrap();
        let memory = Arc::new(GuestMemory::map(layout, Options::default()).unwrap());
        for (slot, (region, host)) in (0..).zip(memory.host_regions()) {
            // SAFETY: the machine is dropped before its memory.
            unsafe { vm.map_memory(slot, region.start, host, region.size) }.unwrap();
        }
        vm.create_interrupt_controller().unwrap();
        let doorbell = EventFd::new(0).unwrap();
        vm.register_doorbell(Doorbell::Port(guests::DOORBELL), &doorbell).unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        guests::load(&*memory, code);
        let (general, special) = guests::state(&vcpu.special_registers().unwrap(), ring);
        vcpu.set_special_registers(&special).unwrap();
        vcpu.set_registers(&general).unwrap();
        let (sender, finished) = channel();
        let meter = Arc::new(Meter {
            total: AtomicU64::new(IDLE),
            left: AtomicU64::new(IDLE),
            start: Mutex::new(None),
            finished: sender,
        });
        let mut bus = BusBuilder::new();
        let port = Claim { name: "meter", base: guests::PORT, len: 4, widths: Widths::ANY };
        bus.claim_ports(port, Arc::clone(&meter) as _).unwrap();
        let address = Claim { name: "meter", base: guests::ADDRESS, len: 0x1000, widths: Widths::ANY };
        bus.claim_memory(address, Arc::clone(&meter) as _).unwrap();
        let surroundings = Surroundings {
            bus: Arc::new(bus.build()),
            memory: Arc::clone(&memory),
            gaps: Gaps::default(),
            kernel: None,
        };
        let thread = VcpuThread::spawn(0, vcpu, surroundings, |_| {}).unwrap();
        Self { thread, meter, finished, _vm: vm, _memory: memory, _doorbell: doorbell }
    }

    /// How long `accesses` accesses take.
    pub fn measure(&mut self, accesses: u64) -> Duration {
        self.thread.wait_at_rest();
        self.meter.total.store(accesses, Ordering::Relaxed);
        self.meter.left.store(accesses, Ordering::Relaxed);
        self.thread.resume();
        let duration = self.finished.recv().unwrap();
        self.thread.request_pause();
        self.thread.wait_at_rest();
        self.meter.left.store(IDLE, Ordering::Relaxed);
        duration
    }
}
