//! The registers with which a processor starts, one set for each mode that a boot protocol asks for.
//!
//! `boot/` decides which mode and where; `vm/` reads the registers that the hypervisor reports at reset, lets
//! [`InitialState::registers`] change what has to be changed, and writes them back.

use crate::hv::{DescriptorTable, Registers, SpecialRegisters};

use super::segments;

/// Protection enable.
pub const CR0_PE: u64 = 1 << 0;
/// Write protection of pages holds for the supervisor, too.
pub const CR0_WP: u64 = 1 << 16;
/// Extension type: always set on processors of this millennium.
pub const CR0_ET: u64 = 1 << 4;
/// Paging.
pub const CR0_PG: u64 = 1 << 31;
/// 4 MiB pages in 32-bit paging.
pub const CR4_PSE: u64 = 1 << 4;
/// Physical address extension.
pub const CR4_PAE: u64 = 1 << 5;
/// Five-level paging.
pub const CR4_LA57: u64 = 1 << 12;
/// The supervisor executes no user pages.
pub const CR4_SMEP: u64 = 1 << 20;
/// The supervisor touches user pages only when it says so.
pub const CR4_SMAP: u64 = 1 << 21;
/// Pages can be barred from execution.
pub const EFER_NXE: u64 = 1 << 11;
/// Control-flow enforcement.
pub const CR4_CET: u64 = 1 << 23;
/// Long mode enabled.
pub const EFER_LME: u64 = 1 << 8;
/// Long mode active.
pub const EFER_LMA: u64 = 1 << 10;

/// Bit 1 of RFLAGS reads as one; all others, interrupts among them, start cleared.
const RFLAGS: u64 = 1 << 1;
/// A table with one entry per real-mode interrupt, at address 0, as at reset.
const REAL_MODE_VECTORS: DescriptorTable = DescriptorTable { base: 0, limit: 0x3ff };

/// How the boot processor starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InitialState {
    /// 16-bit real mode. CS, DS and ES begin at the paragraph of `entry`, so that code linked for offset 0 finds
    /// its data; IP is what is left (0 to 15). SS is 0.
    Real {
        /// Where execution starts, below 1 MiB.
        entry: u32,
        /// Initial SP.
        stack: u16,
    },
    /// 32-bit protected mode without paging, all segments flat: what the PVH protocol and the 32-bit Linux boot
    /// protocol ask for.
    Protected {
        /// Where execution starts.
        entry: u32,
        /// The address of what the protocol hands over, and the register that holds it. The others are 0.
        parameters: Parameters,
        /// Address of a table with [`segments::boot_table`] of [`segments::code32`].
        descriptors: u64,
    },
    /// 64-bit mode with paging: what the Linux 64-bit boot protocol asks for.
    Long {
        /// Where execution starts.
        entry: u64,
        /// RSI: the address of what the protocol hands over.
        parameters: u64,
        /// Initial RSP.
        stack: u64,
        /// CR3.
        page_tables: u64,
        /// Address of a table with [`segments::boot_table`] of [`segments::code64`].
        descriptors: u64,
    },
}

/// What a protocol hands over in 32-bit mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parameters {
    /// EBX, as PVH wants it.
    Ebx(u32),
    /// ESI, as Linux wants it.
    Esi(u32),
}

