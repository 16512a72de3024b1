//! CPUID leaves of an Intel-like and an AMD-like host, as they come out for a guest.

use super::paravirtual::{hide_hypercalls, keep_long_standing};
use super::*;
use crate::x86::topology::{apic_ids, every_topology};

fn leaf(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidEntry {
    let index_significant = matches!(function, 4 | 0xb | 0x1f | 0x8000_001d | 0x8000_0026 | 7);
    CpuidEntry { function, index, index_significant, eax, ebx, ecx, edx }
}

fn word(text: &[u8; 4]) -> u32 {
    u32::from_le_bytes(*text)
}

/// A host of 16 processors: every topology field says so, and has to be changed.
fn host(vendor: &[u8; 12]) -> Vec<CpuidEntry> {
    let part = |at: usize| u32::from_le_bytes(vendor[at..at + 4].try_into().unwrap());
    vec![
        leaf(0, 0, [0x1f, part(0), part(8), part(4)]),
        leaf(1, 0, [0x000a_0f11, 0x0710_0800, 0x0020_0001, 0x178b_fbff]),
        leaf(4, 0, [0x3c00_4121, 0x01c0_003f, 63, 0]),
        leaf(4, 1, [0x3c03_c163, 0x03c0_003f, 4095, 6]),
        leaf(4, 2, [0, 0, 0, 0]),
        leaf(7, 0, [1, 0x219c_95a9, 0, 0]),
        leaf(0xb, 0, [1, 2, 0x100, 7]),
        leaf(0xb, 1, [4, 16, 0x201, 7]),
        leaf(0x1f, 0, [0, 0, 0, 0]),
        leaf(0x4000_0000, 0, [0x4000_0001, word(b"KVMK"), word(b"VMKV"), word(b"M\0\0\0")]),
        leaf(0x4000_0001, 0, [0x0100_7efb, 0, 0, 0]),
        leaf(0x8000_0001, 0, [0, 0, 0x0040_0002, 0]),
        leaf(0x8000_0008, 0, [0x3030, 0x1000, 0x400f, 0]),
        leaf(0x8000_001d, 0, [0x0000_4121, 0x01c0_003f, 63, 0]),
        leaf(0x8000_001d, 3, [0x0003_c163, 0x03c0_003f, 4095, 1]),
        leaf(0x8000_001e, 0, [7, 0x103, 0x200, 0]),
        leaf(0x8000_0026, 0, [1, 2, 0x100, 7]),
    ]
}

/// The only answer to a question.
fn find(entries: &[CpuidEntry], function: u32, index: u32) -> CpuidEntry {
    let mut matching = entries.iter().filter(|entry| (entry.function, entry.index) == (function, index));
    let found = *matching.next().unwrap();
    assert!(matching.next().is_none(), "{function:#x}/{index} twice");
    found
}

/// A processor of a machine with sockets × cores × threads.
fn guest(vendor: &[u8; 12], apic_id: u32, (sockets, cores, threads): (u32, u32, u32)) -> Vec<CpuidEntry> {
    let topology = Topology::new(sockets, cores, threads).unwrap();
    guest_cpuid(&host(vendor), VcpuIdentity { apic_id, topology, tsc_khz: Some(2_600_000) })
}

const INTEL: &[u8; 12] = b"GenuineIntel";
const AMD: &[u8; 12] = b"AuthenticAMD";

#[test]
fn leaf_1_names_the_processor_and_counts_its_socket() {
    // APIC id, topology → EBX bits 31–16 (Intel, AMD), and whether there is more than one in the socket.
    for (apic_id, topology, intel, amd, many) in [
        (0, (1, 1, 1), 0x0001, 0x0001, false),
        (1, (1, 2, 1), 0x0102, 0x0102, true),
        (2, (1, 3, 1), 0x0204, 0x0203, true),
        (9, (2, 3, 2), 0x0908, 0x0906, true),
        (1, (2, 1, 1), 0x0101, 0x0101, false),
        (0xfe, (1, 255, 1), 0xfeff, 0xfeff, true),
    ] {
        for (vendor, ebx) in [(INTEL, intel), (AMD, amd)] {
            let entry = find(&guest(vendor, apic_id, topology), 1, 0);
            assert_eq!(entry.ebx, ebx << 16 | 0x0800, "{apic_id} {topology:?}");
            assert_eq!(entry.edx & 1 << 28 != 0, many);
            assert_eq!(entry.edx & !(1 << 28), 0x178b_fbff & !(1 << 28));
            assert_eq!(entry.ecx, 0x0020_0001);
        }
    }
}

#[test]
fn leaf_4_gives_each_core_its_own_caches_but_the_last() {
    // (cores in the socket, processors that share the cache), each less one.
    let counts = |eax: u32| (eax >> 26, eax >> 14 & 0xfff);
    for (topology, first, third) in [
        ((1, 1, 1), (0, 0), (0, 0)),
        ((1, 6, 1), (7, 0), (7, 7)),
        ((2, 2, 2), (1, 1), (1, 3)),
        ((1, 3, 3), (3, 3), (3, 15)),
        ((1, 200, 1), (63, 0), (63, 255)),
    ] {
        let entries = guest(INTEL, 0, topology);
        let [l1, l3] = [0, 1].map(|index| find(&entries, 4, index).eax);
        assert_eq!((counts(l1), counts(l3)), (first, third), "{topology:?}");
        assert_eq!((l1 & 0x3fff, l3 & 0x3fff), (0x121, 0x163));
        assert_eq!(find(&entries, 4, 2).eax, 0);
    }
}

#[test]
fn extended_topology_has_a_level_of_threads_and_one_of_cores() {
    for vendor in [INTEL, AMD] {
        for function in [0xb, 0x1f] {
            let entries = guest(vendor, 5, (1, 6, 1));
            assert_eq!(find(&entries, function, 0), leaf(function, 0, [0, 1, 0x100, 5]));
            assert_eq!(find(&entries, function, 1), leaf(function, 1, [3, 6, 0x201, 5]));
            assert_eq!(find(&entries, function, 2), leaf(function, 2, [0, 0, 2, 5]));
            let entries = guest(vendor, 11, (2, 3, 2));
            assert_eq!(find(&entries, function, 0), leaf(function, 0, [1, 2, 0x100, 11]));
            assert_eq!(find(&entries, function, 1), leaf(function, 1, [3, 6, 0x201, 11]));
        }
    }
}

#[test]
fn amd_extended_topology_knows_a_socket_of_one_die_with_one_cache() {
    let entries = guest(AMD, 11, (2, 3, 2));
    let level = |index| find(&entries, 0x8000_0026, index);
    assert_eq!(level(0), leaf(0x8000_0026, 0, [1, 2, 0x100, 11]));
    for index in 1..=3 {
        assert_eq!(level(index), leaf(0x8000_0026, index, [3, 6, (index + 1) << 8 | index, 11]));
    }
    assert_eq!(level(4), leaf(0x8000_0026, 4, [0, 0, 4, 11]));
}

/// What a kernel computes from the leaves is where the processor is.
#[test]
fn in_every_topology_all_leaves_agree() {
    let (intel, amd) = (host(INTEL), host(AMD));
    for topology in every_topology() {
        let ids = apic_ids(&topology);
        for &apic_id in [ids[0], ids[ids.len() / 2], ids[ids.len() - 1]].iter() {
            let identity = VcpuIdentity { apic_id, topology, tsc_khz: None };
            for common in [&intel, &amd] {
                let entries = guest_cpuid(common, identity);
                let [threads, cores] = [0, 1].map(|index| find(&entries, 0xb, index));
                assert_eq!((threads.ebx, cores.ebx), (topology.threads(), topology.per_socket()));
                assert_eq!([threads.edx, cores.edx], [apic_id; 2]);
                assert_eq!(apic_id >> cores.eax, topology.socket_of(apic_id));
                assert_eq!((apic_id % (1 << cores.eax)) >> threads.eax, topology.core_of(apic_id));
                assert_eq!(find(&entries, 1, 0).ebx >> 24, apic_id);
            }
            let entries = guest_cpuid(&amd, identity);
            let sizes = find(&entries, 0x8000_0008, 0).ecx;
            assert_eq!((sizes & 0xff) + 1, topology.per_socket());
            assert_eq!(apic_id >> (sizes >> 12 & 0xf), topology.socket_of(apic_id));
            let node = find(&entries, 0x8000_001e, 0);
            let (core, threads) = (node.ebx & 0xff, (node.ebx >> 8) + 1);
            assert_eq!((node.eax, node.ecx), (apic_id, topology.socket_of(apic_id)));
            assert_eq!((core, threads), (topology.core_of(apic_id), topology.threads()));
            let sharing = find(&entries, 0x8000_001d, 3).eax >> 14 & 0xfff;
            assert_eq!(apic_id >> (sharing + 1).ilog2(), topology.socket_of(apic_id));
        }
    }
}

#[test]
fn leaves_that_the_host_lacks_are_not_invented() {
    let few: Vec<_> = host(INTEL).into_iter().filter(|entry| entry.function < 4).collect();
    let entries = guest_cpuid(
        &few,
        VcpuIdentity { apic_id: 0, topology: Topology::new(1, 2, 1).unwrap(), tsc_khz: None },
    );
    let functions: Vec<_> = entries.iter().map(|entry| entry.function).collect();
    assert_eq!(functions, [0, 1]);
    assert!(guest_cpuid(&[], VcpuIdentity::single(0)).is_empty());
}

#[test]
fn amd_leaves_count_the_cores() {
    let entries = guest(AMD, 5, (1, 6, 1));
    assert_eq!(find(&entries, 0x8000_0008, 0).ecx, 0x3005);
    assert_eq!(find(&entries, 0x8000_0001, 0).ecx, 0x0040_0002);
    let topology = find(&entries, 0x8000_001e, 0);
    assert_eq!((topology.eax, topology.ebx, topology.ecx), (5, 5, 0));
    assert_eq!(find(&entries, 0x8000_001d, 0).eax, 0x121);
    assert_eq!(find(&entries, 0x8000_001d, 3).eax, 7 << 14 | 0x163);
    let alone = guest(AMD, 0, (1, 1, 1));
    assert_eq!(find(&alone, 0x8000_0008, 0).ecx, 0);
    assert_eq!(find(&alone, 0x8000_0001, 0).ecx, 0x0040_0000);
}

#[test]
fn amd_threads_share_a_core_and_its_caches() {
    let entries = guest(AMD, 5, (2, 2, 2));
    assert_eq!(find(&entries, 0x8000_0008, 0).ecx, 0x2003);
    let topology = find(&entries, 0x8000_001e, 0);
    assert_eq!((topology.eax, topology.ebx, topology.ecx), (5, 0x100, 1));
    assert_eq!(find(&entries, 0x8000_001d, 0).eax, 1 << 14 | 0x121);
    assert_eq!(find(&entries, 0x8000_001d, 3).eax, 3 << 14 | 0x163);
}

#[test]
fn amd_leaves_of_an_intel_host_stay_as_they_are() {
    let entries = guest(INTEL, 5, (1, 6, 1));
    for function in [0x8000_0001, 0x8000_0008, 0x8000_001e, 0x8000_0026] {
        assert_eq!(find(&entries, function, 0), find(&host(INTEL), function, 0));
    }
}

#[test]
fn the_timing_leaf_is_reachable_from_the_hypervisor_leaf() {
    let entries = guest(AMD, 0, (1, 1, 1));
    let signature = find(&entries, 0x4000_0000, 0);
    assert_eq!(signature.eax, 0x4000_0010);
    assert_eq!(
        [signature.ebx, signature.ecx, signature.edx],
        [word(b"KVMK"), word(b"VMKV"), word(b"M\0\0\0")]
    );
    assert_eq!(find(&entries, 0x4000_0010, 0), leaf(0x4000_0010, 0, [2_600_000, 1_000_000, 0, 0]));
    // A host that has it already, and more behind it, and does not tell its frequency.
    let mut host = entries;
    host.iter_mut().find(|entry| entry.function == 0x4000_0000).unwrap().eax = 0x4000_00ff;
    let entries = guest_cpuid(&host, VcpuIdentity::single(0));
    assert_eq!(find(&entries, 0x4000_0000, 0).eax, 0x4000_00ff);
    assert_eq!(find(&entries, 0x4000_0010, 0), leaf(0x4000_0010, 0, [0, 1_000_000, 0, 0]));
}

#[test]
fn another_hypervisors_leaves_are_left_alone() {
    let mut host = host(AMD);
    host.iter_mut().find(|entry| entry.function == 0x4000_0000).unwrap().ebx = word(b"Micr");
    let entries = guest_cpuid(&host, VcpuIdentity::single(0));
    assert_eq!(find(&entries, 0x4000_0000, 0).eax, 0x4000_0001);
    assert!(entries.iter().all(|entry| entry.function != 0x4000_0010));
}

#[test]
fn everything_else_passes_unchanged() {
    let entries = guest(AMD, 1, (1, 2, 1));
    for (function, index) in [(0, 0), (7, 0), (0x4000_0001, 0)] {
        assert_eq!(find(&entries, function, index), find(&host(AMD), function, index));
    }
}

fn offered_by(vendor: &[u8; 12], change: fn(&mut [CpuidEntry])) -> u32 {
    let mut entries = host(vendor);
    entries.iter_mut().filter(|entry| entry.function == 0x4000_0001).for_each(|entry| entry.eax = u32::MAX);
    change(&mut entries);
    find(&entries, 0x4000_0001, 0).eax
}

#[test]
fn what_needs_a_hypercall_can_be_taken_away() {
    assert_eq!(offered_by(AMD, hide_hypercalls), !(1 << 7 | 1 << 11 | 1 << 13 | 1 << 16));
}

#[test]
fn the_clock_is_among_what_kvm_has_had_for_long() {
    let kept = offered_by(INTEL, keep_long_standing);
    assert_eq!(kept & (1 << 3 | 1 << 24), 1 << 3 | 1 << 24);
    assert_eq!(kept & (1 << 4 | 1 << 11 | 1 << 14 | 1 << 30), 0);
}

#[test]
fn features_of_another_hypervisor_are_not_taken_for_kvms() {
    let mut entries = host(AMD);
    entries.iter_mut().filter(|entry| entry.function == 0x4000_0000).for_each(|entry| entry.edx = 1);
    let before = entries.clone();
    hide_hypercalls(&mut entries);
    keep_long_standing(&mut entries);
    assert_eq!(entries, before);
}
