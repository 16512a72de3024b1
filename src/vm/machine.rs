//! Putting a machine together and running it.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use super::capture::Shared;
use super::config::{Completion, Config, Kernel};
use super::directory::{DirectoryError, Files, Name};
use super::disks::{Attached, DiskImage};
use super::ear::Ear;
use super::restore::Beginning;
use super::saved::Parts;
use super::virtio::{self, Plan};
use super::watch::{self, Watch};
use super::{Error, Outcome, Timeline, console, processors};
use crate::boot::{self, Platform, Protocol, Source, Start, VirtioMmio};
use crate::bus::{Bus, BusBuilder};
use crate::console::Line as PortLine;
use crate::devices::cmos::{self, Cmos, HostClock};
use crate::devices::debug_exit::{self, DebugExit};
use crate::devices::generation_id::{self, GenerationId};
use crate::devices::i8042::{self, I8042};
use crate::devices::pci::{self, HostBridge, Pci};
use crate::devices::post::{self, Post};
use crate::devices::power_button::{self, PowerButton};
use crate::devices::pvpanic::{self, PvPanic};
use crate::devices::reset::{self, Reset};
use crate::devices::serial::{self, Serial};
use crate::devices::sleep::{self, Sleep};
use crate::devices::virtio::balloon::Balloon;
use crate::devices::virtio::blk::Blk;
use crate::devices::virtio::console::Console;
use crate::devices::virtio::mmio::Mmio;
use crate::devices::{ByteSink, InterruptLine};
use crate::event;
use crate::hv::{self, Doorbell, Hypervisor, Vcpu, Vm};
use crate::memory::{GuestMemory, Image, Layout};
use crate::vcpu::{Ending, Interval, Profiler, Programs, Surroundings, VcpuThread};
use crate::x86::complete::gaps::{self, Gaps};
use crate::x86::complete::transition::TRAPPED;
use crate::x86::cpuid::{self, Quirks};
use crate::x86::topology::{Topology, apic_ids};

/// A virtual machine, ready to run or running.
///
/// Dropping it stops the processors, waits for their threads and frees everything.
pub struct Machine<V: Vm> {
    // Dropped first: threads end before anything they use.
    pub(super) vcpus: Vec<VcpuThread<V::Vcpu>>,
    bus: Arc<Bus>,
    pub(super) devices: Devices,
    pub(super) virtio: Vec<Arc<Mmio>>,
    pub(super) disks: Vec<Arc<Blk>>,
    /// What the disks are in, of the same number.
    pub(super) images: Mutex<Vec<Attached>>,
    balloon: Option<Arc<Balloon>>,
    virtio_console: Option<Arc<Console>>,
    /// Whether the guest listens there, and not at the serial port.
    listens_at_virtio: bool,
    /// Where the ports lead, and the virtio console last.
    lines: Vec<PortLine>,
    console: Arc<dyn ByteSink>,
    end: Arc<End>,
    gaps: Gaps,
    watch: Watch,
    /// What a snapshot says of it.
    pub(super) parts: Parts,
    pub(super) board: Arc<Board<V>>,
    /// What its next snapshot can build on.
    pub(super) since: Shared,
    /// Dropped last: until then others see that it runs.
    pub(super) files: Files,
}

/// The devices that every machine has; what each can save is part of the machine's state.
pub struct Devices {
    /// The serial port, to which console input is given.
    pub serial: Arc<Serial>,
    /// Clock and CMOS memory.
    pub cmos: Arc<Cmos>,
    /// The keyboard controller.
    pub i8042: Arc<I8042>,
    /// The PCI bus.
    pub pci: Arc<Pci>,
    /// The port for progress codes.
    pub post: Arc<Post>,
    /// The power button.
    pub power_button: PowerButton,
    /// What tells the guest that it goes on from a snapshot.
    pub generation_id: GenerationId,
}

