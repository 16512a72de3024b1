use std::thread;

use super::*;
use crate::devices::Collected;
use crate::hv::fake::{FakeHypervisor, Step};

fn build(hypervisor: &FakeHypervisor, cpus: u32) -> Result<Machine<impl Vm>, Error> {
    let config = Config { cpus, ..Config::default() };
    Machine::new(hypervisor, &config, Arc::new(Collected::default()))
}

fn write(port: u16, value: u8) -> Step {
    Step::PortWrite { port, width: 1, data: vec![value] }
}

#[test]
fn memory_is_given_to_the_hypervisor_before_the_interrupt_controllers_exist() {
    let hypervisor = FakeHypervisor::new([]);
    build(&hypervisor, 2).unwrap();
    assert_eq!(hypervisor.log().order, ["memory", "interrupt controller", "vcpu", "vcpu"]);
    assert_eq!(hypervisor.log().memory, [(0, 256 << 20)]);
}

#[test]
fn numbers_of_processors_that_cannot_be_had_are_refused() {
    let hypervisor = FakeHypervisor::new([]);
    let refused = |cpus| build(&hypervisor, cpus).err().expect("refused");
    assert!(matches!(refused(0), Error::NoCpus));
    assert!(matches!(refused(5), Error::Hypervisor(hv::Error::TooManyVcpus { asked: 5, most: 4 })));
    assert!(matches!(refused(256), Error::TooManyCpus { asked: 256 }));
}

#[test]
fn a_scripted_guest_prints_and_ends_the_machine_with_its_status() {
    let hypervisor =
        FakeHypervisor::new([write(0x3f8, b'h'), write(0x3f8, b'i'), write(0x80, 0x17), write(0xf4, 5)]);
    let output = Arc::new(Collected::default());
    let machine = Machine::new(&hypervisor, &Config::default(), output.clone()).unwrap();
    assert_eq!(machine.run().status(), 5);
    assert_eq!(output.text(), "hi");
    assert_eq!(machine.last_post_code(), Some(0x17));
}

#[test]
fn a_scripted_guest_that_resets_through_the_keyboard_controller_ends_well() {
    let hypervisor = FakeHypervisor::new([write(0x64, 0xfe)]);
    let machine = build(&hypervisor, 1).unwrap();
    let outcome = machine.run();
    assert!(matches!(outcome, Outcome::Reset), "{outcome}");
    assert_eq!(outcome.status(), 0);
}

#[test]
fn fatal_exits_have_their_documented_statuses() {
    for (step, status) in [(Step::Shutdown, 101), (Step::FailedEntry, 103), (Step::Unexpected(99), 104)] {
        assert_eq!(build(&FakeHypervisor::new([step]), 1).unwrap().run().status(), status);
    }
}

/// Two pulses that overlap are one edge to the interrupt controller, and one interrupt is lost.
#[test]
fn pulses_of_one_line_never_overlap() {
    const PULSES: usize = 2000;
    let hypervisor = FakeHypervisor::new([]);
    let layout = Layout::new(1 << 20, 48).unwrap();
    let memory = Arc::new(GuestMemory::map(layout, crate::memory::Options::default()).unwrap());
    let board = Arc::new(Board { vm: hypervisor.create_vm().unwrap(), memory });
    let line = Line { board, number: 4, pulsing: Mutex::new(()) };
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| (0..PULSES).for_each(|_| line.pulse()));
        }
    });
    let log = hypervisor.log();
    assert_eq!(log.interrupts.len(), 4 * PULSES);
    assert!(log.interrupts.chunks(2).all(|pulse| pulse == [(4, true), (4, false)]));
}
