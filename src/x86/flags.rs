//! The processor's feature flags: which bit of which CPUID leaf has which name.
//!
//! Names are those of `/proc/cpuinfo`, so that what a user reads there is what `--cpu` takes. One name may stand
//! for several bits (AMD repeats some of leaf 1 in leaf 0x80000001; Intel and AMD have a bit each for the same
//! thing) and one bit may have several names; nothing else in the program needs to know.

use crate::hv::CpuidEntry;

/// A register of a leaf, with the names of its bits.
struct Word {
    function: u32,
    index: u32,
    register: Register,
    /// From bit 0 on: `-` for a bit without a name, `one/other` for one with two.
    names: &'static str,
}

#[derive(Clone, Copy)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

const fn word(function: u32, index: u32, register: Register, names: &'static str) -> Word {
    Word { function, index, register, names }
}

const COUNT: usize = 18;

/// Bits that do not describe the processor but the machine or the moment (several processors in a socket; CR4's
/// OSXSAVE and PKE) have no name: nobody can choose them.
static WORDS: [Word; COUNT] = [
    word(
        1,
        0,
        Register::Edx,
        "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - dts acpi mmx fxsr \
         sse sse2 ss - tm ia64 pbe",
    ),
    word(
        1,
        0,
        Register::Ecx,
        "pni pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - pcid dca sse4_1 \
         sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave - avx f16c rdrand hypervisor",
    ),
    word(
        6,
        0,
        Register::Eax,
        "dtherm ida arat - pln - pts hwp hwp_notify hwp_act_window hwp_epp hwp_pkg_req",
    ),
    word(6, 0, Register::Ecx, "aperfmperf - - epb"),
    word(
        7,
        0,
        Register::Ebx,
        "fsgsbase tsc_adjust sgx bmi1 hle avx2 - smep bmi2 erms invpcid rtm cqm - mpx rdt_a avx512f avx512dq rdseed \
         adx smap avx512ifma - clflushopt clwb intel_pt avx512pf avx512er avx512cd sha_ni avx512bw avx512vl",
    ),
    word(
        7,
        0,
        Register::Ecx,
        "- avx512vbmi umip pku - waitpkg avx512_vbmi2 user_shstk gfni vaes vpclmulqdq avx512_vnni avx512_bitalg tme \
         avx512_vpopcntdq - la57 - - - - - rdpid - bus_lock_detect cldemote - movdiri movdir64b enqcmd sgx_lc -",
    ),
    word(
        7,
        0,
        Register::Edx,
        "- - avx512_4vnniw avx512_4fmaps fsrm - - - avx512_vp2intersect - md_clear - - - serialize - tsxldtrk - \
         pconfig arch_lbr ibt - amx_bf16 avx512_fp16 amx_tile amx_int8 ibrs/ibpb stibp flush_l1d \
         arch_capabilities - ssbd",
    ),
    word(
        7,
        1,
        Register::Eax,
        "sha512 sm3 sm4 - avx_vnni avx512_bf16 - cmpccxadd - - fzrm fsrs fsrc - - - - fred lkgs wrmsrns - amx_fp16 \
         - avx_ifma - - lam",
    ),
    word(
        7,
        1,
        Register::Edx,
        "- - - - avx_vnni_int8 avx_ne_convert - - amx_complex - avx_vnni_int16 - - - prefetchi - - - - avx10 - apxf",
    ),
    word(7, 2, Register::Edx, "psfd ipred_ctrl rrsba_ctrl - bhi_ctrl mcdt_no"),
    word(0xd, 1, Register::Eax, "xsaveopt xsavec xgetbv1 xsaves xfd"),
    word(
        0x8000_0001,
        0,
        Register::Edx,
        "fpu vme de pse tsc msr pae mce cx8 apic - syscall mtrr pge mca cmov pat pse36 - mp nx - mmxext mmx fxsr \
         fxsr_opt pdpe1gb rdtscp - lm 3dnowext 3dnow",
    ),
    word(
        0x8000_0001,
        0,
        Register::Ecx,
        "lahf_lm - svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt - lwp fma4 \
         tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext ptsc perfctr_llc mwaitx",
    ),
    word(0x8000_0007, 0, Register::Edx, "- - - - - - - hw_pstate nonstop_tsc cpb - proc_feedback acc_power"),
    word(
        0x8000_0008,
        0,
        Register::Ebx,
        "clzero irperf xsaveerptr - rdpru - - - - wbnoinvd - - ibpb - ibrs stibp - - - - - - - amd_ppin ssbd \
         virt_ssbd - cppc - - - brs",
    ),
    word(
        0x8000_000a,
        0,
        Register::Edx,
        "npt lbrv svm_lock nrip_save tsc_scale vmcb_clean flushbyasid decodeassists - - pausefilter - pfthreshold \
         avic - v_vmsave_vmload vgif - x2avic - v_spec_ctrl - - - - vnmi",
    ),
    word(0x8000_001f, 0, Register::Eax, "sme sev - sev_es sev_snp"),
    word(0x8000_0021, 0, Register::Eax, "- - - - - - - - autoibrs"),
];

