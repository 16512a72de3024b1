//! Putting a machine together and running it.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::config::{Config, Kernel};
use super::{Error, Outcome, Timeline};
use crate::boot::{self, Source, Start};
use crate::bus::{Bus, BusBuilder};
use crate::devices::cmos::{self, Cmos, HostClock};
use crate::devices::debug_exit::{self, DebugExit};
use crate::devices::i8042::{self, I8042};
use crate::devices::post::{self, Post};
use crate::devices::serial::{self, Serial};
use crate::devices::{ByteSink, InterruptLine};
use crate::hv::{self, CpuidEntry, Doorbell, Hypervisor, Vcpu, Vm};
use crate::memory::{GuestMemory, Layout};
use crate::vcpu::{Ending, Surroundings, VcpuThread};
use crate::x86::cpuid::{self, VcpuIdentity};
use crate::x86::lapic;

/// Local APICs number their processors with eight bits here, and 255 addresses all of them.
const MOST_CPUS: u32 = 255;

/// A virtual machine, ready to run or running.
///
/// Dropping it stops the processors, waits for their threads and frees everything.
pub struct Machine<V: Vm> {
    // Dropped first: threads end before anything they use.
    vcpus: Vec<VcpuThread<V::Vcpu>>,
    bus: Arc<Bus>,
    devices: Devices,
    console: Arc<dyn ByteSink>,
    end: Arc<End>,
    board: Arc<Board<V>>,
}

/// The devices that every machine has; what each can save is part of the machine's state.
pub struct Devices {
    /// The serial port, to which console input is given.
    pub serial: Arc<Serial>,
    /// Clock and CMOS memory.
    pub cmos: Arc<Cmos>,
    /// The keyboard controller.
    pub i8042: Arc<I8042>,
    /// The port for progress codes.
    pub post: Arc<Post>,
}

/// The hypervisor's machine together with the memory it was given: one must not outlive the other.
struct Board<V> {
    vm: V,
    /// Freed after `vm`: fields are dropped in order.
    memory: Arc<GuestMemory>,
}

/// How the machine ended, once it has.
struct End {
    outcome: OnceLock<Outcome>,
    event: EventFd,
}

impl End {
    /// Keeps the first outcome: what other processors do afterwards is its consequence.
    fn set(&self, outcome: Outcome) {
        let _: Result<(), Outcome> = self.outcome.set(outcome);
        // Fails only if the counter is full, and then the event is set already.
        let _: Result<(), _> = self.event.write(1);
    }
}

/// A wire into the machine's interrupt controller.
struct Line<V: Vm> {
    board: Arc<Board<V>>,
    number: u32,
    /// Held from the rise of a pulse to its fall: two that overlap would be one edge, and an interrupt be lost.
    pulsing: Mutex<()>,
}

impl<V: Vm> InterruptLine for Line<V> {
    fn set(&self, high: bool) {
        // Lines are numbered by this program, so the hypervisor has nothing to refuse.
        if let Err(error) = self.board.vm.set_interrupt_line(self.number, high) {
            log::error!("interrupt {} is lost: {error}", self.number);
        }
    }

    fn pulse(&self) {
        let _pulsing = self.pulsing.lock().unwrap_or_else(PoisonError::into_inner);
        self.set(true);
        self.set(false);
    }
}

impl<V: Vm> Machine<V> {
    /// Builds the machine that `config` describes; what its serial console prints goes to `console`.
    pub fn new<H: Hypervisor<Vm = V>>(
        hypervisor: &H,
        config: &Config,
        console: Arc<dyn ByteSink>,
    ) -> Result<Self, Error> {
        Self::build(hypervisor, config, console, &mut Timeline::start())
    }

