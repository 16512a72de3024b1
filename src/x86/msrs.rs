//! The model-specific registers that PC firmware sets before it starts a kernel.
//!
//! What is not listed keeps KVM's own value, which is right: the local APIC's base; ARCH_CAPABILITIES, which KVM
//! fills from the host (and some KVMs let nobody write); everything that is zero after a reset; and above all the
//! time stamp counter, which KVM keeps the same in all processors as long as nobody sets it in each. Numbers and
//! fields: Intel SDM volumes 3 ("Memory Cache Control") and 4, AMD APM volume 2.

use std::ops::Range;

use super::cpuid::{guest_address_bits, is_amd};
use super::flags::Flags;
use crate::hv::{CpuidEntry, Msr};

const MISC_ENABLE: u32 = 0x1a0;
const PAT: u32 = 0x277;
const MTRR_VARIABLE: u32 = 0x200;
const MTRR_FIXED_64K: u32 = 0x250;
const MTRR_FIXED_16K: [u32; 2] = [0x258, 0x259];
const MTRR_FIXED_4K: Range<u32> = 0x268..0x270;
const MTRR_DEFAULT: u32 = 0x2ff;
const AMD_HARDWARE_CONFIGURATION: u32 = 0xc001_0015;

const UNCACHEABLE: u64 = 0;
const WRITE_PROTECTED: u64 = 5;
const WRITE_BACK: u64 = 6;
/// In [`MTRR_DEFAULT`]: the ranges count, the fixed ones among them.
const MTRR_ENABLE: u64 = 1 << 11 | 1 << 10;
const MTRR_VALID: u64 = 1 << 11;

/// Write-back, write-through, uncacheable unless a write-combining range says otherwise, uncacheable; twice.
const PAT_AFTER_RESET: u64 = 0x0007_0406_0007_0406;

const FAST_STRINGS: u64 = 1;
const HAS_PERFORMANCE_COUNTERS: u64 = 1 << 7;
const NO_BRANCH_TRACE: u64 = 1 << 11;
const NO_SAMPLING: u64 = 1 << 12;

/// The time stamp counter counts at the processor's nominal frequency. Linux calls anything else a firmware bug.
const COUNTS_AT_NOMINAL: u64 = 1 << 24;

/// Values for one processor; they are the same on all.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct FirmwareMsrs {
    /// Without these a kernel complains, or does without what they describe.
    pub needed: Vec<Msr>,
    /// Kernels are happier with these, and not every KVM has them.
    pub helpful: Vec<Msr>,
}

/// The values for processors that answer `cpuid` like this, in a machine with devices, and no memory, at
/// `device_hole` (whose size is a power of two that divides its start).
pub fn left_by_firmware(cpuid: &[CpuidEntry], device_hole: Range<u64>) -> FirmwareMsrs {
    let flags = Flags::of(cpuid);
    let mut msrs = FirmwareMsrs::default();
    if flags.has("mtrr") {
        msrs.needed.extend(memory_types(device_hole, guest_address_bits(cpuid)));
    }
    if flags.has("pat") {
        msrs.needed.push(Msr { index: PAT, value: PAT_AFTER_RESET });
    }
    match is_amd(cpuid) {
        true if flags.has("nonstop_tsc") => {
            msrs.helpful.push(Msr { index: AMD_HARDWARE_CONFIGURATION, value: COUNTS_AT_NOMINAL });
        }
        true => {}
        false => msrs.helpful.push(Msr { index: MISC_ENABLE, value: misc_enable(cpuid, &flags) }),
    }
    msrs
}

/// Memory is write-back, except the place of devices, the old graphics memory and, as on a PC with its firmware
/// in place, the ROMs above that. Kernels accept only the same values on all processors.
fn memory_types(device_hole: Range<u64>, address_bits: u32) -> Vec<Msr> {
    let size = device_hole.end - device_hole.start;
    let addresses = (1 << address_bits.clamp(32, 52)) - 1;
    let [conventional, graphics] = MTRR_FIXED_16K;
    let mut msrs = vec![
        Msr { index: MTRR_VARIABLE, value: device_hole.start | UNCACHEABLE },
        Msr { index: MTRR_VARIABLE + 1, value: addresses & !(size - 1) | MTRR_VALID },
        Msr { index: MTRR_FIXED_64K, value: eight(WRITE_BACK) },
        Msr { index: conventional, value: eight(WRITE_BACK) },
        Msr { index: graphics, value: eight(UNCACHEABLE) },
    ];
    msrs.extend(MTRR_FIXED_4K.map(|index| Msr { index, value: eight(WRITE_PROTECTED) }));
    // Last: it makes the others count.
    msrs.push(Msr { index: MTRR_DEFAULT, value: MTRR_ENABLE | WRITE_BACK });
    msrs
}

