use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::boot::{self, Flat, Mode};
use crate::devices::{Collected, generation_id};
use crate::hv::fake::{FakeHypervisor, FakeVm, Step};
use crate::hv::{ExitKind, Msr};
use crate::vcpu::Cause;
use crate::vm::{Completion, Config, Kernel};
use crate::x86::complete::gaps;
use crate::x86::complete::transition::TRAPPED;
use crate::x86::topology::TopologyError;

/// A hypervisor that answers what a machine asks it before the guest starts, and then follows `script`.
fn hypervisor(works: u8, script: impl IntoIterator<Item = Step>) -> FakeHypervisor {
    let answer = Step::PortWrite { port: gaps::REPORT, width: 1, data: vec![works] };
    let answers = if works == 0 { 1 } else { 2 };
    FakeHypervisor::new(std::iter::repeat_n(answer, answers).chain(script).collect::<Vec<_>>())
}

/// One that lacks nothing.
fn ordinary(script: impl IntoIterator<Item = Step>) -> FakeHypervisor {
    hypervisor(gaps::ALL_WORKS, script)
}

fn build(hypervisor: &FakeHypervisor, cpus: u32) -> Result<Machine<FakeVm>, Error> {
    let config = Config { cpus: cpus.into(), ..Config::default() };
    Machine::new(hypervisor, &config, Arc::new(Collected::default()))
}

fn write(port: u16, value: u8) -> Step {
    Step::PortWrite { port, width: 1, data: vec![value] }
}

#[test]
fn memory_is_given_to_the_hypervisor_before_the_interrupt_controllers_exist() {
    let hypervisor = ordinary([]);
    build(&hypervisor, 2).unwrap();
    assert_eq!(hypervisor.log().order, ["memory", "interrupt controller", "vcpu", "vcpu"]);
    assert_eq!(hypervisor.log().memory, [(0, 256 << 20)]);
}

#[test]
fn numbers_of_processors_that_cannot_be_had_are_refused() {
    let hypervisor = ordinary([]);
    let refused = |cpus| build(&hypervisor, cpus).err().expect("refused");
    assert!(matches!(refused(0), Error::Topology(TopologyError::NoProcessor)));
    assert!(matches!(refused(5), Error::Hypervisor(hv::Error::TooManyVcpus { asked: 5, most: 4 })));
    assert!(matches!(refused(256), Error::Topology(TopologyError::TooMany { asked: 256 })));
}

#[test]
fn a_scripted_guest_prints_and_ends_the_machine_with_its_status() {
    let hypervisor = ordinary([write(0x3f8, b'h'), write(0x3f8, b'i'), write(0x80, 0x17), write(0xf4, 5)]);
    let output = Arc::new(Collected::default());
    let machine = Machine::new(&hypervisor, &Config::default(), output.clone()).unwrap();
    assert_eq!(machine.run().status(), 5);
    assert_eq!(output.text(), "hi");
    assert_eq!(machine.last_post_code(), Some(0x17));
}

#[test]
fn a_scripted_guest_that_resets_through_the_keyboard_controller_ends_well() {
    let hypervisor = ordinary([write(0x64, 0xfe)]);
    let machine = build(&hypervisor, 1).unwrap();
    let outcome = machine.run();
    assert!(matches!(outcome, Outcome::Reset), "{outcome}");
    assert_eq!(outcome.status(), 0);
}

#[test]
fn fatal_exits_have_their_documented_statuses() {
    for (step, status) in [(Step::Shutdown, 101), (Step::FailedEntry, 103), (Step::Unexpected(99), 104)] {
        assert_eq!(build(&ordinary([step]), 1).unwrap().run().status(), status);
    }
}

#[test]
fn a_pause_is_told_to_every_processor() {
    let hypervisor = ordinary([]);
    let machine = build(&hypervisor, 2).unwrap();
    machine.resume();
    assert_eq!(hypervisor.log().stops, 0);
    machine.pause();
    assert_eq!(hypervisor.log().stops, 2);
}

#[test]
fn a_guest_that_is_told_of_its_machine_has_an_id_of_the_generation_and_no_interrupt_for_the_first() {
    let hypervisor = ordinary([]);
    let machine = build(&hypervisor, 1).unwrap();
    let id = |machine: &Machine<FakeVm>| -> [u8; 16] {
        machine.memory().mapped().read_obj(GuestAddress(boot::map::GENERATION_ID)).unwrap()
    };
    assert_ne!(id(&machine), [0; 16]);
    assert!(hypervisor.log().interrupts.iter().all(|&(line, _)| line != generation_id::IRQ));
    let flat = Flat { address: 0x8000, mode: Mode::Real };
    let config = Config { kernel: Kernel::Bytes(vec![0xf4]), flat: Some(flat), ..Config::default() };
    let untold = Machine::new(&ordinary([]), &config, Arc::new(Collected::default())).unwrap();
    assert_eq!(id(&untold), [0; 16], "the first MiB is the guest's");
}

const LSTAR: Msr = Msr { index: 0xc000_0082, value: 0x8000 };

