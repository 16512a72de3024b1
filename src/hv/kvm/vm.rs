//! One KVM virtual machine.

use std::io;
use std::time::SystemTime;

use kvm_bindings::{
    KVM_CAP_X86_USER_SPACE_MSR, KVM_CLOCK_REALTIME, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KVM_MSR_EXIT_REASON_FILTER, KVM_PIT_SPEAKER_DUMMY, kvm_clock_data, kvm_enable_cap,
    kvm_irqchip, kvm_pit_config, kvm_pit_state2, kvm_userspace_memory_region,
};
use kvm_ioctls::{
    Cap, IoEventAddress, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, NoDatamatch, VmFd,
};
use vmm_sys_util::eventfd::EventFd;

use super::plain::Plain;
use super::{KvmVcpu, call};
use crate::hv::{Doorbell, Error, Result, SavedClock, SavedInterrupts, Vm};

/// Three pages that KVM needs for itself on Intel processors, in the device hole below 4 GiB and below the
/// place where firmware would lie.
const TSS_ADDRESS: usize = 0xfffb_d000;
/// One page for KVM's identity page table, right below.
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;
/// What one memory slot can hold: the kernel counts its pages in 31 bits. A round number below that.
const SLOT_SIZE: u64 = 4 << 40;
/// Slots are numbered per call to `map_memory` and per piece of [`SLOT_SIZE`].
const PIECES_PER_SLOT: u32 = 64;

/// One KVM virtual machine.
#[derive(Debug)]
pub struct KvmVm {
    fd: VmFd,
}

impl KvmVm {
    pub(super) fn new(fd: VmFd) -> Result<Self> {
        fd.set_tss_address(TSS_ADDRESS).map_err(|error| call("place KVM's task state segment", error))?;
        fd.set_identity_map_address(IDENTITY_MAP_ADDRESS)
            .map_err(|error| call("place KVM's identity map", error))?;
        Ok(Self { fd })
    }
}

impl Vm for KvmVm {
    type Vcpu = KvmVcpu;

    unsafe fn map_memory(&self, slot: u32, guest: u64, host: *mut u8, size: u64) -> Result<()> {
        let pieces = (0..size).step_by(SLOT_SIZE as usize);
        if size.div_ceil(SLOT_SIZE) > PIECES_PER_SLOT.into() {
            let source = io::Error::other("it takes more memory slots than there are numbers for");
            return Err(Error::Call { what: "give the guest its memory", source });
        }
        for (piece, offset) in (0..).zip(pieces) {
            let region = kvm_userspace_memory_region {
                slot: slot * PIECES_PER_SLOT + piece,
                flags: 0,
                guest_phys_addr: guest + offset,
                memory_size: SLOT_SIZE.min(size - offset),
                userspace_addr: host as u64 + offset,
            };
            // SAFETY: the caller promises that the host range stays mapped as long as this machine exists.
            unsafe { self.fd.set_user_memory_region(region) }
                .map_err(|error| call("give the guest its memory", error))?;
        }
        Ok(())
    }

    fn create_interrupt_controller(&self) -> Result<()> {
        self.fd.create_irq_chip().map_err(|error| call("create the interrupt controllers", error))?;
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        self.fd.create_pit2(pit).map_err(|error| call("create the interval timer", error))
    }

    fn create_vcpu(&self, id: u32) -> Result<KvmVcpu> {
        let fd = self.fd.create_vcpu(id.into()).map_err(|error| call("create a virtual processor", error))?;
        let has = |capability| self.fd.check_extension(capability);
        Ok(KvmVcpu::new(fd, self.fd.run_size(), has(Cap::SyncRegs), has(Cap::TscControl)))
    }

    fn set_interrupt_line(&self, line: u32, high: bool) -> Result<()> {
        self.fd.set_irq_line(line, high).map_err(|error| call("raise an interrupt", error))
    }