impl Word {
    fn of<'a>(&self, entries: &'a mut [CpuidEntry]) -> Option<&'a mut u32> {
        let Self { function, index, .. } = *self;
        let entry = entries.iter_mut().find(|entry| (entry.function, entry.index) == (function, index))?;
        Some(match self.register {
            Register::Eax => &mut entry.eax,
            Register::Ebx => &mut entry.ebx,
            Register::Ecx => &mut entry.ecx,
            Register::Edx => &mut entry.edx,
        })
    }

    /// Each name, with its bit.
    fn names(&self) -> impl Iterator<Item = (u32, &'static str)> {
        let bits = (0..).zip(self.names.split_ascii_whitespace()).filter(|(_, names)| *names != "-");
        bits.flat_map(|(bit, names)| names.split('/').map(move |name| (1 << bit, name)))
    }
}

/// A set of flags, and of the bits beside them that have no name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Flags([u32; COUNT]);

impl Flags {
    /// All, named or not.
    pub(super) const ALL: Self = Self([u32::MAX; COUNT]);

    /// Those that a processor has.
    pub(super) fn of(entries: &[CpuidEntry]) -> Self {
        let mut entries = entries.to_vec();
        Self(WORDS.each_ref().map(|word| word.of(&mut entries).map_or(0, |register| *register)))
    }

    /// The bits with this name; none if there is no such name.
    pub(super) fn named(name: &str) -> Self {
        let bits = |word: &Word| {
            let bits = word.names().filter(|(_, other)| *other == name);
            bits.fold(0, |all, (bit, _)| all | bit)
        };
        Self(WORDS.each_ref().map(bits))
    }

    /// Gives a processor these flags and no others.
    pub(super) fn put(&self, entries: &mut [CpuidEntry]) {
        for (word, value) in WORDS.iter().zip(self.0) {
            if let Some(register) = word.of(entries) {
                *register = value;
            }
        }
    }

    pub(super) fn with(self, other: Self) -> Self {
        self.merge(other, |one, other| one | other)
    }

    pub(super) fn within(self, other: Self) -> Self {
        self.merge(other, |one, other| one & other)
    }

    pub(super) fn without(self, other: Self) -> Self {
        self.merge(other, |one, other| one & !other)
    }

    fn merge(self, other: Self, operation: fn(u32, u32) -> u32) -> Self {
        Self(std::array::from_fn(|word| operation(self.0[word], other.0[word])))
    }

    /// Whether a bit with this name is among them.
    pub(super) fn has(&self, name: &str) -> bool {
        self.within(Self::named(name)) != Self::default()
    }

