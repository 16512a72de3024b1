//! One KVM vCPU: entering the guest, understanding why it came back, reading and writing its state.

use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::{
    CpuId, KVM_EXIT_FAIL_ENTRY, KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR, KVM_EXIT_IO,
    KVM_EXIT_IO_OUT, KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_debugregs,
    kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_run, kvm_vcpu_events, kvm_xcr, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;

use super::call;
use super::plain::Plain;
use super::vm::malformed;
use crate::hv::{
    CpuidEntry, Direction, Error, Exit, InternalError, Kick, LocalApic, Mmio, Msr, Pio, Registers, Result,
    SavedVcpu, SpecialRegisters, Vcpu,
};

/// Where `immediate_exit` lies in `struct kvm_run`.
const IMMEDIATE_EXIT_OFFSET: usize = std::mem::offset_of!(kvm_run, immediate_exit);
const RUN_PAGE: usize = 4096;

/// One KVM vCPU.
#[derive(Debug)]
pub struct KvmVcpu {
    fd: VcpuFd,
    run_size: usize,
}

impl KvmVcpu {
    pub(super) fn new(fd: VcpuFd, run_size: usize) -> Self {
        Self { fd, run_size }
    }

    /// What the kernel left in `struct kvm_run`. kvm-ioctls' own exit type merges the elements of string I/O
    /// and carries no data of internal errors, so the structure is read here.
    fn exit(&mut self) -> Result<Exit<'_>> {
        let run_size = self.run_size;
        let run = self.fd.get_kvm_run();
        match run.exit_reason {
            KVM_EXIT_IO => {
                // SAFETY: the exit reason tells which member of the union the kernel filled.
                let io = unsafe { run.__bindgen_anon_1.io };
                let length = usize::from(io.size) * io.count as usize;
                let offset = io.data_offset as usize;
                if offset.checked_add(length).is_none_or(|end| end > run_size) {
                    return Err(malformed("read what the guest wrote to a port"));
                }
                // SAFETY: `run_size` bytes are mapped from the start of `run` on, and the check above keeps
                // the slice inside; it borrows `self`, so it ends before the next entry.
                let data = unsafe {
                    std::slice::from_raw_parts_mut((&raw mut *run).cast::<u8>().add(offset), length)
                };
                Ok(Exit::Pio(Pio {
                    port: io.port,
                    width: io.size,
                    direction: pio_direction(io.direction),
                    data,
                }))
            }
            KVM_EXIT_MMIO => {
                // SAFETY: as above.
                let mmio = unsafe { &mut run.__bindgen_anon_1.mmio };
                let length = (mmio.len as usize).min(mmio.data.len());
                let direction = if mmio.is_write == 0 { Direction::Read } else { Direction::Write };
                Ok(Exit::Mmio(Mmio { address: mmio.phys_addr, direction, data: &mut mmio.data[..length] }))
            }
            KVM_EXIT_HLT => Ok(Exit::Halt),
            KVM_EXIT_SHUTDOWN => Ok(Exit::Shutdown),
            KVM_EXIT_INTR => Ok(Exit::Interrupted),
            KVM_EXIT_INTERNAL_ERROR => {
                // SAFETY: as above.
                let internal = unsafe { run.__bindgen_anon_1.internal };
                let count = (internal.ndata as usize).min(internal.data.len());
                let data = internal.data[..count].to_vec();
                Ok(Exit::InternalError(InternalError { suberror: internal.suberror, data }))
            }
            KVM_EXIT_FAIL_ENTRY => {
                // SAFETY: as above.
                let entry = unsafe { run.__bindgen_anon_1.fail_entry };
                Ok(Exit::FailedEntry { reason: entry.hardware_entry_failure_reason, cpu: entry.cpu })
            }
            reason => Ok(Exit::Unexpected { reason }),
        }
    }

    fn save_msrs(&self, indices: &[u32]) -> Result<Vec<Msr>> {
        let mut saved = Vec::with_capacity(indices.len());
        let mut rest = indices;
        // The kernel stops at the first register it cannot read: go on behind it.
        while !rest.is_empty() {
            let entries: Vec<_> =
                rest.iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
            let mut msrs = msrs(&entries)?;
            let read =
                self.fd.get_msrs(&mut msrs).map_err(|error| call("read model-specific registers", error))?;
            let values = msrs.as_slice()[..read].iter();
            saved.extend(values.map(|entry| Msr { index: entry.index, value: entry.data }));
            rest = rest.get(read + 1..).unwrap_or_default();
        }
        Ok(saved)
    }

    /// Sets every register that can be set. One that is refused is an error only where its value would
    /// differ from the saved one: some hosts list registers that they do not let anybody write.
    fn restore_msrs(&self, saved: &[Msr]) -> Result<()> {
        let mut rest = saved;
        while !rest.is_empty() {
            let entries: Vec<_> = rest
                .iter()
                .map(|msr| kvm_msr_entry { index: msr.index, data: msr.value, ..Default::default() })
                .collect();
            let set = self
                .fd
                .set_msrs(&msrs(&entries)?)
                .map_err(|error| call("set model-specific registers", error))?;
            if let Some(refused) = rest.get(set) {
                let now = self.save_msrs(&[refused.index])?;
                if now.first().is_none_or(|msr| msr.value != refused.value) {
                    return Err(Error::MsrRefused { index: refused.index });
                }
            }
            rest = rest.get(set + 1..).unwrap_or_default();
        }
        Ok(())
    }
}

