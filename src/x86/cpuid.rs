//! What the guest's `cpuid` instruction answers.
//!
//! [`guest_cpuid`] starts from the leaves that the host can give a guest and changes what would be untrue for
//! this processor of this machine: who it is, how many there are, and that a hypervisor is at work. All
//! processors of a guest are cores of one package, one thread each. Leaves: Intel SDM volume 2 (CPUID), AMD APM
//! volume 3 appendix E; those from 0x40000000 on: Linux, Documentation/virt/kvm/x86/cpuid.rst.

use std::arch::x86_64::__cpuid;

use crate::hv::CpuidEntry;

const VENDOR: u32 = 0;
const FEATURES: u32 = 1;
const INTEL_CACHES: u32 = 4;
const TOPOLOGY: u32 = 0xb;
const TOPOLOGY_V2: u32 = 0x1f;
const HYPERVISOR: u32 = 0x4000_0000;
const HYPERVISOR_TIMING: u32 = 0x4000_0010;
const EXTENDED_MAXIMUM: u32 = 0x8000_0000;
const AMD_FEATURES: u32 = 0x8000_0001;
const AMD_SIZES: u32 = 0x8000_0008;
const AMD_CACHES: u32 = 0x8000_001d;
const AMD_TOPOLOGY: u32 = 0x8000_001e;
const AMD_TOPOLOGY_V2: u32 = 0x8000_0026;

const FEATURES_ECX_HYPERVISOR: u32 = 1 << 31;
/// More than one logical processor in the package; EBX then says how many.
const FEATURES_EDX_HTT: u32 = 1 << 28;
/// The logical processors of the package are cores, not threads.
const AMD_FEATURES_ECX_CMP_LEGACY: u32 = 1 << 1;

/// EBX, ECX, EDX of [`HYPERVISOR`] under KVM.
const KVM_SIGNATURE: [u32; 3] =
    [u32::from_le_bytes(*b"KVMK"), u32::from_le_bytes(*b"VMKV"), u32::from_le_bytes(*b"M\0\0\0")];
/// KVM's local APICs count at 1 GHz.
const APIC_BUS_KHZ: u32 = 1_000_000;

/// As many as the topology leaf can count; hypervisors give far fewer.
const MAX_CPUS: u32 = 0xffff;

const LEVEL_THREADS: u32 = 1;
const LEVEL_CORES: u32 = 2;

/// Who a processor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VcpuIdentity {
    /// Its local APIC's number.
    pub apic_id: u32,
    /// How many processors the guest has.
    pub cpus: u32,
    /// Frequency of its time stamp counter, where the host tells.
    pub tsc_khz: Option<u32>,
}

impl VcpuIdentity {
    /// How many bits of an APIC id tell the processors of a package apart.
    fn core_bits(&self) -> u32 {
        self.cpus.clamp(1, MAX_CPUS).next_power_of_two().trailing_zeros()
    }

    /// Room for processors in a package: a power of two, as APIC ids are split at a bit.
    fn addressable(&self) -> u32 {
        1 << self.core_bits()
    }
}

/// How many bits a physical address has on this host, which is what a guest's can have at most.
pub fn host_address_bits() -> u8 {
    const WITHOUT_LEAF: u8 = 36;
    match __cpuid(EXTENDED_MAXIMUM).eax {
        0..AMD_SIZES => WITHOUT_LEAF,
        _ => __cpuid(AMD_SIZES).eax as u8,
    }
}

/// The leaves for one processor, made from those that the host can give.
pub fn guest_cpuid(supported: &[CpuidEntry], vcpu: VcpuIdentity) -> Vec<CpuidEntry> {
    let amd = is_amd(supported);
    let mut entries: Vec<_> = supported.to_vec();
    for entry in &mut entries {
        adapt(entry, vcpu, amd);
    }
    for leaf in [TOPOLOGY, TOPOLOGY_V2] {
        replace_topology(&mut entries, leaf, vcpu);
    }
    add_timing(&mut entries, vcpu);
    entries
}

fn is_amd(entries: &[CpuidEntry]) -> bool {
    let name = |text: &[u8; 12]| {
        let word = |at: usize| u32::from_le_bytes([text[at], text[at + 1], text[at + 2], text[at + 3]]);
        (word(0), word(4), word(8))
    };
    let vendor = entries.iter().find(|entry| entry.function == VENDOR);
    vendor
        .map(|entry| (entry.ebx, entry.edx, entry.ecx))
        .is_some_and(|found| found == name(b"AuthenticAMD") || found == name(b"HygonGenuine"))
}

