//! Interrupts: from timers, from the serial port, from outside, by each way that a guest can take them.

use lodger::boot::{Flat, Mode, map};
use lodger::hv::{Doorbell, ExitKind, Vcpu, Vm};
use lodger::vm::Outcome;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::support::{
    DATA, HANDLER, PORT, Plan, eventually, gate, guests_have_deadline_timers, machine_code, machine_with,
    read_u64,
};

const TIMER: u8 = 0x40;

/// An image for 1 MiB whose code finds an interrupt table descriptor at 0x102000, with its handler for
/// `vector`.
fn with_interrupt_table(code: &[u8], vector: u8) -> Vec<u8> {
    const IDT_AT: usize = 0x1000;
    const POINTER_AT: usize = 0x2000;
    const CODE_SELECTOR: u16 = 0x10;
    let mut image = code.to_vec();
    image.resize(POINTER_AT, 0);
    let entry = IDT_AT + usize::from(vector) * 16;
    image[entry..entry + 16].copy_from_slice(&gate(map::HIGH_MEMORY + HANDLER, CODE_SELECTOR));
    image.extend(0xfff_u16.to_le_bytes());
    image.extend((map::HIGH_MEMORY + IDT_AT as u64).to_le_bytes());
    image
}

fn real_mode(config: &mut lodger::vm::Config) {
    config.flat = Some(Flat { address: 0x7c00, mode: Mode::Real });
}

#[test]
fn the_local_apics_timer_wakes_a_halted_guest() {
    let code = machine_code!(
        "mov ebx, 0xfee00000",
        "mov dword ptr [rbx + 0xf0], 0x1ff",
        "mov dword ptr [rbx + 0x3e0], 0xb",
        "mov dword ptr [rbx + 0x320], 0x40",
        "mov ecx, 10",
        "2: mov dword ptr [rbx + 0x380], 100000",
        "sti",
        "hlt",
        "cli",
        "dec ecx",
        "jnz 2b",
        "mov al, 0",
        "out 0xf4, al",
        ".balign 256",
        "inc qword ptr [0x180000]",
        "mov dword ptr [rbx + 0xb0], 0",
        "iretq",
    );
    let board = Plan::new(code).ring(0).handler(TIMER, HANDLER).build();
    board.run();
    assert_eq!(board.data(0), 10);
    // Neither the halts nor the interrupts came out of the kernel.
    let counters = board.vcpu().counters();
    assert_eq!(counters.total() - counters.get(ExitKind::Interrupted), 1);
}

#[test]
fn a_periodic_timer_interrupts_ring_3_and_returns_to_it() {
    let code = machine_code!(
        "mov ebx, 0xfee00000",
        "mov dword ptr [rbx + 0xf0], 0x1ff",
        "mov dword ptr [rbx + 0x3e0], 0xb",
        "mov dword ptr [rbx + 0x320], 0x20040",
        "mov dword ptr [rbx + 0x380], 300000",
        "mov r8, 0x1122334455667788",
        "2: inc rcx",
        "cmp qword ptr [0x180000], 5",
        "jb 2b",
        "mov [0x180008], r8",
        "mov al, 0",
        "out 0xf4, al",
        ".balign 256",
        "inc qword ptr [0x180000]",
        "mov r9, [rsp + 8]",
        "mov [0x180010], r9",
        "mov dword ptr [rbx + 0xb0], 0",
        "iretq",
    );
    let board = Plan::new(code).handler(TIMER, HANDLER).build();
    board.vcpu().while_at_rest(|vcpu| {
        let mut registers = vcpu.registers().unwrap();
        registers.rflags |= 1 << 9;
        vcpu.set_registers(&registers).unwrap();
    });
    board.run();
    assert!(board.data(0) >= 5);
    // A register of ring 3, and the code segment that was interrupted.
    assert_eq!((board.data(8), board.data(16)), (0x1122_3344_5566_7788, 0x23));
}

#[test]
fn the_deadline_timer_wakes_a_halted_guest_where_there_is_one() {
    if !guests_have_deadline_timers() {
        println!("guests have no deadline timer here");
        return;
    }
    let code = machine_code!(
        "mov ebx, 0xfee00000",
        "mov dword ptr [rbx + 0xf0], 0x1ff",
        "mov dword ptr [rbx + 0x320], 0x40040",
        "rdtsc",
        "shl rdx, 32",
        "or rax, rdx",
        "add rax, 1000000",
        "mov rdx, rax",
        "shr rdx, 32",
        "mov ecx, 0x6e0",
        "wrmsr",
        "sti",
        "hlt",
        "mov al, 0",
        "out 0xf4, al",
        ".balign 256",
        "inc qword ptr [0x180000]",
        "mov dword ptr [rbx + 0xb0], 0",
        "iretq",
    );
    let board = Plan::new(code).ring(0).handler(TIMER, HANDLER).build();
    board.run();
    assert_eq!(board.data(0), 1);
}