    fn register_doorbell(&self, at: Doorbell, event: &EventFd) -> Result<()> {
        let registered = match at {
            Doorbell::Port(port) => {
                self.fd.register_ioevent(event, &IoEventAddress::Pio(port.into()), NoDatamatch)
            }
            Doorbell::Address(address) => {
                self.fd.register_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch)
            }
            Doorbell::Value { address, value } => {
                self.fd.register_ioevent(event, &IoEventAddress::Mmio(address), value)
            }
        };
        registered.map_err(|error| call("register a doorbell", error))
    }

    fn register_interrupt_event(&self, event: &EventFd, line: u32) -> Result<()> {
        self.fd.register_irqfd(event, line).map_err(|error| call("register an interrupt event", error))
    }

    fn trap_msr_writes(&self, indices: &[u32]) -> Result<()> {
        let user_space = kvm_enable_cap {
            cap: KVM_CAP_X86_USER_SPACE_MSR,
            args: [KVM_MSR_EXIT_REASON_FILTER.into(), 0, 0, 0],
            ..Default::default()
        };
        self.fd
            .enable_cap(&user_space)
            .map_err(|error| call("see writes to model-specific registers", error))?;
        // A clear bit denies the one register of each range, and what is denied becomes an exit.
        let range = |&base: &u32| MsrFilterRange {
            flags: MsrFilterRangeFlags::WRITE,
            base,
            msr_count: 1,
            bitmap: &[0],
        };
        let ranges: Vec<_> = indices.iter().map(range).collect();
        self.fd
            .set_msr_filter(MsrFilterDefaultAction::ALLOW, &ranges)
            .map_err(|error| call("see writes to model-specific registers", error))
    }

    fn save_interrupts(&self) -> Result<SavedInterrupts> {
        let chips = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC]
            .into_iter()
            .map(|chip_id| {
                let mut chip = kvm_irqchip { chip_id, ..Default::default() };
                self.fd
                    .get_irqchip(&mut chip)
                    .map_err(|error| call("read an interrupt controller", error))?;
                Ok(chip.to_bytes())
            })
            .collect::<Result<_>>()?;
        let pit = self.fd.get_pit2().map_err(|error| call("read the interval timer", error))?;
        Ok(SavedInterrupts { chips, pit: pit.to_bytes() })
    }

    fn restore_interrupts(&self, saved: &SavedInterrupts) -> Result<()> {
        let SavedInterrupts { chips, pit } = saved;
        for chip in chips {
            let chip = kvm_irqchip::from_bytes(chip).ok_or(malformed("the interrupt controllers"))?;
            self.fd.set_irqchip(&chip).map_err(|error| call("set an interrupt controller", error))?;
        }
        let pit = kvm_pit_state2::from_bytes(pit).ok_or(malformed("the interval timer"))?;
        self.fd.set_pit2(&pit).map_err(|error| call("set the interval timer", error))
    }

    fn save_clock(&self) -> Result<SavedClock> {
        let clock = self.fd.get_clock().map_err(|error| call("read the guest's clock", error))?;
        // KVM reads both at once while all processors' counters agree with the host's, and not before Linux 5.16.
        let both = clock.flags & KVM_CLOCK_REALTIME != 0;
        Ok(SavedClock { guest: clock.clock, host: if both { clock.realtime } else { host_time() } })
    }

    fn restore_clock(&self, saved: &SavedClock, counts: bool) -> Result<()> {
        let mut clock = kvm_clock_data { clock: saved.guest, ..Default::default() };
        let adds = self.fd.check_extension_int(Cap::AdjustClock) as u32 & KVM_CLOCK_REALTIME != 0;
        match counts {
            true if adds => {
                clock.flags = KVM_CLOCK_REALTIME;
                clock.realtime = saved.host;
            }
            true => clock.clock = saved.guest.wrapping_add(host_time().saturating_sub(saved.host)),
            false => {}
        }
        self.fd.set_clock(&clock).map_err(|error| call("set the guest's clock", error))
    }
}

/// In nanoseconds since 1970; a host whose clock is from before that has bigger troubles.
fn host_time() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Saved bytes of the wrong length.
pub(super) fn malformed(what: &'static str) -> Error {
    Error::Call { what, source: io::Error::new(io::ErrorKind::InvalidData, "saved state has the wrong size") }
}
