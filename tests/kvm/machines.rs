//! Whole machines, as a library user builds them: how they end, several at once, and clumsy use.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use lodger::devices::Collected;
use lodger::hv::ExitKind;
use lodger::hv::kvm::KvmVm;
use lodger::vm::{Machine, Outcome};

use crate::support::{ENDS_WITHIN, eventually, machine, machine_code, within};

const LIMIT: Duration = ENDS_WITHIN;

/// Prints dots for ever.
fn chatterbox() -> (Machine<KvmVm>, Arc<Collected>) {
    machine(machine_code!("mov dx, 0x3f8", "mov al, 0x2e", "2: out dx, al", "jmp 2b"))
}

/// Halts with interrupts off; what comes after that would end the machine with status 9.
fn sleeper() -> (Machine<KvmVm>, Arc<Collected>) {
    machine(machine_code!("cli", "hlt", "mov al, 9", "out 0xf4, al"))
}

#[test]
fn a_guest_ends_the_machine_with_a_status_of_its_own() {
    for status in [0, 1, 42, 255] {
        let code = machine_code!("mov al, 0", "out 0xf4, al", "ud2");
        let mut image = code.to_vec();
        image[1] = status;
        let (machine, _) = machine(&image);
        let outcome = machine.run();
        assert!(matches!(outcome, Outcome::Exited(found) if *found == status), "{outcome}");
        assert_eq!(outcome.status(), status);
        assert_eq!(machine.vcpus()[0].counters().get(ExitKind::PioWrite), 1);
    }
}

#[test]
fn the_keyboard_controller_resets_the_machine() {
    let (machine, _) = machine(machine_code!("mov al, 0xfe", "out 0x64, al", "2: jmp 2b"));
    let outcome = machine.run();
    assert!(matches!(outcome, Outcome::Reset), "{outcome}");
    assert_eq!(outcome.status(), 0);
}

/// Looks at the host bridge by every width, and ends with what is wrong, or by the reset register among the address's
/// bytes.
#[test]
fn a_guest_finds_the_host_bridge_and_the_reset_register_beside_it() {
    let (machine, _) = machine(machine_code!(
        "mov bl, 1",
        "mov dx, 0xcf8",
        "mov eax, 0x80000000",
        "out dx, eax",
        "in eax, dx",
        "cmp eax, 0x80000000",
        "jne 3f",
        "mov bl, 2",
        "mov dx, 0xcfc",
        "in eax, dx",
        "cmp eax, 0x00081b36",
        "jne 3f",
        "mov bl, 3",
        "mov dx, 0xcfe",
        "in ax, dx",
        "cmp ax, 8",
        "jne 3f",
        "mov bl, 4",
        "mov dx, 0xcfd",
        "in al, dx",
        "cmp al, 0x1b",
        "jne 3f",
        // Nothing else is there.
        "mov bl, 5",
        "mov dx, 0xcf8",
        "mov eax, 0x80000800",
        "out dx, eax",
        "mov dx, 0xcfc",
        "in eax, dx",
        "cmp eax, -1",
        "jne 3f",
        "mov dx, 0xcf9",
        "mov al, 6",
        "out dx, al",
        "mov bl, 6",
        "3: mov al, bl",
        "out 0xf4, al",
        "2: jmp 2b",
    ));
    let outcome = machine.run();
    assert!(matches!(outcome, Outcome::Reset), "{outcome}");
    assert_eq!(machine.bus().unowned().ports.reads, 0);
}

#[test]
fn everything_that_was_printed_before_the_end_is_there() {
    let code = machine_code!(
        "cld",
        "mov dx, 0x3f8",
        "lea rsi, [rip + 3f]",
        "mov ecx, 6",
        "rep outsb",
        "mov al, 0x21",
        "out dx, al",
        "mov al, 0x77",
        "out 0x80, al",
        "mov al, 3",
        "out 0xf4, al",
        "3: .ascii \"hello \"",
    );
    let (machine, output) = machine(code);
    assert_eq!(machine.run().status(), 3);
    assert_eq!(output.text(), "hello !");
    assert_eq!(machine.last_post_code(), Some(0x77));
}

#[test]
fn a_guest_that_halted_with_interrupts_off_is_stopped_from_outside() {
    let (machine, _) = sleeper();
    machine.resume();
    thread::sleep(Duration::from_millis(5));
    assert!(machine.outcome().is_none());
    machine.stop();
    let outcome = machine.wait();
    assert!(matches!(outcome, Outcome::Stopped), "{outcome}");
    assert_eq!(outcome.status(), 0);
}

