//! Segment descriptors: between the eight bytes in a descriptor table and the hypervisor's view of a segment.
//!
//! Formats: Intel SDM volume 3, "Segment Descriptors" and "TSS Descriptor". [`mode`](super::mode) uses it for the
//! registers a processor starts with, `boot/` for the table in guest memory that those registers point into.

use crate::hv::Segment;

/// Execute, read, accessed.
const CODE: u8 = 0xb;
/// Read, write, accessed.
const DATA: u8 = 0x3;
/// Task state segment in use: 32-bit in legacy modes, 64-bit in long mode.
const BUSY_TASK: u8 = 0xb;
/// The least that a task state segment has to hold.
const TASK_LIMIT: u32 = 0x67;

/// The first descriptors of a table, as the Linux boot protocol wants them (`__BOOT_CS` 0x10, `__BOOT_DS`
/// 0x18), with a task state segment behind them, which takes two entries in long mode.
pub const BOOT_TABLE_ENTRIES: usize = 6;
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x20;

/// Flat 32-bit code.
pub fn code32() -> Segment {
    Segment { kind: CODE, selector: CODE_SELECTOR, default_big: true, ..flat() }
}

/// 64-bit code.
pub fn code64() -> Segment {
    Segment { kind: CODE, selector: CODE_SELECTOR, long: true, ..flat() }
}

/// Flat data, the same in 32-bit and 64-bit mode.
pub fn data() -> Segment {
    Segment { kind: DATA, selector: DATA_SELECTOR, default_big: true, ..flat() }
}

/// The task register. Nothing uses it before the guest loads its own, but a processor with hardware
/// virtualization refuses to enter a guest without.
pub fn task() -> Segment {
    Segment {
        selector: TASK_SELECTOR,
        kind: BUSY_TASK,
        code_or_data: false,
        limit: TASK_LIMIT,
        granularity: false,
        ..flat()
    }
}

/// A local descriptor table register that holds none.
pub fn no_ldt() -> Segment {
    Segment { kind: 0x2, unusable: true, ..Segment::default() }
}

/// Code in real mode.
pub fn real_code(paragraph: u16) -> Segment {
    Segment { kind: CODE, ..real_data(paragraph) }
}

/// Data in real mode.
pub fn real_data(paragraph: u16) -> Segment {
    Segment {
        selector: paragraph,
        base: u64::from(paragraph) << 4,
        limit: 0xffff,
        kind: DATA,
        code_or_data: true,
        present: true,
        ..Segment::default()
    }
}

/// The task register and the local descriptor table at reset.
pub fn real_system(kind: u8) -> Segment {
    Segment { limit: 0xffff, kind, present: true, ..Segment::default() }
}

fn flat() -> Segment {
    Segment { limit: u32::MAX, code_or_data: true, present: true, granularity: true, ..Segment::default() }
}

/// The descriptor table that `code`, [`data`] and [`task`] point into.
pub fn boot_table(code: &Segment) -> [u64; BOOT_TABLE_ENTRIES] {
    [0, 0, encode(code), encode(&data()), encode(&task()), encode_upper(&task())]
}

/// The descriptor of `segment`; of a 16-byte system descriptor the lower half.
pub fn encode(segment: &Segment) -> u64 {
    if segment.unusable {
        return 0;
    }
    let limit = u64::from(if segment.granularity { segment.limit >> 12 } else { segment.limit & 0xf_ffff });
    let access = u64::from(segment.kind & 0xf)
        | u64::from(segment.code_or_data) << 4
        | u64::from(segment.dpl & 3) << 5
        | u64::from(segment.present) << 7;
    let flags = u64::from(segment.available)
        | u64::from(segment.long) << 1
        | u64::from(segment.default_big) << 2
        | u64::from(segment.granularity) << 3;
    (limit & 0xffff)
        | (segment.base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16) << 48
        | flags << 52
        | (segment.base >> 24 & 0xff) << 56
}

/// The upper half of a 16-byte system descriptor in long mode: the rest of the base.
pub fn encode_upper(segment: &Segment) -> u64 {
    segment.base >> 32
}

/// The segment behind `selector`, whose descriptor is `entry`. Of a 16-byte system descriptor this is the
/// lower half; the upper 32 bits of its base come from the other one.
pub fn decode(selector: u16, entry: u64) -> Segment {
    let bit = |position: u32| entry >> position & 1 != 0;
    let limit = (entry & 0xffff | (entry >> 48 & 0xf) << 16) as u32;
    Segment {
        selector,
        base: entry >> 16 & 0xff_ffff | (entry >> 56) << 24,
        limit: if bit(55) { limit << 12 | 0xfff } else { limit },
        kind: (entry >> 40 & 0xf) as u8,
        code_or_data: bit(44),
        dpl: (entry >> 45 & 3) as u8,
        present: bit(47),
        available: bit(52),
        long: bit(53),
        default_big: bit(54),
        granularity: bit(55),
        // What is not present cannot be used; hypervisors want that said.
        unusable: !bit(47),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn well_known_descriptors_are_encoded_as_every_kernel_writes_them() {
        assert_eq!(encode(&code32()), 0x00cf_9b00_0000_ffff);
        assert_eq!(encode(&code64()), 0x00af_9b00_0000_ffff);
        assert_eq!(encode(&data()), 0x00cf_9300_0000_ffff);
        assert_eq!(encode(&task()), 0x0000_8b00_0000_0067);
        assert_eq!(encode(&no_ldt()), 0);
    }

    #[test]
    fn what_was_encoded_is_decoded() {
        let odd = Segment {
            selector: 0x2b,
            base: 0x89ab_cdef,
            limit: 0x5_4321,
            kind: 0x6,
            code_or_data: true,
            dpl: 3,
            present: true,
            available: true,
            ..Segment::default()
        };
        for segment in [code32(), code64(), data(), task(), real_code(0), odd] {
            assert_eq!(decode(segment.selector, encode(&segment)), segment);
        }
    }

    #[test]
    fn every_descriptor_survives_being_decoded_and_encoded() {
        // Each bit alone in a present descriptor: together they cover every field.
        for bit in 0..64 {
            let entry = 1_u64 << bit | 1 << 47;
            assert_eq!(encode(&decode(0, entry)), entry, "bit {bit}");
        }
    }

    #[test]
    fn a_descriptor_that_is_not_present_is_unusable() {
        assert!(decode(8, 0).unusable);
        assert!(!decode(8, encode(&data())).unusable);
    }

    #[test]
    fn the_upper_half_of_a_system_descriptor_holds_the_rest_of_its_base() {
        let far = Segment { base: 0x1234_5678_9abc_def0, ..task() };
        assert_eq!(encode_upper(&far), 0x1234_5678);
        assert_eq!(decode(0x20, encode(&far)).base, 0x9abc_def0);
    }

    #[test]
    fn the_boot_table_answers_to_the_selectors_of_the_registers() {
        let table = boot_table(&code64());
        for segment in [code64(), data(), task()] {
            let entry = table[usize::from(segment.selector >> 3)];
            assert_eq!(decode(segment.selector, entry), segment);
        }
    }
}
