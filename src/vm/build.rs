//! Putting a machine together, out of what describes it or of what was saved of another one.

use std::sync::{Arc, Mutex};

use super::capture::Shared;
use super::config::{Completion, Config, Kernel};
use super::devices::Devices;
use super::end::End;
use super::machine::{Board, Machine};
use super::restore::Beginning;
use super::saved::Parts;
use super::virtio::{self, Plan};
use super::watch::Watch;
use super::{Error, Timeline, console, processors};
use crate::boot::{self, Platform, Protocol, Source, Start, VirtioMmio};
use crate::bus::BusBuilder;
use crate::devices::{ByteSink, generation_id, i8042, power_button, pvpanic, reset, serial, sleep};
use crate::hv::{self, Hypervisor, Vcpu, Vm};
use crate::memory::{GuestMemory, Image, Layout};
use crate::vcpu::{Ending, Programs, Surroundings, VcpuThread};
use crate::x86::complete::gaps::{self, Gaps};
use crate::x86::complete::transition::TRAPPED;
use crate::x86::cpuid::{self, Quirks};
use crate::x86::topology::{Topology, apic_ids};

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
        let devices = Devices::new(&board, Arc::clone(&console));
        let mut builder = BusBuilder::new();
        devices.claim(&mut builder)?;
        let virtio = virtio::connect(planned.devices, &board.vm, &board.memory, &mut builder)?;
        let bus = Arc::new(builder.build());
        let end = Arc::new(End::new().map_err(Error::Event)?);
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
        let Plan { devices: _, disks, images, balloon, console: virtio_console, mut lines, files } = planned;
        if let Some(device) = &virtio_console {
            lines.extend(console::line_to(Arc::clone(&console), device)?);
        }
        Ok(Self {
            vcpus,
            bus,
            devices,
            virtio,
            disks,
            images: Mutex::new(images),
            keeping: Mutex::default(),
            balloon,
            virtio_console,
            listens_at_virtio: false,
            lines,
            console,
            end,
            gaps,
            watch: Watch::default(),
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
