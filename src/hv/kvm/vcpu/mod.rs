//! One KVM vCPU: entering the guest, reading and writing its registers.
//!
//! `exit` understands why it came back, `state` saves and restores all of it, `exchange` has registers travel with
//! entries and exits, `run_page` calls it back from the guest.

mod exchange;
mod exit;
mod msrs;
mod run_page;
mod state;

use std::cell::Cell;
use std::sync::Arc;

use kvm_bindings::{
    CpuId, KVM_EXIT_X86_WRMSR, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP,
    KVM_MAX_CPUID_ENTRIES, KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_UNINITIALIZED,
    KVM_VCPUEVENT_VALID_SHADOW, kvm_guest_debug, kvm_guest_debug_arch, kvm_lapic_state, kvm_mp_state,
    kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xsave,
};
use kvm_ioctls::VcpuFd;

use self::exchange::{Changed, Exchange};
use self::msrs::msrs;
use self::run_page::RunPage;
use super::call;
use super::plain::Plain;
use super::vm::malformed;
use crate::hv::{
    Activity, CpuidEntry, Exception, Exit, Kick, LocalApic, MOST_BREAKPOINTS, Msr, Registers, Result,
    SavedVcpu, SpecialRegisters, Vcpu, Vectors,
};

/// The bit of DR7 that is always set.
const DR7_FIXED: u64 = 1 << 10;

/// EFER and the bases of FS, GS and the local APIC, which can be reached in two ways.
const MSRS_IN_SPECIAL_REGISTERS: [u32; 4] = [0xc000_0080, 0xc000_0100, 0xc000_0101, 0x1b];

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
        self.state(msrs)
    }

    fn restore(&self, saved: &SavedVcpu) -> Result<()> {
        self.set_state(saved)
    }

    fn tell_stopped(&self) -> Result<()> {
        match self.fd.kvmclock_ctrl() {
            // It does not use that clock.
            Err(error) if error.errno() == libc::EINVAL => Ok(()),
            told => told.map_err(|error| call("tell the guest that it was stopped", error)),
        }
    }
}
