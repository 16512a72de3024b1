//! Where virtio devices are: the words of the kernel's command line say it, or the ACPI tables.
//!
//! The tables' description is code (AML), which nothing here interprets. But a device is named by its identifier, and
//! its resources are a template of fixed form behind it, so it is enough to look for both.

use crate::boot::{Boot, value};
use crate::parse;

/// What stands for a virtio device in the tables.
const IDENTIFIER: &[u8] = b"LNRO0005";
/// The beginning of a fixed range of memory in a template of resources (ACPI 6.5, section 6.4.3.4).
const FIXED_MEMORY: [u8; 3] = [0x86, 9, 0];
/// How long such a range is, and what begins an interrupt, which follows it (section 6.4.3.6).
const FIXED_MEMORY_LENGTH: u64 = 12;
const INTERRUPT: [u8; 3] = [0x89, 6, 0];
/// How far behind its identifier a device's resources begin.
const FAR: u64 = 96;
const MOST: usize = 32;

/// Where the registers of a device are, and the input of the IOAPIC that it interrupts by, if that was found.
#[derive(Clone, Copy)]
pub struct Place {
    pub base: u64,
    pub interrupt: Option<u32>,
}

/// The places of all devices, in the order in which they are described.
pub struct Places {
    places: [Place; MOST],
    count: usize,
}

impl Places {
    /// The command line goes first: what it says was meant for this guest.
    pub fn find(boot: &Boot) -> Self {
        let mut places = Self { places: [Place { base: 0, interrupt: None }; MOST], count: 0 };
        for (base, interrupt) in parse::virtio_words(boot.command_line()) {
            places.add(Place { base, interrupt: interrupt.and_then(|number| number.try_into().ok()) });
        }
        if places.count == 0 {
            if let Some((start, end)) = boot.acpi.and_then(definitions) {
                places.search(start, end);
            }
        }
        places
    }

    fn add(&mut self, found: Place) {
        if let Some(place) = self.places.get_mut(self.count) {
            *place = found;
            self.count += 1;
        }
    }

    fn search(&mut self, start: u64, end: u64) {
        let mut at = start;
        while at < end {
            if !stands_at(at, IDENTIFIER) {
                at += 1;
                continue;
            }
            at += IDENTIFIER.len() as u64;
            let memory = (at..end.min(at + FAR)).find(|&at| stands_at(at, &FIXED_MEMORY));
            if let Some(memory) = memory {
                let behind = memory + FIXED_MEMORY_LENGTH;
                let interrupt = stands_at(behind, &INTERRUPT).then(|| value(behind + 5));
                self.add(Place { base: value::<u32>(memory + 4).into(), interrupt });
            }
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Place> {
        self.places[..self.count].iter()
    }
}

fn stands_at(address: u64, bytes: &[u8]) -> bool {
    (address..).zip(bytes).all(|(address, &byte)| value::<u8>(address) == byte)
}

/// The first address of the definition block (DSDT), and the one behind its last.
fn definitions(root: u64) -> Option<(u64, u64)> {
    const HEADER: u64 = 36;
    /// Where the fixed description has the address of the definition block: 64 bits wide, and 32.
    const WIDE: u64 = 140;
    const NARROW: u64 = 40;
    const LONGEST: u32 = 1 << 20;
    let length = |table: u64| value::<u32>(table + 4).min(LONGEST);
    // Since version 2 of the specification the root knows a directory of wide addresses.
    let is_wide = value::<u8>(root + 15) >= 2;
    let (directory, width) =
        if is_wide { (value::<u64>(root + 24), 8) } else { (value::<u32>(root + 16).into(), 4) };
    let mut entries = (directory + HEADER..directory + u64::from(length(directory))).step_by(width);
    let fixed = entries.find_map(|entry| {
        let table = if is_wide { value::<u64>(entry) } else { value::<u32>(entry).into() };
        stands_at(table, b"FACP").then_some(table)
    })?;
    let wide = if u64::from(length(fixed)) >= WIDE + 8 { value::<u64>(fixed + WIDE) } else { 0 };
    let block = if wide != 0 { wide } else { value::<u32>(fixed + NARROW).into() };
    stands_at(block, b"DSDT").then(|| (block, block + u64::from(length(block))))
}
