//! Which virtio devices a machine has, and where.

use std::fs::OpenOptions;
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{Config, Error};
use crate::boot::VirtioMmio;
use crate::bus::{BusBuilder, Claim, Widths};
use crate::devices::virtio::Device;
use crate::devices::virtio::blk::Blk;
use crate::devices::virtio::mmio::{self, Mmio};
use crate::devices::virtio::rng::Rng;
use crate::hv::{Doorbell, Vm};
use crate::memory::GuestMemory;
use crate::storage::{RawFile, Storage};

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

/// Opens what the devices need.
pub(super) fn plan(config: &Config) -> Result<Vec<Planned>, Error> {
    let mut devices: Vec<Arc<dyn Device>> = Vec::new();
    for disk in &config.disks {
        let failed = |source| Error::Disk { path: disk.path.clone(), source };
        let file = OpenOptions::new().read(true).write(!disk.read_only).open(&disk.path).map_err(failed)?;
        let storage = RawFile::new(file, disk.read_only).map_err(failed)?;
        let storage: Arc<dyn Storage> = Arc::new(storage);
        devices.push(Arc::new(Blk::new(storage, disk.serial(), disk.queues)));
    }
    if config.rng {
        devices.push(Arc::new(Rng));
    }
    if devices.len() > INTERRUPTS.len() {
        return Err(Error::TooManyDevices { asked: devices.len(), most: INTERRUPTS.len() });
    }
    let places = (BASE..).step_by(mmio::SIZE as usize).zip(INTERRUPTS);
    let place = |(base, interrupt)| VirtioMmio { base, size: mmio::SIZE as u32, interrupt };
    Ok(devices.into_iter().zip(places).map(|(device, at)| Planned { device, place: place(at) }).collect())
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
    let event = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map_err(Error::Event)?;
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
