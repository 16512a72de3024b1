use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use super::*;
use crate::bus::{BusBuilder, Claim, Device, Widths};
use crate::hv::fake::{FakeHypervisor, Step};
use crate::hv::{ExitKind, Hypervisor, InternalError, Vm};
use crate::memory::{Layout, Options};
use crate::x86::{mode, segments};

/// A device that answers with what was written last, and ends the machine when it is written 0xee.
#[derive(Default)]
struct Mirror(Mutex<u64>);

impl Device for Mirror {
    fn read(&self, _offset: u64, _width: u8) -> u64 {
        *self.0.lock().unwrap()
    }

    fn write(&self, _offset: u64, _width: u8, value: u64) -> Action {
        *self.0.lock().unwrap() = value;
        if value == 0xee { Action::Exit(7) } else { Action::None }
    }
}

fn surroundings() -> Surroundings {
    let mut builder = BusBuilder::new();
    let mirror = Arc::new(Mirror::default());
    let claim = Claim { name: "mirror", base: 0x10, len: 1, widths: Widths::BYTE };
    builder.claim_ports(claim, Arc::clone(&mirror) as Arc<dyn Device>).unwrap();
    let memory = GuestMemory::map(Layout::new(1 << 20, 48).unwrap(), Options::default()).unwrap();
    Surroundings {
        bus: Arc::new(builder.build()),
        memory: Arc::new(memory),
        gaps: Gaps::default(),
        kernel: None,
    }
}

pub(super) fn start(script: &[Step]) -> (FakeHypervisor, VcpuThread<impl Vcpu>, Receiver<Ending>) {
    let hypervisor = FakeHypervisor::new(script);
    let vcpu = hypervisor.create_vm().unwrap().create_vcpu(0).unwrap();
    let (sender, endings) = channel();
    let thread =
        VcpuThread::spawn(0, vcpu, surroundings(), move |ending| sender.send(ending).unwrap()).unwrap();
    (hypervisor, thread, endings)
}

fn run(script: &[Step]) -> (FakeHypervisor, Ending) {
    let (hypervisor, thread, endings) = start(script);
    thread.resume();
    let ending = endings.recv_timeout(Duration::from_secs(10)).unwrap();
    (hypervisor, ending)
}

fn write(value: u8) -> Step {
    Step::PortWrite { port: 0x10, width: 1, data: vec![value] }
}

fn read() -> Step {
    Step::PortRead { port: 0x10, width: 1, length: 1 }
}

#[test]
fn accesses_reach_the_device_and_answers_reach_the_guest() {
    let (hypervisor, ending) = run(&[write(0x42), read(), write(0xee)]);
    assert_eq!(hypervisor.log().answers, [[0x42]]);
    assert!(matches!(ending, Ending::Guest(Action::Exit(7))), "{ending:?}");
}

#[test]
fn string_input_and_output_are_split_into_elements() {
    let string = Step::PortWrite { port: 0x10, width: 1, data: vec![1, 2, 3] };
    let input = Step::PortRead { port: 0x10, width: 1, length: 4 };
    let (hypervisor, _) = run(&[string, input, write(0xee)]);
    assert_eq!(hypervisor.log().answers, [[3, 3, 3, 3]]);
}

#[test]
fn exits_are_counted_by_kind() {
    let memory = Step::MemoryRead { address: 0xd000_0000, length: 4 };
    let (_, thread, endings) = start(&[write(1), write(2), read(), memory, write(0xee)]);
    thread.resume();
    endings.recv_timeout(Duration::from_secs(10)).unwrap();
    let counts: Vec<_> =
        thread.counters().iter().filter(|(kind, _)| *kind != ExitKind::Interrupted).collect();
    assert_eq!(counts, [(ExitKind::PioRead, 1), (ExitKind::PioWrite, 3), (ExitKind::MmioRead, 1)]);
}

#[test]
fn a_vcpu_waits_until_it_is_resumed() {
    let (hypervisor, thread, endings) = start(&[read(), write(0xee)]);
    thread.wait_at_rest();
    assert!(endings.try_recv().is_err());
    assert!(hypervisor.log().answers.is_empty());
    thread.resume();
    assert!(endings.recv_timeout(Duration::from_secs(10)).is_ok());
}

