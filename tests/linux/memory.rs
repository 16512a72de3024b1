//! The guest sees as much memory as it was given.

use crate::support::{Finished, Linux, section, tiny};

/// What a guest is not given of the first MiB, as on a PC (the README says so).
const KEPT: u64 = 385 << 10;
const MIB: u64 = 1 << 20;

/// The bytes of all usable ranges in what the kernel says of its memory map.
fn usable(log: &str) -> u64 {
    let ranges = log.lines().filter_map(|line| line.split_once("BIOS-e820: [mem 0x")).map(|(_, rest)| rest);
    ranges
        .map(|range| {
            let (start, rest) = range.split_once("-0x").unwrap();
            let (last, usage) = rest.split_once("] ").unwrap();
            let number = |text| u64::from_str_radix(text, 16).unwrap();
            if usage.trim() == "usable" { number(last) + 1 - number(start) } else { 0 }
        })
        .sum()
}

/// `MemTotal` of `/proc/meminfo` in bytes.
fn total(finished: &Finished) -> u64 {
    let line = section(finished, "/proc/meminfo").lines().find(|line| line.starts_with("MemTotal:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

#[test]
fn every_byte_below_and_above_the_hole_is_seen() {
    for (option, size) in [("64M", 64 * MIB), ("3584M", 3584 * MIB), ("5G", 5 * 1024 * MIB)] {
        let finished =
            Linux::new(tiny()).memory(option).run("log show:/proc/meminfo exit:42").with(42).silent();
        assert_eq!(usable(section(&finished, "log")), size - KEPT, "{finished:?}");
        // The kernel's own code, and what it keeps of each page.
        let own = 24 * MIB + size / 32;
        let total = total(&finished);
        assert!((size - own..size - KEPT).contains(&total), "{option}: {total} in {finished:?}");
    }
}