/// The hypervisor's machine together with the memory it was given: one must not outlive the other.
pub(super) struct Board<V> {
    pub vm: V,
    /// Freed after `vm`: fields are dropped in order.
    pub memory: Arc<GuestMemory>,
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
        event::signal(&self.event);
    }

    /// Waits for the end, but not for longer than `limit`.
    fn wait(&self, limit: Duration) -> Option<&Outcome> {
        let mut entry = libc::pollfd { fd: self.event.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let limit = libc::c_int::try_from(limit.as_millis()).unwrap_or(libc::c_int::MAX);
        // SAFETY: one initialised entry. Whatever ends the call, the outcome tells what to do.
        unsafe { libc::poll(&raw mut entry, 1, limit) };
        self.outcome.get()
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
        Self::begin(hypervisor, config, Beginning::Kernel, console, timeline)
    }

    /// Builds it with the state that it begins in.
    pub(super) fn begin<H: Hypervisor<Vm = V>>(
        hypervisor: &H,
        config: &Config,
        mut beginning: Beginning<'_>,
        console: Arc<dyn ByteSink>,
        timeline: &mut Timeline,
    ) -> Result<Self, Error> {
        let topology = config.cpus.topology()?;
        let planned = virtio::plan(config)?;
        let mut parts = Parts::new(&topology, &planned);
        if let Beginning::Saved(saved, _) = &beginning {
            saved.check_parts(&parts, config)?;
        }
        check_count(topology.processors(), hypervisor.max_vcpus())?;
        let vm = hypervisor.create_vm()?;
        let expected = Gaps {
            syscall: config.completion != Completion::Off && !hypervisor.is_in_hardware(),
            ..Gaps::default()
        };
        watch_system_calls(&vm, Gaps::default(), expected)?;
        timeline.mark("virtual machine created");
        let memory = map_memory(&vm, config, beginning.image())?;
        timeline.mark("memory mapped");
        let start = match &beginning {
            Beginning::Kernel => {
                let start = load(&memory, config, &topology, &planned.places())?;
                timeline.mark("kernel loaded");
                parts.has_kernel = is_kernel(config, &start);
                parts.generation_id = start.generation_id;
                Some(start)
            }
            Beginning::Saved(saved, _) => {
                parts.has_kernel = saved.has_kernel();
                parts.generation_id = saved.generation_id();
                None
            }
        };
        vm.create_interrupt_controller()?;
        timeline.mark("interrupt controllers created");
        let board = Arc::new(Board { vm, memory });
        let numbers = apic_ids(&topology);
        let mut vcpus =
            numbers.iter().map(|&number| board.vm.create_vcpu(number)).collect::<hv::Result<Vec<_>>>()?;
        timeline.mark("processors created");
        match &beginning {
            Beginning::Kernel => describe(hypervisor, &vcpus, config, topology, timeline)?,
            Beginning::Saved(saved, _) => saved.describe(hypervisor, &vcpus, timeline)?,
        }
        let mut gaps = Gaps::default();
        if let Some(boot_processor) = vcpus.first_mut() {
            gaps = find_gaps(boot_processor, &board, expected, config.completion)?;
            if let Some(start) = &start {
                enter(boot_processor, start)?;
            }
        }
        timeline.mark("KVM tried, processors set up");
        if let Beginning::Saved(saved, _) = &beginning {
            saved.restore_board(&board.vm, &vcpus, config.clock)?;
            timeline.mark("processors restored");
        }
        let runs_in_software = gaps.any() && config.completion == Completion::Auto && parts.has_kernel;
        let kernel = runs_in_software.then(Arc::default);
        let mut machine = Self::assemble(board, vcpus, planned, parts, gaps, kernel, console)?;
        // The embedded guest listens at the serial port, whatever else it has.
        machine.listens_at_virtio = config.virtio_console && config.kernel != Kernel::Embedded;
        if let Beginning::Saved(saved, _) = &beginning {
            saved.restore_devices(&machine)?;
        }
        machine.begin_generation(matches!(beginning, Beginning::Saved(..)))?;
        timeline.mark("devices and threads created");
        Ok(machine)
    }

    fn assemble(
        board: Arc<Board<V>>,
        vcpus: Vec<V::Vcpu>,
        planned: Plan,
        parts: Parts,
        gaps: Gaps,
        kernel: Option<Arc<Programs>>,
        console: Arc<dyn ByteSink>,
    ) -> Result<Self, Error> {
        let line = |number| -> Arc<dyn InterruptLine> {
            Arc::new(Line { board: Arc::clone(&board), number, pulsing: Mutex::new(()) })
        };
        let serial = Arc::new(Serial::new(line(serial::IRQ), Arc::clone(&console)));
        let cmos = Arc::new(Cmos::new(board.memory.layout().size(), Arc::new(HostClock)));
        let i8042 = Arc::new(I8042::new(line(i8042::KEYBOARD_IRQ), line(i8042::MOUSE_IRQ)));
        let pci = Arc::new(Pci::new([(pci::Place::FIRST, Arc::new(HostBridge) as _)]));
        let post = Arc::new(Post::default());
        let mut builder = BusBuilder::new();
        builder.claim_ports(serial::CLAIM, Arc::clone(&serial) as _)?;
        builder.claim_ports(cmos::CLAIM, Arc::clone(&cmos) as _)?;
        for (claim, port) in i8042.ports() {
            builder.claim_ports(claim, port)?;
        }
        builder.claim_ports(debug_exit::CLAIM, Arc::new(DebugExit))?;
        builder.claim_ports(sleep::CLAIM, Arc::new(Sleep))?;
        for (claim, port) in pci.ports(Reset::default()) {
            builder.claim_ports(claim, port)?;
        }
        builder.claim_ports(pvpanic::CLAIM, Arc::new(PvPanic))?;
        builder.claim_ports(post::CLAIM, Arc::clone(&post) as _)?;
        let virtio = virtio::connect(planned.devices, &board.vm, &board.memory, &mut builder)?;
        let bus = Arc::new(builder.build());
        let event = event::create().map_err(Error::Event)?;
        let end = Arc::new(End { outcome: OnceLock::new(), event });
        let surroundings =
            Surroundings { bus: Arc::clone(&bus), memory: Arc::clone(&board.memory), gaps, kernel };
        let vcpus = (0..)
            .zip(vcpus)
            .map(|(id, vcpu)| {
                let end = Arc::clone(&end);
                let on_end = move |ending: Ending| end.set(ending.into());
                VcpuThread::spawn(id, vcpu, surroundings.clone(), on_end)
            })
            .collect::<hv::Result<_>>()?;
        let power_button = PowerButton::new(line(power_button::IRQ));
        let generation_id = GenerationId::new(line(generation_id::IRQ));
        let devices = Devices { serial, cmos, i8042, pci, post, power_button, generation_id };
        let Plan { devices: _, disks, images, balloon, console: virtio_console, mut lines, files } = planned;
        if let Some(device) = &virtio_console {
            lines.extend(console::line_to(Arc::clone(&console), device)?);
        }
        let watch = Watch::default();
        Ok(Self {
            vcpus,
            bus,
            devices,
            virtio,
            disks,
            images: Mutex::new(images),
            balloon,
            virtio_console,
            listens_at_virtio: false,
            lines,
            console,
            end,
            gaps,
            watch,
            parts,
            board,
            since: Shared::default(),
            files,
        })
    }

    /// Makes this another machine than all before. A guest that `goes_on` finds the interrupt at its next instruction:
    /// by now the interrupt controllers are as it left them.
    fn begin_generation(&self, goes_on: bool) -> Result<(), Error> {
        if let Some(address) = self.parts.generation_id {
            self.devices.generation_id.renew(&self.board.memory, address)?;
            if goes_on {
                self.devices.generation_id.announce();
            }
        }
        Ok(())
    }

    /// Lets all processors run, for the first time or after a pause.
    pub fn resume(&self) {
        self.lines.iter().for_each(PortLine::start);
        self.virtio.iter().for_each(|device| device.resume());
        self.vcpus.iter().for_each(VcpuThread::resume);
    }

    /// Pauses all processors and then all devices; when this returns, none is inside the guest, no access is half done
    /// and no request under way. The guest's clocks go on; its kernel finds out that it did not run.
    pub fn pause(&self) {
        self.bring_to_rest(VcpuThread::request_pause);
        for vcpu in &self.vcpus {
            if let Err(error) = vcpu.while_at_rest(Vcpu::tell_stopped) {
                log::debug!("the guest may complain about its pause: {error}");
            }
        }
        self.virtio.iter().for_each(|device| device.pause());
    }

    /// Stops all processors for good, and then the devices. What the guest has sent through ports is still carried to
    /// whoever takes it.
    pub fn stop(&self) {
        self.bring_to_rest(VcpuThread::request_stop);
        self.virtio.iter().for_each(|device| device.pause());
        self.lines.iter().for_each(PortLine::ask_to_end);
        self.lines.iter().for_each(PortLine::end);
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
        let outcome = loop {
            match self.end.wait(watch::INTERVAL) {
                Some(outcome) => break outcome,
                None => self.look_after(),
            }
        };
        self.stop();
        outcome
    }

    /// Ends the machine if the guest has halted for good, on all processors and with interrupts off: the hypervisor
    /// does not tell. [`wait`](Self::wait) does this by itself; who waits for [`end_event`](Self::end_event) instead
    /// calls it now and then, every [`LOOK_INTERVAL`](super::LOOK_INTERVAL) as a rule. More often does no harm.
    pub fn look_after(&self) {
        if self.outcome().is_none() && self.watch.look(&self.vcpus) {
            self.end.set(Outcome::Halted);
        }
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

    /// Asks the guest to end itself, as somebody at a PC does with its button. Whether it hears, and does, is another
    /// question.
    pub fn press_power_button(&self) {
        self.devices.power_button.press();
    }

    /// Its serial port, to which console input is given.
    pub fn serial(&self) -> &Serial {
        &self.devices.serial
    }

    /// The last code that the guest wrote to the POST port.
    pub fn last_post_code(&self) -> Option<u8> {
        self.devices.post.last()
    }

    /// Its virtio devices, in the order in which the guest finds them.
    pub fn virtio(&self) -> &[Arc<Mmio>] {
        &self.virtio
    }

    /// Its disks, in the order in which they were described.
    pub fn disks(&self) -> &[Arc<Blk>] {
        &self.disks
    }

    /// What the disks are in at the moment: snapshots may have had them go on in overlays.
    pub fn disk_images(&self) -> Vec<DiskImage> {
        self.images.lock().unwrap_or_else(PoisonError::into_inner).iter().map(Attached::look).collect()
    }

    /// Its balloon, if it has one.
    pub fn balloon(&self) -> Option<&Arc<Balloon>> {
        self.balloon.as_ref()
    }

    /// Its virtio console, if it has one.
    pub fn virtio_console(&self) -> Option<&Arc<Console>> {
        self.virtio_console.as_ref()
    }

    /// Where its ports lead, and its virtio console last.
    pub fn lines(&self) -> &[PortLine] {
        &self.lines
    }

    /// The directory that it has while it runs, if it has a name or something to keep there, or somebody has wanted it.
    pub fn directory(&self) -> Option<&Path> {
        self.files.path()
    }

    /// The same; one that was not there is made, under a name that tells the process.
    pub fn make_directory(&self) -> Result<&Path, DirectoryError> {
        self.files.make()
    }

    /// What it is called, if it has a directory.
    pub fn name(&self) -> Option<&Name> {
        self.files.name()
    }

    /// Where its guest listens to what is typed.
    pub fn ear(&self) -> Ear<'_> {
        let port = self.virtio_console.as_ref().and_then(|device| device.console());
        match port.filter(|_| self.listens_at_virtio) {
            Some(port) => Ear::Virtio(port, &self.devices.serial),
            None => Ear::Serial(&self.devices.serial),
        }
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

    /// What the host's KVM lacks and is done in its place.
    pub fn gaps(&self) -> Gaps {
        self.gaps
    }

    /// Its processors.
    pub fn vcpus(&self) -> &[VcpuThread<V::Vcpu>] {
        &self.vcpus
    }

    /// Begins to sample where its processors are, until the profiler is finished or dropped.
    pub fn profile(&self, interval: Interval) -> Result<Profiler, Error> {
        Profiler::start(&self.vcpus, interval).map_err(Error::Profiler)
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

fn check_count(asked: u32, most: u32) -> Result<(), Error> {
    if asked > most { Err(hv::Error::TooManyVcpus { asked, most }.into()) } else { Ok(()) }
}

fn map_memory<V: Vm>(vm: &V, config: &Config, image: Option<Image>) -> Result<Arc<GuestMemory>, Error> {
    let layout = Layout::new(config.memory.size, cpuid::host_address_bits())?;
    let memory = match image {
        Some(image) => GuestMemory::map_image(layout, config.memory.options, image)?,
        None => GuestMemory::map(layout, config.memory.options)?,
    };
    for (slot, (region, host)) in (0..).zip(memory.host_regions()) {
        // SAFETY: `Board` keeps the mapping until the machine is gone, and everything in this program
        // accesses it through vm-memory's volatile accessors.
        unsafe { vm.map_memory(slot, region.start, host, region.size) }?;
    }
    Ok(Arc::new(memory))
}

/// What the guest's tables say of the machine; the devices are those that [`Machine::assemble`] puts on the bus.
fn platform<'a>(topology: &Topology, virtio: &'a [VirtioMmio]) -> Platform<'a> {
    Platform {
        // A topology has no number above 254.
        processors: apic_ids(topology).into_iter().map(|id| id as u8).collect(),
        serial: boot::SerialPort { base: serial::CLAIM.base, interrupt: serial::IRQ as u8 },
        sleep: boot::SleepPorts {
            control: sleep::CONTROL_PORT,
            status: sleep::STATUS_PORT,
            off: sleep::TYPE_OFF,
        },
        reset: boot::ResetPort { port: i8042::COMMAND_CLAIM.base, value: i8042::PULSE_RESET },
        reset_code: boot::ResetPort { port: reset::PORT, value: reset::HARD },
        panic_port: pvpanic::CLAIM.base,
        power_button: power_button::IRQ as u8,
        generation: generation_id::IRQ as u8,
        virtio,
    }
}

fn load(
    memory: &GuestMemory,
    config: &Config,
    topology: &Topology,
    virtio: &[VirtioMmio],
) -> Result<Start, Error> {
    let initrds: Vec<_> = config.initrds.iter().map(|path| Source::File(path)).collect();
    let options = boot::Options {
        entry: config.entry,
        command_line: config.cmdline.as_deref(),
        virtio_console: config.virtio_console,
        append: &config.append,
        initrds: &initrds,
        flat: config.flat,
        without_nx: !config.cpu.has("nx"),
        platform: Some(&platform(topology, virtio)),
    };
    let start = boot::load(memory, config.kernel.source(), &options)?;
    let (from, to) = (start.kernel.start, start.kernel.end());
    log::debug!("kernel loaded for {:?} at {from:#x}-{to:#x}", start.protocol);
    Ok(start)
}

/// Tells the processors what they are, before any of them runs: afterwards they take no other description.
fn describe<H: Hypervisor>(
    hypervisor: &H,
    vcpus: &[<H::Vm as Vm>::Vcpu],
    config: &Config,
    topology: Topology,
    timeline: &mut Timeline,
) -> Result<(), Error> {
    // The longest step of all. Asking on a thread of its own meanwhile was tried and is slower: it holds up
    // the calls before it, which wait for all host processors.
    let offered = hypervisor.supported_cpuid()?;
    timeline.mark("processor features listed");
    let interprets = !hypervisor.is_in_hardware();
    let quirks =
        Quirks { hypercalls_hang: interprets, no_cmpxchg16b: interprets, counter_is_hosts: interprets };
    if let Some(boot_processor) = vcpus.first() {
        let features = processors::choose_features(boot_processor, offered, &config.cpu, quirks)?;
        processors::set_up(vcpus, topology, &features)?;
    }
    timeline.mark("processors described");
    Ok(())
}

/// Finds out on the boot processor what is to be completed, and prepares for it where that was not `expected`.
fn find_gaps<V: Vm>(
    vcpu: &mut V::Vcpu,
    board: &Board<V>,
    expected: Gaps,
    completion: Completion,
) -> hv::Result<Gaps> {
    if completion == Completion::Off {
        return Ok(Gaps::default());
    }
    let gaps = gaps::find(vcpu, &board.memory)?;
    watch_system_calls(&board.vm, expected, gaps)?;
    if gaps.any() {
        log::debug!("this host's KVM lacks what guest kernels use, so it is completed here: {gaps:?}");
    }
    Ok(gaps)
}

/// Makes writes to the registers of `syscall` exits, or no longer.
fn watch_system_calls<V: Vm>(vm: &V, before: Gaps, now: Gaps) -> hv::Result<()> {
    match (before.syscall, now.syscall) {
        (false, true) => vm.trap_msr_writes(&TRAPPED),
        (true, false) => vm.trap_msr_writes(&[]),
        _ => Ok(()),
    }
}

/// Whether this is a kernel for the software processor. The embedded guest and flat images are mostly there to see
/// what KVM does.
fn is_kernel(config: &Config, start: &Start) -> bool {
    config.kernel != Kernel::Embedded && !matches!(start.protocol, Protocol::Flat(_))
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