impl InitialState {
    /// The registers of a processor that starts like this. `reset` is what the hypervisor reports after it
    /// created the processor: the APIC base in it is kept, everything else that matters is set.
    pub fn registers(&self, reset: &SpecialRegisters) -> (Registers, SpecialRegisters) {
        match *self {
            Self::Real { entry, stack } => real(reset, entry, stack),
            Self::Protected { entry, parameters, descriptors } => {
                let (rbx, rsi) = match parameters {
                    Parameters::Ebx(address) => (u64::from(address), 0),
                    Parameters::Esi(address) => (0, u64::from(address)),
                };
                let general =
                    Registers { rip: u64::from(entry), rbx, rsi, rflags: RFLAGS, ..Registers::default() };
                let special = SpecialRegisters {
                    cs: segments::code32(),
                    cr0: CR0_PE | CR0_ET,
                    ..protected(reset, descriptors)
                };
                (general, special)
            }
            Self::Long { entry, parameters, stack, page_tables, descriptors } => {
                let general = Registers {
                    rip: entry,
                    rsi: parameters,
                    rsp: stack,
                    rflags: RFLAGS,
                    ..Registers::default()
                };
                let special = SpecialRegisters {
                    cs: segments::code64(),
                    cr0: CR0_PE | CR0_ET | CR0_PG,
                    cr3: page_tables,
                    cr4: CR4_PAE,
                    efer: EFER_LME | EFER_LMA,
                    ..protected(reset, descriptors)
                };
                (general, special)
            }
        }
    }
}

/// The linear address of the instruction that a processor with these registers executes next.
pub fn linear_rip(general: &Registers, special: &SpecialRegisters) -> u64 {
    const LINEAR_32: u64 = 0xffff_ffff;
    match special.cs.long {
        // In 64-bit code segment bases do not count.
        true => general.rip,
        false => special.cs.base.wrapping_add(general.rip) & LINEAR_32,
    }
}

fn real(reset: &SpecialRegisters, entry: u32, stack: u16) -> (Registers, SpecialRegisters) {
    let paragraph = (entry >> 4) as u16;
    let general = Registers {
        rip: u64::from(entry & 0xf),
        rsp: u64::from(stack),
        rflags: RFLAGS,
        ..Registers::default()
    };
    let data = segments::real_data(paragraph);
    let zero = segments::real_data(0);
    let special = SpecialRegisters {
        cs: segments::real_code(paragraph),
        ds: data,
        es: data,
        fs: zero,
        gs: zero,
        ss: zero,
        tr: segments::real_system(0xb),
        ldt: segments::real_system(0x2),
        gdt: DescriptorTable { base: 0, limit: 0xffff },
        idt: REAL_MODE_VECTORS,
        cr0: CR0_ET,
        ..kept(reset)
    };
    (general, special)
}

/// All that 32-bit and 64-bit mode have in common.
fn protected(reset: &SpecialRegisters, descriptors: u64) -> SpecialRegisters {
    let data = segments::data();
    SpecialRegisters {
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: segments::task(),
        ldt: segments::no_ldt(),
        gdt: DescriptorTable { base: descriptors, limit: (segments::BOOT_TABLE_ENTRIES * 8 - 1) as u16 },
        // Empty: an exception before the guest has a table of its own ends in a triple fault, not in a jump
        // to whatever lies at address 0.
        idt: DescriptorTable { base: 0, limit: 0 },
        ..kept(reset)
    }
}