#[test]
fn the_interval_timer_ticks_through_the_old_interrupt_controller() {
    let code = machine_code!(
        ".code16",
        "xor ax, ax",
        "mov es, ax",
        "mov word ptr es:[0x20], 0x100",
        "mov word ptr es:[0x22], cs",
        "mov al, 0x11",
        "out 0x20, al",
        "mov al, 8",
        "out 0x21, al",
        "mov al, 4",
        "out 0x21, al",
        "mov al, 1",
        "out 0x21, al",
        "mov al, 0xfe",
        "out 0x21, al",
        "mov al, 0x34",
        "out 0x43, al",
        "mov al, 0xa9",
        "out 0x40, al",
        "mov al, 4",
        "out 0x40, al",
        "sti",
        "2: hlt",
        "cmp byte ptr [0x1f0], 10",
        "jb 2b",
        "mov al, 0",
        "out 0xf4, al",
        ".balign 256",
        "inc byte ptr [0x1f0]",
        "mov al, 0x20",
        "out 0x20, al",
        "iret",
    );
    let (machine, _) = machine_with(code, real_mode);
    let outcome = machine.run();
    assert!(matches!(outcome, Outcome::Exited(0)), "{outcome}");
    assert!(read_u64(machine.memory(), 0x7c00 + 0x1f0) & 0xff >= 10);
}

/// Gives a guest that echoes what the serial port receives, and ends at "!", its input in two parts.
/// The tables that the guest is given say that every old interrupt arrives at the IOAPIC input of its number; on
/// most PCs the timer is wired to input 2.
#[test]
fn the_interval_timer_arrives_at_the_ioapics_input_0() {
    let code = machine_code!(
        "mov al, 0xff",
        "out 0x21, al",
        "out 0xa1, al",
        "mov ebx, 0xfee00000",
        "mov dword ptr [rbx + 0xf0], 0x1ff",
        "mov ecx, 0xfec00000",
        "mov dword ptr [rcx], 0x10",
        "mov dword ptr [rcx + 0x10], 0x40",
        "mov dword ptr [rcx], 0x14",
        "mov dword ptr [rcx + 0x10], 0x41",
        "mov al, 0x34",
        "out 0x43, al",
        "mov al, 0",
        "out 0x40, al",
        "mov al, 0x10",
        "out 0x40, al",
        "2: sti",
        "hlt",
        "cli",
        "mov rax, [0x180000]",
        "add rax, [0x180008]",
        "cmp rax, 5",
        "jb 2b",
        "mov al, 0",
        "out 0xf4, al",
        ".balign 256",
        "inc qword ptr [0x180000]",
        "mov dword ptr [rbx + 0xb0], 0",
        "iretq",
        ".balign 256",
        "inc qword ptr [0x180008]",
        "mov dword ptr [rbx + 0xb0], 0",
        "iretq",
    );
    let board = Plan::new(code).ring(0).handler(TIMER, HANDLER).handler(TIMER + 1, 2 * HANDLER).build();
    board.run();
    assert_eq!((board.data(0), board.data(8)), (5, 0));
}

fn assert_echoes(image: &[u8], change: impl FnOnce(&mut lodger::vm::Config)) {
    let (machine, output) = machine_with(image, change);
    // Input may come before the guest listens…
    assert_eq!(machine.serial().offer_input(b"hello"), 5);
    machine.resume();
    eventually("the first part is echoed", || output.text() == "hello");
    // …and while it is halted and waits for it.
    assert_eq!(machine.serial().offer_input(b" there!"), 7);
    let outcome = machine.wait();
    assert!(matches!(outcome, Outcome::Exited(7)), "{outcome}");
    assert_eq!(output.text(), "hello there!");
}