#[test]
fn somebody_may_wait_while_somebody_else_pauses_resumes_and_stops() {
    let (machine, output) = chatterbox();
    let machine = Arc::new(machine);
    let waiting = Arc::clone(&machine);
    let waiter = thread::spawn(move || waiting.run().status());
    eventually("the guest prints", || !output.bytes().is_empty());
    for _ in 0..100 {
        machine.pause();
        let printed = output.bytes().len();
        machine.resume();
        eventually("the guest goes on printing", || output.bytes().len() > printed);
    }
    machine.stop();
    assert_eq!(within(LIMIT, move || waiter.join().unwrap()), 0);
}

#[test]
fn two_machines_in_one_process_do_not_disturb_each_other() {
    // Each counts in its own memory and prints its own letter, and one ends long before the other.
    let code = |letter: u8, rounds: u32| {
        let code = machine_code!(
            "mov dx, 0x3f8",
            "mov al, 0",
            "mov ecx, 0x12345678",
            "2: out dx, al",
            "inc dword ptr [0x180000]",
            "dec ecx",
            "jnz 2b",
            "mov al, [0x180000]",
            "out 0xf4, al",
        );
        let mut image = code.to_vec();
        image[5] = letter;
        image[7..11].copy_from_slice(&rounds.to_le_bytes());
        image
    };
    let (one, one_output) = machine(&code(b'a', 200));
    let (two, two_output) = machine(&code(b'b', 5000));
    two.resume();
    one.resume();
    assert_eq!(one.wait().status(), 200);
    drop(one);
    assert_eq!(two.wait().status(), (5000 % 256) as u8);
    assert_eq!(one_output.text(), "a".repeat(200));
    assert_eq!(two_output.text(), "b".repeat(5000));
}

#[test]
fn a_machine_that_ended_can_be_waited_for_again() {
    within(LIMIT, || {
        let (machine, _) = machine(machine_code!("mov al, 5", "out 0xf4, al"));
        for _ in 0..3 {
            assert_eq!(machine.run().status(), 5);
            assert_eq!(machine.wait().status(), 5);
        }
        assert_eq!(machine.outcome().map(Outcome::status), Some(5));
    });
}

#[test]
fn a_stopped_machine_stays_stopped() {
    within(LIMIT, || {
        let (machine, output) = chatterbox();
        machine.resume();
        eventually("the guest prints", || !output.bytes().is_empty());
        machine.stop();
        let printed = output.bytes().len();
        machine.resume();
        machine.pause();
        machine.stop();
        machine.resume();
        thread::sleep(Duration::from_millis(5));
        assert_eq!(output.bytes().len(), printed);
        assert!(matches!(machine.run(), Outcome::Stopped));
    });
}

#[test]
fn pausing_and_resuming_twice_is_the_same_as_once() {
    within(LIMIT, || {
        let (machine, output) = chatterbox();
        machine.pause();
        machine.pause();
        machine.resume();
        machine.resume();
        eventually("the guest prints", || !output.bytes().is_empty());
        machine.pause();
        machine.pause();
        let printed = output.bytes().len();
        thread::sleep(Duration::from_millis(5));
        assert_eq!(output.bytes().len(), printed);
    });
}

#[test]
fn a_machine_may_be_dropped_in_any_state() {
    within(LIMIT, || {
        for make in [chatterbox, sleeper] {
            drop(make());
            let (running, _) = make();
            running.resume();
            drop(running);
            let (running_for_a_while, _) = make();
            running_for_a_while.resume();
            thread::sleep(Duration::from_millis(2));
            drop(running_for_a_while);
            let (paused, _) = make();
            paused.resume();
            paused.pause();
            drop(paused);
            let (stopped, _) = make();
            stopped.stop();
            drop(stopped);
        }
    });
}

#[test]
fn a_machine_that_never_ran_is_stopped_and_waited_for() {
    within(LIMIT, || {
        let (machine, output) = chatterbox();
        machine.stop();
        assert!(matches!(machine.wait(), Outcome::Stopped));
        assert_eq!(output.text(), "");
        assert_eq!(machine.vcpus()[0].counters().total(), 0);
    });
}
