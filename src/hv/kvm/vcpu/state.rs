//! The state of a processor as a whole: saving it, and going on with it.

use kvm_bindings::{kvm_debugregs, kvm_mp_state, kvm_vcpu_events, kvm_xcr, kvm_xcrs, kvm_xsave};

use super::{KvmVcpu, Raised, SOFTWARE_EXCEPTIONS};
use crate::hv::kvm::call;
use crate::hv::kvm::plain::Plain;
use crate::hv::kvm::vm::malformed;
use crate::hv::{CpuidEntry, Error, Msr, Result, SavedVcpu, TIME_STAMP_COUNTER, Vcpu};

/// The local APIC's timer that waits for a value of the time stamp counter; 0 if it does not.
const TSC_DEADLINE: u32 = 0x6e0;
/// In EDX of CPUID leaf 0x80000007: the time stamp counter always counts at the same rate, so that kernels measure time
/// by it alone.
const LEAF_POWER_EDX_STEADY_TSC: u32 = 1 << 8;

impl KvmVcpu {
    /// Everything that there is to be saved.
    pub(super) fn state(&self, msrs: &[u32]) -> Result<SavedVcpu> {
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
    pub(super) fn set_state(&self, saved: &SavedVcpu) -> Result<()> {
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
}

fn kvm_xcrs_from(xcrs: &[(u32, u64)]) -> Option<kvm_xcrs> {
    let mut block = kvm_xcrs { nr_xcrs: u32::try_from(xcrs.len()).ok()?, ..Default::default() };
    let slots = block.xcrs.get_mut(..xcrs.len())?;
    for (slot, &(xcr, value)) in slots.iter_mut().zip(xcrs) {
        *slot = kvm_xcr { xcr, value, reserved: 0 };
    }
    Some(block)
}