#[test]
fn a_spinning_vcpu_pauses_goes_on_and_stops() {
    let (_, thread, endings) = start(&[Step::Spin, Step::Spin]);
    for _ in 0..100 {
        thread.resume();
        thread.request_pause();
        thread.wait_at_rest();
    }
    thread.resume();
    thread.request_stop();
    assert!(matches!(endings.recv_timeout(Duration::from_secs(10)), Ok(Ending::Stopped)));
    thread.resume();
    thread.wait_at_rest();
}

#[test]
fn dropping_a_running_vcpu_stops_it() {
    let (_, thread, endings) = start(&[]);
    thread.resume();
    drop(thread);
    assert!(matches!(endings.recv_timeout(Duration::from_secs(10)), Ok(Ending::Stopped)));
}

#[test]
fn a_failing_hypervisor_ends_the_thread_with_its_error() {
    let (_, ending) = run(&[Step::Fail(libc::ENXIO)]);
    assert!(matches!(&ending, Ending::Failed(error) if error.to_string().contains("cannot run the guest")));
}

#[test]
fn a_panicking_device_ends_the_thread_and_not_the_process() {
    struct Bomb;
    impl Device for Bomb {
        fn read(&self, _: u64, _: u8) -> u64 {
            panic!("as the test wants")
        }
        fn write(&self, _: u64, _: u8, _: u64) -> Action {
            Action::None
        }
    }
    let mut builder = BusBuilder::new();
    builder
        .claim_ports(Claim { name: "bomb", base: 0x10, len: 1, widths: Widths::BYTE }, Arc::new(Bomb))
        .unwrap();
    let surroundings = Surroundings { bus: Arc::new(builder.build()), ..surroundings() };
    let vcpu = FakeHypervisor::new([read()]).create_vm().unwrap().create_vcpu(0).unwrap();
    let (sender, endings) = channel();
    let thread =
        VcpuThread::spawn(0, vcpu, surroundings, move |ending| sender.send(ending).unwrap()).unwrap();
    thread.resume();
    assert!(matches!(endings.recv_timeout(Duration::from_secs(10)), Ok(Ending::Panicked)));
    thread.wait_at_rest();
}

#[test]
fn a_fatal_exit_reports_registers_code_and_the_last_exits() {
    let hypervisor = FakeHypervisor::new([
        write(0x41),
        read(),
        read(),
        Step::InternalError(InternalError { suberror: 1, data: vec![0xabc] }),
    ]);
    let vcpu = hypervisor.create_vm().unwrap().create_vcpu(0).unwrap();
    vcpu.set_registers(&hv::Registers { rip: 0x1010, rbx: 0xb0b, ..Default::default() }).unwrap();
    let surroundings = surroundings();
    let code = [0xf3, 0x0f, 0xb8, 0xc1];
    vm_memory::Bytes::write_slice(surroundings.memory.mapped(), &code, vm_memory::GuestAddress(0x1010))
        .unwrap();
    let (sender, endings) = channel();
    let thread =
        VcpuThread::spawn(0, vcpu, surroundings, move |ending| sender.send(ending).unwrap()).unwrap();
    thread.resume();
    let Ok(Ending::Fatal(report)) = endings.recv_timeout(Duration::from_secs(10)) else {
        panic!("the exit was not fatal")
    };
    let text = report.to_string();
    for expected in [
        "the guest stopped on vcpu0: KVM had to run the guest's next instruction in software",
        "KVM_EXIT_INTERNAL_ERROR, suberror 1, data 0xabc",
        "rip 0000000000001010",
        "rbx 0000000000000b0b",
        "> f3 0f b8 c1 00",
        "  instruction at rip: popcnt ax,cx\n",
        "    port 0x10 <- 0x41\n    port 0x10 -> 0x41 (2 times)\n    internal-error\n",
    ] {
        assert!(text.contains(expected), "{expected:?} is missing in:\n{text}");
    }
}