fn gives_up() -> Step {
    Step::InternalError(hv::InternalError { suberror: 1, data: vec![] })
}

#[test]
fn on_an_ordinary_host_nothing_is_trapped_stopped_or_exchanged() {
    let hypervisor = ordinary([write(0x80, 1), gives_up()]);
    let machine = build(&hypervisor, 1).unwrap();
    assert_eq!(machine.gaps(), Gaps::default());
    let outcome = machine.run();
    assert!(
        matches!(outcome, Outcome::Fatal(report) if matches!(report.cause, Cause::InternalError(_))),
        "{outcome}"
    );
    let counts: Vec<_> = machine.vcpus()[0].counters().iter().collect();
    assert_eq!(counts, [(ExitKind::PioWrite, 1), (ExitKind::InternalError, 1)]);
    assert!(machine.vcpus()[0].counters().completions().is_empty());
    let log = hypervisor.log();
    assert!(log.trapped_msrs.is_empty() && log.breakpoints.is_empty() && log.single_steps.is_empty());
    assert!(!log.msrs.iter().any(|msr| msr.index == LSTAR.index));
    // While it was asked, and not after that.
    assert_eq!(log.exchanging, [true, false]);
}

#[test]
fn a_host_that_is_not_asked_is_left_alone() {
    let hypervisor = FakeHypervisor::new([gives_up()]);
    let config = Config { completion: Completion::Off, ..Config::default() };
    let machine = Machine::new(&hypervisor, &config, Arc::new(Collected::default())).unwrap();
    let outcome = machine.run();
    assert!(
        matches!(outcome, Outcome::Fatal(report) if matches!(report.cause, Cause::InternalError(_))),
        "{outcome}"
    );
    let log = hypervisor.log();
    assert!(log.trapped_msrs.is_empty() && log.breakpoints.is_empty() && log.exchanging.is_empty());
}

#[test]
fn on_a_host_with_gaps_instructions_are_completed_and_system_calls_watched() {
    // In memory that nobody wrote to, in the mode that the embedded guest starts in: add [eax], al.
    let hypervisor = hypervisor(0, [Step::MsrWrite(LSTAR), gives_up(), gives_up(), write(0xf4, 3)]);
    let machine = build(&hypervisor, 1).unwrap();
    assert_eq!(machine.gaps(), Gaps::ALL);
    machine.vcpus()[0].while_at_rest(|vcpu| {
        let registers = vcpu.registers().unwrap();
        vcpu.set_registers(&hv::Registers { rip: 0x20_0000, rax: 0x30_0000, ..registers }).unwrap();
    });
    assert_eq!(machine.run().status(), 3);
    let counters = machine.vcpus()[0].counters();
    assert_eq!(counters.completions(), [("add".to_owned(), 2)]);
    assert_eq!(counters.get(ExitKind::InternalError), 2);
    let log = hypervisor.log();
    assert_eq!(log.trapped_msrs, [TRAPPED]);
    let set: Vec<_> = log.msrs.iter().filter(|msr| msr.index == LSTAR.index).collect();
    assert_eq!((set.as_slice(), log.refused_msrs), (&[&LSTAR][..], 0));
    // There is no interrupt table to find a handler in.
    assert!(log.breakpoints.is_empty());
    drop(log);
    let rip = machine.vcpus()[0].while_at_rest(|vcpu| vcpu.registers().unwrap().rip);
    assert_eq!(rip, 0x20_0004);
}

#[test]
fn asking_leaves_memory_as_it_was() {
    for works in [0, gaps::ALL_WORKS] {
        let hypervisor = hypervisor(works, []);
        let off = Config { completion: Completion::Off, ..Config::default() };
        let asked = build(&hypervisor, 1).unwrap();
        let not_asked = Machine::new(&FakeHypervisor::new([]), &off, Arc::new(Collected::default())).unwrap();
        let lowest = |memory: &GuestMemory| {
            let mut bytes = vec![0; 1 << 20];
            memory.mapped().read_slice(&mut bytes, GuestAddress(0)).unwrap();
            // No two machines have the same id.
            bytes[boot::map::GENERATION_ID as usize..][..16].fill(0);
            bytes
        };
        assert!(lowest(asked.memory()) == lowest(not_asked.memory()));
        let registers = |machine: &Machine<FakeVm>| {
            machine.vcpus()[0]
                .while_at_rest(|vcpu| (vcpu.registers().unwrap(), vcpu.special_registers().unwrap()))
        };
        assert_eq!(registers(&asked), registers(&not_asked));
    }
}

#[test]
fn where_gaps_are_expected_writes_to_registers_are_trapped_before_memory_is_there() {
    for (works, trapped) in [(0, vec![TRAPPED.to_vec()]), (gaps::ALL_WORKS, vec![TRAPPED.to_vec(), vec![]])] {
        let hypervisor = hypervisor(works, []).in_software();
        build(&hypervisor, 1).unwrap();
        let log = hypervisor.log();
        assert_eq!(log.trapped_msrs, trapped);
        assert_eq!(log.order[..2], ["trapped registers", "memory"]);
    }
}