/// What does not depend on the mode. An interrupt that was about to be delivered belongs to another life.
fn kept(reset: &SpecialRegisters) -> SpecialRegisters {
    SpecialRegisters { apic_base: reset.apic_base, ..SpecialRegisters::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u32 = 1 << 20;

    /// What KVM reports for a boot processor at reset.
    fn reset() -> SpecialRegisters {
        SpecialRegisters {
            cs: crate::hv::Segment { selector: 0xf000, base: 0xffff_0000, ..segments::real_code(0) },
            cr0: 0x6000_0010,
            cr2: 77,
            efer: 1,
            apic_base: 0xfee0_0900,
            interrupt_bitmap: [1, 0, 0, 0],
            ..SpecialRegisters::default()
        }
    }

    #[test]
    fn real_mode_starts_at_the_paragraph_of_its_entry() {
        let (general, special) = InitialState::Real { entry: 0x7c05, stack: 0x1000 }.registers(&reset());
        assert_eq!((special.cs.selector, special.cs.base, general.rip), (0x7c0, 0x7c00, 5));
        assert_eq!((special.ds.base, special.es.base, special.ss.base), (0x7c00, 0x7c00, 0));
        assert_eq!(special.cs.limit, 0xffff);
        assert_eq!(general.rsp, 0x1000);
        assert_eq!(special.cr0 & (CR0_PE | CR0_PG), 0);
        assert_eq!(special.idt, DescriptorTable { base: 0, limit: 0x3ff });
    }

    #[test]
    fn protected_mode_is_what_the_pvh_specification_demands() {
        let state = InitialState::Protected {
            entry: 0x100_0000,
            parameters: Parameters::Ebx(0x1100),
            descriptors: 0x1000,
        };
        let (general, special) = state.registers(&reset());
        assert_eq!((general.rip, general.rbx, general.rflags), (0x100_0000, 0x1100, 2));
        assert_eq!(special.cr0, CR0_PE | CR0_ET);
        assert_eq!((special.cr3, special.cr4, special.efer), (0, 0, 0));
        assert_eq!((special.cs.kind, special.cs.default_big, special.cs.long), (0xb, true, false));
        for segment in [special.cs, special.ds, special.es, special.ss] {
            assert_eq!((segment.base, segment.limit), (0, u32::MAX));
        }
        assert_eq!((special.tr.base, special.tr.limit, special.tr.kind), (0, 0x67, 0xb));
    }

    #[test]
    fn protected_mode_is_what_the_linux_32_bit_protocol_demands() {
        let state =
            InitialState::Protected { entry: MIB, parameters: Parameters::Esi(0x2000), descriptors: 0x1000 };
        let (general, special) = state.registers(&reset());
        assert_eq!((general.rip, general.rsi, general.rflags), (u64::from(MIB), 0x2000, 2));
        assert_eq!((general.rbp, general.rdi, general.rbx), (0, 0, 0));
        assert_eq!((special.cs.selector, special.ds.selector, special.es.selector), (0x10, 0x18, 0x18));
        assert_eq!((special.ss.selector, special.cr0 & CR0_PG), (0x18, 0));
    }

    #[test]
    fn long_mode_is_what_the_linux_64_bit_protocol_demands() {
        let state = InitialState::Long {
            entry: 0x100_0200,
            parameters: 0x2000,
            stack: 0x1000,
            page_tables: 0x3000,
            descriptors: 0x1000,
        };
        let (general, special) = state.registers(&reset());
        assert_eq!((general.rip, general.rsi, general.rsp), (0x100_0200, 0x2000, 0x1000));
        assert_eq!(general.rflags & 1 << 9, 0, "interrupts are off");
        assert_eq!(special.cr0 & (CR0_PE | CR0_PG), CR0_PE | CR0_PG);
        assert_eq!((special.cr3, special.cr4 & CR4_PAE), (0x3000, CR4_PAE));
        assert_eq!(special.efer, EFER_LME | EFER_LMA);
        assert_eq!((special.cs.selector, special.cs.long, special.cs.default_big), (0x10, true, false));
        assert_eq!((special.ds.selector, special.ss.selector), (0x18, 0x18));
        assert_eq!(special.gdt, DescriptorTable { base: 0x1000, limit: 47 });
    }

    #[test]
    fn the_apic_base_is_kept_and_leftovers_are_not() {
        for state in [
            InitialState::Real { entry: 0, stack: 0 },
            InitialState::Protected { entry: 0, parameters: Parameters::Ebx(0), descriptors: 0 },
            InitialState::Long { entry: 0, parameters: 0, stack: 0, page_tables: 0, descriptors: 0 },
        ] {
            let (_, special) = state.registers(&reset());
            assert_eq!(special.apic_base, 0xfee0_0900);
            assert_eq!(special.cr0 & 0x6000_0000, 0, "caches are on");
            assert_eq!(special.cr2, 0);
            assert_eq!(special.interrupt_bitmap, [0; 4]);
        }
    }
}
