//! Which features a guest's processors have: `host`, `baseline`, and single flags more or less.
//!
//! [`CpuModel`] is what a user wrote; [`CpuModel::choose`] makes of it, and of what a host can give, the leaves
//! that all processors of a machine have in common. What KVM shows guests in spite of that is found by
//! comparing ([`returned`]) and has to be taken into the choice as well, so that no leaf contradicts another.

use std::fmt;
use std::str::FromStr;

use super::cpuid::{FEATURES, FEATURES_ECX_HYPERVISOR, Quirks, paravirtual};
use super::flags::Flags;
use super::state_components;
use crate::hv::CpuidEntry;
use crate::spelling;

/// Every 64-bit server has these since Intel's Nehalem (2009) and AMD's Bulldozer (2011): the psABI's level
/// x86-64-v2, what a kernel expects of any 64-bit processor, what KVM provides itself (from `x2apic` on), and the
/// leaf by which AMD processors, and only they, tell of their threads.
/// Protections against speculation are not among them, as they came later: `+ibrs,+ibpb,+ssbd` and the like add
/// them where all hosts have them.
const BASELINE: &str = "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse \
                        sse2 syscall nx rdtscp lm lahf_lm pni ssse3 cx16 sse4_1 sse4_2 popcnt \
                        x2apic tsc_deadline_timer tsc_adjust arat hypervisor topoext";

/// Leaves of their own for what differs from server to server: performance counters, cache allocation,
/// frequencies, address translation, keys, kinds of core, branch records, how wide vectors are, sampling,
/// encryption. Those of [`DETAILS`] go with their flags.
const NOT_IN_BASELINE: [u32; 16] = [
    0xa,
    0xf,
    0x10,
    0x15,
    0x16,
    0x18,
    0x19,
    0x1a,
    0x1b,
    0x1c,
    0x20,
    0x23,
    0x8000_001a,
    0x8000_001b,
    0x8000_001f,
    0x8000_0022,
];

/// Leaves that say more about a flag and mean nothing without it.
const DETAILS: [(u32, &str); 6] = [
    (0x12, "sgx"),
    (0x14, "intel_pt"),
    (0x1d, "amx_tile"),
    (0x1e, "amx_tile"),
    (0x24, "avx10"),
    (0x8000_000a, "svm"),
];

/// Flags that build on others, each with the ones it needs.
const NEEDS: [(&str, &str); 23] = [
    ("xsave", "xsaveopt xsavec xgetbv1 xfd avx pku mpx apxf"),
    ("xsavec", "xsaves"),
    ("xsaves", "user_shstk arch_lbr enqcmd"),
    ("xfd", "amx_tile"),
    ("avx", "avx2 fma f16c fma4 xop vaes vpclmulqdq"),
    ("avx2", "avx512f avx_vnni avx_ifma avx_vnni_int8 avx_ne_convert avx_vnni_int16 sha512 sm3 sm4"),
    (
        "avx512f",
        "avx512dq avx512ifma avx512pf avx512er avx512cd avx512bw avx512vl avx512vbmi avx512_vbmi2 avx512_vnni \
         avx512_bitalg avx512_vpopcntdq avx512_4vnniw avx512_4fmaps avx512_vp2intersect avx512_fp16 avx512_bf16 avx10",
    ),
    ("amx_tile", "amx_bf16 amx_int8 amx_fp16 amx_complex"),
    ("fxsr", "sse fxsr_opt"),
    ("sse", "sse2"),
    ("sse2", "pni aes pclmulqdq sha_ni gfni"),
    ("pni", "ssse3 sse4a"),
    ("ssse3", "sse4_1"),
    ("sse4_1", "sse4_2"),
    ("sse4_2", "avx"),
    ("aes", "vaes"),
    ("pclmulqdq", "vpclmulqdq"),
    ("mmx", "mmxext 3dnow"),
    ("3dnow", "3dnowext"),
    ("apic", "x2apic tsc_deadline_timer"),
    ("dts", "dtes64 ds_cpl"),
    ("sgx", "sgx_lc"),
    (
        "svm",
        "npt lbrv svm_lock nrip_save tsc_scale vmcb_clean flushbyasid decodeassists pausefilter pfthreshold avic \
         v_vmsave_vmload vgif x2avic v_spec_ctrl vnmi",
    ),
];

