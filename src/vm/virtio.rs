//! Which virtio devices a machine has, and where.

use std::sync::Arc;

use super::console::{self, Opened};
use super::directory::Files;
use super::disks::{self, Attached};
use super::{BalloonSpec, Config, Error, MemorySpec};
use crate::boot::VirtioMmio;
use crate::bus::{BusBuilder, Claim, Widths};
use crate::console::Line;
use crate::devices::virtio::balloon::Balloon;
use crate::devices::virtio::blk::Blk;
use crate::devices::virtio::console::Console;
use crate::devices::virtio::mmio::{self, Mmio};
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::{Device, Kind};
use crate::event;
use crate::hv::{Doorbell, Vm};
use crate::memory::GuestMemory;

/// Where the registers of the first device are: in the hole below 4 GiB.
const BASE: u32 = 0xd000_0000;
/// The interrupts that no other device has: those of the ISA first, which kernels know without being told.
const INTERRUPTS: [u8; 16] = [5, 10, 11, 9, 7, 6, 3, 14, 15, 16, 17, 18, 19, 20, 21, 22];

/// A device that the machine will have.
pub(super) struct Planned {
    device: Arc<dyn Device>,
    /// Where it will be.
    pub place: VirtioMmio,
}

/// All devices that the machine will have.
pub(super) struct Plan {
    /// In the order in which the guest finds them.
    pub devices: Vec<Planned>,
    /// Those of them to which the machine's owner speaks.
    pub disks: Vec<Arc<Blk>>,
    /// What the disks are in.
    pub images: Vec<Attached>,
    pub balloon: Option<Arc<Balloon>>,
    pub console: Option<Arc<Console>>,
    /// Where further ports lead.
    pub lines: Vec<Line>,
    /// Where they have files that go away with the machine.
    pub files: Files,
}

impl Plan {
    /// Where the devices will be.
    pub fn places(&self) -> Vec<VirtioMmio> {
        self.devices.iter().map(|planned| planned.place).collect()
    }

    /// What they are.
    pub fn kinds(&self) -> impl Iterator<Item = Kind> {
        self.devices.iter().map(|planned| planned.device.kind())
    }
}

/// Opens what the devices need.
pub(super) fn plan(config: &Config) -> Result<Plan, Error> {
    config.check_outputs(None)?;
    let files = Files::new(config.name.as_ref())?;
    let images = config.disks.iter().enumerate();
    let images: Vec<_> =
        images.map(|(number, spec)| disks::open(spec, number, &files)).collect::<Result<_, _>>()?;
    let disks: Vec<_> = images.iter().map(disk).collect();
    let mut devices: Vec<Arc<dyn Device>> = disks.iter().map(|disk| Arc::clone(disk) as _).collect();
    if config.rng {
        devices.push(Arc::new(Rng));
    }
    let balloon = config.balloon.map(|spec| balloon(spec, &config.memory)).transpose()?;
    devices.extend(balloon.iter().map(|balloon| Arc::clone(balloon) as _));
    // After the disks: images that are in use are locked, and no file for output then.
    let Opened { console, ports, lines } = console::open(config)?;
    devices.extend(console.iter().chain(&ports).map(|device| Arc::clone(device) as _));
    if devices.len() > INTERRUPTS.len() {
        return Err(Error::TooManyDevices { asked: devices.len(), most: INTERRUPTS.len() });
    }
    let places = (BASE..).step_by(mmio::SIZE as usize).zip(INTERRUPTS);
    let place = |(base, interrupt)| VirtioMmio { base, size: mmio::SIZE as u32, interrupt };
    let devices = devices.into_iter().zip(places).map(|(device, at)| Planned { device, place: place(at) });
    Ok(Plan { devices: devices.collect(), disks, images, balloon, console, lines, files })
}

fn disk(image: &Attached) -> Arc<Blk> {
    let spec = &image.spec;
    let disk = Blk::new(image.storage(), spec.serial(), spec.queues);
    disk.set_limits(spec.limits);
    Arc::new(disk)
}

fn balloon(spec: BalloonSpec, memory: &MemorySpec) -> Result<Arc<Balloon>, Error> {
    // Reserved pages are not given back, so nobody needs to hear which are free.
    let balloon = Balloon::new(memory.size, spec.reporting && !memory.options.hugetlb);
    balloon.set_target(spec.target)?;
    Ok(Arc::new(balloon))
}

/// Puts the devices on the bus, and connects their doorbells and interrupts.
pub(super) fn connect<V: Vm>(
    planned: Vec<Planned>,
    vm: &V,
    memory: &Arc<GuestMemory>,
    bus: &mut BusBuilder,
) -> Result<Vec<Arc<Mmio>>, Error> {
    planned.into_iter().map(|planned| connect_one(planned, vm, memory, bus)).collect()
}

fn connect_one<V: Vm>(
    Planned { device, place }: Planned,
    vm: &V,
    memory: &Arc<GuestMemory>,
    bus: &mut BusBuilder,
) -> Result<Arc<Mmio>, Error> {
    let name = device.kind().name;
    let event = event::create().map_err(Error::Event)?;
    vm.register_interrupt_event(&event, place.interrupt.into())?;
    let transport = Arc::new(Mmio::new(device, Arc::clone(memory), event).map_err(Error::Event)?);
    let base = u64::from(place.base);
    for (number, doorbell) in transport.doorbells() {
        vm.register_doorbell(Doorbell::Value { address: base + mmio::DOORBELL, value: number }, doorbell)?;
    }
    bus.claim_memory(
        Claim { name, base, len: mmio::SIZE, widths: Widths::ANY },
        Arc::clone(&transport) as _,
    )?;
    Ok(transport)
}
