//! The leaves by which the hypervisor speaks of itself, from 0x40000000 on.
//!
//! KVM offers them like any other; here is what lodger takes away or adds. The clock needs neither: KVM
//! announces it (CLOCKSOURCE2 and, where it is steady, CLOCKSOURCE_STABLE) exactly if it works. The hint in EDX
//! that processors are never preempted stays clear, as they are.

use super::CpuidEntry;

const SIGNATURE: u32 = 0x4000_0000;
const FEATURES: u32 = 0x4000_0001;
const TIMING: u32 = 0x4000_0010;

/// EBX, ECX, EDX of [`SIGNATURE`] under KVM.
const KVM: [u32; 3] =
    [u32::from_le_bytes(*b"KVMK"), u32::from_le_bytes(*b"VMKV"), u32::from_le_bytes(*b"M\0\0\0")];
/// KVM's local APICs count at 1 GHz.
const APIC_BUS_KHZ: u32 = 1_000_000;

const CLOCKSOURCE: u32 = 1 << 0;
const NO_IO_DELAY: u32 = 1 << 1;
const CLOCKSOURCE2: u32 = 1 << 3;
const STEAL_TIME: u32 = 1 << 5;
const END_OF_INTERRUPT: u32 = 1 << 6;
const UNHALT: u32 = 1 << 7;
const TLB_FLUSH: u32 = 1 << 9;
const SEND_IPI: u32 = 1 << 11;
const SCHED_YIELD: u32 = 1 << 13;
const MAP_RANGE: u32 = 1 << 16;
const CLOCKSOURCE_STABLE: u32 = 1 << 24;

/// Everything in EAX of [`FEATURES`] that a guest uses by a hypercall. The rest works through memory and
/// model-specific registers: the clock, stolen time (on which TLB_FLUSH relies, too), page faults that KVM
/// reports later, ends of interrupts, the switch for polling.
const BY_HYPERCALL: u32 = UNHALT | SEND_IPI | SCHED_YIELD | MAP_RANGE;

/// What KVM has had since Linux 4.16 (2018) on all hosts: for guests that move to older ones.
const LONG_STANDING: u32 = CLOCKSOURCE
    | NO_IO_DELAY
    | CLOCKSOURCE2
    | STEAL_TIME
    | END_OF_INTERRUPT
    | UNHALT
    | TLB_FLUSH
    | CLOCKSOURCE_STABLE;

/// Takes away every feature that needs a hypercall.
pub fn hide_hypercalls(entries: &mut [CpuidEntry]) {
    keep_only(entries, !BY_HYPERCALL);
}

/// Takes away what older hosts do not have.
pub(in crate::x86) fn keep_long_standing(entries: &mut [CpuidEntry]) {
    keep_only(entries, LONG_STANDING);
}

fn keep_only(entries: &mut [CpuidEntry], features: u32) {
    if is_kvm(entries) {
        let leaf = entries.iter_mut().filter(|entry| entry.function == FEATURES);
        leaf.for_each(|entry| entry.eax &= features);
    }
}

fn is_kvm(entries: &[CpuidEntry]) -> bool {
    let signature = entries.iter().find(|entry| entry.function == SIGNATURE);
    signature.is_some_and(|entry| [entry.ebx, entry.ecx, entry.edx] == KVM)
}

/// Adds the leaf by which a hypervisor tells the frequencies of the time stamp counter and the APIC's timer, so
/// that the guest need not measure them. Only where KVM's own leaf leads to it.
pub(super) fn add_timing(entries: &mut Vec<CpuidEntry>, tsc_khz: Option<u32>) {
    if !is_kvm(entries) {
        return;
    }
    let signature = entries.iter_mut().filter(|entry| entry.function == SIGNATURE);
    signature.for_each(|entry| entry.eax = entry.eax.max(TIMING));
    entries.retain(|entry| entry.function != TIMING);
    entries.push(CpuidEntry {
        function: TIMING,
        eax: tsc_khz.unwrap_or(0),
        ebx: APIC_BUS_KHZ,
        ..CpuidEntry::default()
    });
}
