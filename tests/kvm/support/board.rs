//! Processors with a bus of the test's own.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use lodger::bus::{Bus, BusBuilder, Claim, Device, Widths};
use lodger::devices::debug_exit::{self, DebugExit};
use lodger::hv::kvm::{KvmVcpu, KvmVm};
use lodger::hv::{Hypervisor, Registers, SavedInterrupts, SavedVcpu, Vcpu, Vm};
use lodger::memory::{GuestMemory, Layout, Options};
use lodger::vcpu::{Ending, Surroundings, VcpuThread};
use lodger::x86::complete::gaps::{self, Gaps};
use lodger::x86::complete::transition::TRAPPED;
use lodger::x86::cpuid::{self, VcpuIdentity};
use lodger::x86::topology::Topology;
use vm_memory::{Bytes, GuestAddress};

use super::state::{CODE, DATA, MMIO, PORT, SECOND_CODE, close_to_ring_3, long_mode, write_tables};
use super::{Recorder, kvm};

/// No guest here needs more than some milliseconds; a loaded host may.
pub const ENDS_WITHIN: Duration = Duration::from_secs(60);

/// Writes into guest memory.
pub fn put(memory: &GuestMemory, address: u64, bytes: &[u8]) {
    memory.mapped().write_slice(bytes, GuestAddress(address)).expect("the address is in memory");
}

/// Reads eight bytes of guest memory in one access.
pub fn read_u64(memory: &GuestMemory, address: u64) -> u64 {
    use std::sync::atomic::Ordering;
    memory.mapped().load(GuestAddress(address), Ordering::SeqCst).expect("the address is in memory")
}

/// What a board is to be.
pub struct Plan<'a> {
    code: &'a [u8],
    second_code: &'a [u8],
    data: &'a [u8],
    ring: u8,
    cpus: u32,
    memory: u64,
    handlers: Vec<(u8, u64)>,
    device: Arc<dyn Device>,
    completed: bool,
    in_software: bool,
    open: bool,
}

impl<'a> Plan<'a> {
    /// One processor that runs `code` in ring 3, 2 MiB of memory, a device that takes whatever it is given.
    pub fn new(code: &'a [u8]) -> Self {
        Self {
            code,
            second_code: &[],
            data: &[],
            ring: 3,
            cpus: 1,
            memory: 2 << 20,
            handlers: Vec::new(),
            device: Arc::new(Recorder::default()),
            completed: false,
            in_software: false,
            open: true,
        }
    }

    /// Where the processor starts: ring 0, or ring 3 with all ports allowed.
    pub fn ring(self, ring: u8) -> Self {
        Self { ring, ..self }
    }

    /// So many processors, and what lies at [`SECOND_CODE`] for them.
    pub fn cpus(self, cpus: u32, second_code: &'a [u8]) -> Self {
        Self { cpus, second_code, ..self }
    }

    /// Does in KVM's place what this host's lacks.
    pub fn completed(self) -> Self {
        Self { completed: true, ..self }
    }

    /// Runs ring 0 in the software processor, on hosts whose KVM interprets it. All of memory is ring 0's: that of
    /// ring 3 is not remembered by the software processor.
    pub fn in_software(self) -> Self {
        Self { open: false, ..self.with_kernel_in_software() }
    }

    /// The same for guests with programs: memory is as open to ring 3 as elsewhere.
    pub fn with_kernel_in_software(self) -> Self {
        Self { in_software: true, ..self.completed() }
    }

    /// So many bytes of memory.
    pub fn memory(self, memory: u64) -> Self {
        Self { memory, ..self }
    }

    /// What lies at [`DATA`].
    pub fn data(self, data: &'a [u8]) -> Self {
        Self { data, ..self }
    }

    /// Who gets interrupt `vector`: the code so many bytes behind the start.
    pub fn handler(mut self, vector: u8, offset: u64) -> Self {
        self.handlers.push((vector, CODE + offset));
        self
    }

