//! Leaf 13: which kinds of vector and other state a processor saves by XSAVE, and where (Intel SDM volume 1,
//! "Managing State Using the XSAVE Feature Set").
//!
//! KVM lets a guest enable exactly the kinds that this leaf lists, so it has to agree with the flags.

use super::flags::Flags;
use crate::hv::CpuidEntry;

const LEAF: u32 = 0xd;
/// x87 and SSE registers, which every processor with XSAVE saves; they lie at the start.
const LEGACY: u64 = 3;
/// Their area and the header behind it.
const LEGACY_SIZE: u32 = 576;

/// Kinds of state beyond those, by bit, with a flag each that brings it.
const BROUGHT_BY: [(u32, &str); 15] = [
    (2, "avx"),
    (3, "mpx"),
    (4, "mpx"),
    (5, "avx512f"),
    (6, "avx512f"),
    (7, "avx512f"),
    (8, "intel_pt"),
    (9, "pku"),
    (10, "enqcmd"),
    (11, "user_shstk"),
    (12, "user_shstk"),
    (15, "arch_lbr"),
    (17, "amx_tile"),
    (18, "amx_tile"),
    (19, "apxf"),
];

/// Leaves only those kinds of state that one of the flags brings, and those `others` that no flag here brings.
pub(super) fn restrict(entries: &mut Vec<CpuidEntry>, flags: &Flags, others: bool) {
    if !flags.has("xsave") {
        entries.retain(|entry| entry.function != LEAF);
        return;
    }
    let kinds = kinds(flags, others);
    entries.retain(|entry| entry.function != LEAF || entry.index < 2 || has(kinds, entry.index));
    let end = |entry: &CpuidEntry| entry.eax.saturating_add(entry.ebx);
    // Supervisor state (bit 0 of ECX) has no place in the standard format.
    let placed =
        entries.iter().filter(|entry| entry.function == LEAF && entry.index >= 2 && entry.ecx & 1 == 0);
    let size = placed.map(end).max().unwrap_or(0).max(LEGACY_SIZE);
    for entry in entries.iter_mut().filter(|entry| entry.function == LEAF) {
        match entry.index {
            0 => {
                (entry.eax, entry.edx) = (entry.eax & kinds as u32, entry.edx & (kinds >> 32) as u32);
                entry.ecx = size;
                // KVM replaces this by the size of what the guest has enabled.
                entry.ebx = size;
            }
            1 if flags.has("xsaves") => {
                (entry.ecx, entry.edx) = (entry.ecx & kinds as u32, entry.edx & (kinds >> 32) as u32);
            }
            1 => (entry.ebx, entry.ecx, entry.edx) = (0, 0, 0),
            _ => {}
        }
    }
}

fn kinds(flags: &Flags, others: bool) -> u64 {
    let bits = |brought: &dyn Fn(&str) -> bool| {
        BROUGHT_BY.iter().filter(|(_, flag)| brought(flag)).fold(0, |kinds, (bit, _)| kinds | 1 << bit)
    };
    let unknown: u64 = if others { !bits(&|_| true) } else { 0 };
    LEGACY | unknown | bits(&|flag| flags.has(flag))
}

fn has(kinds: u64, bit: u32) -> bool {
    kinds.checked_shr(bit).is_some_and(|kinds| kinds & 1 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidEntry {
        CpuidEntry { function: LEAF, index, index_significant: true, eax, ebx, ecx, edx }
    }

    /// A processor with AVX-512, protection keys, tiles, a user shadow stack and something of the future.
    fn host() -> Vec<CpuidEntry> {
        vec![
            leaf(0, [0x16_02e7, 0x2b00, 0x2b00, 0]),
            leaf(1, [0x1f, 0x1000, 0x1800, 0]),
            leaf(2, [0x100, 0x240, 0, 0]),
            leaf(5, [0x40, 0x440, 0, 0]),
            leaf(6, [0x200, 0x480, 0, 0]),
            leaf(7, [0x400, 0x680, 0, 0]),
            leaf(9, [8, 0xa80, 0, 0]),
            leaf(11, [0x10, 0, 1, 0]),
            leaf(12, [0x18, 0, 1, 0]),
            leaf(17, [0x40, 0xac0, 2, 0]),
            leaf(18, [0x2000, 0xb00, 6, 0]),
            leaf(20, [0x80, 0x2b00, 0, 0]),
        ]
    }

    fn restricted(names: &[&str]) -> Vec<CpuidEntry> {
        let mut entries = host();
        restrict(&mut entries, &flags(names), false);
        entries
    }

    fn flags(names: &[&str]) -> Flags {
        names.iter().fold(Flags::default(), |all, name| all.with(Flags::named(name)))
    }

    fn indices(entries: &[CpuidEntry]) -> Vec<u32> {
        entries.iter().map(|entry| entry.index).collect()
    }

    #[test]
    fn state_goes_with_the_flags_that_bring_it() {
        let entries = restricted(&["xsave", "avx", "pku"]);
        assert_eq!(indices(&entries), [0, 1, 2, 9]);
        assert_eq!((entries[0].eax, entries[0].ecx), (0x207, 0xa88));
        let entries = restricted(&["xsave", "avx", "avx512f"]);
        assert_eq!(indices(&entries), [0, 1, 2, 5, 6, 7]);
        assert_eq!((entries[0].eax, entries[0].ebx, entries[0].ecx), (0xe7, 0xa80, 0xa80));
        let entries = restricted(&["xsave"]);
        assert_eq!((indices(&entries), entries[0].eax, entries[0].ecx), (vec![0, 1], 3, 576));
    }

    #[test]
    fn supervisor_state_needs_xsaves() {
        let with = restricted(&["xsave", "xsaves", "user_shstk"]);
        assert_eq!((indices(&with), with[1].ecx), (vec![0, 1, 11, 12], 0x1800));
        assert_eq!(with[0].ecx, 576);
        let without = restricted(&["xsave", "avx"]);
        assert_eq!([without[1].ebx, without[1].ecx, without[1].edx], [0; 3]);
    }

    #[test]
    fn state_that_no_flag_here_brings_is_kept_where_it_is_wanted() {
        let mut entries = host();
        restrict(&mut entries, &flags(&["xsave", "avx"]), true);
        assert_eq!(indices(&entries), [0, 1, 2, 20]);
        assert_eq!((entries[0].eax, entries[0].ecx), (0x10_0007, 0x2b80));
    }

    #[test]
    fn without_xsave_there_is_no_such_leaf() {
        assert!(restricted(&["avx"]).is_empty());
    }
}
