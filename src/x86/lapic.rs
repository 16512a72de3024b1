//! What PC firmware leaves in a local APIC.
//!
//! The page is the hypervisor's: 1024 bytes, a 32-bit register at each multiple of 16 (Intel SDM volume 3,
//! "Local APIC Register Address Map"). `vm/` calls this once for each processor before it first runs.

use crate::hv::LocalApic;

const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const DELIVER_NMI: u32 = 4 << 8;
const DELIVER_EXTERNAL: u32 = 7 << 8;
const MASKED: u32 = 1 << 16;

/// Sets the local interrupt pins as the MultiProcessor Specification, section 3.6.2, describes for a machine
/// that has just been handed over: on the boot processor pin 0 takes the interrupts of the old controllers
/// ("virtual wire"), on the others it is masked; pin 1 is the NMI everywhere.
pub fn wire_local_pins(page: &mut LocalApic, boot_processor: bool) {
    set(page, LVT_LINT0, if boot_processor { DELIVER_EXTERNAL } else { MASKED });
    set(page, LVT_LINT1, DELIVER_NMI);
}

fn set(page: &mut LocalApic, register: usize, value: u32) {
    page[register..register + 4].copy_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn register(page: &LocalApic, at: usize) -> u32 {
        u32::from_le_bytes(page[at..at + 4].try_into().unwrap())
    }

    #[test]
    fn the_boot_processor_takes_external_interrupts_and_the_others_do_not() {
        for (boot_processor, expected) in [(true, 0x700), (false, 0x1_0000)] {
            let mut page = [0xaa; size_of::<LocalApic>()];
            wire_local_pins(&mut page, boot_processor);
            assert_eq!(register(&page, 0x350), expected);
            assert_eq!(register(&page, 0x360), 0x400);
        }
    }

    #[test]
    fn no_other_register_is_touched() {
        let mut page = [0x55; size_of::<LocalApic>()];
        wire_local_pins(&mut page, true);
        let touched: Vec<_> = (0..page.len()).filter(|at| page[*at] != 0x55).collect();
        assert_eq!(touched, [0x350, 0x351, 0x352, 0x353, 0x360, 0x361, 0x362, 0x363]);
    }
}
