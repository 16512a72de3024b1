//! The guest that boots when no kernel is named: built from `firmware/` by `build.rs`, part of this binary.
//!
//! It is an ordinary ELF image and takes the ordinary way through the loaders of [`boot`](super); it can be
//! entered by PVH and by the 64-bit Linux boot protocol.

/// The image: ELF64, linked at 1 MiB, with a PVH note.
///
/// It prints what machine it found and offers a prompt on the first serial port. Its command line may say
/// `quiet` (no report) and `run=COMMAND;COMMAND…` (what to do before the prompt; reaches to the end of the line
/// unless quoted). It ends the process through the debug-exit port: `exit STATUS` with a status of its own,
/// 99 if it failed.
pub static EMBEDDED_GUEST: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest.elf"));

// The parts of the guest that are pure carry their own tests, which run here.
#[cfg(test)]
#[path = "../../firmware/format.rs"]
mod format;
#[cfg(test)]
#[path = "../../firmware/line.rs"]
mod line;
#[cfg(test)]
#[path = "../../firmware/parse.rs"]
mod parse;
#[cfg(test)]
#[path = "../../firmware/samples.rs"]
mod samples;

#[cfg(test)]
mod tests {
    use super::EMBEDDED_GUEST;

    const ONE_MIB: u64 = 1 << 20;
    const LOAD: u32 = 1;
    const NOTE: u32 = 4;

    struct Segment {
        kind: u32,
        flags: u32,
        offset: u64,
        address: u64,
        in_file: u64,
        in_memory: u64,
    }

    fn u16_at(offset: u64) -> u16 {
        u16::from_le_bytes(bytes(offset))
    }

    fn u32_at(offset: u64) -> u32 {
        u32::from_le_bytes(bytes(offset))
    }

    fn u64_at(offset: u64) -> u64 {
        u64::from_le_bytes(bytes(offset))
    }

    fn bytes<const N: usize>(offset: u64) -> [u8; N] {
        EMBEDDED_GUEST[offset as usize..][..N].try_into().unwrap()
    }

    fn segments() -> impl Iterator<Item = Segment> {
        let (table, size, count) = (u64_at(32), u64::from(u16_at(54)), u64::from(u16_at(56)));
        (0..count).map(move |index| table + index * size).map(|at| Segment {
            kind: u32_at(at),
            flags: u32_at(at + 4),
            offset: u64_at(at + 8),
            address: u64_at(at + 24),
            in_file: u64_at(at + 32),
            in_memory: u64_at(at + 40),
        })
    }

    fn is_code(address: u64) -> bool {
        const EXECUTABLE: u32 = 1;
        segments().any(|segment| {
            segment.kind == LOAD
                && segment.flags & EXECUTABLE != 0
                && (segment.address..segment.address + segment.in_file).contains(&address)
        })
    }

    #[test]
    fn the_image_is_a_static_64_bit_elf_for_this_processor() {
        assert_eq!(EMBEDDED_GUEST[..7], *b"\x7fELF\x02\x01\x01");
        assert_eq!((u16_at(16), u16_at(18)), (2, 62));
        assert!(is_code(u64_at(24)), "the entry is no code");
        assert!(segments().all(|segment| matches!(segment.kind, LOAD | NOTE)));
    }

    #[test]
    fn the_image_lies_in_the_second_mebibyte_in_order_and_apart() {
        let mut free_from = ONE_MIB;
        for segment in segments().filter(|segment| segment.kind == LOAD) {
            assert!(segment.address >= free_from && segment.in_file <= segment.in_memory);
            free_from = segment.address + segment.in_memory;
        }
        assert!(free_from <= 2 * ONE_MIB, "{free_from:#x}");
    }

    #[test]
    fn the_image_says_where_pvh_enters() {
        let note = segments().find(|segment| segment.kind == NOTE).unwrap().offset;
        assert_eq!((u32_at(note), u32_at(note + 4), u32_at(note + 8)), (4, 8, 18));
        assert_eq!(bytes(note + 12), *b"Xen\0");
        assert!(is_code(u64_at(note + 16)));
    }

    #[test]
    fn the_image_stays_small() {
        assert!(EMBEDDED_GUEST.len() < 192 << 10, "{} bytes", EMBEDDED_GUEST.len());
    }
}
