//! How guests end that switch themselves off, panic, or halt for good; and that those which only sleep go on.

use std::thread;
use std::time::{Duration, Instant};

use lodger::hv::ExitKind;
use lodger::hv::kvm::KvmVm;
use lodger::vcpu::Interval;
use lodger::vm::{LOOK_INTERVAL, Machine, Outcome};

use crate::support::{ENDS_WITHIN, machine, machine_code, machine_with, within};

/// Long enough for several looks at the guest.
const A_WHILE: Duration = LOOK_INTERVAL.saturating_mul(6);

/// Starts the second processor at the code behind label 3, copied to where a start-up interrupt can name it; after
/// that come the given lines.
macro_rules! with_second_processor {
    ([$($first:expr),*], [$($second:expr),*]) => {
        machine_code!(
            "cld",
            "lea rsi, [rip + 3f]",
            "mov edi, 0x30000",
            "mov ecx, 64",
            "rep movsb",
            "mov ebx, 0xfee00000",
            "mov dword ptr [rbx + 0x300], 0xc4500",
            "mov dword ptr [rbx + 0x300], 0xc4630",
            $($first,)*
            "3:",
            ".code16",
            $($second,)*
            ".space 64",
        )
    };
}

fn assert_halts(code: &[u8], cpus: u32) {
    let (machine, _) = machine_with(code, |config| config.cpus = cpus.into());
    let start = Instant::now();
    let (status, text) = within(ENDS_WITHIN, move || {
        let outcome = machine.run();
        (outcome.status(), outcome.to_string())
    });
    println!("noticed after {:?}", start.elapsed());
    assert_eq!((status, &text[..]), (0, "the guest halted for good"));
}

fn assert_goes_on(code: &[u8], cpus: u32) {
    let (machine, _) = machine_with(code, |config| config.cpus = cpus.into());
    watch(&machine, A_WHILE);
    let outcome = machine.wait();
    assert!(matches!(outcome, Outcome::Stopped), "{outcome}");
}

/// Runs a machine for a while, looking after it as often as possible, and stops it.
fn watch(machine: &Machine<KvmVm>, time: Duration) {
    machine.resume();
    let start = Instant::now();
    while start.elapsed() < time {
        machine.look_after();
        assert!(machine.outcome().is_none(), "the guest only sleeps");
        thread::sleep(Duration::from_millis(1));
    }
    machine.stop();
}

#[test]
fn a_guest_that_halts_with_interrupts_off_has_halted_for_good() {
    assert_halts(machine_code!("cli", "2: hlt", "jmp 2b"), 1);
}

#[test]
fn a_guest_of_which_samples_are_taken_has_halted_for_good_as_well() {
    let (machine, _) = machine(machine_code!("cli", "2: hlt", "jmp 2b"));
    within(ENDS_WITHIN, move || {
        let often = Interval::new(Duration::from_micros(50)).expect("it is long enough");
        let profiler = machine.profile(often).expect("a thread can be started");
        let outcome = machine.run();
        assert!(matches!(outcome, Outcome::Halted), "{outcome}");
        assert!(!profiler.finish().samples.is_empty());
    });
}

#[test]
fn timers_that_go_on_ticking_do_not_keep_a_guest_alive() {
    // The interval timer 1000 times a second to the old controller, the local APIC's 1000 times a second.
    let code = machine_code!(
        "mov al, 0x34",
        "out 0x43, al",
        "mov al, 0xa9",
        "out 0x40, al",
        "mov al, 0x04",
        "out 0x40, al",
        "mov al, 0",
        "out 0x21, al",
        "mov ebx, 0xfee00000",
        "mov dword ptr [rbx + 0xf0], 0x1ff",
        "mov dword ptr [rbx + 0x3e0], 0xb",
        "mov dword ptr [rbx + 0x320], 0x20040",
        "mov dword ptr [rbx + 0x380], 1000000",
        "cli",
        "2: hlt",
        "jmp 2b",
    );
    assert_halts(code, 1);
}

#[test]
fn processors_that_were_never_started_do_not_keep_a_guest_alive() {
    assert_halts(machine_code!("cli", "2: hlt", "jmp 2b"), 2);
}

#[test]
fn a_guest_has_halted_when_its_last_processor_has() {
    let code = with_second_processor!(
        ["cli", "2: hlt", "jmp 2b"],
        ["mov ecx, 20000", "2: dec ecx", "jnz 2b", "cli", "2: hlt", "jmp 2b"]
    );
    assert_halts(code, 2);
}

#[test]
fn one_processor_that_works_or_waits_for_an_interrupt_keeps_a_guest_alive() {
    let works = with_second_processor!(["cli", "2: hlt", "jmp 2b"], ["cli", "2: jmp 2b"]);
    let waits = with_second_processor!(["cli", "2: hlt", "jmp 2b"], ["sti", "2: hlt", "jmp 2b"]);
    for code in [works, waits] {
        assert_goes_on(code, 2);
    }
}

#[test]
fn a_guest_that_halts_with_interrupts_on_goes_on_waiting() {
    let code = machine_code!("sti", "2: hlt", "jmp 2b");
    assert_goes_on(code, 1);
    // It is asked at every look but the first, however often one is asked for; nothing else interrupts it.
    let (machine, _) = machine(code);
    watch(&machine, A_WHILE);
    let interrupted = machine.vcpus()[0].counters().get(ExitKind::Interrupted);
    assert!((3..=8).contains(&interrupted), "interrupted {interrupted} times");
}

#[test]
fn a_guest_that_waits_for_a_non_maskable_interrupt_goes_on_waiting() {
    let code = machine_code!(
        "mov ebx, 0xfee00000",
        "mov dword ptr [rbx + 0xf0], 0x1ff",
        "mov dword ptr [rbx + 0x350], 0x400",
        "cli",
        "2: hlt",
        "jmp 2b",
    );
    assert_goes_on(code, 1);
}

#[test]
fn a_busy_guest_is_never_asked() {
    let (machine, _) = machine(machine_code!("cli", "2: jmp 2b"));
    watch(&machine, A_WHILE);
    // The one interruption is the stop.
    assert!(machine.vcpus()[0].counters().get(ExitKind::Interrupted) <= 2);
}

#[test]
fn the_sleep_register_switches_off() {
    // Other sleep types, and the type without "now", do nothing; then off.
    let code = machine_code!(
        "mov dx, 0x600",
        "mov al, 0x24",
        "out dx, al",
        "mov al, 0x14",
        "out dx, al",
        "mov al, 0x34",
        "out dx, al",
        "mov al, 9",
        "out 0xf4, al",
    );
    let (machine, _) = machine(code);
    let outcome = machine.run();
    assert!(matches!(outcome, Outcome::PoweredOff), "{outcome}");
    assert_eq!((outcome.status(), machine.vcpus()[0].counters().get(ExitKind::PioWrite)), (0, 3));
}

#[test]
fn the_panic_port_ends_with_a_status_of_its_own() {
    let code = machine_code!(
        "mov dx, 0x505",
        "in al, dx",
        "cmp al, 3",
        "jne 2f",
        "mov al, 1",
        "out dx, al",
        "2: ud2"
    );
    let (machine, _) = machine(code);
    let outcome = machine.run();
    assert!(matches!(outcome, Outcome::GuestPanicked), "{outcome}");
    assert_eq!((outcome.status(), outcome.to_string()), (105, "the guest's kernel panicked".to_owned()));
}