/// What a flag is also called, elsewhere than in `/proc/cpuinfo`.
const OTHER_NAMES: [(&str, &str); 8] = [
    ("sse3", "pni"),
    ("cmpxchg16b", "cx16"),
    ("invtsc", "nonstop_tsc"),
    ("constant_tsc", "nonstop_tsc"),
    ("lzcnt", "abm"),
    ("spec_ctrl", "ibrs"),
    ("sha", "sha_ni"),
    ("shstk", "user_shstk"),
];

/// Where the choice begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Base {
    /// Everything that this host's KVM offers to guests.
    #[default]
    Host,
    /// What every server has, so that a guest can move from one to another.
    Baseline,
}

/// A flag more or less.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Change {
    Show(String),
    Hide(String),
}

/// What a user says about the processor: `host`, `baseline,+aes`, `host,-avx512f,-pcid`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuModel {
    base: Base,
    /// In the order in which they were written; the last word on a flag counts.
    changes: Vec<Change>,
}

/// Why a text describes no processor.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CpuModelError {
    /// Neither of the models.
    #[error("{0:?} is not a processor: write host or baseline, and after commas +FLAG or -FLAG")]
    Model(String),
    /// A word after a comma that neither adds nor takes away.
    #[error("{0:?} says neither + nor -: write +{0} to show that flag to the guest, -{0} to hide it")]
    Change(String),
    /// Not a flag.
    #[error("{flag:?} is no flag of a processor{}; `lodger run --cpu help` lists them",
            .suggestion.map(|name| format!(", but {name} is")).unwrap_or_default())]
    Flag {
        /// What was written.
        flag: String,
        /// What may have been meant.
        suggestion: Option<&'static str>,
    },
}

/// Flags that were asked for and cannot be had.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "this host's KVM does not offer {} to guests; `lodger run --cpu help` lists what it offers", .0.join(", ")
)]
pub struct NotOffered(pub Vec<String>);

impl FromStr for CpuModel {
    type Err = CpuModelError;

    fn from_str(text: &str) -> Result<Self, CpuModelError> {
        let mut words = text.split(',');
        let base = match words.next().unwrap_or_default() {
            "host" => Base::Host,
            "baseline" => Base::Baseline,
            other => return Err(CpuModelError::Model(other.to_owned())),
        };
        Ok(Self { base, changes: words.map(str::parse).collect::<Result<_, _>>()? })
    }
}

impl FromStr for Change {
    type Err = CpuModelError;

    fn from_str(word: &str) -> Result<Self, CpuModelError> {
        let (make, flag): (fn(String) -> Self, _) = match word.split_at_checked(1) {
            Some(("+", flag)) => (Self::Show, flag),
            Some(("-", flag)) => (Self::Hide, flag),
            _ => return Err(CpuModelError::Change(word.to_owned())),
        };
        match Flags::named(flag) == Flags::default() {
            true => Err(CpuModelError::Flag { flag: flag.to_owned(), suggestion: suggestion(flag) }),
            false => Ok(make(flag.to_owned())),
        }
    }
}

impl fmt::Display for CpuModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.base {
            Base::Host => "host",
            Base::Baseline => "baseline",
        })?;
        self.changes.iter().try_for_each(|change| match change {
            Change::Show(flag) => write!(f, ",+{flag}"),
            Change::Hide(flag) => write!(f, ",-{flag}"),
        })
    }
}

impl CpuModel {
    /// Whether this is `host` and nothing else.
    pub fn is_host(&self) -> bool {
        *self == Self::default()
    }

    /// Whether it has `flag` on a host that offers everything.
    pub fn has(&self, flag: &str) -> bool {
        self.wanted(Flags::ALL, Quirks::default()).is_ok_and(|wanted| wanted.has(flag))
    }

