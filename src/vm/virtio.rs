//! Which virtio devices a machine has, and where.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::console::{self, Opened};
use super::directory::{Files, ROOM, named_room};
use super::{BalloonSpec, Changes, Config, DiskSource, DiskSpec, Error, MemorySpec};
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
use crate::storage::{self, Disk, DiskOptions, Format, Layer, Storage, Verified, tools};

/// Where the registers of the first device are: in the hole below 4 GiB.
const BASE: u32 = 0xd000_0000;
/// The interrupts that no other device has: those of the ISA first, which kernels know without being told.
const INTERRUPTS: [u8; 17] = [5, 10, 11, 9, 7, 6, 3, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23];

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
    let mut files = Files::new(config.name.as_ref())?;
    let disks = config.disks.iter().enumerate();
    let disks = disks.map(|(number, spec)| disk(spec, number, &mut files)).collect::<Result<Vec<_>, _>>()?;
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
    Ok(Plan { devices: devices.collect(), disks, balloon, console, lines, files })
}

fn disk(spec: &DiskSpec, number: usize, files: &mut Files) -> Result<Arc<Blk>, Error> {
    let disk = Blk::new(open(spec, number, files)?, spec.serial(), spec.queues);
    disk.set_limits(spec.limits);
    Ok(Arc::new(disk))
}

fn balloon(spec: BalloonSpec, memory: &MemorySpec) -> Result<Arc<Balloon>, Error> {
    // Reserved pages are not given back, so nobody needs to hear which are free.
    let balloon = Balloon::new(memory.size, spec.reporting && !memory.options.hugetlb);
    balloon.set_target(spec.target)?;
    Ok(Arc::new(balloon))
}

/// Opens the disk that the guest finds as the one of this number.
fn open(disk: &DiskSpec, number: usize, files: &mut Files) -> Result<Arc<dyn Storage>, Error> {
    let options = |format| DiskOptions {
        read_only: disk.read_only,
        direct: disk.direct,
        format,
        ..DiskOptions::default()
    };
    let (path, format, changes, verify) = match &disk.source {
        DiskSource::Ephemeral { size } => {
            return Ok(Arc::new(Disk::ephemeral(&roomy(), *size, &options(None))?));
        }
        DiskSource::Image { path, format, changes, verify } => (path, *format, changes, *verify),
    };
    let of_overlay = DiskOptions { verify_backing: verify, ..options(Some(Format::Qcow2)) };
    let opened = match changes {
        Changes::Image => {
            let opened = Disk::open(path, &options(format))?;
            if verify {
                return Ok(Arc::new(Verified::new(opened)?));
            }
            opened
        }
        Changes::Overlay(overlay) => {
            if !overlay.exists() {
                tools::create_overlay(overlay, path, format, None, false)?;
            }
            let opened = Disk::open(overlay, &of_overlay)?;
            check_backing(&opened, overlay, path)?;
            opened
        }
        Changes::Forgotten => {
            let overlay = files.large(&format!("disk{number}.qcow2"))?;
            tools::create_overlay(&overlay, path, format, None, false)?;
            Disk::open(&overlay, &of_overlay)?
        }
    };
    Ok(Arc::new(opened))
}

/// Where a disk without a name is: where there is room, as for overlays that are forgotten.
fn roomy() -> PathBuf {
    named_room().unwrap_or_else(|| if Path::new(ROOM).is_dir() { ROOM.into() } else { "/tmp".into() })
}

/// Fails if an overlay that was there already is one of something else.
fn check_backing(disk: &Disk, overlay: &Path, base: &Path) -> Result<(), storage::Error> {
    let same = |layer: &Layer| match (layer.path.canonicalize(), base.canonicalize()) {
        (Ok(behind), Ok(base)) => behind == base,
        _ => false,
    };
    if disk.layers().get(1).is_some_and(same) {
        return Ok(());
    }
    let source = io::Error::other(format!("it is no overlay of {}", base.display()));
    Err(storage::Error::Io { action: "use the overlay", path: overlay.to_owned(), source })
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
