//! Whether a guest has halted for good: with interrupts off on every processor.
//!
//! That is how a kernel without ACPI switches itself off, and no hypervisor with an interrupt controller in the
//! kernel ever comes back from it. Processors that were never started count as halted, as only another one could
//! start them. A non-maskable interrupt would wake a processor up even then; it is looked whether a local APIC is
//! set to deliver any. (An IOAPIC could be as well. Nothing that halts for good does that.)

use std::time::Duration;

use super::VcpuThread;
use crate::hv::{self, Activity, Vcpu};
use crate::x86::lapic;

/// How long a processor may take to come to rest. One that sleeps in the guest takes microseconds; one that waits
/// for a device, say for a slow console, is not halted anyway.
const PATIENCE: Duration = Duration::from_millis(20);

/// RFLAGS.IF.
const INTERRUPTS_ON: u64 = 1 << 9;

/// Whether none of these processors, which are all of a machine, will ever execute another instruction.
///
/// All are held at once for the question, for some ten microseconds. Processors that are paused, stopped or at work
/// make the answer no. Not for use while another thread asks the same.
pub fn all_halted_for_good<V: Vcpu>(vcpus: &[VcpuThread<V>]) -> bool {
    let held = vcpus.iter().take_while(|vcpu| vcpu.hold()).count();
    let (held, others) = vcpus.split_at(held);
    let halted = others.is_empty()
        && held.iter().all(|vcpu| vcpu.shared.gate.wait_at_rest_for(PATIENCE))
        && held.iter().all(|vcpu| is_halted_for_good(&*vcpu.shared.vcpu()).unwrap_or(false));
    held.iter().for_each(|vcpu| vcpu.shared.gate.release());
    halted
}

fn is_halted_for_good(vcpu: &impl Vcpu) -> hv::Result<bool> {
    Ok(match vcpu.activity()? {
        Activity::Running => false,
        Activity::NotStarted => true,
        Activity::Halted => {
            vcpu.registers()?.rflags & INTERRUPTS_ON == 0 && !lapic::delivers_nmi(&vcpu.local_apic()?)
        }
    })
}

#[cfg(test)]
#[path = "halted_test.rs"]
mod tests;