/// Corrects a leaf that exists once, or in the same way for each index.
fn adapt(entry: &mut CpuidEntry, vcpu: VcpuIdentity, amd: bool) {
    match entry.function {
        FEATURES => {
            entry.ecx |= FEATURES_ECX_HYPERVISOR;
            set_bits(&mut entry.ebx, 24, 8, vcpu.apic_id & 0xff);
            set_bits(&mut entry.ebx, 16, 8, vcpu.addressable().min(0xff));
            set_flag(&mut entry.edx, FEATURES_EDX_HTT, vcpu.cpus > 1);
        }
        // No cache, no core count: AMD processors answer this leaf with zeros.
        INTEL_CACHES if entry.eax & 0x1f != 0 => {
            let sharing = sharing_cache(entry.eax, vcpu).min(0xfff);
            set_bits(&mut entry.eax, 14, 12, sharing);
            set_bits(&mut entry.eax, 26, 6, (vcpu.addressable() - 1).min(0x3f));
        }
        AMD_CACHES if entry.eax & 0x1f != 0 => {
            let sharing = sharing_cache(entry.eax, vcpu).min(0xfff);
            set_bits(&mut entry.eax, 14, 12, sharing);
        }
        AMD_FEATURES if amd => set_flag(&mut entry.ecx, AMD_FEATURES_ECX_CMP_LEGACY, vcpu.cpus > 1),
        AMD_SIZES if amd => {
            set_bits(&mut entry.ecx, 0, 8, vcpu.cpus.saturating_sub(1).min(0xff));
            set_bits(&mut entry.ecx, 12, 4, vcpu.core_bits().min(0xf));
        }
        AMD_TOPOLOGY if amd => {
            // Each processor is a core of one thread, all of them in node 0.
            entry.eax = vcpu.apic_id;
            entry.ebx = vcpu.apic_id & 0xff;
            entry.ecx = 0;
        }
        // Says the same as leaf 0xb at greater length; empty means that it is to be asked instead.
        AMD_TOPOLOGY_V2 if amd => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        _ => {}
    }
}

/// How many processors share the cache described by `eax` of [`INTEL_CACHES`] or [`AMD_CACHES`], less one:
/// all of them share the third level, none the others.
fn sharing_cache(eax: u32, vcpu: VcpuIdentity) -> u32 {
    if eax >> 5 & 7 >= 3 { vcpu.addressable() - 1 } else { 0 }
}

/// Replaces what the host says in an extended topology leaf, if it has that leaf, by one level of threads and
/// one of cores.
fn replace_topology(entries: &mut Vec<CpuidEntry>, leaf: u32, vcpu: VcpuIdentity) {
    let Some(first) = entries.iter().position(|entry| entry.function == leaf) else { return };
    entries.retain(|entry| entry.function != leaf);
    let level = |index, shift, processors, kind: u32| CpuidEntry {
        function: leaf,
        index,
        index_significant: true,
        eax: shift,
        ebx: processors,
        ecx: kind << 8 | index,
        edx: vcpu.apic_id,
    };
    let levels = [
        level(0, 0, 1, LEVEL_THREADS),
        level(1, vcpu.core_bits(), vcpu.cpus.clamp(1, MAX_CPUS), LEVEL_CORES),
        level(2, 0, 0, 0),
    ];
    entries.splice(first..first, levels);
}

/// Adds the leaf by which a hypervisor tells the frequencies of the time stamp counter and the APIC's timer, so
/// that the guest need not measure them. Only where KVM's own leaf leads to it.
fn add_timing(entries: &mut Vec<CpuidEntry>, vcpu: VcpuIdentity) {
    let is_signature = |entry: &&mut CpuidEntry| {
        entry.function == HYPERVISOR && [entry.ebx, entry.ecx, entry.edx] == KVM_SIGNATURE
    };
    let Some(signature) = entries.iter_mut().find(is_signature) else { return };
    signature.eax = signature.eax.max(HYPERVISOR_TIMING);
    entries.retain(|entry| entry.function != HYPERVISOR_TIMING);
    entries.push(CpuidEntry {
        function: HYPERVISOR_TIMING,
        eax: vcpu.tsc_khz.unwrap_or(0),
        ebx: APIC_BUS_KHZ,
        ..CpuidEntry::default()
    });
}

fn set_bits(register: &mut u32, shift: u32, width: u32, value: u32) {
    let mask = ((1_u32 << width) - 1) << shift;
    *register = *register & !mask | value << shift & mask;
}

fn set_flag(register: &mut u32, flag: u32, on: bool) {
    *register = if on { *register | flag } else { *register & !flag };
}

#[cfg(test)]
#[path = "cpuid_test.rs"]
mod tests;