    /// Who answers at [`PORT`] and, from offset 0x1000 on, at [`MMIO`].
    pub fn device<D: Device + 'static>(self, device: &Arc<D>) -> Self {
        Self { device: Arc::clone(device) as _, ..self }
    }

    /// Builds it without bus and threads.
    pub fn bare(&self) -> Bare {
        let kvm = kvm();
        let vm = kvm.create_vm().expect("a machine can be created");
        if self.completed && !kvm.is_in_hardware() {
            vm.trap_msr_writes(&TRAPPED).expect("writes to model-specific registers can be seen");
        }
        let layout = Layout::new(self.memory, cpuid::host_address_bits()).expect("the size is fine");
        let memory = Arc::new(GuestMemory::map(layout, Options::default()).expect("memory can be mapped"));
        for (slot, (region, host)) in (0..).zip(memory.host_regions()) {
            // SAFETY: the machine is dropped before its memory, by `Bare` as by `Board`.
            unsafe { vm.map_memory(slot, region.start, host, region.size) }.expect("KVM takes the memory");
        }
        vm.create_interrupt_controller().expect("interrupt controllers can be created");
        write_tables(&memory, &self.handlers);
        if !self.open {
            close_to_ring_3(&memory);
        }
        put(&memory, CODE, self.code);
        put(&memory, SECOND_CODE, self.second_code);
        put(&memory, DATA, self.data);

        let mut vcpus: Vec<_> =
            (0..self.cpus).map(|id| vm.create_vcpu(id).expect("another processor")).collect();
        let features = kvm.supported_cpuid().expect("KVM says what it can do");
        let topology = Topology::new(1, self.cpus, 1).expect("so many processors are fine");
        for (apic_id, vcpu) in (0..).zip(&vcpus) {
            let identity = VcpuIdentity { apic_id, topology, tsc_khz: vcpu.tsc_khz() };
            vcpu.set_cpuid(&cpuid::guest_cpuid(&features, identity)).expect("KVM takes the description");
        }
        let gaps = if self.completed {
            gaps::find(&mut vcpus[0], &memory).expect("KVM can be asked what it lacks")
        } else {
            Gaps::default()
        };
        let (general, special) = long_mode(&vcpus[0].special_registers().unwrap(), self.ring);
        vcpus[0].set_special_registers(&special).expect("the state is one that a processor can be in");
        vcpus[0].set_registers(&general).unwrap();
        Bare { vcpus, gaps, vm, memory }
    }

    /// Builds it.
    pub fn build(self) -> Board {
        let Bare { vcpus, gaps, vm, memory } = self.bare();
        let mut bus = BusBuilder::new();
        let port = Claim { name: "test", base: PORT, len: 8, widths: Widths::ANY };
        bus.claim_ports(port, Arc::clone(&self.device)).unwrap();
        let address = Claim { name: "test", base: MMIO, len: 0x1000, widths: Widths::ANY };
        bus.claim_memory(address, Arc::new(Shifted(self.device))).unwrap();
        bus.claim_ports(debug_exit::CLAIM, Arc::new(DebugExit)).unwrap();
        let bus = Arc::new(bus.build());
        let kernel = (self.in_software && gaps.any()).then(Arc::default);
        let surroundings = Surroundings { bus: Arc::clone(&bus), memory: Arc::clone(&memory), gaps, kernel };
        let (sender, endings) = channel();
        let vcpus = (0..)
            .zip(vcpus)
            .map(|(id, vcpu)| {
                let sender = sender.clone();
                // Nobody may be listening any longer when the board is dropped.
                let on_end = move |ending| drop(sender.send(ending));
                VcpuThread::spawn(id, vcpu, surroundings.clone(), on_end).expect("a thread can be started")
            })
            .collect();
        Board { vcpus, endings, bus, vm, memory }
    }
}

/// Processors that the test enters itself, through the seam.
pub struct Bare {
    pub vcpus: Vec<KvmVcpu>,
    gaps: Gaps,
    /// Kept for the processors, which are dropped first.
    vm: KvmVm,
    /// Freed after `vm`.
    pub memory: Arc<GuestMemory>,
}

/// Tells a device's memory-mapped side from its ports by the offset.
struct Shifted(Arc<dyn Device>);

impl Device for Shifted {
    fn read(&self, offset: u64, width: u8) -> u64 {
        self.0.read(offset + 0x1000, width)
    }

    fn write(&self, offset: u64, width: u8, value: u64) -> lodger::bus::Action {
        self.0.write(offset + 0x1000, width, value)
    }
}

