//! The state of a whole machine, and how it is written down.
//!
//! Each part has a section of its own, named after its place in the machine: `docs/snapshot-format.md` lists them. What
//! the parts keep is for them to say.

use serde::{Deserialize, Serialize};

use super::machine::Machine;
use super::virtio::Plan;
use super::{Error, Outcome, SavedDisks};
use crate::devices::cmos::SavedCmos;
use crate::devices::i8042::SavedI8042;
use crate::devices::pci::SavedPci;
use crate::devices::post::SavedPost;
use crate::devices::serial::SavedSerial;
use crate::devices::virtio::mmio::SavedTransport;
use crate::hv::{self, Hypervisor, SavedClock, SavedInterrupts, SavedVcpu, TIME_STAMP_COUNTER, Vcpu, Vm};
use crate::memory::SavedLayout;
use crate::saved::Saved;
use crate::snapshot::{self, Section, Sections, Snapshot};
use crate::vcpu::VcpuThread;
use crate::x86::model;
use crate::x86::topology::Topology;

/// What a machine is made of, as far as its state depends on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Parts {
    pub sockets: u32,
    pub cores: u32,
    pub threads: u32,
    pub devices: Vec<Part>,
    /// Whether its kernel is one for the software processor, where there is need of that.
    pub has_kernel: bool,
    /// Where the id of its generation is, if its guest was told of one.
    pub generation_id: Option<u64>,
}

/// A virtio device, and where the guest finds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Part {
    pub kind: String,
    base: u32,
    interrupt: u8,
}

impl Saved for Parts {
    const NAME: &'static str = "machine";
    const VERSION: u16 = 1;
}

impl Parts {
    pub fn new(topology: &Topology, planned: &Plan) -> Self {
        let part = |(place, kind): (crate::boot::VirtioMmio, crate::devices::virtio::Kind)| Part {
            kind: kind.name.to_owned(),
            base: place.base,
            interrupt: place.interrupt,
        };
        Self {
            sockets: topology.sockets(),
            cores: topology.cores(),
            threads: topology.threads(),
            devices: planned.places().into_iter().zip(planned.kinds()).map(part).collect(),
            has_kernel: false,
            generation_id: None,
        }
    }

    pub fn processors(&self) -> u64 {
        u64::from(self.sockets).saturating_mul(self.cores.into()).saturating_mul(self.threads.into())
    }
}

/// How a machine was described, for those who restore it without being told. What it is made of is in the other
/// sections, so that one who is told may pass it over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedDescription {
    /// The description, as in a configuration file.
    pub text: String,
}

impl Saved for SavedDescription {
    const NAME: &'static str = "description";
    const VERSION: u16 = 1;
}

impl SavedDescription {
    /// That of a snapshot, if it has one.
    pub fn of(snapshot: &Snapshot) -> Result<Option<Self>, snapshot::Error> {
        snapshot.section(Self::NAME)
    }
}

/// The state of a machine, but for what is in its memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedMachine {
    pub(super) parts: Parts,
    pub(super) layout: SavedLayout,
    pub(super) vcpus: Vec<SavedVcpu>,
    pub(super) interrupts: SavedInterrupts,
    pub(super) clock: SavedClock,
    pub(super) serial: SavedSerial,
    pub(super) cmos: SavedCmos,
    pub(super) i8042: SavedI8042,
    pub(super) pci: SavedPci,
    pub(super) post: SavedPost,
    pub(super) virtio: Vec<SavedVirtio>,
}

/// The state of a virtio device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SavedVirtio {
    pub transport: SavedTransport,
    /// What the device itself keeps, which only it can read.
    pub device: Section,
}

/// Why a machine has no state that can be saved.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CannotSave {
    /// It runs.
    #[error("a running machine has no state to save: pause it first")]
    Running,
    /// There is nothing that could go on.
    #[error("there is nothing to save: {0}")]
    Ended(String),
}

/// The sections of each virtio device.
pub(super) fn virtio_sections(number: usize) -> [String; 2] {
    [format!("virtio/{number}/transport"), format!("virtio/{number}/device")]
}

fn vcpu_section(number: usize) -> String {
    format!("vcpu/{number}")
}

impl SavedMachine {
    /// What there is to be written down.
    pub fn sections(&self) -> Vec<Section> {
        let Self { parts, layout, vcpus, interrupts, clock, serial, cmos, i8042, pci, post, virtio } = self;
        fn of<S: Saved>(state: &S) -> Section {
            Section::of(S::NAME, state)
        }
        let mut sections = vec![of(parts), of(layout)];
        let vcpus = vcpus.iter().enumerate();
        sections.extend(vcpus.map(|(number, vcpu)| Section::of(vcpu_section(number), vcpu)));
        sections.extend([of(interrupts), of(clock), of(serial), of(cmos), of(i8042), of(pci), of(post)]);
        for (number, SavedVirtio { transport, device }) in virtio.iter().enumerate() {
            let [name, _] = virtio_sections(number);
            sections.push(Section::of(name, transport));
            sections.push(device.clone());
        }
        sections
    }

