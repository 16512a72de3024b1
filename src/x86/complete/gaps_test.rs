use std::path::Path;

use super::*;
use crate::hv::kvm::{DEVICE, Kvm};
use crate::hv::{Hypervisor, Vm};
use crate::memory::{Layout, MIN_SIZE, Options};
use crate::x86::complete::Transitions;
use crate::x86::complete::transition::TRAPPED;
use crate::x86::cpuid::{VcpuIdentity, guest_cpuid};

/// Runs the calls from ring 3 on this host, and fills its gaps meanwhile if told to.
fn calls(filling: bool) -> Option<u8> {
    let kvm = Kvm::open_at(Path::new(DEVICE)).ok()?;
    let memory = GuestMemory::map(Layout::new(MIN_SIZE, 32).unwrap(), Options::default()).unwrap();
    let vm = kvm.create_vm().unwrap();
    if filling {
        vm.trap_msr_writes(&TRAPPED).unwrap();
    }
    for (region, host) in memory.host_regions() {
        // SAFETY: the machine is dropped before its memory.
        unsafe { vm.map_memory(0, region.start, host, region.size) }.unwrap();
    }
    let mut vcpu = vm.create_vcpu(0).unwrap();
    let identity = VcpuIdentity::single(0);
    vcpu.set_cpuid(&guest_cpuid(&kvm.supported_cpuid().unwrap(), identity)).unwrap();
    let (general, special) = registers_for_calls(&vcpu.special_registers().unwrap());
    vcpu.set_special_registers(&special).unwrap();
    vcpu.set_registers(&general).unwrap();
    let image = Image::new().bytes;
    let reported = with_memory(&memory, BASE, &image, || {
        let mut transitions = Transitions::new(if filling { Gaps::ALL } else { Gaps::default() });
        transitions.arm(&vcpu, &memory)?;
        loop {
            match vcpu.run()? {
                Exit::Pio(pio) if pio.port == REPORT => return Ok(pio.data[0]),
                Exit::MsrWrite(msr) => assert!(transitions.write_msr(&vcpu, &memory, msr)?),
                Exit::Breakpoint => drop(transitions.stopped(&vcpu, &memory)?),
                Exit::Interrupted => {}
                other => panic!("{other:?}"),
            }
        }
    });
    drop(vcpu);
    drop(vm);
    Some(reported.unwrap())
}

#[test]
fn calls_from_ring_3_are_reported_as_what_this_host_makes_of_them() {
    let Some(reported) = calls(false) else { return };
    let known = [SYSCALL_WORKS | INTERRUPT_WORKS, WAS_REFUSED];
    assert!(known.contains(&reported), "{reported:#x}");
}

/// What an ordinary host reports.
#[test]
fn with_gaps_filled_calls_from_ring_3_are_reported_to_work() {
    let Some(reported) = calls(true) else { return };
    assert_eq!(reported, SYSCALL_WORKS | INTERRUPT_WORKS);
}

#[test]
fn a_gap_is_one_only_if_something_is_missing() {
    assert!(!Gaps::default().any());
    assert!(Gaps::ALL.any() && Gaps { instructions: true, ..Gaps::default() }.any());
}