/// Processors, their memory and their bus.
pub struct Board {
    // Dropped first: threads end before anything they use.
    pub vcpus: Vec<VcpuThread<KvmVcpu>>,
    endings: Receiver<Ending>,
    pub bus: Arc<Bus>,
    pub vm: KvmVm,
    /// Freed after `vm`.
    pub memory: Arc<GuestMemory>,
}

impl Board {
    /// The first processor.
    pub fn vcpu(&self) -> &VcpuThread<KvmVcpu> {
        &self.vcpus[0]
    }

    /// Lets all processors run.
    pub fn resume(&self) {
        self.vcpus.iter().for_each(VcpuThread::resume);
    }

    /// Pauses all processors.
    pub fn pause(&self) {
        self.vcpus.iter().for_each(VcpuThread::request_pause);
        self.vcpus.iter().for_each(VcpuThread::wait_at_rest);
    }

    /// Waits until a processor has ended, and says why.
    pub fn ending(&self) -> Ending {
        self.endings.recv_timeout(ENDS_WITHIN).expect("the guest comes to an end")
    }

    /// Whether no processor has ended yet.
    pub fn is_alive(&self) -> bool {
        self.endings.try_recv().is_err()
    }

    /// Runs the guest to its end, which has to be status 0.
    pub fn run(&self) {
        self.resume();
        self.finish();
    }

    /// Waits until the guest has ended with status 0.
    pub fn finish(&self) {
        let ending = self.ending();
        match ending {
            Ending::Guest(lodger::bus::Action::Exit(0)) => {}
            Ending::Fatal(report) => panic!("{report}"),
            other => panic!("the guest ended with {other:?}"),
        }
    }

    /// The first processor's registers, at rest.
    pub fn registers(&self) -> Registers {
        self.vcpu().while_at_rest(|vcpu| vcpu.registers()).expect("registers can be read")
    }

    /// What a guest left at [`DATA`] plus `offset`.
    pub fn data(&self, offset: u64) -> u64 {
        read_u64(&self.memory, DATA + offset)
    }

    /// Processors and interrupt controllers, written down and read back.
    pub fn save(&self) -> (Vec<SavedVcpu>, SavedInterrupts) {
        let msrs = kvm().saved_msrs().expect("KVM says which registers are state");
        let vcpus = self.vcpus.iter().map(|thread| {
            let saved = thread.while_at_rest(|vcpu| vcpu.save(&msrs)).expect("a processor can be saved");
            through_bytes(&saved)
        });
        let interrupts = self.vm.save_interrupts().expect("interrupt controllers can be saved");
        (vcpus.collect(), through_bytes(&interrupts))
    }

    /// Gives this board, which has not run yet, memory and state of another one.
    pub fn restore(&self, from: &GuestMemory, vcpus: &[SavedVcpu], interrupts: &SavedInterrupts) {
        for region in from.layout().regions() {
            let mut bytes = vec![0; region.size as usize];
            from.mapped().read_slice(&mut bytes, GuestAddress(region.start)).expect("memory can be read");
            put(&self.memory, region.start, &bytes);
        }
        self.vm.restore_interrupts(interrupts).expect("interrupt controllers can be restored");
        for (thread, saved) in self.vcpus.iter().zip(vcpus) {
            thread.while_at_rest(|vcpu| vcpu.restore(saved)).expect("a processor can be restored");
        }
    }

    /// Carries the guest over to a fresh board made after `plan`; this one is at rest.
    pub fn move_to(&self, plan: Plan<'_>) -> Board {
        let (vcpus, interrupts) = self.save();
        let other = plan.build();
        let clock = self.vm.save_clock().expect("the clock can be read");
        other.vm.restore_clock(&through_bytes(&clock), true).expect("the clock can be set");
        other.restore(&self.memory, &vcpus, &interrupts);
        other
    }
}

/// `state`, encoded and decoded.
pub fn through_bytes<S: lodger::saved::Saved + PartialEq + std::fmt::Debug>(state: &S) -> S {
    let decoded: S =
        lodger::saved::decode(&lodger::saved::encode(state)).expect("what was encoded is decoded");
    assert_eq!(decoded, *state);
    decoded
}
