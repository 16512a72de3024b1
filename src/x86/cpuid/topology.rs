//! The leaves that tell a guest how its processors are arranged and which caches they share.
//!
//! Only leaves that the host has are changed, none is invented: a guest that does not find one of them has
//! another to ask.

use super::{CpuidEntry, FEATURES, SIZES, VcpuIdentity, is_amd, set_bits, set_flag};

const INTEL_CACHES: u32 = 4;
const EXTENDED: u32 = 0xb;
const EXTENDED_V2: u32 = 0x1f;
const AMD_FEATURES: u32 = 0x8000_0001;
const AMD_CACHES: u32 = 0x8000_001d;
const AMD_IDENTITY: u32 = 0x8000_001e;
const AMD_EXTENDED: u32 = 0x8000_0026;

/// More than one processor in the socket; EBX then says how many.
const FEATURES_EDX_HTT: u32 = 1 << 28;
/// More than one core in the socket, as AMD counts since its first processors with several.
const AMD_FEATURES_ECX_CMP_LEGACY: u32 = 1 << 1;

/// A level of an extended leaf: its kind, how far a number is shifted to get the one of the next level, and how
/// many processors are in one instance of it.
type Level = (u32, u32, u32);

/// Kinds of level in [`EXTENDED`] and [`EXTENDED_V2`].
const THREADS: u32 = 1;
const CORES: u32 = 2;
/// Kinds of level in [`AMD_EXTENDED`]: a core, the cores around one cache, a die, a socket.
const AMD_LEVELS_ABOVE_CORE: [u32; 3] = [2, 3, 4];
const AMD_CORE: u32 = 1;

/// Makes all such leaves true for one processor.
pub(super) fn describe(entries: &mut Vec<CpuidEntry>, vcpu: &VcpuIdentity) {
    let amd = is_amd(entries);
    for entry in entries.iter_mut() {
        adapt(entry, vcpu, amd);
    }
    let topology = vcpu.topology;
    let threads = |kind| (kind, topology.thread_bits(), topology.threads());
    let socket = |kind| (kind, topology.socket_shift(), topology.per_socket());
    for leaf in [EXTENDED, EXTENDED_V2] {
        replace_levels(entries, leaf, &[threads(THREADS), socket(CORES)], vcpu.apic_id);
    }
    if amd {
        // One die with one cache for all its cores.
        let [caches, dies, sockets] = AMD_LEVELS_ABOVE_CORE.map(socket);
        replace_levels(entries, AMD_EXTENDED, &[threads(AMD_CORE), caches, dies, sockets], vcpu.apic_id);
    }
}

/// Corrects a leaf that exists once, or in the same way for each index.
fn adapt(entry: &mut CpuidEntry, vcpu: &VcpuIdentity, amd: bool) {
    let VcpuIdentity { apic_id, topology, .. } = *vcpu;
    let several = topology.per_socket() > 1;
    match entry.function {
        FEATURES => {
            // Intel counts the numbers that a socket takes up, AMD its processors.
            let count = if amd { topology.per_socket() } else { 1 << topology.socket_shift() };
            set_bits(&mut entry.ebx, 24, 8, apic_id & 0xff);
            set_bits(&mut entry.ebx, 16, 8, count.min(0xff));
            set_flag(&mut entry.edx, FEATURES_EDX_HTT, several);
        }
        // No cache, no core count: AMD processors answer this leaf with zeros.
        INTEL_CACHES if entry.eax & 0x1f != 0 => {
            let cores = 1 << topology.core_bits();
            let sharing = sharing_cache(entry.eax, vcpu);
            set_bits(&mut entry.eax, 14, 12, sharing);
            set_bits(&mut entry.eax, 26, 6, (cores - 1_u32).min(0x3f));
        }
        AMD_CACHES if entry.eax & 0x1f != 0 => {
            let sharing = sharing_cache(entry.eax, vcpu);
            set_bits(&mut entry.eax, 14, 12, sharing);
        }
        AMD_FEATURES if amd => set_flag(&mut entry.ecx, AMD_FEATURES_ECX_CMP_LEGACY, several),
        SIZES if amd => {
            set_bits(&mut entry.ecx, 0, 8, topology.per_socket() - 1);
            set_bits(&mut entry.ecx, 12, 4, topology.socket_shift());
        }
        AMD_IDENTITY if amd => {
            entry.eax = apic_id;
            entry.ebx = topology.core_of(apic_id) | (topology.threads() - 1) << 8;
            // Each socket is a node.
            entry.ecx = topology.socket_of(apic_id);
        }
        _ => {}
    }
}

/// How many numbers the processors take up that share the cache described by `eax` of [`INTEL_CACHES`] or
/// [`AMD_CACHES`], less one: the threads of a core share its caches, all of a socket those from the third level
/// on.
fn sharing_cache(eax: u32, vcpu: &VcpuIdentity) -> u32 {
    let bits = match eax >> 5 & 7 {
        0..=2 => vcpu.topology.thread_bits(),
        _ => vcpu.topology.socket_shift(),
    };
    (1 << bits) - 1
}

/// Replaces what the host says in an extended leaf, if it has that leaf.
fn replace_levels(entries: &mut Vec<CpuidEntry>, leaf: u32, levels: &[Level], apic_id: u32) {
    let Some(first) = entries.iter().position(|entry| entry.function == leaf) else { return };
    entries.retain(|entry| entry.function != leaf);
    const END: Level = (0, 0, 0);
    let entry = |(index, &(kind, shift, processors))| CpuidEntry {
        function: leaf,
        index,
        index_significant: true,
        eax: shift,
        ebx: processors,
        ecx: kind << 8 | index,
        edx: apic_id,
    };
    entries.splice(first..first, (0..).zip(levels.iter().chain([&END])).map(entry));
}