/// The same type for each of eight pieces.
fn eight(kind: u64) -> u64 {
    kind * 0x0101_0101_0101_0101
}

fn misc_enable(cpuid: &[CpuidEntry], flags: &Flags) -> u64 {
    const COUNTERS: u32 = 0xa;
    let counters = cpuid.iter().any(|entry| entry.function == COUNTERS && entry.eax & 0xff != 0);
    let with_counters = if counters { HAS_PERFORMANCE_COUNTERS } else { 0 };
    let without_store = if flags.has("dts") { 0 } else { NO_BRANCH_TRACE | NO_SAMPLING };
    FAST_STRINGS | with_counters | without_store
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidEntry {
        CpuidEntry { function, eax, ebx, ecx, edx, ..CpuidEntry::default() }
    }

    fn processor(vendor: &[u8; 12], features: u32) -> Vec<CpuidEntry> {
        let part = |at: usize| u32::from_le_bytes(vendor[at..at + 4].try_into().unwrap());
        vec![
            leaf(0, [0xd, part(0), part(8), part(4)]),
            leaf(1, [0, 0, 0, features]),
            leaf(0x8000_0007, [0, 0, 0, 1 << 8]),
            leaf(0x8000_0008, [0x3028, 0, 0, 0]),
        ]
    }

    const ALL: u32 = 1 << 12 | 1 << 16;
    const HOLE: Range<u64> = 0xc000_0000..0x1_0000_0000;

    fn value(msrs: &[Msr], index: u32) -> Option<u64> {
        let mut found = msrs.iter().filter(|msr| msr.index == index);
        let value = found.next().map(|msr| msr.value);
        assert!(found.next().is_none(), "{index:#x} twice");
        value
    }

    #[test]
    fn memory_is_write_back_and_the_device_hole_uncacheable() {
        let msrs = left_by_firmware(&processor(b"GenuineIntel", ALL), HOLE).needed;
        assert_eq!(value(&msrs, 0x2ff), Some(0xc06));
        assert_eq!((value(&msrs, 0x200), value(&msrs, 0x201)), (Some(0xc000_0000), Some(0xff_c000_0800)));
        assert_eq!(value(&msrs, 0x250), Some(0x0606_0606_0606_0606));
        assert_eq!(value(&msrs, 0x258), Some(0x0606_0606_0606_0606));
        assert_eq!(value(&msrs, 0x259), Some(0));
        for index in 0x268..=0x26f {
            assert_eq!(value(&msrs, index), Some(0x0505_0505_0505_0505));
        }
        assert_eq!(value(&msrs, 0x277), Some(0x0007_0406_0007_0406));
    }

    #[test]
    fn what_the_processor_lacks_is_not_set() {
        assert_eq!(left_by_firmware(&processor(b"AuthenticAMD", 0), HOLE).needed, []);
        let pat_only = left_by_firmware(&processor(b"AuthenticAMD", 1 << 16), HOLE).needed;
        assert_eq!(pat_only.len(), 1);
        assert_eq!(value(&left_by_firmware(&[], HOLE).helpful, 0xc001_0015), None);
    }

    #[test]
    fn each_vendor_has_its_own() {
        let intel = left_by_firmware(&processor(b"GenuineIntel", ALL), HOLE).helpful;
        assert_eq!(intel, [Msr { index: 0x1a0, value: 0x1801 }]);
        let amd = left_by_firmware(&processor(b"AuthenticAMD", ALL), HOLE).helpful;
        assert_eq!(amd, [Msr { index: 0xc001_0015, value: 1 << 24 }]);
        let mut counting = processor(b"GenuineIntel", 1 << 21);
        counting.push(leaf(0xa, [0x0830_0802, 0, 0, 0]));
        assert_eq!(left_by_firmware(&counting, HOLE).helpful, [Msr { index: 0x1a0, value: 0x81 }]);
    }
}
