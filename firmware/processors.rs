//! The processors: what this one is, and how many really start.

use core::fmt;
use core::ptr;
use core::sync::atomic::{AtomicU8, Ordering};

use crate::apic;
use crate::clock::Clock;
use crate::ring0;

/// A free page below 1 MiB; a processor that is started begins at it, in real mode.
const START_PAGE: usize = 0x8000;
/// Each marks itself with a byte in a list by the numbers of local APICs, then halts for ever:
/// `mov eax, 1; cpuid; shr ebx, 24; mov byte [cs:bx + STARTED], 1; cli; hlt; jmp $ - 1`.
const START_CODE: [u8; 22] = [
    0x66,
    0xb8,
    1,
    0,
    0,
    0,
    0x0f,
    0xa2,
    0x66,
    0xc1,
    0xeb,
    24,
    0x2e,
    0xc6,
    0x87,
    STARTED as u8,
    (STARTED >> 8) as u8,
    1,
    0xfa,
    0xf4,
    0xeb,
    0xfd,
];
/// Where the list is in the page.
const STARTED: usize = 0x100;
const USED: usize = STARTED + PROCESSORS;
/// As many as a local APIC's number tells apart.
const PROCESSORS: usize = 256;

const COMMAND_INIT: u32 = 0x4500;
const COMMAND_START: u32 = 0x4600;

/// The name a processor gives itself.
pub struct Name([u8; 48]);

/// Reads text that CPUID returns in registers.
fn text(words: impl Iterator<Item = u32>, into: &mut [u8]) {
    for (place, word) in into.chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
}

impl Name {
    /// The text without padding.
    pub fn trimmed(&self) -> &[u8] {
        let end = self.0.iter().position(|&byte| byte == 0).unwrap_or(self.0.len());
        self.0[..end].trim_ascii()
    }
}

/// Who made it.
pub fn vendor() -> Name {
    let mut name = [0; 48];
    let [_, b, c, d] = ring0::cpuid(0, 0);
    text([b, d, c].into_iter(), &mut name);
    Name(name)
}

/// Its full name, or nothing if it has none.
pub fn brand() -> Name {
    let mut name = [0; 48];
    if ring0::cpuid(0x8000_0000, 0)[0] >= 0x8000_0004 {
        text((0x8000_0002..=0x8000_0004).flat_map(|leaf| ring0::cpuid(leaf, 0)), &mut name);
    }
    Name(name)
}

/// Who runs this machine; nothing if nobody says so.
pub fn hypervisor() -> Option<Name> {
    const HYPERVISOR_PRESENT: u32 = 1 << 31;
    if ring0::cpuid(1, 0)[2] & HYPERVISOR_PRESENT == 0 {
        return None;
    }
    let mut name = [0; 48];
    let [_, b, c, d] = ring0::cpuid(0x4000_0000, 0);
    text([b, c, d].into_iter(), &mut name);
    Some(Name(name))
}

/// Family, model and stepping.
pub fn signature() -> (u32, u32, u32) {
    let eax = ring0::cpuid(1, 0)[0];
    let (family, model) = ((eax >> 8) & 15, (eax >> 4) & 15);
    let extended_model = if matches!(family, 6 | 15) { (eax >> 16) & 15 } else { 0 };
    let extended_family = if family == 15 { (eax >> 20) & 0xff } else { 0 };
    (family + extended_family, extended_model << 4 | model, eax & 15)
}

/// What CPUID tells of the socket that this processor sits in. Of other sockets it tells nothing.
pub struct Socket {
    pub number: u32,
    pub cores: u32,
    /// In each core.
    pub threads: u32,
}

impl Socket {
    /// Asks CPUID.
    pub fn find() -> Self {
        const EXTENDED_TOPOLOGY: u32 = 0xb;
        if ring0::cpuid(0, 0)[0] >= EXTENDED_TOPOLOGY {
            let [_, threads, _, _] = ring0::cpuid(EXTENDED_TOPOLOGY, 0);
            let [shift, processors, _, apic_id] = ring0::cpuid(EXTENDED_TOPOLOGY, 1);
            if threads != 0 && processors != 0 {
                return Self { number: apic_id >> (shift & 31), cores: processors / threads, threads };
            }
        }
        Self { number: 0, cores: ((ring0::cpuid(1, 0)[1] >> 16) & 0xff).max(1), threads: 1 }
    }

    /// How many processors it has.
    pub fn processors(&self) -> u32 {
        self.cores * self.threads
    }
}

/// Processors that run, by the numbers of their local APICs.
pub struct Running([bool; PROCESSORS]);

impl Running {
    /// How many.
    pub fn count(&self) -> usize {
        self.0.iter().filter(|runs| **runs).count()
    }
}

/// The numbers, those that follow each other in one: `0-2 4`.
impl fmt::Display for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut number = 0;
        for (at, run) in self.0.chunk_by(|one, next| one == next).enumerate() {
            let (first, last) = (number, number + run.len() - 1);
            number += run.len();
            if run[0] {
                // The first one always runs, so that nothing stands before it.
                let space = if at == 0 { "" } else { " " };
                write!(f, "{space}{first}")?;
                if last > first {
                    write!(f, "-{last}")?;
                }
            }
        }
        Ok(())
    }
}

/// Starts all other processors by INIT and SIPI; each tells its number and halts. Those that run, with this one.
pub fn start_all(clock: &Clock) -> Running {
    /// How often it is looked whether more have started…
    const PACE: u64 = 200;
    /// …how often at most, and how often in vain before that is taken for the end.
    const MOST: u32 = 250;
    const IN_VAIN: u32 = 20;
    let page: *mut u8 = ptr::with_exposed_provenance_mut(START_PAGE);
    let mut before = [0; USED];
    // SAFETY: the page is memory below 1 MiB that nothing of this guest uses; what the loader had there is put
    // back if nobody runs there.
    unsafe {
        ptr::copy_nonoverlapping(page, before.as_mut_ptr(), USED);
        ptr::write_bytes(page.add(STARTED), 0, PROCESSORS);
        ptr::copy_nonoverlapping(START_CODE.as_ptr(), page, START_CODE.len());
    }
    apic::tell_others(COMMAND_INIT);
    clock.wait(PACE);
    apic::tell_others(COMMAND_START | (START_PAGE >> 12) as u32);
    let others = || {
        core::array::from_fn(|number| {
            // SAFETY: the byte is inside the page; a processor may set it at the same time, hence atomic.
            unsafe { AtomicU8::from_ptr(page.add(STARTED + number)) }.load(Ordering::Acquire) != 0
        })
    };
    let expected = Socket::find().processors() as usize - 1;
    let (mut running, mut in_vain) = (Running(others()), 0);
    for _ in 0..MOST {
        if in_vain >= IN_VAIN && running.count() >= expected {
            break;
        }
        clock.wait(PACE);
        let now = Running(others());
        in_vain = if now.count() == running.count() { in_vain + 1 } else { 0 };
        running = now;
    }
    // Whoever was started halts in this page for ever.
    if running.count() == 0 {
        // SAFETY: as above.
        unsafe { ptr::copy_nonoverlapping(before.as_ptr(), page, USED) };
    }
    running.0[apic::id() as usize % PROCESSORS] = true;
    running
}