#[test]
fn serial_input_reaches_a_halted_guest_through_the_old_interrupt_controller() {
    let code = machine_code!(
        ".code16",
        "xor ax, ax",
        "mov es, ax",
        "mov word ptr es:[0x30], 0x100",
        "mov word ptr es:[0x32], cs",
        "mov al, 0x11",
        "out 0x20, al",
        "mov al, 8",
        "out 0x21, al",
        "mov al, 4",
        "out 0x21, al",
        "mov al, 1",
        "out 0x21, al",
        "mov al, 0xef",
        "out 0x21, al",
        "mov dx, 0x3fc",
        "mov al, 0x0b",
        "out dx, al",
        "mov dx, 0x3f9",
        "mov al, 1",
        "out dx, al",
        "sti",
        "2: hlt",
        "jmp 2b",
        ".balign 256",
        "2: mov dx, 0x3fd",
        "in al, dx",
        "test al, 1",
        "jz 3f",
        "mov dx, 0x3f8",
        "in al, dx",
        "out dx, al",
        "cmp al, 0x21",
        "jne 2b",
        "mov al, 7",
        "out 0xf4, al",
        "3: mov al, 0x20",
        "out 0x20, al",
        "iret",
    );
    assert_echoes(code, real_mode);
}

#[test]
fn serial_input_reaches_a_halted_guest_through_the_ioapic() {
    let code = machine_code!(
        "mov eax, 0x102000",
        "lidt [rax]",
        "mov ebx, 0xfee00000",
        "mov dword ptr [rbx + 0xf0], 0x1ff",
        // What comes through the IOAPIC must not come through the old controllers as well.
        "mov al, 0xff",
        "out 0x21, al",
        "out 0xa1, al",
        "mov ecx, 0xfec00000",
        "mov dword ptr [rcx], 0x19",
        "mov dword ptr [rcx + 0x10], 0",
        "mov dword ptr [rcx], 0x18",
        "mov dword ptr [rcx + 0x10], 0x41",
        "mov dx, 0x3fc",
        "mov al, 0x0b",
        "out dx, al",
        "mov dx, 0x3f9",
        "mov al, 1",
        "out dx, al",
        "sti",
        "2: hlt",
        "jmp 2b",
        ".balign 256",
        "2: mov dx, 0x3fd",
        "in al, dx",
        "test al, 1",
        "jz 3f",
        "mov dx, 0x3f8",
        "in al, dx",
        "out dx, al",
        "cmp al, 0x21",
        "jne 2b",
        "mov al, 7",
        "out 0xf4, al",
        "3: mov dword ptr [rbx + 0xb0], 0",
        "iretq",
    );
    assert_echoes(&with_interrupt_table(code, 0x41), |_| {});
}

#[test]
fn a_doorbell_rings_without_an_exit_and_an_event_interrupts_without_a_call() {
    const LINE: u32 = 5;
    let code = machine_code!(
        "mov ebx, 0xfee00000",
        "mov dword ptr [rbx + 0xf0], 0x1ff",
        // What comes through the IOAPIC must not come through the old controllers as well.
        "mov al, 0xff",
        "out 0x21, al",
        "out 0xa1, al",
        "mov ecx, 0xfec00000",
        "mov dword ptr [rcx], 0x1a",
        "mov dword ptr [rcx + 0x10], 0x40",
        "mov dx, 0x550",
        "mov ecx, 100",
        "2: out dx, al",
        "dec ecx",
        "jnz 2b",
        "mov ecx, 0xd8000000",
        "mov [rcx], ecx",
        "mov [rcx], ecx",
        "sti",
        "hlt",
        "mov al, 0",
        "out 0xf4, al",
        ".balign 256",
        "inc qword ptr [0x180000]",
        "mov dword ptr [rbx + 0xb0], 0",
        "iretq",
    );
    let board = Plan::new(code).ring(0).handler(TIMER, HANDLER).build();
    let [port, address, interrupt] = [(); 3].map(|()| EventFd::new(EFD_NONBLOCK).unwrap());
    board.vm.register_doorbell(Doorbell::Port(PORT + 0x10), &port).unwrap();
    board.vm.register_doorbell(Doorbell::Address(0xd800_0000), &address).unwrap();
    board.vm.register_interrupt_event(&interrupt, LINE).unwrap();
    board.resume();
    eventually("the second doorbell rings", || address.read().is_ok());
    assert_eq!(port.read().unwrap(), 100);
    assert!(board.is_alive());
    interrupt.write(1).unwrap();
    board.finish();
    assert_eq!(read_u64(&board.memory, DATA), 1);
    assert_eq!(board.vcpu().counters().get(ExitKind::MmioWrite), 0);
    assert_eq!(board.vcpu().counters().get(ExitKind::PioWrite), 1);
}
