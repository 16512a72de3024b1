//! A machine that goes on as another one that was saved.
//!
//! It is built as any machine, after the same description, but begins with the memory and the state of a snapshot in
//! place of a kernel. The memory is mapped, not read; that of a diff over that of the snapshot on which it builds. What
//! the description or the host has otherwise than the snapshot is found out before anything runs.
//!
//! Processors are restored before the interrupt controllers, and both before the devices: whatever interrupt comes of a
//! later one reaches those before it. The guest's clock comes before all of them: KVM works out from it what it writes
//! into guest memory for the processors, and their time stamp counters go on by as much as it does, whether the time
//! that the machine was stored counts ([`Clock`]) or not.

use std::sync::Arc;

use super::machine::Machine;
use super::processors::shown;
use super::saved::{Part, SavedMachine, virtio_sections};
use super::{Clock, Config, Error, Timeline};
use crate::devices::{self, ByteSink};
use crate::hv::{Hypervisor, Vcpu, Vm};
use crate::memory::{Image, Layout, Overlay, human};
use crate::snapshot::{Layer, Snapshot};
use crate::x86::cpuid::{self, Quirks};
use crate::x86::model::{self, CpuModel};

/// Why a machine cannot go on as what was saved.
#[derive(Debug, thiserror::Error)]
pub enum CannotRestore {
    /// It has other processors.
    #[error("the snapshot is of a machine with {saved}, and this one is to have {asked}")]
    Processors {
        /// What was saved.
        saved: String,
        /// What the description says.
        asked: String,
    },
    /// It has more memory, or less.
    #[error(
        "the snapshot is of a machine with {} of memory, and this one is to have {}",
        human(*.saved),
        human(*.asked)
    )]
    Memory {
        /// What was saved.
        saved: u64,
        /// What the description says.
        asked: u64,
    },
    /// It has other devices, or the same in another order.
    #[error("the snapshot is of a machine with {saved}, and this one is to have {asked}")]
    Devices {
        /// What was saved.
        saved: String,
        /// What the description says.
        asked: String,
    },
    /// The host's processor is no substitute.
    #[error(
        "this host's processors lack what the guest was told it has: {}; restore it on a host that has it, or start the \
         guest with a --cpu that does without",
        .0.join(" ")
    )]
    Features(Vec<&'static str>),
    /// A device cannot be in that state.
    #[error("the section {section:?} does not fit this machine: {source}")]
    Device {
        /// The section that holds it.
        section: String,
        /// Why not.
        source: devices::Error,
    },
    /// The pieces of the snapshot contradict each other.
    #[error("the snapshot contradicts itself: {0}")]
    Inconsistent(&'static str),
}

/// What a machine begins with.
pub(super) enum Beginning<'a> {
    /// The kernel that is described.
    Kernel,
    /// The state of another machine, and the image of its memory, until it is mapped.
    Saved(&'a SavedMachine, Option<Image>),
}

impl Beginning<'_> {
    pub fn image(&mut self) -> Option<Image> {
        match self {
            Self::Kernel => None,
            Self::Saved(_, image) => image.take(),
        }
    }
}

impl<V: Vm> Machine<V> {
    /// Builds the machine that `config` describes, which goes on where that of the snapshot was; what its serial
    /// console prints goes to `console`. The description's kernel, initial file systems and command line mean nothing:
    /// they are in memory, or were.
    pub fn restore<H: Hypervisor<Vm = V>>(
        hypervisor: &H,
        config: &Config,
        snapshot: &Snapshot,
        console: Arc<dyn ByteSink>,
        timeline: &mut Timeline,
    ) -> Result<Self, Error> {
        let saved = SavedMachine::from_sections(snapshot.sections()?)?;
        let image = image(snapshot.layers()?)?;
        timeline.mark("snapshot read");
        if saved.memory_size()? != snapshot.info().memory_size {
            return Err(CannotRestore::Inconsistent("its memory is not as large as its machine's").into());
        }
        let beginning = Beginning::Saved(&saved, Some(image));
        let machine = Self::begin(hypervisor, config, beginning, console, timeline)?;
        machine.since.restored(snapshot.info().id);
        Ok(machine)
    }
}

/// What memory begins as.
fn image(layers: Vec<Layer>) -> Result<Image, Error> {
    let mut layers = layers.into_iter();
    let lowest = layers.next().ok_or(CannotRestore::Inconsistent("it has no memory"))?;
    let overlays = layers.map(|Layer { file, pages }| {
        let pages = pages.into_iter().flatten().collect();
        Overlay { file, pages }
    });
    Ok(Image::new(lowest.file, overlays.collect()))
}

