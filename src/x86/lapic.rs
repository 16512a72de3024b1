//! What PC firmware leaves in a local APIC, and what a guest made of it.
//!
//! The page is the hypervisor's: 1024 bytes, a 32-bit register at each multiple of 16 (Intel SDM volume 3,
//! "Local APIC Register Address Map"). `vm/` sets it up once for each processor before it first runs.

use crate::hv::LocalApic;

const LVT_THERMAL: usize = 0x330;
const LVT_PERFORMANCE: usize = 0x340;
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const DELIVERY_MODE: u32 = 7 << 8;
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

/// Whether something besides pin 1, to which nothing is wired, can give the processor a non-maskable interrupt.
pub fn delivers_nmi(page: &LocalApic) -> bool {
    [LVT_THERMAL, LVT_PERFORMANCE, LVT_LINT0].iter().any(|at| {
        let register = get(page, *at);
        register & DELIVERY_MODE == DELIVER_NMI && register & MASKED == 0
    })
}

fn get(page: &LocalApic, register: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&page[register..register + 4]);
    u32::from_le_bytes(bytes)
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
    fn a_pin_set_to_nmi_is_noticed_unless_it_is_masked() {
        let mut page = [0; size_of::<LocalApic>()];
        for boot_processor in [true, false] {
            wire_local_pins(&mut page, boot_processor);
            assert!(!delivers_nmi(&page));
        }
        for at in [LVT_THERMAL, LVT_PERFORMANCE, LVT_LINT0] {
            let mut page = page;
            set(&mut page, at, DELIVER_NMI | MASKED);
            assert!(!delivers_nmi(&page));
            set(&mut page, at, DELIVER_NMI | 0x1002);
            assert!(delivers_nmi(&page));
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