#[test]
fn each_fatal_exit_is_told_apart() {
    for (step, expected) in [
        (Step::Shutdown, "triple fault"),
        (Step::FailedEntry, "refused to enter"),
        (Step::Unexpected(77), "exit reason 77"),
    ] {
        match run(&[step]).1 {
            Ending::Fatal(report) => assert!(report.to_string().contains(expected), "{report}"),
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(run(&[Step::Halt]).1, Ending::Halted));
}

/// A processor on a host with gaps, at `code`.
fn start_with_gaps(
    script: &[Step],
    code: &[u8],
) -> (FakeHypervisor, VcpuThread<impl Vcpu>, Receiver<Ending>) {
    let hypervisor = FakeHypervisor::new(script);
    let vcpu = hypervisor.create_vm().unwrap().create_vcpu(0).unwrap();
    vcpu.set_registers(&hv::Registers { rip: 0x1010, rflags: 2, ..Default::default() }).unwrap();
    let data = segments::real_data(0);
    let special = hv::SpecialRegisters { cs: segments::real_code(0), ds: data, ..Default::default() };
    vcpu.set_special_registers(&special).unwrap();
    let surroundings = Surroundings { gaps: Gaps::ALL, ..surroundings() };
    vm_memory::Bytes::write_slice(surroundings.memory.mapped(), code, vm_memory::GuestAddress(0x1010))
        .unwrap();
    let (sender, endings) = channel();
    let on_end = move |ending| drop(sender.send(ending));
    let thread = VcpuThread::spawn(0, vcpu, surroundings, on_end).unwrap();
    (hypervisor, thread, endings)
}

fn gives_up(suberror: u32) -> Step {
    Step::InternalError(InternalError { suberror, data: vec![] })
}

#[test]
fn where_kvm_gives_up_instructions_are_completed_and_counted() {
    // inc ax; popcnt cx, ax
    let (_, thread, endings) =
        start_with_gaps(&[gives_up(1), gives_up(1), write(0xee)], &[0x40, 0xf3, 0x0f, 0xb8, 0xc8]);
    thread.resume();
    assert!(matches!(endings.recv_timeout(Duration::from_secs(10)), Ok(Ending::Guest(_))));
    let registers = thread.while_at_rest(|vcpu| vcpu.registers().unwrap());
    assert_eq!((registers.rip, registers.rax, registers.rcx), (0x1015, 1, 1));
    let mut completions = thread.counters().completions();
    completions.sort();
    assert_eq!(completions, [("inc".to_owned(), 1), ("popcnt".to_owned(), 1)]);
}

#[test]
fn what_cannot_be_completed_either_is_told_with_its_reason_and_disassembled() {
    let (_, thread, endings) = start_with_gaps(&[gives_up(1)], &[0xf4]);
    thread.resume();
    let Ok(Ending::Fatal(report)) = endings.recv_timeout(Duration::from_secs(10)) else {
        panic!("the exit was not fatal")
    };
    assert!(matches!(report.cause, Cause::Beyond { .. }));
    let text = report.to_string();
    for expected in ["lodger cannot complete it either (hlt", "suberror 1", "  instruction at rip: hlt\n"] {
        assert!(text.contains(expected), "{expected:?} is missing in:\n{text}");
    }
}

#[test]
fn other_internal_errors_stay_fatal_on_hosts_with_gaps() {
    let (_, thread, endings) = start_with_gaps(&[gives_up(3)], &[0x90]);
    thread.resume();
    let Ok(Ending::Fatal(report)) = endings.recv_timeout(Duration::from_secs(10)) else {
        panic!("the exit was not fatal")
    };
    assert!(matches!(report.cause, Cause::InternalError(_)));
}

#[test]
fn completing_without_end_does_not_keep_a_vcpu_from_pausing_and_stopping() {
    // In real mode, over and over: add [bx + si], al.
    let script = vec![gives_up(1); 300_000];
    let (_, thread, endings) = start_with_gaps(&script, &[]);
    for _ in 0..50 {
        thread.resume();
        thread.request_pause();
        thread.wait_at_rest();
    }
    thread.resume();
    thread.request_stop();
    assert!(matches!(endings.recv_timeout(Duration::from_secs(10)), Ok(Ending::Stopped)));
}

/// Where kernels that run in software lie.
const KERNEL: u64 = 0x1_0000;
/// Their handler's place.
const HANDLER: u64 = KERNEL + 0x100;

/// Runs `code` in software to its end with status 7, on a processor that follows `script` where it is entered. At
/// [`HANDLER`] is code that ends the machine.
fn run_in_software(code: &[u8], script: &[Step]) -> (FakeHypervisor, hv::Registers) {
    // mov al, 0xee; out 0x10, al
    const END: [u8; 4] = [0xb0, 0xee, 0xe6, 0x10];
    const TABLES: [u64; 4] = [0x2000, 0x3000, 0x4000, 0x5000];
    const PRESENT_AND_WRITABLE: u64 = 3;
    let hypervisor = FakeHypervisor::new(script);
    let vcpu = hypervisor.create_vm().unwrap().create_vcpu(0).unwrap();
    vcpu.set_registers(&hv::Registers { rip: KERNEL, rflags: 2, ..Default::default() }).unwrap();
    let special = hv::SpecialRegisters {
        cs: segments::code64(),
        cr0: mode::CR0_PE | mode::CR0_PG,
        cr3: TABLES[0],
        cr4: mode::CR4_PAE,
        efer: mode::EFER_LME | mode::EFER_LMA,
        ..Default::default()
    };
    vcpu.set_special_registers(&special).unwrap();
    let surroundings = Surroundings { gaps: Gaps::ALL, kernel: Some(Arc::default()), ..surroundings() };
    let put = |at: u64, bytes: &[u8]| {
        let memory = surroundings.memory.mapped();
        vm_memory::Bytes::write_slice(memory, bytes, vm_memory::GuestAddress(at)).unwrap();
    };
    for pair in TABLES.windows(2) {
        put(pair[0], &(pair[1] | PRESENT_AND_WRITABLE).to_le_bytes());
    }
    put(TABLES[3] + (KERNEL >> 12) * 8, &(KERNEL | PRESENT_AND_WRITABLE).to_le_bytes());
    put(KERNEL, code);
    put(HANDLER, &END);
    let (sender, endings) = channel();
    let on_end = move |ending| drop(sender.send(ending));
    let thread = VcpuThread::spawn(0, vcpu, surroundings, on_end).unwrap();
    thread.resume();
    let ending = endings.recv_timeout(Duration::from_secs(10)).expect("it comes to an end");
    assert!(matches!(ending, Ending::Guest(Action::Exit(7))), "{ending:?}");
    let registers = thread.while_at_rest(|vcpu| vcpu.registers().unwrap());
    (hypervisor, registers)
}

#[test]
fn what_the_hypervisor_has_accepted_comes_before_anything_is_executed_in_software() {
    // cpuid, which is the hypervisor's; inc rbx; cpuid
    let code = [0x0f, 0xa2, 0x48, 0xff, 0xc3, 0x0f, 0xa2];
    for interruptions in 1..4 {
        let mut script = vec![Step::Accept { at: KERNEL + 2 }; interruptions];
        script.push(Step::Deliver { handler: HANDLER });
        let (_, registers) = run_in_software(&code, &script);
        assert_eq!(registers.rbx, 0, "interrupted {interruptions} times");
    }
}

#[test]
fn an_exception_that_was_completed_comes_before_anything_is_executed_in_software() {
    // int3; inc rbx; cpuid
    let code = [0xcc, 0x48, 0xff, 0xc3, 0x0f, 0xa2];
    let script = [gives_up(1), Step::Interrupted, Step::Interrupted, Step::Deliver { handler: HANDLER }];
    let (hypervisor, registers) = run_in_software(&code, &script);
    assert_eq!((hypervisor.log().exceptions.len(), registers.rbx), (1, 0));
}

#[test]
fn a_processor_in_software_is_put_to_sleep_instead_of_stepping_over_hlt() {
    // inc rbx; hlt; inc rcx
    let code = [0x48, 0xff, 0xc3, 0xf4, 0x48, 0xff, 0xc1];
    let (hypervisor, registers) = run_in_software(&code, &[Step::Deliver { handler: HANDLER }]);
    assert_eq!((hypervisor.log().halts, registers.rbx, registers.rcx), (1, 1, 0));
    // It wakes up behind it. Here follows what the handler consists of; nothing is to be stepped over.
    let code = [0x48, 0xff, 0xc3, 0xf4, 0xb0, 0xee, 0xe6, 0x10];
    let (hypervisor, registers) = run_in_software(&code, &[Step::Breakpoint, Step::Shutdown]);
    assert_eq!((hypervisor.log().halts, registers.rbx), (1, 1));
}

/// KVM may have woken the processor up when it notices the request, and accept the interrupt at the next entry only.
#[test]
fn the_interrupt_that_ends_a_sleep_comes_before_anything_is_executed_in_software() {
    // hlt; inc rbx; cpuid
    let code = [0xf4, 0x48, 0xff, 0xc3, 0x0f, 0xa2];
    let script = [Step::Interrupted, Step::Interrupted, Step::Deliver { handler: HANDLER }];
    let (_, registers) = run_in_software(&code, &script);
    assert_eq!(registers.rbx, 0);
}