    /// The same, and notes in `timeline` when each phase of it was done.
    pub fn build<H: Hypervisor<Vm = V>>(
        hypervisor: &H,
        config: &Config,
        console: Arc<dyn ByteSink>,
        timeline: &mut Timeline,
    ) -> Result<Self, Error> {
        check_cpus(config.cpus, hypervisor.max_vcpus())?;
        let vm = hypervisor.create_vm()?;
        timeline.mark("virtual machine created");
        let memory = map_memory(&vm, config)?;
        timeline.mark("memory mapped");
        let start = load(&memory, config)?;
        timeline.mark("kernel loaded");
        log::debug!(
            "kernel loaded for {:?} at {:#x}-{:#x}",
            start.protocol,
            start.kernel.start,
            start.kernel.end()
        );
        vm.create_interrupt_controller()?;
        timeline.mark("interrupt controllers created");
        let board = Arc::new(Board { vm, memory });
        let vcpus = (0..config.cpus).map(|id| board.vm.create_vcpu(id)).collect::<hv::Result<Vec<_>>>()?;
        timeline.mark("processors created");
        // The longest step of all. Asking on a thread of its own meanwhile was tried and is slower: it holds up
        // the calls above, which wait for all host processors.
        let features = hypervisor.supported_cpuid()?;
        timeline.mark("processor features listed");
        for (id, vcpu) in (0..).zip(&vcpus) {
            set_up(vcpu, id, config.cpus, &features)?;
        }
        if let Some(boot_processor) = vcpus.first() {
            enter(boot_processor, &start)?;
        }
        timeline.mark("processors set up");
        let machine = Self::assemble(board, vcpus, console)?;
        timeline.mark("devices and threads created");
        Ok(machine)
    }

    fn assemble(
        board: Arc<Board<V>>,
        vcpus: Vec<V::Vcpu>,
        console: Arc<dyn ByteSink>,
    ) -> Result<Self, Error> {
        let line = |number| -> Arc<dyn InterruptLine> {
            Arc::new(Line { board: Arc::clone(&board), number, pulsing: Mutex::new(()) })
        };
        let serial = Arc::new(Serial::new(line(serial::IRQ), Arc::clone(&console)));
        let cmos = Arc::new(Cmos::new(board.memory.layout().size(), Arc::new(HostClock)));
        let i8042 = Arc::new(I8042::new(line(i8042::KEYBOARD_IRQ), line(i8042::MOUSE_IRQ)));
        let post = Arc::new(Post::default());
        let mut builder = BusBuilder::new();
        builder.claim_ports(serial::CLAIM, Arc::clone(&serial) as _)?;
        builder.claim_ports(cmos::CLAIM, Arc::clone(&cmos) as _)?;
        for (claim, port) in i8042.ports() {
            builder.claim_ports(claim, port)?;
        }
        builder.claim_ports(debug_exit::CLAIM, Arc::new(DebugExit))?;
        builder.claim_ports(post::CLAIM, Arc::clone(&post) as _)?;
        let bus = Arc::new(builder.build());
        let event = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map_err(Error::Event)?;
        let end = Arc::new(End { outcome: OnceLock::new(), event });
        let surroundings = Surroundings { bus: Arc::clone(&bus), memory: Arc::clone(&board.memory) };
        let vcpus = (0..)
            .zip(vcpus)
            .map(|(id, vcpu)| {
                let end = Arc::clone(&end);
                let on_end = move |ending: Ending| end.set(ending.into());
                VcpuThread::spawn(id, vcpu, surroundings.clone(), on_end)
            })
            .collect::<hv::Result<_>>()?;
        let devices = Devices { serial, cmos, i8042, post };
        Ok(Self { vcpus, bus, devices, console, end, board })
    }

    /// Lets all processors run, for the first time or after a pause.
    pub fn resume(&self) {
        self.vcpus.iter().for_each(VcpuThread::resume);
    }

    /// Pauses all processors; when this returns, none is inside the guest and no access is half done.
    pub fn pause(&self) {
        self.bring_to_rest(VcpuThread::request_pause);
    }

    /// Stops all processors for good.
    pub fn stop(&self) {
        self.bring_to_rest(VcpuThread::request_stop);
    }

    /// Asks all processors before waiting for the first, and lets none wait for a slow console meanwhile.
    fn bring_to_rest(&self, request: fn(&VcpuThread<V::Vcpu>)) {
        self.console.release_waiters(true);
        self.vcpus.iter().for_each(request);
        self.vcpus.iter().for_each(VcpuThread::wait_at_rest);
        self.console.release_waiters(false);
    }

    /// Waits until the machine has ended, and stops what still runs.
    pub fn wait(&self) -> &Outcome {
        let outcome = self.end.outcome.wait();
        self.stop();
        outcome
    }

