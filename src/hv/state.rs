//! A processor's registers as plain data of our own, and what is saved of a processor.

use serde::{Deserialize, Serialize};

use crate::saved::Saved;

/// The general registers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // each is the register of the same name
pub struct Registers {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
}

impl Registers {
    /// All but RIP and RFLAGS, by their numbers in machine code.
    pub fn numbered(&self) -> [u64; 16] {
        let Self { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, .. } = *self;
        let Self { r8, r9, r10, r11, r12, r13, r14, r15, rip: _, rflags: _, .. } = *self;
        [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15]
    }

    /// These registers, of which the general ones are given by their numbers.
    pub fn with_numbered(&self, values: [u64; 16]) -> Self {
        let Self { rip, rflags, .. } = *self;
        let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = values;
        Self { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags }
    }
}

/// A segment register with its hidden part. Fields follow the descriptor format of the architecture manuals.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// The visible part.
    pub selector: u16,
    /// Where the segment starts.
    pub base: u64,
    /// Its last valid offset, in bytes.
    pub limit: u32,
    /// The four type bits.
    pub kind: u8,
    /// Set: code or data; clear: system segment.
    pub code_or_data: bool,
    /// Descriptor privilege level.
    pub dpl: u8,
    /// Whether it may be used at all.
    pub present: bool,
    /// Available to system software.
    pub available: bool,
    /// 64-bit code.
    pub long: bool,
    /// Default operand size is 32 bits.
    pub default_big: bool,
    /// Limit counted in pages.
    pub granularity: bool,
    /// Marked unusable by the hypervisor.
    pub unusable: bool,
}

/// A descriptor table register.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescriptorTable {
    /// Linear address of the table.
    pub base: u64,
    /// Offset of its last byte.
    pub limit: u16,
}

/// Segments, descriptor tables and control registers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // each is the register of the same name
pub struct SpecialRegisters {
    pub cs: Segment,
    pub ds: Segment,
    pub es: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ss: Segment,
    pub tr: Segment,
    pub ldt: Segment,
    pub gdt: DescriptorTable,
    pub idt: DescriptorTable,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    pub efer: u64,
    pub apic_base: u64,
    /// Bitmap of the external interrupt that is about to be delivered.
    pub interrupt_bitmap: [u64; 4],
}

/// The x87, SSE, AVX… registers, in the standard format of `xsave` as the host's processor lays it out.
///
/// Large enough for everything up to AVX-512; what is larger has to be enabled for a process first, and never is.
#[derive(Clone, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Vectors(pub [u8; 4096]);

impl Default for Vectors {
    fn default() -> Self {
        Self([0; 4096])
    }
}

impl std::fmt::Debug for Vectors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Vectors")
    }
}

/// An exception to be delivered before the next instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exception {
    /// Its number in the interrupt descriptor table.
    pub vector: u8,
    /// What is pushed, for the exceptions that push something.
    pub error_code: Option<u32>,
}

/// One answer of the `cpuid` instruction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // the registers that cpuid fills
pub struct CpuidEntry {
    /// EAX at the question.
    pub function: u32,
    /// ECX at the question, where it matters.
    pub index: u32,
    /// Whether ECX matters.
    pub index_significant: bool,
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// One model-specific register and its value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Msr {
    /// Its number, as `rdmsr` takes it in ECX.
    pub index: u32,
    /// Its value.
    pub value: u64,
}

/// Everything that makes up one vCPU. What the kernel defines as an opaque block stays one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedVcpu {
    /// General registers.
    pub registers: Registers,
    /// Segments, descriptor tables, control registers.
    pub special: SpecialRegisters,
    /// What `cpuid` answers.
    pub cpuid: Vec<CpuidEntry>,
    /// Model-specific registers that this host lists as state.
    pub msrs: Vec<Msr>,
    /// `struct kvm_xsave`: x87, SSE, AVX… registers in the processor's own layout.
    pub xsave: Vec<u8>,
    /// Extended control registers as (number, value).
    pub xcrs: Vec<(u32, u64)>,
    /// DR0–DR3, DR6, DR7.
    pub debug: [u64; 6],
    /// `struct kvm_lapic_state`; empty without interrupt controller.
    pub lapic: Vec<u8>,
    /// `struct kvm_vcpu_events`: exceptions, interrupts, NMIs and SMIs under way.
    pub events: Vec<u8>,
    /// Runnable, waiting for INIT or SIPI, halted…, by the kernel's numbers.
    pub mp_state: u32,
    /// Frequency of the time stamp counter, where the host tells.
    pub tsc_khz: Option<u32>,
}

