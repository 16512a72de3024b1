//! One KVM vCPU: entering the guest, understanding why it came back, reading and writing its state.

use std::cell::Cell;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::{
    CpuId, KVM_EXIT_DEBUG, KVM_EXIT_FAIL_ENTRY, KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR,
    KVM_EXIT_IO, KVM_EXIT_IO_OUT, KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN, KVM_EXIT_X86_WRMSR, KVM_GUESTDBG_ENABLE,
    KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP, KVM_MAX_CPUID_ENTRIES, KVM_MP_STATE_HALTED,
    KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_UNINITIALIZED, KVM_VCPUEVENT_VALID_SHADOW, Msrs, kvm_debugregs,
    kvm_guest_debug, kvm_guest_debug_arch, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_run,
    kvm_sregs, kvm_vcpu_events, kvm_xcr, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;

use super::call;
use super::exchange::{Changed, Exchange};
use super::plain::Plain;
use super::vm::malformed;
use crate::hv::{
    Activity, CpuidEntry, Direction, Error, Exception, Exit, InternalError, Kick, LocalApic,
    MOST_BREAKPOINTS, Mmio, Msr, Pio, Registers, Result, SavedVcpu, SpecialRegisters, TIME_STAMP_COUNTER,
    Vcpu, Vectors,
};

/// Where `immediate_exit` lies in `struct kvm_run`.
const IMMEDIATE_EXIT_OFFSET: usize = std::mem::offset_of!(kvm_run, immediate_exit);
const RUN_PAGE: usize = 4096;
/// The bit of DR7 that is always set.
const DR7_FIXED: u64 = 1 << 10;

/// EFER and the bases of FS, GS and the local APIC, which can be reached in two ways.
const MSRS_IN_SPECIAL_REGISTERS: [u32; 4] = [0xc000_0080, 0xc000_0100, 0xc000_0101, 0x1b];

/// The local APIC's timer that waits for a value of the time stamp counter; 0 if it does not.
const TSC_DEADLINE: u32 = 0x6e0;
/// In EDX of CPUID leaf 0x80000007: the time stamp counter always counts at the same rate, so that kernels measure time
/// by it alone.
const LEAF_POWER_EDX_STEADY_TSC: u32 = 1 << 8;

/// One KVM vCPU.
#[derive(Debug)]
pub struct KvmVcpu {
    fd: VcpuFd,
    run_size: usize,
    exchange: Exchange,
    scales_tsc: bool,
    /// What it is told to stop at while it does not single-step.
    breakpoints: Cell<kvm_guest_debug_arch>,
    stepping: Cell<bool>,
    raised: Cell<Option<Raised>>,
}

/// A software exception that was raised, and the registers at that moment. KVM does not tell of such exceptions while
/// they wait: it expects that the instruction is executed again, which is over here. Without exits in between, it waits
/// as long as no register has changed.
#[derive(Debug, Clone, Copy)]
struct Raised {
    vector: u8,
    registers: Registers,
}

/// Those of `int3` and `into`.
const SOFTWARE_EXCEPTIONS: [u8; 2] = [3, 4];

impl KvmVcpu {
    /// `can_exchange`, `scales_tsc`: whether this KVM has `KVM_CAP_SYNC_REGS` and `KVM_CAP_TSC_CONTROL`.
    pub(super) fn new(fd: VcpuFd, run_size: usize, can_exchange: bool, scales_tsc: bool) -> Self {
        let exchange = Exchange::new(can_exchange);
        Self {
            fd,
            run_size,
            exchange,
            scales_tsc,
            breakpoints: Cell::default(),
            stepping: Cell::default(),
            raised: Cell::default(),
        }
    }

    fn set_general(&self, registers: &kvm_regs) -> Result<()> {
        self.fd.set_regs(registers).map_err(|error| call("set a processor's registers", error))
    }

    fn set_special(&self, registers: &kvm_sregs) -> Result<()> {
        self.fd.set_sregs(registers).map_err(|error| call("set a processor's control registers", error))
    }

    fn set_events(&self, events: &kvm_vcpu_events) -> Result<()> {
        self.fd.set_vcpu_events(events).map_err(|error| call("set pending events", error))
    }

    /// Brings everything into the processor that would travel with the next entry, for calls that depend on it
    /// or change the same state in another way.
    fn settle(&self) -> Result<()> {
        let Changed { general, special, events } = self.exchange.take_back();
        general.map_or(Ok(()), |general| self.set_general(&general))?;
        special.map_or(Ok(()), |special| self.set_special(&special))?;
        events.map_or(Ok(()), |events| self.set_events(&events))
    }

    fn put_events(&self, events: kvm_vcpu_events) -> Result<()> {
        if self.exchange.is_used() {
            self.exchange.change(|changed| changed.events = Some(events));
            return Ok(());
        }
        self.set_events(&events)
    }

    fn events(&self) -> Result<kvm_vcpu_events> {
        match self.exchange.events(&self.fd) {
            Some(events) => Ok(events),
            None => self.fd.get_vcpu_events().map_err(|error| call("read pending events", error)),
        }
    }

    /// The software exception that waits, if there is one.
    fn waiting_exception(&self) -> Result<Option<u8>> {
        match self.raised.get() {
            Some(raised) if raised.registers == self.registers()? => Ok(Some(raised.vector)),
            _ => Ok(None),
        }
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
            KVM_EXIT_X86_WRMSR => {
                // SAFETY: as above.
                let msr = unsafe { run.__bindgen_anon_1.msr };
                Ok(Exit::MsrWrite(Msr { index: msr.index, value: msr.data }))
            }
            KVM_EXIT_DEBUG => Ok(Exit::Breakpoint),
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

    /// Single-steps, or else stops at breakpoints.
    fn set_guest_debug(&self) -> Result<()> {
        let arch = self.breakpoints.get();
        let control = match self.stepping.get() {
            true => KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP,
            false if arch.debugreg[7] != 0 => KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP,
            false => 0,
        };
        let debug = kvm_guest_debug { control, arch, ..Default::default() };
        self.fd.set_guest_debug(&debug).map_err(|error| call("set breakpoints", error))
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
        let ahead = self.restore_time_stamp_counter(saved)?;
        let others = saved.iter().filter(|msr| msr.index != TIME_STAMP_COUNTER).map(|&msr| match msr {
            Msr { index: TSC_DEADLINE, value: 1.. } => Msr { value: msr.value.wrapping_add(ahead), ..msr },
            _ => msr,
        });
        for refused in self.set_msrs_but_refused(&others.collect::<Vec<_>>())? {
            if self.msr(refused.index)? != Some(refused.value) {
                return Err(Error::MsrRefused { index: refused.index });
            }
        }
        Ok(())
    }

    /// Sets the time stamp counter, before anything that depends on it; by how much it is ahead of what it should be.
    /// KVM gives processors that are set to about the same, within a second, exactly the same. There are KVMs that take
    /// any value, and show guests the host's counter nevertheless (measured on one without hardware virtualization).
    fn restore_time_stamp_counter(&self, saved: &[Msr]) -> Result<u64> {
        const MOST_MILLISECONDS: u64 = 1000;
        let Some(wanted) = saved.iter().find(|msr| msr.index == TIME_STAMP_COUNTER) else { return Ok(0) };
        self.set_msrs(&[*wanted])?;
        let found = self.msr(TIME_STAMP_COUNTER)?.unwrap_or(wanted.value);
        let ahead = found.wrapping_sub(wanted.value);
        let least = u64::from(self.tsc_khz().unwrap_or(0)) * MOST_MILLISECONDS;
        Ok(if ahead.cast_signed().unsigned_abs() < least { 0 } else { ahead })
    }

    /// Has the time stamp counter count as fast as it did, if it makes a difference to the guest.
    fn restore_frequency(&self, saved: &SavedVcpu) -> Result<()> {
        /// What KVM itself takes for the same: 250 in a million.
        const TOLERANCE: u32 = 4000;
        let (Some(khz), Some(host)) = (saved.tsc_khz, self.tsc_khz()) else { return Ok(()) };
        if khz == host {
            return Ok(());
        }
        if self.scales_tsc {
            return self.fd.set_tsc_khz(khz).map_err(|error| call("set the clock frequency", error));
        }
        if khz.abs_diff(host) <= host / TOLERANCE {
            return Ok(());
        }
        let steady = |leaf: &CpuidEntry| leaf.edx & LEAF_POWER_EDX_STEADY_TSC != 0;
        if saved.cpuid.iter().any(|leaf| leaf.function == 0x8000_0007 && steady(leaf)) {
            return Err(Error::Frequency { saved: khz, host });
        }
        log::warn!(
            "the guest's time stamp counter counted at {khz} kHz and counts at {host} kHz from now on; only guests that go \
             by the hypervisor's clock tell the right time"
        );
        Ok(())
    }

    /// Sets every register that can be set; returns the others.
    fn set_msrs_but_refused(&self, values: &[Msr]) -> Result<Vec<Msr>> {
        let mut refused = Vec::new();
        let mut rest = values;
        // The kernel stops at the first register it does not take: go on behind it.
        while !rest.is_empty() {
            let entries: Vec<_> = rest
                .iter()
                .map(|msr| kvm_msr_entry { index: msr.index, data: msr.value, ..Default::default() })
                .collect();
            let set = self
                .fd
                .set_msrs(&msrs(&entries)?)
                .map_err(|error| call("set model-specific registers", error))?;
            refused.extend(rest.get(set));
            rest = rest.get(set + 1..).unwrap_or_default();
        }
        Ok(refused)
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
        if self.exchange.is_used() {
            self.exchange.hand_over(&mut self.fd);
        }
        match self.fd.run() {
            Ok(_) => {
                self.raised.set(None);
                self.exit()
            }
            // EAGAIN: a processor that was waiting for its start-up interrupt has got it.
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => Ok(Exit::Interrupted),
            Err(error) => Err(call("run the guest", error)),
        }
    }

    fn kick_handle(&self) -> Result<Arc<dyn Kick>> {
        Ok(Arc::new(RunPage::map(&self.fd)?))
    }

    fn registers(&self) -> Result<Registers> {
        if let Some(general) = self.exchange.general(&self.fd) {
            return Ok(Registers::from(&general));
        }
        let registers = self.fd.get_regs().map_err(|error| call("read a processor's registers", error))?;
        Ok(Registers::from(&registers))
    }

    fn set_registers(&self, registers: &Registers) -> Result<()> {
        let registers = registers.into();
        if self.exchange.is_used() {
            self.exchange.change(|changed| changed.general = Some(registers));
            return Ok(());
        }
        self.set_general(&registers)
    }

    fn special_registers(&self) -> Result<SpecialRegisters> {
        if let Some(special) = self.exchange.special(&self.fd) {
            return Ok(SpecialRegisters::from(&special));
        }
        let special =
            self.fd.get_sregs().map_err(|error| call("read a processor's control registers", error))?;
        Ok(SpecialRegisters::from(&special))
    }

    fn set_special_registers(&self, registers: &SpecialRegisters) -> Result<()> {
        let registers = registers.into();
        if self.exchange.is_used() {
            self.exchange.change(|changed| changed.special = Some(registers));
            return Ok(());
        }
        self.set_special(&registers)
    }

    fn read_vectors(&self, vectors: &mut Vectors) -> Result<()> {
        let xsave = self.fd.get_xsave().map_err(|error| call("read the vector registers", error))?;
        xsave.copy_to(&mut vectors.0);
        Ok(())
    }

    fn set_vectors(&self, vectors: &Vectors) -> Result<()> {
        let xsave = kvm_xsave::from_bytes(&vectors.0).ok_or(malformed("set the vector registers"))?;
        // SAFETY: the structure is complete, and no larger state was enabled for this process.
        unsafe { self.fd.set_xsave(&xsave) }.map_err(|error| call("set the vector registers", error))
    }

    fn enabled_state(&self) -> Result<u64> {
        let xcrs = self.fd.get_xcrs().map_err(|error| call("read the extended control registers", error))?;
        let entries = xcrs.xcrs.iter().take(xcrs.nr_xcrs as usize);
        Ok(entries.into_iter().find(|entry| entry.xcr == 0).map_or(0, |entry| entry.value))
    }

    fn msr(&self, index: u32) -> Result<Option<u64>> {
        if MSRS_IN_SPECIAL_REGISTERS.contains(&index) && self.exchange.has_changes() {
            self.settle()?;
        }
        Ok(self.save_msrs(&[index])?.first().map(|msr| msr.value))
    }

    fn set_msr(&self, msr: Msr) -> Result<bool> {
        self.settle()?;
        let entry = kvm_msr_entry { index: msr.index, data: msr.value, ..Default::default() };
        let set = self
            .fd
            .set_msrs(&msrs(&[entry])?)
            .map_err(|error| call("set a model-specific register", error))?;
        Ok(set == 1)
    }

    fn set_msrs(&self, msrs: &[Msr]) -> Result<usize> {
        let refused = self.set_msrs_but_refused(msrs)?;
        for Msr { index, value } in &refused {
            log::debug!("KVM does not take the value {value:#x} for the model-specific register {index:#x}");
        }
        Ok(msrs.len() - refused.len())
    }

    fn raise(&self, exception: Exception) -> Result<()> {
        let mut events = self.events()?;
        events.exception.injected = 1;
        events.exception.pending = 0;
        events.exception.nr = exception.vector;
        events.exception.has_error_code = exception.error_code.is_some().into();
        events.exception.error_code = exception.error_code.unwrap_or(0);
        // No optional part: an NMI or a start-up interrupt that has arrived meanwhile would be lost.
        events.flags = 0;
        if SOFTWARE_EXCEPTIONS.contains(&exception.vector) {
            let registers = self.registers()?;
            self.raised.set(Some(Raised { vector: exception.vector, registers }));
        }
        self.put_events(events)
    }

    fn set_debug_status(&self, bits: u64) -> Result<()> {
        let mut debug = self.fd.get_debug_regs().map_err(|error| call("read the debug registers", error))?;
        debug.dr6 |= bits;
        self.fd.set_debug_regs(&debug).map_err(|error| call("set the debug registers", error))
    }

    fn set_breakpoints(&self, at: &[u64]) -> Result<()> {
        let mut debug = kvm_guest_debug_arch::default();
        for (number, &address) in at.iter().take(MOST_BREAKPOINTS).enumerate() {
            debug.debugreg[number] = address;
            // Local and global enable bits of this one; its kind stays 0, execution.
            debug.debugreg[7] |= 3 << (2 * number) | DR7_FIXED;
        }
        self.breakpoints.set(debug);
        self.set_guest_debug()
    }

    fn refuse_msr_write(&mut self) {
        let run = self.fd.get_kvm_run();
        if run.exit_reason == KVM_EXIT_X86_WRMSR {
            run.__bindgen_anon_1.msr.error = 1;
        }
    }

    fn exchange_registers(&mut self, on: bool) {
        self.exchange.switch(on, &mut self.fd);
    }

    fn set_single_step(&self, on: bool) -> Result<()> {
        self.stepping.set(on);
        self.set_guest_debug()
    }

    fn set_cpuid(&self, entries: &[CpuidEntry]) -> Result<()> {
        self.settle()?;
        let entries: Vec<_> = entries.iter().map(Into::into).collect();
        let cpuid = CpuId::from_entries(&entries).map_err(|_| malformed("describe the processor"))?;
        self.fd.set_cpuid2(&cpuid).map_err(|error| call("describe the processor to the guest", error))
    }

    fn cpuid(&self) -> Result<Vec<CpuidEntry>> {
        let cpuid = self
            .fd
            .get_cpuid2(KVM_MAX_CPUID_ENTRIES)
            .map_err(|error| call("read the processor's description", error))?;
        Ok(cpuid.as_slice().iter().map(CpuidEntry::from).collect())
    }

    fn local_apic(&self) -> Result<LocalApic> {
        let lapic = self.fd.get_lapic().map_err(|error| call("read the local APIC", error))?;
        Ok(lapic.regs.map(|byte| byte as u8))
    }

    fn set_local_apic(&self, registers: &LocalApic) -> Result<()> {
        self.settle()?;
        let lapic = kvm_lapic_state { regs: registers.map(|byte| byte as _) };
        self.fd.set_lapic(&lapic).map_err(|error| call("set the local APIC", error))
    }

    fn activity(&self) -> Result<Activity> {
        // To ask is to let an INIT or start-up interrupt that waits take effect, which changes all registers.
        self.settle()?;
        let state = self.fd.get_mp_state().map_err(|error| call("read the processor's mode", error))?;
        Ok(match state.mp_state {
            KVM_MP_STATE_HALTED => Activity::Halted,
            KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED => Activity::NotStarted,
            _ => Activity::Running,
        })
    }

    fn halt(&mut self) -> Result<()> {
        // The shadow of an `sti` may not outlast the instruction behind it, or no interrupt ends the sleep.
        let mut events = self.events()?;
        events.interrupt.shadow = 0;
        events.flags = KVM_VCPUEVENT_VALID_SHADOW;
        self.put_events(events)?;
        let state = kvm_mp_state { mp_state: KVM_MP_STATE_HALTED };
        self.fd.set_mp_state(state).map_err(|error| call("set the processor's mode", error))
    }

    fn is_delivering(&self) -> Result<bool> {
        let events = self.events()?;
        let exception = events.exception.injected | events.exception.pending;
        let told = exception | events.interrupt.injected | events.nmi.injected != 0;
        Ok(told || self.waiting_exception()?.is_some())
    }

    fn last_interrupt(&self) -> Result<Option<u8>> {
        // It is kept when it has been delivered. Vector 0 is an exception's.
        let vector = self.events()?.interrupt.nr;
        Ok((vector != 0).then_some(vector))
    }

    fn tsc_khz(&self) -> Option<u32> {
        self.fd.get_tsc_khz().ok().filter(|&khz| khz > 0)
    }

    fn save(&self, msrs: &[u32]) -> Result<SavedVcpu> {
        self.settle()?;
        // First of all: KVM then accepts an INIT or SIPI that waits, which changes everything else. Events that were
        // read before would tell of an INIT that is not waiting any more.
        let mp_state = self.fd.get_mp_state().map_err(|error| call("read the processor's mode", error))?;
        let xsave = self.fd.get_xsave().map_err(|error| call("read the vector registers", error))?;
        let xcrs = self.fd.get_xcrs().map_err(|error| call("read the extended control registers", error))?;
        let debug = self.fd.get_debug_regs().map_err(|error| call("read the debug registers", error))?;
        let lapic = self.local_apic()?;
        let mut events = self.fd.get_vcpu_events().map_err(|error| call("read pending events", error))?;
        if let Some(vector) = self.waiting_exception()? {
            events.exception.injected = 1;
            events.exception.nr = vector;
        }
        let xcrs = xcrs.xcrs.iter().take(xcrs.nr_xcrs as usize).map(|entry| (entry.xcr, entry.value));
        let [dr0, dr1, dr2, dr3] = debug.db;
        Ok(SavedVcpu {
            registers: self.registers()?,
            special: self.special_registers()?,
            cpuid: self.cpuid()?,
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
            tsc_khz: _,
        } = saved;
        let xsave = kvm_xsave::from_bytes(xsave).ok_or(malformed("set the vector registers"))?;
        let lapic = lapic.as_slice().try_into().map_err(|_| malformed("set the local APIC"))?;
        let events = kvm_vcpu_events::from_bytes(events).ok_or(malformed("set pending events"))?;
        // What was on its way belongs to the state that is replaced.
        self.exchange.take_back();
        self.set_cpuid(cpuid)?;
        self.restore_frequency(saved)?;
        self.fd
            .set_mp_state(kvm_mp_state { mp_state: *mp_state })
            .map_err(|error| call("set the processor's mode", error))?;
        self.set_general(&registers.into())?;
        self.set_special(&special.into())?;
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
        let vector = events.exception.nr;
        let waits = events.exception.injected != 0 && SOFTWARE_EXCEPTIONS.contains(&vector);
        self.raised.set(waits.then_some(Raised { vector, registers: *registers }));
        self.set_events(&events)
    }

    fn tell_stopped(&self) -> Result<()> {
        match self.fd.kvmclock_ctrl() {
            // It does not use that clock.
            Err(error) if error.errno() == libc::EINVAL => Ok(()),
            told => told.map_err(|error| call("tell the guest that it was stopped", error)),
        }
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