    /// The names of its bits, each once.
    pub(super) fn names(&self) -> Vec<&'static str> {
        let mut all = Vec::new();
        for (word, value) in WORDS.iter().zip(self.0) {
            for (_, name) in word.names().filter(|(bit, _)| value & bit != 0) {
                if !all.contains(&name) {
                    all.push(name);
                }
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidEntry {
        CpuidEntry { function, eax, ebx, ecx, edx, ..CpuidEntry::default() }
    }

    #[test]
    fn names_stand_at_their_bits() {
        // From the manuals: function, index, register, bit.
        for (name, function, index, register, bit) in [
            ("sse2", 1, 0, 'd', 26),
            ("pbe", 1, 0, 'd', 31),
            ("cx16", 1, 0, 'c', 13),
            ("hypervisor", 1, 0, 'c', 31),
            ("arat", 6, 0, 'a', 2),
            ("avx512vl", 7, 0, 'b', 31),
            ("smap", 7, 0, 'b', 20),
            ("la57", 7, 0, 'c', 16),
            ("sgx_lc", 7, 0, 'c', 30),
            ("arch_capabilities", 7, 0, 'd', 29),
            ("ssbd", 7, 0, 'd', 31),
            ("lam", 7, 1, 'a', 26),
            ("prefetchi", 7, 1, 'd', 14),
            ("mcdt_no", 7, 2, 'd', 5),
            ("xsaves", 0xd, 1, 'a', 3),
            ("3dnow", 0x8000_0001, 0, 'd', 31),
            ("nx", 0x8000_0001, 0, 'd', 20),
            ("topoext", 0x8000_0001, 0, 'c', 22),
            ("mwaitx", 0x8000_0001, 0, 'c', 29),
            ("nonstop_tsc", 0x8000_0007, 0, 'd', 8),
            ("virt_ssbd", 0x8000_0008, 0, 'b', 25),
            ("brs", 0x8000_0008, 0, 'b', 31),
            ("vnmi", 0x8000_000a, 0, 'd', 25),
            ("autoibrs", 0x8000_0021, 0, 'a', 8),
        ] {
            let mut values = [0; 4];
            values[register as usize - 'a' as usize] = 1 << bit;
            let entry = CpuidEntry { index, ..leaf(function, values) };
            assert_eq!(Flags::of(&[entry]).names(), [name]);
        }
    }

    #[test]
    fn no_word_has_more_names_than_bits_and_none_twice() {
        for word in &WORDS {
            assert!(word.names.split_ascii_whitespace().count() <= 32);
            let mut names: Vec<_> = word.names().map(|(_, name)| name).collect();
            names.sort_unstable();
            let count = names.len();
            names.dedup();
            assert_eq!(names.len(), count);
        }
    }

    #[test]
    fn a_name_covers_all_its_bits_and_a_bit_all_its_names() {
        let mut entries = [leaf(1, [0, 0, 0, u32::MAX]), leaf(0x8000_0001, [0, 0, 0, u32::MAX])];
        Flags::ALL.without(Flags::named("mmx")).put(&mut entries);
        assert_eq!([entries[0].edx, entries[1].edx], [!(1 << 23); 2]);
        let speculation = Flags::of(&[leaf(7, [0, 0, 0, 1 << 26])]);
        assert_eq!(speculation.names(), ["ibrs", "ibpb"]);
        assert!(speculation.has("ibpb") && !speculation.has("stibp") && !speculation.has("nonsense"));
    }

    #[test]
    fn what_is_no_flag_stays_as_it_is() {
        let before = [leaf(1, [1, 2, 3, 4]), leaf(7, [5, 6, 7, 8]), leaf(9, [9; 4])];
        let mut after = before;
        Flags::of(&before).put(&mut after);
        assert_eq!(after, before);
        Flags::default().put(&mut after);
        assert_eq!(after, [leaf(1, [1, 2, 0, 0]), leaf(7, [5, 0, 0, 0]), leaf(9, [9; 4])]);
    }
}
