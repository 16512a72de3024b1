//! The processors: what this one is, and how many really start.

use core::ptr;
use core::sync::atomic::{AtomicU8, Ordering};

use crate::apic;
use crate::clock::Clock;
use crate::ring0;

/// A free page below 1 MiB; a processor that is started begins at it, in real mode.
const START_PAGE: usize = 0x8000;
/// `lock inc byte [cs:COUNTER]`, then halt for ever.
const START_CODE: [u8; 12] = [0x2e, 0xf0, 0xfe, 0x06, COUNTER as u8, 0x00, 0xfa, 0xf4, 0xeb, 0xfd, 0, 0];
const COUNTER: usize = 11;

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

/// How many processors CPUID speaks of.
pub fn count() -> u32 {
    ((ring0::cpuid(1, 0)[1] >> 16) & 0xff).max(1)
}

/// Starts all other processors by INIT and SIPI; each counts itself and halts. The number that runs, with this one.
pub fn start_all(clock: &Clock) -> u32 {
    let page: *mut u8 = ptr::with_exposed_provenance_mut(START_PAGE);
    let mut before = [0; START_CODE.len()];
    // SAFETY: the page is memory below 1 MiB that nothing of this guest uses; what the loader had there is put
    // back when the processors have run.
    unsafe {
        ptr::copy_nonoverlapping(page, before.as_mut_ptr(), before.len());
        ptr::copy_nonoverlapping(START_CODE.as_ptr(), page, START_CODE.len());
    }
    apic::tell_others(COMMAND_INIT);
    clock.wait(200);
    apic::tell_others(COMMAND_START | (START_PAGE >> 12) as u32);
    // SAFETY: the byte is inside the page; processors change it at the same time, hence atomic.
    let counter = unsafe { AtomicU8::from_ptr(page.add(COUNTER)) };
    let expected = count() - 1;
    for _ in 0..50 {
        if u32::from(counter.load(Ordering::Acquire)) >= expected {
            break;
        }
        clock.wait(200);
    }
    clock.wait(200); // the last one still has to get to its halt
    let started = counter.load(Ordering::Acquire).into();
    // They halt in this page for ever; only the counter may change back.
    counter.store(0, Ordering::Release);
    if started == 0 {
        // SAFETY: as above, and nobody runs there.
        unsafe { ptr::copy_nonoverlapping(before.as_ptr(), page, before.len()) };
    }
    1_u32.saturating_add(started)
}