    /// How many processors it has.
    pub fn processors(&self) -> usize {
        self.vcpus.len()
    }

    /// The features of its processors: a host has to have them all.
    pub fn cpu_flags(&self) -> Vec<&'static str> {
        self.vcpus.first().map(|vcpu| model::flags_of(&vcpu.cpuid)).unwrap_or_default()
    }

    /// Reads what was written down. Each section has to be there, and no other.
    pub fn from_sections(mut sections: Sections) -> Result<Self, snapshot::Error> {
        fn of<S: Saved>(sections: &mut Sections) -> Result<S, snapshot::Error> {
            sections.take(S::NAME)
        }
        sections.pass_over(SavedDescription::NAME);
        let from = &mut sections;
        let parts: Parts = of(from)?;
        // A section that is missing ends this long before any absurd number does.
        let mut vcpus = Vec::new();
        for number in 0..usize::try_from(parts.processors()).unwrap_or(usize::MAX) {
            vcpus.push(from.take(&vcpu_section(number))?);
        }
        let mut virtio = Vec::new();
        for number in 0..parts.devices.len() {
            let [transport, device] = virtio_sections(number);
            virtio
                .push(SavedVirtio { transport: from.take(&transport)?, device: from.take_section(&device)? });
        }
        let saved = Self {
            parts,
            layout: of(from)?,
            vcpus,
            interrupts: of(from)?,
            clock: of(from)?,
            serial: of(from)?,
            cmos: of(from)?,
            i8042: of(from)?,
            pci: of(from)?,
            post: of(from)?,
            virtio,
        };
        // Where disks are is found out before there is a machine that could be restored.
        sections.take_if_there::<SavedDisks>(SavedDisks::NAME)?;
        sections.finish()?;
        Ok(saved)
    }
}

impl<V: Vm> Machine<V> {
    /// The state that it is in. It has to be [paused](Self::pause), or not to have been started.
    pub fn save<H: Hypervisor<Vm = V>>(&self, hypervisor: &H) -> Result<SavedMachine, Error> {
        self.check_at_rest()?;
        let msrs = hypervisor.saved_msrs()?;
        let save = |vcpu: &VcpuThread<V::Vcpu>| vcpu.while_at_rest(|vcpu| vcpu.save(&msrs));
        let mut vcpus = self.vcpus.iter().map(save).collect::<hv::Result<Vec<_>>>()?;
        let clock = self.save_clock(&mut vcpus)?;
        let super::Devices { serial, cmos, i8042, pci, post, power_button: _, generation_id: _ } =
            &self.devices;
        let virtio = self.virtio.iter().enumerate().map(|(number, transport)| {
            let [_, name] = virtio_sections(number);
            let device = Section::holding(name, transport.device().save_state());
            SavedVirtio { transport: transport.save(), device }
        });
        Ok(SavedMachine {
            parts: self.parts.clone(),
            layout: self.board.memory.layout().save(),
            vcpus,
            interrupts: self.board.vm.save_interrupts()?,
            clock,
            serial: serial.save(),
            cmos: cmos.save(),
            i8042: i8042.save(),
            pci: pci.save(),
            post: post.save(),
            virtio: virtio.collect(),
        })
    }

    /// The guest's clock, and what the time stamp counters showed at the same moment: a little more than when the
    /// processors were saved, one after the other.
    fn save_clock(&self, vcpus: &mut [SavedVcpu]) -> hv::Result<SavedClock> {
        let clock = self.board.vm.save_clock()?;
        for (thread, saved) in self.vcpus.iter().zip(vcpus) {
            if let Some(value) = thread.while_at_rest(|vcpu| vcpu.msr(TIME_STAMP_COUNTER))? {
                saved.set_time_stamp_counter(value);
            }
        }
        Ok(clock)
    }

    pub(super) fn check_at_rest(&self) -> Result<(), CannotSave> {
        if let Some(outcome) = self.outcome() {
            return Err(CannotSave::Ended(outcome.to_string().trim_end().to_owned()));
        }
        if !self.vcpus.iter().all(VcpuThread::is_to_rest) {
            return Err(CannotSave::Running);
        }
        // A guest may end its machine while it is brought to rest.
        self.vcpus.iter().for_each(VcpuThread::wait_at_rest);
        self.outcome().map_or(Ok(()), |outcome: &Outcome| Err(CannotSave::Ended(outcome.to_string())))
    }
}

#[cfg(test)]
#[path = "saved_test.rs"]
mod tests;