fn pio_direction(direction: u8) -> Direction {
    if u32::from(direction) == KVM_EXIT_IO_OUT { Direction::Write } else { Direction::Read }
}

fn msrs(entries: &[kvm_msr_entry]) -> Result<Msrs> {
    Msrs::from_entries(entries).map_err(|_| malformed("list model-specific registers"))
}

impl Vcpu for KvmVcpu {
    fn run(&mut self) -> Result<Exit<'_>> {
        match self.fd.run() {
            Ok(_) => self.exit(),
            // EAGAIN: a processor that was waiting for its start-up interrupt has got it.
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => Ok(Exit::Interrupted),
            Err(error) => Err(call("run the guest", error)),
        }
    }

    fn kick_handle(&self) -> Result<Arc<dyn Kick>> {
        Ok(Arc::new(RunPage::map(&self.fd)?))
    }

    fn registers(&self) -> Result<Registers> {
        let registers = self.fd.get_regs().map_err(|error| call("read a processor's registers", error))?;
        Ok(Registers::from(&registers))
    }

    fn set_registers(&self, registers: &Registers) -> Result<()> {
        self.fd.set_regs(&registers.into()).map_err(|error| call("set a processor's registers", error))
    }

    fn special_registers(&self) -> Result<SpecialRegisters> {
        let special =
            self.fd.get_sregs().map_err(|error| call("read a processor's control registers", error))?;
        Ok(SpecialRegisters::from(&special))
    }

    fn set_special_registers(&self, registers: &SpecialRegisters) -> Result<()> {
        self.fd
            .set_sregs(&registers.into())
            .map_err(|error| call("set a processor's control registers", error))
    }

    fn set_cpuid(&self, entries: &[CpuidEntry]) -> Result<()> {
        let entries: Vec<_> = entries.iter().map(Into::into).collect();
        let cpuid = CpuId::from_entries(&entries).map_err(|_| malformed("describe the processor"))?;
        self.fd.set_cpuid2(&cpuid).map_err(|error| call("describe the processor to the guest", error))
    }

    fn local_apic(&self) -> Result<LocalApic> {
        let lapic = self.fd.get_lapic().map_err(|error| call("read the local APIC", error))?;
        Ok(lapic.regs.map(|byte| byte as u8))
    }

    fn set_local_apic(&self, registers: &LocalApic) -> Result<()> {
        let lapic = kvm_lapic_state { regs: registers.map(|byte| byte as _) };
        self.fd.set_lapic(&lapic).map_err(|error| call("set the local APIC", error))
    }

    fn tsc_khz(&self) -> Option<u32> {
        self.fd.get_tsc_khz().ok().filter(|&khz| khz > 0)
    }

    fn save(&self, msrs: &[u32]) -> Result<SavedVcpu> {
        let cpuid = self
            .fd
            .get_cpuid2(KVM_MAX_CPUID_ENTRIES)
            .map_err(|error| call("read the processor's description", error))?;
        let xsave = self.fd.get_xsave().map_err(|error| call("read the vector registers", error))?;
        let xcrs = self.fd.get_xcrs().map_err(|error| call("read the extended control registers", error))?;
        let debug = self.fd.get_debug_regs().map_err(|error| call("read the debug registers", error))?;
        let lapic = self.local_apic()?;
        let events = self.fd.get_vcpu_events().map_err(|error| call("read pending events", error))?;
        let mp_state = self.fd.get_mp_state().map_err(|error| call("read the processor's mode", error))?;
        let xcrs = xcrs.xcrs.iter().take(xcrs.nr_xcrs as usize).map(|entry| (entry.xcr, entry.value));
        let [dr0, dr1, dr2, dr3] = debug.db;
        Ok(SavedVcpu {
            registers: self.registers()?,
            special: self.special_registers()?,
            cpuid: cpuid.as_slice().iter().map(CpuidEntry::from).collect(),
            msrs: self.save_msrs(msrs)?,
            xsave: xsave.to_bytes(),
            xcrs: xcrs.collect(),
            debug: [dr0, dr1, dr2, dr3, debug.dr6, debug.dr7],
            lapic: lapic.to_vec(),
            events: events.to_bytes(),
            mp_state: mp_state.mp_state,
            tsc_khz: self.tsc_khz(),
        })
    }

    /// The order matters: the description decides which registers exist; the mode comes before the local
    /// APIC, whose timer needs the time stamp counter; pending events come last because setting registers
    /// clears them.
    fn restore(&self, saved: &SavedVcpu) -> Result<()> {
        let SavedVcpu {
            registers,
            special,
            cpuid,
            msrs,
            xsave,
            xcrs,
            debug: [dr0, dr1, dr2, dr3, dr6, dr7],
            lapic,
            events,
            mp_state,
            tsc_khz,
        } = saved;
        let xsave = kvm_xsave::from_bytes(xsave).ok_or(malformed("set the vector registers"))?;
        let lapic = lapic.as_slice().try_into().map_err(|_| malformed("set the local APIC"))?;
        let events = kvm_vcpu_events::from_bytes(events).ok_or(malformed("set pending events"))?;
        self.set_cpuid(cpuid)?;
        if let Some(khz) = tsc_khz.filter(|&khz| Some(khz) != self.tsc_khz()) {
            self.fd.set_tsc_khz(khz).map_err(|error| call("set the clock frequency", error))?;
        }
        self.fd
            .set_mp_state(kvm_mp_state { mp_state: *mp_state })
            .map_err(|error| call("set the processor's mode", error))?;
        self.set_registers(registers)?;
        self.set_special_registers(special)?;
        // SAFETY: the structure is complete, and no larger state was enabled for this process.
        unsafe { self.fd.set_xsave(&xsave) }.map_err(|error| call("set the vector registers", error))?;
        self.fd
            .set_xcrs(&kvm_xcrs_from(xcrs).ok_or(malformed("set the extended control registers"))?)
            .map_err(|error| call("set the extended control registers", error))?;
        let debug =
            kvm_debugregs { db: [*dr0, *dr1, *dr2, *dr3], dr6: *dr6, dr7: *dr7, ..Default::default() };
        self.fd.set_debug_regs(&debug).map_err(|error| call("set the debug registers", error))?;
        self.set_local_apic(lapic)?;
        self.restore_msrs(msrs)?;
        self.fd.set_vcpu_events(&events).map_err(|error| call("set pending events", error))
    }
}

