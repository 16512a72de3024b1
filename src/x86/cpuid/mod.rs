//! What the guest's `cpuid` instruction answers.
//!
//! Made in two steps. Which features a machine has is decided once, by [`CpuModel::choose`](super::model) from
//! those that the host can give a guest. [`guest_cpuid`] then changes, for each processor, what would be untrue
//! of it: who it is, how many there are and how they are arranged (`topology`), and what the hypervisor says
//! of itself ([`paravirtual`]). Leaves: Intel SDM volume 2 (CPUID), AMD APM volume 3 appendix E; those from
//! 0x40000000 on: Linux, Documentation/virt/kvm/x86/cpuid.rst.

pub mod paravirtual;
mod topology;

use std::arch::x86_64::__cpuid;

use super::topology::Topology;
use crate::hv::CpuidEntry;

const VENDOR: u32 = 0;
pub(super) const FEATURES: u32 = 1;
const EXTENDED_MAXIMUM: u32 = 0x8000_0000;
const SIZES: u32 = 0x8000_0008;

/// A hypervisor is at work.
pub(super) const FEATURES_ECX_HYPERVISOR: u32 = 1 << 31;

/// Who a processor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VcpuIdentity {
    /// Its local APIC's number.
    pub apic_id: u32,
    /// Where that places it among the machine's processors.
    pub topology: Topology,
    /// Frequency of its time stamp counter, where the host tells.
    pub tsc_khz: Option<u32>,
}

impl VcpuIdentity {
    /// The only processor of its machine.
    pub fn single(apic_id: u32) -> Self {
        Self { apic_id, topology: Topology::SINGLE, tsc_khz: None }
    }
}

/// What does not work on this host, so that guests are better not told that it does.
///
/// All come with a KVM that interprets ring 0; on others none is set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quirks {
    /// A hypercall of the guest never returns.
    pub hypercalls_hang: bool,
    /// `cmpxchg16b` is completed outside KVM, some 25 µs each time; kernels that do not see it do without.
    pub no_cmpxchg16b: bool,
    /// The guest sees the host's time stamp counter, whatever it is set to. A kernel that measures time by it alone
    /// would be wrong after a restore, by days if the host was started anew: it is not told that it can. The
    /// hypervisor's clock is right.
    pub counter_is_hosts: bool,
}

/// How many bits a physical address has on this host, which is what a guest's can have at most.
pub fn host_address_bits() -> u8 {
    const WITHOUT_LEAF: u8 = 36;
    match __cpuid(EXTENDED_MAXIMUM).eax {
        0..SIZES => WITHOUT_LEAF,
        _ => __cpuid(SIZES).eax as u8,
    }
}

/// How many bits a physical address of this guest has.
pub(super) fn guest_address_bits(entries: &[CpuidEntry]) -> u32 {
    const WITHOUT_LEAF: u32 = 36;
    find(entries, SIZES, 0).map_or(WITHOUT_LEAF, |sizes| sizes.eax & 0xff)
}

/// The leaves for one processor, made from those that the machine's processors have in common.
pub fn guest_cpuid(common: &[CpuidEntry], vcpu: VcpuIdentity) -> Vec<CpuidEntry> {
    let mut entries = common.to_vec();
    topology::describe(&mut entries, &vcpu);
    paravirtual::add_timing(&mut entries, vcpu.tsc_khz);
    entries
}

/// Whether these leaves are an AMD processor's (or that of Hygon, which makes the same).
pub(super) fn is_amd(entries: &[CpuidEntry]) -> bool {
    let name = |text: &[u8; 12]| {
        let word = |at: usize| u32::from_le_bytes([text[at], text[at + 1], text[at + 2], text[at + 3]]);
        (word(0), word(4), word(8))
    };
    let vendor = find(entries, VENDOR, 0).map(|entry| (entry.ebx, entry.edx, entry.ecx));
    vendor.is_some_and(|found| found == name(b"AuthenticAMD") || found == name(b"HygonGenuine"))
}

/// The answer to a question, if there is one.
pub(super) fn find(entries: &[CpuidEntry], function: u32, index: u32) -> Option<&CpuidEntry> {
    entries.iter().find(|entry| (entry.function, entry.index) == (function, index))
}

fn set_bits(register: &mut u32, shift: u32, width: u32, value: u32) {
    let mask = ((1_u32 << width) - 1) << shift;
    *register = *register & !mask | value << shift & mask;
}

fn set_flag(register: &mut u32, flag: u32, on: bool) {
    *register = if on { *register | flag } else { *register & !flag };
}

#[cfg(test)]
mod tests;
