//! Between the kernel's structures and ours.
//!
//! Registers are translated field by field; what the kernel defines as an opaque block is carried as bytes.

use kvm_bindings::{
    KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2, kvm_dtable, kvm_irqchip, kvm_pit_state2, kvm_regs,
    kvm_segment, kvm_sregs, kvm_vcpu_events, kvm_xsave,
};

use crate::hv::{CpuidEntry, DescriptorTable, Registers, Segment, SpecialRegisters};

/// Kernel structures that are carried as bytes.
///
/// # Safety
/// Implementors are `repr(C)`, without padding between or behind their fields, and every bit pattern is a
/// valid value.
pub(super) unsafe trait Plain: Default {
    /// The structure's bytes.
    fn to_bytes(&self) -> Vec<u8> {
        // SAFETY: no padding, so all `size_of::<Self>()` bytes are initialised.
        unsafe { std::slice::from_raw_parts((&raw const *self).cast(), size_of::<Self>()) }.to_vec()
    }

    /// Copies the structure's bytes to `bytes`, which has as many.
    fn copy_to(&self, bytes: &mut [u8]) {
        // SAFETY: no padding, so all `size_of::<Self>()` bytes are initialised.
        bytes.copy_from_slice(unsafe {
            std::slice::from_raw_parts((&raw const *self).cast(), size_of::<Self>())
        });
    }

    /// The structure with these bytes, if there are exactly as many as it has.
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut value = Self::default();
        if bytes.len() != size_of::<Self>() {
            return None;
        }
        // SAFETY: source and destination have the same length, and any bytes make a valid value.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), (&raw mut value).cast(), bytes.len()) };
        Some(value)
    }
}

// SAFETY: an array of 1024 words; the variable part behind it has no length of its own here.
unsafe impl Plain for kvm_xsave {}
// SAFETY: integers with explicit reserved fields that fill every gap.
unsafe impl Plain for kvm_vcpu_events {}
// SAFETY: integers with explicit reserved fields that fill every gap.
unsafe impl Plain for kvm_pit_state2 {}
// SAFETY: two words and a union of which the kernel always fills all 512 bytes; `default` zeroes it.
unsafe impl Plain for kvm_irqchip {}

impl From<&kvm_regs> for Registers {
    fn from(regs: &kvm_regs) -> Self {
        let kvm_regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, .. } = *regs;
        let kvm_regs { r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags, .. } = *regs;
        Self { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags }
    }
}

impl From<&Registers> for kvm_regs {
    fn from(registers: &Registers) -> Self {
        let Registers { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, .. } = *registers;
        let Registers { r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags, .. } = *registers;
        Self { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags }
    }
}

impl From<&kvm_segment> for Segment {
    fn from(segment: &kvm_segment) -> Self {
        let kvm_segment {
            base,
            limit,
            selector,
            type_,
            present,
            dpl,
            db,
            s,
            l,
            g,
            avl,
            unusable,
            padding: _,
        } = *segment;
        Self {
            selector,
            base,
            limit,
            kind: type_,
            code_or_data: s != 0,
            dpl,
            present: present != 0,
            available: avl != 0,
            long: l != 0,
            default_big: db != 0,
            granularity: g != 0,
            unusable: unusable != 0,
        }
    }
}

impl From<&Segment> for kvm_segment {
    fn from(segment: &Segment) -> Self {
        let Segment { selector, base, limit, kind, dpl, .. } = *segment;
        let Segment { code_or_data, present, available, long, default_big, granularity, unusable, .. } =
            *segment;
        Self {
            base,
            limit,
            selector,
            type_: kind,
            present: present.into(),
            dpl,
            db: default_big.into(),
            s: code_or_data.into(),
            l: long.into(),
            g: granularity.into(),
            avl: available.into(),
            unusable: unusable.into(),
            padding: 0,
        }
    }
}

fn table(table: &kvm_dtable) -> DescriptorTable {
    DescriptorTable { base: table.base, limit: table.limit }
}

fn kvm_table(table: &DescriptorTable) -> kvm_dtable {
    kvm_dtable { base: table.base, limit: table.limit, padding: [0; 3] }
}