    /// How the machine ended, if it has.
    pub fn outcome(&self) -> Option<&Outcome> {
        self.end.outcome.get()
    }

    /// Runs the machine to its end.
    pub fn run(&self) -> &Outcome {
        self.resume();
        self.wait()
    }

    /// Becomes readable when the machine has ended, for those who wait for several things at once.
    pub fn end_event(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as `self` lives.
        unsafe { BorrowedFd::borrow_raw(self.end.event.as_raw_fd()) }
    }

    /// Its serial port, to which console input is given.
    pub fn serial(&self) -> &Serial {
        &self.devices.serial
    }

    /// The last code that the guest wrote to the POST port.
    pub fn last_post_code(&self) -> Option<u8> {
        self.devices.post.last()
    }

    /// All its devices.
    pub fn devices(&self) -> &Devices {
        &self.devices
    }

    /// Its memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.board.memory
    }

    /// Its bus, with what it counted.
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    /// Its processors.
    pub fn vcpus(&self) -> &[VcpuThread<V::Vcpu>] {
        &self.vcpus
    }

    /// Lets writes to `at` signal `event` without leaving the kernel.
    pub fn register_doorbell(&self, at: Doorbell, event: &EventFd) -> hv::Result<()> {
        self.board.vm.register_doorbell(at, event)
    }

    /// Lets `event` raise the interrupt `line` without a call of its own.
    pub fn register_interrupt_event(&self, event: &EventFd, line: u32) -> hv::Result<()> {
        self.board.vm.register_interrupt_event(event, line)
    }
}

fn check_cpus(asked: u32, most: u32) -> Result<(), Error> {
    match asked {
        0 => Err(Error::NoCpus),
        _ if asked > MOST_CPUS => Err(Error::TooManyCpus { asked }),
        _ if asked > most => Err(hv::Error::TooManyVcpus { asked, most }.into()),
        _ => Ok(()),
    }
}

fn map_memory<V: Vm>(vm: &V, config: &Config) -> Result<Arc<GuestMemory>, Error> {
    let layout = Layout::new(config.memory.size, cpuid::host_address_bits())?;
    let memory = GuestMemory::map(layout, config.memory.options)?;
    for (slot, (region, host)) in (0..).zip(memory.host_regions()) {
        // SAFETY: `Board` keeps the mapping until the machine is gone, and everything in this program
        // accesses it through vm-memory's volatile accessors.
        unsafe { vm.map_memory(slot, region.start, host, region.size) }?;
    }
    Ok(Arc::new(memory))
}

fn load(memory: &GuestMemory, config: &Config) -> Result<Start, Error> {
    let kernel = match &config.kernel {
        Kernel::Embedded => {
            Source::Bytes { name: "the embedded guest", bytes: boot::embedded::EMBEDDED_GUEST }
        }
        Kernel::File(path) => Source::File(path),
        Kernel::Bytes(bytes) => Source::Bytes { name: "the kernel", bytes },
    };
    let options = boot::Options {
        entry: config.entry,
        command_line: &config.cmdline,
        initrd: config.initrd.as_deref().map(Source::File),
        flat: config.flat,
    };
    Ok(boot::load(memory, kernel, &options)?)
}

/// Makes a processor what it is in a PC: tells it what `cpuid` answers, wires its interrupt pins.
fn set_up(vcpu: &impl Vcpu, id: u32, cpus: u32, features: &[CpuidEntry]) -> hv::Result<()> {
    let identity = VcpuIdentity { apic_id: id, cpus, tsc_khz: vcpu.tsc_khz() };
    vcpu.set_cpuid(&cpuid::guest_cpuid(features, identity))?;
    let mut apic = vcpu.local_apic()?;
    lapic::wire_local_pins(&mut apic, id == 0);
    vcpu.set_local_apic(&apic)
}

/// Brings the boot processor to where the kernel starts.
fn enter(vcpu: &impl Vcpu, start: &Start) -> hv::Result<()> {
    let (general, special) = start.state.registers(&vcpu.special_registers()?);
    vcpu.set_special_registers(&special)?;
    vcpu.set_registers(&general)
}

#[cfg(test)]
#[path = "machine_test.rs"]
mod tests;