fn kvm_xcrs_from(xcrs: &[(u32, u64)]) -> Option<kvm_xcrs> {
    let mut block = kvm_xcrs { nr_xcrs: u32::try_from(xcrs.len()).ok()?, ..Default::default() };
    let slots = block.xcrs.get_mut(..xcrs.len())?;
    for (slot, &(xcr, value)) in slots.iter_mut().zip(xcrs) {
        *slot = kvm_xcr { xcr, value, reserved: 0 };
    }
    Some(block)
}

/// A second mapping of the page in which the kernel looks for `immediate_exit`, so that another thread can
/// set it while the vCPU's own thread is inside the guest, and even after the vCPU is gone.
struct RunPage {
    page: NonNull<u8>,
}

// SAFETY: the page is only accessed through an atomic byte.
unsafe impl Send for RunPage {}
// SAFETY: as above.
unsafe impl Sync for RunPage {}

impl RunPage {
    fn map(fd: &VcpuFd) -> Result<Self> {
        // SAFETY: a fresh shared mapping of the vCPU's first page; the kernel checks descriptor and range.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                RUN_PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        match NonNull::new(page.cast::<u8>()) {
            Some(mapped) if page != libc::MAP_FAILED => Ok(Self { page: mapped }),
            _ => Err(Error::Call { what: "map a processor's run page", source: io::Error::last_os_error() }),
        }
    }
}

impl Kick for RunPage {
    fn set(&self, leave: bool) {
        // SAFETY: the byte lies inside the mapping, which lives as long as `self`, and is only ever accessed
        // atomically from here; the kernel reads it with a single load.
        let immediate_exit = unsafe { AtomicU8::from_ptr(self.page.as_ptr().add(IMMEDIATE_EXIT_OFFSET)) };
        immediate_exit.store(leave.into(), Ordering::SeqCst);
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length, and nobody else has the address.
        unsafe { libc::munmap(self.page.as_ptr().cast(), RUN_PAGE) };
    }
}
