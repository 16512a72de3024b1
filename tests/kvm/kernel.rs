//! Kernels that run in the software processor, on hosts whose KVM interprets them.
//!
//! On an ordinary KVM none of it is active; the guests must behave the same there.

use std::sync::Arc;
use std::time::Duration;

use lodger::devices::Collected;
use lodger::hv::kvm::KvmVm;
use lodger::vcpu::{Interval, Profiler};
use lodger::vm::{Completion, Machine};

use crate::support::{ENDS_WITHIN, HANDLER, Plan, Random, eventually, machine_code, machine_with, within};

/// Where an ELF guest is loaded.
const ADDRESS: u64 = 0x10_0000;

/// An ELF kernel of `code`, which is entered at its first byte in 64-bit mode.
fn elf(code: &[u8]) -> Vec<u8> {
    let words = |words: &[u64]| -> Vec<u8> { words.iter().flat_map(|word| word.to_le_bytes()).collect() };
    let length = code.len() as u64;
    // Magic, 64 bits, little-endian; an executable for x86-64 with one program header and no sections.
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    file.extend(words(&[ADDRESS, 64, 0]));
    file.extend(b"\0\0\0\0\x40\0\x38\0\x01\0\x40\0\0\0\0\0");
    file.extend(b"\x01\0\0\0\x07\0\0\0");
    file.extend(words(&[64 + 56, ADDRESS, ADDRESS, length, length, 4]));
    file.extend(code);
    file
}

fn kernel(code: &[u8], completion: Completion) -> (Machine<KvmVm>, Arc<Collected>) {
    machine_with(&elf(code), |config| {
        config.flat = None;
        config.completion = completion;
    })
}

/// A loop of some hundred thousand instructions, an `A` on the serial port, and status 7.
fn counting() -> &'static [u8] {
    machine_code!(
        "mov ecx, 100000",
        "2: add rax, rcx",
        "dec ecx",
        "jnz 2b",
        "mov edx, 0x3f8",
        "mov al, 65",
        "out dx, al",
        "mov al, 7",
        "out 0xf4, al",
    )
}

#[test]
fn a_kernel_runs_in_software_where_kvm_would_interpret_it() {
    let (machine, output) = kernel(counting(), Completion::Auto);
    let (status, instructions, gaps) = within(ENDS_WITHIN, move || {
        let status = machine.run().status();
        (status, machine.vcpus()[0].counters().kernel_instructions(), machine.gaps().any())
    });
    assert_eq!((status, output.bytes()), (7, b"A".to_vec()));
    if gaps {
        assert!(instructions > 250_000, "{instructions}");
    } else {
        assert_eq!(instructions, 0);
    }
}

#[test]
fn a_kernel_is_left_to_kvm_if_only_what_is_missing_is_to_be_done() {
    let (machine, output) = kernel(counting(), Completion::Missing);
    let (status, instructions) = within(ENDS_WITHIN, move || {
        let status = machine.run().status();
        (status, machine.vcpus()[0].counters().kernel_instructions())
    });
    assert_eq!((status, instructions, output.bytes()), (7, 0, b"A".to_vec()));
}

#[test]
fn what_is_not_for_the_software_processor_is_done_in_between() {
    let code = machine_code!(
        // CPUID and model-specific registers are KVM's.
        "mov eax, 0x40000000",
        "cpuid",
        "cmp ebx, 0x4b4d564b", // "KVMK"
        "jne 9f",
        "mov ecx, 0xc0000100", // the base of FS
        "mov eax, 0x12345000",
        "xor edx, edx",
        "wrmsr",
        "xor eax, eax",
        "rdmsr",
        "cmp eax, 0x12345000",
        "jne 9f",
        // Vector registers, which have to be switched on first.
        "mov rax, cr4",
        "or eax, 0x600",
        "mov cr4, rax",
        "mov eax, 5",
        "movd xmm0, eax",
        "mov eax, 37",
        "movd xmm1, eax",
        "paddd xmm0, xmm1",
        "movd ebx, xmm0",
        "cmp ebx, 42",
        "jne 9f",
        // A timer port of KVM's, and one that nobody has.
        "in al, 0x40",
        "in al, 0x42",
        "mov edx, 0x5555",
        "in al, dx",
        "cmp al, 0xff",
        "jne 9f",
        "mov al, 1",
        "out 0xf4, al",
        "9: mov al, 2",
        "out 0xf4, al",
    );
    let (machine, _) = kernel(code, Completion::Auto);
    assert_eq!(within(ENDS_WITHIN, move || machine.run().status()), 1);
}