    /// The leaves that a machine's processors have in common, of those that a host offers.
    ///
    /// `kept` are leaves in which the host shows flags that it was asked to hide, as [`returned`] tells; empty at
    /// first.
    pub fn choose(
        &self,
        offered: &[CpuidEntry],
        kept: &[CpuidEntry],
        quirks: Quirks,
    ) -> Result<Vec<CpuidEntry>, NotOffered> {
        let mut entries = offered.to_vec();
        // Older kernels leave this to whoever creates the machine.
        let basic = entries.iter_mut().filter(|entry| entry.function == FEATURES);
        basic.for_each(|entry| entry.ecx |= FEATURES_ECX_HYPERVISOR);
        let available = Flags::of(&entries);
        let chosen = available.within(self.wanted(available, quirks)?).with(Flags::of(kept));
        chosen.put(&mut entries);
        if quirks.hypercalls_hang {
            paravirtual::hide_hypercalls(&mut entries);
        }
        if self.base == Base::Baseline {
            entries.retain(|entry| !NOT_IN_BASELINE.contains(&entry.function));
            paravirtual::keep_long_standing(&mut entries);
        }
        // What a host offers is consistent as it is.
        if !self.is_host() {
            entries.retain(|entry| {
                !DETAILS.iter().any(|&(leaf, flag)| leaf == entry.function && !chosen.has(flag))
            });
            state_components::restrict(&mut entries, &chosen, self.base == Base::Host);
        }
        Ok(entries)
    }

    /// The flags that are wanted if they are available.
    fn wanted(&self, available: Flags, quirks: Quirks) -> Result<Flags, NotOffered> {
        const DOUBLE_EXCHANGE: &str = "cx16";
        const STEADY_COUNTER: &str = "nonstop_tsc";
        let mut wanted = match self.base {
            Base::Host => Flags::ALL,
            Base::Baseline => baseline(),
        };
        if quirks.no_cmpxchg16b {
            wanted = wanted.without(Flags::named(DOUBLE_EXCHANGE));
        }
        if quirks.counter_is_hosts {
            wanted = wanted.without(Flags::named(STEADY_COUNTER));
        }
        let mut missing = Vec::new();
        for change in &self.changes {
            match change {
                Change::Show(flag) if !available.has(flag) => missing.push(flag.clone()),
                Change::Show(flag) => wanted = wanted.with(closure(flag, needed_by)),
                Change::Hide(flag) => wanted = wanted.without(closure(flag, relying_on)),
            }
        }
        if missing.is_empty() { Ok(wanted) } else { Err(NotOffered(missing)) }
    }
}

/// The flags of [`Base::Baseline`].
fn baseline() -> Flags {
    BASELINE.split_ascii_whitespace().fold(Flags::default(), |all, name| all.with(Flags::named(name)))
}

/// All flags that have a name.
pub fn known_flags() -> Vec<&'static str> {
    Flags::ALL.names()
}

/// The flags of a processor.
pub fn flags_of(entries: &[CpuidEntry]) -> Vec<&'static str> {
    Flags::of(entries).names()
}

/// Whether `baseline` has this flag.
pub fn is_in_baseline(flag: &str) -> bool {
    baseline().has(flag)
}

/// Flags that a host shows although it was not asked to.
pub fn returned(asked: &[CpuidEntry], shown: &[CpuidEntry]) -> Vec<&'static str> {
    Flags::of(shown).without(Flags::of(asked)).names()
}

/// A flag, and everything that is reached from it by `step`.
fn closure(flag: &str, step: fn(&str) -> Vec<&'static str>) -> Flags {
    let mut flags = Flags::named(flag);
    let mut open = step(flag);
    while let Some(next) = open.pop() {
        if !flags.has(next) {
            flags = flags.with(Flags::named(next));
            open.extend(step(next));
        }
    }
    flags
}

/// What a flag directly builds on.
fn needed_by(flag: &str) -> Vec<&'static str> {
    let lists = |names: &str| names.split_ascii_whitespace().any(|name| name == flag);
    NEEDS.iter().filter(|(_, above)| lists(above)).map(|&(below, _)| below).collect()
}

/// What directly builds on a flag.
fn relying_on(flag: &str) -> Vec<&'static str> {
    let lists = NEEDS.iter().filter(|(below, _)| *below == flag);
    lists.flat_map(|(_, above)| above.split_ascii_whitespace()).collect()
}

/// The flag that somebody may have meant.
fn suggestion(text: &str) -> Option<&'static str> {
    let text = text.trim().to_ascii_lowercase().replace(['.', '-'], "_");
    let other = OTHER_NAMES.iter().find(|(other, _)| *other == text).map(|&(_, name)| name);
    other.or_else(|| spelling::nearest(&text, known_flags()))
}

#[cfg(test)]
#[path = "model_test.rs"]
mod tests;