impl From<&kvm_sregs> for SpecialRegisters {
    fn from(sregs: &kvm_sregs) -> Self {
        let kvm_sregs { cr0, cr2, cr3, cr4, cr8, efer, apic_base, interrupt_bitmap, .. } = *sregs;
        let kvm_sregs { cs, ds, es, fs, gs, ss, tr, ldt, gdt, idt, .. } = sregs;
        Self {
            cs: cs.into(),
            ds: ds.into(),
            es: es.into(),
            fs: fs.into(),
            gs: gs.into(),
            ss: ss.into(),
            tr: tr.into(),
            ldt: ldt.into(),
            gdt: table(gdt),
            idt: table(idt),
            cr0,
            cr2,
            cr3,
            cr4,
            cr8,
            efer,
            apic_base,
            interrupt_bitmap,
        }
    }
}

impl From<&SpecialRegisters> for kvm_sregs {
    fn from(special: &SpecialRegisters) -> Self {
        let SpecialRegisters { cr0, cr2, cr3, cr4, cr8, efer, apic_base, interrupt_bitmap, .. } = *special;
        let SpecialRegisters { cs, ds, es, fs, gs, ss, tr, ldt, gdt, idt, .. } = special;
        Self {
            cs: cs.into(),
            ds: ds.into(),
            es: es.into(),
            fs: fs.into(),
            gs: gs.into(),
            ss: ss.into(),
            tr: tr.into(),
            ldt: ldt.into(),
            gdt: kvm_table(gdt),
            idt: kvm_table(idt),
            cr0,
            cr2,
            cr3,
            cr4,
            cr8,
            efer,
            apic_base,
            interrupt_bitmap,
        }
    }
}

impl From<&kvm_cpuid_entry2> for CpuidEntry {
    fn from(entry: &kvm_cpuid_entry2) -> Self {
        let kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, padding: _ } = *entry;
        let index_significant = flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0;
        Self { function, index, index_significant, eax, ebx, ecx, edx }
    }
}

impl From<&CpuidEntry> for kvm_cpuid_entry2 {
    fn from(entry: &CpuidEntry) -> Self {
        let CpuidEntry { function, index, index_significant, eax, ebx, ecx, edx } = *entry;
        let flags = if index_significant { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 };
        Self { function, index, flags, eax, ebx, ecx, edx, padding: [0; 3] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_survive_the_way_to_the_kernel_and_back() {
        let mut registers =
            Registers { rax: 1, rbx: 2, r15: 15, rip: 0x1000, rflags: 2, ..Default::default() };
        registers.rsp = u64::MAX;
        assert_eq!(Registers::from(&kvm_regs::from(&registers)), registers);
    }

    #[test]
    fn segments_and_tables_survive_the_way_to_the_kernel_and_back() {
        let cs = Segment {
            selector: 0x10,
            base: 0x1234,
            limit: 0xffff_ffff,
            kind: 11,
            code_or_data: true,
            dpl: 3,
            present: true,
            available: true,
            long: true,
            default_big: false,
            granularity: true,
            unusable: false,
        };
        let data = Segment { long: false, default_big: true, unusable: true, ..cs };
        let special = SpecialRegisters {
            cs,
            ds: data,
            gdt: DescriptorTable { base: 0x500, limit: 39 },
            cr0: 0x8005_0033,
            interrupt_bitmap: [1, 2, 3, 4],
            ..Default::default()
        };
        assert_eq!(SpecialRegisters::from(&kvm_sregs::from(&special)), special);
    }

    #[test]
    fn opaque_blocks_keep_every_byte_and_refuse_other_lengths() {
        let bytes: Vec<u8> = (0..size_of::<kvm_xsave>()).map(|index| index as u8).collect();
        assert_eq!(kvm_xsave::from_bytes(&bytes).unwrap().to_bytes(), bytes);
        assert!(kvm_xsave::from_bytes(&bytes[1..]).is_none());
        assert!(kvm_xsave::from_bytes(&[]).is_none());
    }
}