#[test]
fn a_breakpoint_exception_arrives_at_its_handler() {
    let code = machine_code!(
        // A gate for vector 3, in a table that ends with it.
        "lea rax, [rip + 3f]",
        "mov word ptr [0x48030], ax",
        "mov word ptr [0x48032], 0x10",
        "mov word ptr [0x48034], 0x8e00",
        "shr rax, 16",
        "mov word ptr [0x48036], ax",
        "mov word ptr [0x47000], 0x3f",
        "mov qword ptr [0x47002], 0x48000",
        "lidt [0x47000]",
        "mov rsp, 0x49000",
        "lea rbx, [rip + 2f]",
        "int3",
        "2: hlt",
        "3: mov al, 1",
        "cmp [rsp], rbx", // RIP behind the instruction
        "je 4f",
        "mov al, 2",
        "4: out 0xf4, al",
    );
    let (machine, _) = kernel(code, Completion::Auto);
    assert_eq!(within(ENDS_WITHIN, move || machine.run().status()), 1);
}

#[test]
fn a_kernel_that_never_leaves_its_loop_is_paused_and_stopped() {
    // One that takes interrupts, one that does not, one that never stops talking to a port of its own.
    let loops: [&[u8]; 3] = [
        machine_code!("2: inc rax", "jmp 2b"),
        machine_code!("cli", "2: inc rax", "jmp 2b"),
        machine_code!("2: in al, 0x71", "inc rbx", "jmp 2b"),
    ];
    for code in loops {
        let (machine, _) = kernel(code, Completion::Auto);
        within(Duration::from_secs(60), move || {
            let mut random = Random::new(7);
            let vcpu = &machine.vcpus()[0];
            machine.resume();
            for _ in 0..200 {
                random.dawdle(300);
                machine.pause();
                let rip = |vcpu: &_| lodger::hv::Vcpu::registers(vcpu).expect("it is at rest").rip;
                let at = vcpu.while_at_rest(rip);
                assert!((ADDRESS..ADDRESS + 16).contains(&at), "{at:#x}");
                machine.resume();
            }
            if machine.gaps().any() {
                eventually("the software processor works", || vcpu.counters().kernel_instructions() > 1000);
            }
            machine.stop();
        });
    }
}

#[test]
fn a_kernel_that_faults_without_handlers_ends_in_a_report() {
    let (machine, _) = kernel(machine_code!("mov rax, [0x7fffffffffff]", "hlt"), Completion::Auto);
    assert_eq!(within(ENDS_WITHIN, move || machine.run().status()), 101);
}

/// Runs `code` in ring 0, with its interrupt handler, to its end with status 0, which it reaches after so many
/// interrupts.
fn assert_interrupted(code: &[u8], vector: u8, times: u64) {
    let board = Plan::new(code).ring(0).handler(vector, HANDLER).in_software().build();
    board.run();
    assert_eq!(board.data(0), times);
}

/// The same, while samples are taken of it as often as possible.
fn assert_interrupted_while_sampled(code: &[u8], vector: u8, times: u64) {
    let board = Plan::new(code).ring(0).handler(vector, HANDLER).in_software().build();
    let often = Interval::new(Duration::from_micros(50)).expect("it is long enough");
    let profiler = Profiler::start(&board.vcpus, often).expect("a thread can be started");
    board.run();
    drop(profiler);
    assert_eq!(board.data(0), times);
}

/// Sleeps 1000 times until a timer fires, which takes another while each time. An interrupt that is lost, or a sleep
/// without a timer, never ends; and who wakes up before the interrupt is handled ends with status 1.
fn sleeper() -> &'static [u8] {
    machine_code!(
        "mov ebx, 0xfee00000",
        "mov dword ptr [rbx + 0xf0], 0x1ff",
        "mov dword ptr [rbx + 0x3e0], 0xb",
        "mov dword ptr [rbx + 0x320], 0x40",
        "xor ecx, ecx",
        "2: imul eax, ecx, 7919",
        "and eax, 0x7fff",
        "inc eax",
        "mov dword ptr [rbx + 0x380], eax",
        "sti",
        "hlt",
        "cli",
        "inc ecx",
        // Awake, so it has fired: once.
        "cmp [0x180000], rcx",
        "jne 3f",
        "cmp ecx, 1000",
        "jb 2b",
        "mov al, 0",
        "out 0xf4, al",
        "3: mov al, 1",
        "out 0xf4, al",
        ".balign 256",
        "inc qword ptr [0x180000]",
        "mov dword ptr [rbx + 0xb0], 0",
        "iretq",
    )
}

#[test]
fn a_kernel_sleeps_until_its_timer_fires_and_not_longer() {
    assert_interrupted(sleeper(), 0x40, 1000);
    assert_interrupted_while_sampled(sleeper(), 0x40, 1000);
}

/// Executes `int3` 3000 times; ends with status 1 if it went on before one was handled.
fn breaker() -> &'static [u8] {
    machine_code!(
        "xor ecx, ecx",
        "2: int3",
        "inc ecx",
        "cmp [0x180000], rcx",
        "jne 3f",
        "cmp ecx, 3000",
        "jb 2b",
        "mov al, 0",
        "out 0xf4, al",
        "3: mov al, 1",
        "out 0xf4, al",
        ".balign 256",
        "inc qword ptr [0x180000]",
        "iretq",
    )
}

#[test]
fn every_breakpoint_exception_comes_before_the_next_instruction() {
    assert_interrupted(breaker(), 3, 3000);
    assert_interrupted_while_sampled(breaker(), 3, 3000);
}