impl SavedMachine {
    pub(super) fn has_kernel(&self) -> bool {
        self.parts.has_kernel
    }

    pub(super) fn generation_id(&self) -> Option<u64> {
        self.parts.generation_id
    }

    fn memory_size(&self) -> Result<u64, Error> {
        Ok(Layout::restore(&self.layout, cpuid::host_address_bits())?.size())
    }

    /// Fails if a machine with these parts is another one.
    pub(super) fn check_parts(&self, parts: &super::saved::Parts, config: &Config) -> Result<(), Error> {
        let saved = &self.parts;
        let arranged = |parts: &super::saved::Parts| [parts.sockets, parts.cores, parts.threads];
        if arranged(saved) != arranged(parts) {
            let tell = |parts: &super::saved::Parts| {
                let [sockets, cores, threads] = arranged(parts);
                format!("--cpus {},sockets={sockets},cores={cores},threads={threads}", parts.processors())
            };
            return Err(CannotRestore::Processors { saved: tell(saved), asked: tell(parts) }.into());
        }
        let (saved_size, asked) = (self.memory_size()?, config.memory.size);
        if saved_size != asked {
            return Err(CannotRestore::Memory { saved: saved_size, asked }.into());
        }
        if saved.devices != parts.devices {
            let (saved, asked) = (list(&saved.devices), list(&parts.devices));
            let error = if saved == asked {
                CannotRestore::Inconsistent("its devices are at places where this program puts none")
            } else {
                CannotRestore::Devices { saved, asked }
            };
            return Err(error.into());
        }
        Ok(())
    }

    /// Tells the processors that they are what those of the snapshot were, if this host has such ones.
    pub(super) fn describe<H: Hypervisor>(
        &self,
        hypervisor: &H,
        vcpus: &[<H::Vm as Vm>::Vcpu],
        timeline: &mut Timeline,
    ) -> Result<(), Error> {
        let offered = hypervisor.supported_cpuid()?;
        timeline.mark("processor features listed");
        for (number, (vcpu, saved)) in vcpus.iter().zip(&self.vcpus).enumerate() {
            if number == 0 {
                let offered = shown(vcpu, &offered)?;
                let offered = CpuModel::default().choose(&offered, &[], Quirks::default())?;
                let missing = model::returned(&offered, &saved.cpuid);
                if !missing.is_empty() {
                    return Err(CannotRestore::Features(missing).into());
                }
            }
            vcpu.set_cpuid(&saved.cpuid)?;
        }
        timeline.mark("processors described");
        Ok(())
    }

    /// Puts back what the hypervisor has to know.
    pub(super) fn restore_board<V: Vm>(&self, vm: &V, vcpus: &[V::Vcpu], clock: Clock) -> Result<(), Error> {
        vm.restore_clock(&self.clock, clock == Clock::Host)?;
        for (vcpu, saved) in vcpus.iter().zip(&self.vcpus) {
            let passed = vm.save_clock()?.guest.saturating_sub(self.clock.guest);
            vcpu.restore(&saved.after(passed))?;
            vcpu.tell_stopped()?;
        }
        Ok(vm.restore_interrupts(&self.interrupts)?)
    }

    /// Puts back what the devices have to know.
    pub(super) fn restore_devices<V: Vm>(&self, machine: &Machine<V>) -> Result<(), Error> {
        let failed = |section: &str| {
            let section = section.to_owned();
            move |source| CannotRestore::Device { section, source }
        };
        let super::Devices { serial, cmos, i8042, pci, post, power_button: _, generation_id: _ } =
            &machine.devices;
        serial.restore(&self.serial).map_err(failed("serial"))?;
        cmos.restore(&self.cmos).map_err(failed("cmos"))?;
        i8042.restore(&self.i8042).map_err(failed("i8042"))?;
        pci.restore(&self.pci);
        post.restore(&self.post);
        for (number, (transport, saved)) in machine.virtio.iter().zip(&self.virtio).enumerate() {
            let device = transport.device();
            device.restore_state(&saved.device.bytes).map_err(failed(&saved.device.name))?;
            let [name, _] = virtio_sections(number);
            transport.restore(&saved.transport).map_err(failed(&name))?;
        }
        Ok(())
    }
}

fn list(devices: &[Part]) -> String {
    match devices {
        [] => "no virtio devices".to_owned(),
        devices => {
            let names: Vec<_> = devices.iter().map(|device| device.kind.as_str()).collect();
            format!("the virtio devices {}", names.join(", "))
        }
    }
}