/// The number of the time stamp counter among the model-specific registers.
pub const TIME_STAMP_COUNTER: u32 = 0x10;

impl SavedVcpu {
    fn time_stamp_counter(&mut self) -> Option<&mut u64> {
        self.msrs.iter_mut().find(|msr| msr.index == TIME_STAMP_COUNTER).map(|msr| &mut msr.value)
    }

    /// Changes what its time stamp counter shows, if that was saved.
    pub fn set_time_stamp_counter(&mut self, value: u64) {
        self.time_stamp_counter().into_iter().for_each(|counter| *counter = value);
    }

    /// The same processor so many nanoseconds later, as far as it counts by itself.
    pub fn after(&self, nanoseconds: u64) -> Self {
        const NANOSECONDS_IN_MILLISECOND: u128 = 1_000_000;
        let mut later = self.clone();
        let ticks =
            u128::from(nanoseconds) * u128::from(self.tsc_khz.unwrap_or(0)) / NANOSECONDS_IN_MILLISECOND;
        // As the register itself does, it begins again at zero.
        let passed = ticks as u64;
        later.time_stamp_counter().into_iter().for_each(|counter| *counter = counter.wrapping_add(passed));
        later
    }
}

impl Saved for SavedVcpu {
    const NAME: &'static str = "vcpu";
    const VERSION: u16 = 1;
}

/// The state of PIC, IOAPIC and PIT, in the kernel's own structures.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedInterrupts {
    /// `struct kvm_irqchip` of both PICs and the IOAPIC.
    pub chips: Vec<Vec<u8>>,
    /// `struct kvm_pit_state2`.
    pub pit: Vec<u8>,
}

impl Saved for SavedInterrupts {
    const NAME: &'static str = "interrupts";
    const VERSION: u16 = 1;
}

/// What clocks showed at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedClock {
    /// The clock that the hypervisor gives the guest, in nanoseconds.
    pub guest: u64,
    /// The host's, in nanoseconds since 1970.
    pub host: u64,
}

impl Saved for SavedClock {
    const NAME: &'static str = "clock";
    const VERSION: u16 = 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_stamp_counter_goes_on_by_the_time_that_passed_and_nothing_else_does() {
        let other = Msr { index: 0x3b, value: 7 };
        let counter = |value| Msr { index: TIME_STAMP_COUNTER, value };
        let saved =
            SavedVcpu { msrs: vec![other, counter(1000)], tsc_khz: Some(2_596_128), ..SavedVcpu::default() };
        let after = |nanoseconds| saved.after(nanoseconds).msrs;
        assert_eq!(after(0), [other, counter(1000)]);
        assert_eq!(after(1_000_000_000), [other, counter(2_596_129_000)]);
        // Three hundred years.
        let long = 300 * 365 * 86_400 * 1_000_000_000_u128;
        assert_eq!(after(long as u64), [other, counter((long * 2_596_128 / 1_000_000) as u64 + 1000)]);
        assert_eq!(SavedVcpu { tsc_khz: None, ..saved.clone() }.after(5).msrs, saved.msrs);
        let mut set = saved.clone();
        set.set_time_stamp_counter(9);
        assert_eq!(set.msrs, [other, counter(9)]);
        let without = SavedVcpu { msrs: vec![other], ..saved.clone() };
        let mut set = without.clone();
        set.set_time_stamp_counter(9);
        assert_eq!((set, without.after(1_000)), (without.clone(), without));
    }
}
