//! CPUID leaves of an Intel-like and an AMD-like host, as they come out for a guest.

use super::*;

fn leaf(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidEntry {
    let index_significant = matches!(function, INTEL_CACHES | TOPOLOGY | TOPOLOGY_V2 | AMD_CACHES | 7);
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

fn find(entries: &[CpuidEntry], function: u32, index: u32) -> CpuidEntry {
    let mut matching = entries.iter().filter(|entry| (entry.function, entry.index) == (function, index));
    let found = *matching.next().unwrap();
    assert!(matching.next().is_none(), "{function:#x}/{index} twice");
    found
}

fn guest(vendor: &[u8; 12], apic_id: u32, cpus: u32) -> Vec<CpuidEntry> {
    guest_cpuid(&host(vendor), VcpuIdentity { apic_id, cpus, tsc_khz: Some(2_600_000) })
}

const INTEL: &[u8; 12] = b"GenuineIntel";
const AMD: &[u8; 12] = b"AuthenticAMD";

#[test]
fn leaf_1_names_the_processor_and_the_hypervisor() {
    // (APIC id, processors) → EBX bits 31–16, and whether there is more than one.
    for (apic_id, cpus, ebx, many) in
        [(0, 1, 0x0001, false), (1, 2, 0x0102, true), (2, 3, 0x0204, true), (0x1ff, 512, 0xffff, true)]
    {
        let entry = find(&guest(INTEL, apic_id, cpus), 1, 0);
        assert_eq!(entry.ebx, ebx << 16 | 0x0800);
        assert_eq!(entry.ecx, 0x8020_0001);
        assert_eq!(entry.edx & 1 << 28 != 0, many);
        assert_eq!(entry.edx & !(1 << 28), 0x178b_fbff & !(1 << 28));
    }
}

#[test]
fn leaf_4_gives_each_core_its_own_caches_but_the_last() {
    let entries = guest(INTEL, 0, 6);
    let first = find(&entries, 4, 0).eax;
    let third = find(&entries, 4, 1).eax;
    // (cores in the package, processors that share the cache), each less one.
    let counts = |eax: u32| (eax >> 26, eax >> 14 & 0xfff);
    assert_eq!((counts(first), counts(third)), ((7, 0), (7, 7)));
    assert_eq!((first & 0x3fff, third & 0x3fff), (0x121, 0x163));
    assert_eq!(find(&entries, 4, 2).eax, 0);
    assert_eq!(counts(find(&guest(INTEL, 0, 1), 4, 1).eax), (0, 0));
    assert_eq!(counts(find(&guest(INTEL, 0, 1000), 4, 1).eax), (63, 1023));
}

#[test]
fn extended_topology_has_one_thread_for_each_core() {
    let entries = guest(INTEL, 5, 6);
    for function in [0xb, 0x1f] {
        assert_eq!(find(&entries, function, 0), leaf(function, 0, [0, 1, 0x100, 5]));
        assert_eq!(find(&entries, function, 1), leaf(function, 1, [3, 6, 0x201, 5]));
        assert_eq!(find(&entries, function, 2), leaf(function, 2, [0, 0, 2, 5]));
    }
}

#[test]
fn leaves_that_the_host_lacks_are_not_invented() {
    let few: Vec<_> = host(INTEL).into_iter().filter(|entry| entry.function < 4).collect();
    let entries = guest_cpuid(&few, VcpuIdentity { apic_id: 0, cpus: 2, tsc_khz: None });
    let functions: Vec<_> = entries.iter().map(|entry| entry.function).collect();
    assert_eq!(functions, [0, 1]);
    assert!(guest_cpuid(&[], VcpuIdentity { apic_id: 0, cpus: 0, tsc_khz: None }).is_empty());
}

#[test]
fn amd_leaves_count_the_cores() {
    let entries = guest(AMD, 5, 6);
    assert_eq!(find(&entries, 0x8000_0008, 0).ecx, 0x3005);
    assert_eq!(find(&entries, 0x8000_0001, 0).ecx, 0x0040_0002);
    let topology = find(&entries, 0x8000_001e, 0);
    assert_eq!((topology.eax, topology.ebx, topology.ecx), (5, 5, 0));
    assert_eq!(find(&entries, 0x8000_001d, 0).eax, 0x121);
    assert_eq!(find(&entries, 0x8000_001d, 3).eax, 7 << 14 | 0x163);
    assert_eq!(find(&entries, 0x8000_0026, 0).ebx, 0);
    let alone = guest(AMD, 0, 1);
    assert_eq!(find(&alone, 0x8000_0008, 0).ecx, 0);
    assert_eq!(find(&alone, 0x8000_0001, 0).ecx, 0x0040_0000);
}

#[test]
fn amd_leaves_of_an_intel_host_stay_as_they_are() {
    let entries = guest(INTEL, 5, 6);
    for function in [0x8000_0001, 0x8000_0008, 0x8000_001e, 0x8000_0026] {
        assert_eq!(find(&entries, function, 0), find(&host(INTEL), function, 0));
    }
}

#[test]
fn the_timing_leaf_is_reachable_from_the_hypervisor_leaf() {
    let entries = guest(AMD, 0, 1);
    let signature = find(&entries, 0x4000_0000, 0);
    assert_eq!(signature.eax, 0x4000_0010);
    assert_eq!([signature.ebx, signature.ecx, signature.edx], KVM_SIGNATURE);
    assert_eq!(find(&entries, 0x4000_0010, 0), leaf(0x4000_0010, 0, [2_600_000, 1_000_000, 0, 0]));
    // A host that has it already, and more behind it, and does not tell its frequency.
    let mut host = entries;
    host.iter_mut().find(|entry| entry.function == 0x4000_0000).unwrap().eax = 0x4000_00ff;
    let entries = guest_cpuid(&host, VcpuIdentity { apic_id: 0, cpus: 1, tsc_khz: None });
    assert_eq!(find(&entries, 0x4000_0000, 0).eax, 0x4000_00ff);
    assert_eq!(find(&entries, 0x4000_0010, 0), leaf(0x4000_0010, 0, [0, 1_000_000, 0, 0]));
}

#[test]
fn another_hypervisors_leaves_are_left_alone() {
    let mut host = host(AMD);
    host.iter_mut().find(|entry| entry.function == 0x4000_0000).unwrap().ebx = word(b"Micr");
    let entries = guest_cpuid(&host, VcpuIdentity { apic_id: 0, cpus: 1, tsc_khz: None });
    assert_eq!(find(&entries, 0x4000_0000, 0).eax, 0x4000_0001);
    assert!(entries.iter().all(|entry| entry.function != 0x4000_0010));
}

#[test]
fn everything_else_passes_unchanged() {
    let entries = guest(AMD, 1, 2);
    for (function, index) in [(0, 0), (7, 0), (0x4000_0001, 0)] {
        assert_eq!(find(&entries, function, index), find(&host(AMD), function, index));
    }
}
