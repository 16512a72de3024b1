use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::*;
use crate::bus::BusBuilder;
use crate::hv::fake::{FakeHypervisor, Step};
use crate::hv::{Hypervisor, Vm};
use crate::memory::{GuestMemory, Layout, Options};
use crate::vcpu::Surroundings;
use crate::x86::complete::Gaps;

/// Interrupts off, and on.
const OFF: Step = Step::Sleep { rflags: 0x46 };
const ON: Step = Step::Sleep { rflags: 0x246 };

/// One processor for each of the scripts.
fn vcpus(scripts: &[&[Step]]) -> Vec<VcpuThread<impl Vcpu>> {
    let memory = GuestMemory::map(Layout::new(1 << 20, 48).unwrap(), Options::default()).unwrap();
    let surroundings = Surroundings {
        bus: Arc::new(BusBuilder::new().build()),
        memory: Arc::new(memory),
        gaps: Gaps::default(),
        kernel: None,
    };
    (0..)
        .zip(scripts)
        .map(|(id, script)| {
            let vcpu = FakeHypervisor::new(*script).create_vm().unwrap().create_vcpu(id).unwrap();
            VcpuThread::spawn(id, vcpu, surroundings.clone(), drop).unwrap()
        })
        .collect()
}

/// Asks until the answer is yes, or for a while.
fn comes_to_halt(scripts: &[&[Step]]) -> bool {
    let vcpus = vcpus(scripts);
    vcpus.iter().for_each(VcpuThread::resume);
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(200) {
        if all_halted_for_good(&vcpus) {
            return true;
        }
        thread::sleep(Duration::from_millis(1));
    }
    false
}

#[test]
fn a_guest_has_halted_when_all_processors_sleep_with_interrupts_off_or_were_never_started() {
    assert!(comes_to_halt(&[&[OFF]]));
    assert!(comes_to_halt(&[&[OFF], &[OFF]]));
    assert!(comes_to_halt(&[&[OFF], &[Step::AwaitStart], &[OFF]]));
    for awake in [ON, Step::Spin] {
        assert!(!comes_to_halt(&[std::slice::from_ref(&awake)]), "{awake:?}");
        assert!(!comes_to_halt(&[&[OFF], std::slice::from_ref(&awake)]), "{awake:?}");
    }
}

#[test]
fn processors_that_are_paused_or_stopped_are_not_asked() {
    let vcpus = vcpus(&[&[OFF], &[OFF]]);
    assert!(!all_halted_for_good(&vcpus), "never resumed");
    vcpus[0].resume();
    assert!(!all_halted_for_good(&vcpus), "one is still paused");
    vcpus[1].resume();
    while !all_halted_for_good(&vcpus) {}
    vcpus[1].request_pause();
    vcpus[1].wait_at_rest();
    assert!(!all_halted_for_good(&vcpus), "one is paused again");
    vcpus[1].resume();
    while !all_halted_for_good(&vcpus) {}
    vcpus[0].request_stop();
    assert!(!all_halted_for_good(&vcpus), "one is stopped");
}

#[test]
fn pauses_and_stops_work_while_somebody_keeps_asking() {
    let vcpus = vcpus(&[&[OFF], &[ON]]);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                assert!(!all_halted_for_good(&vcpus));
            }
        });
        for _ in 0..2000 {
            vcpus.iter().for_each(VcpuThread::resume);
            vcpus.iter().for_each(VcpuThread::request_pause);
            vcpus.iter().for_each(VcpuThread::wait_at_rest);
            // Paused means paused: nobody else holds the processor now, or will.
            vcpus.iter().for_each(|vcpu| vcpu.while_at_rest(|vcpu| drop(vcpu.registers())));
        }
        vcpus.iter().for_each(VcpuThread::resume);
        vcpus.iter().for_each(VcpuThread::request_stop);
        vcpus.iter().for_each(VcpuThread::wait_at_rest);
        done.store(true, Ordering::Relaxed);
    });
}
