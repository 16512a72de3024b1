//! Registers that travel with each entry and exit must be those that the processor has, also where KVM changes them
//! on its own in between.

use lodger::hv::kvm::KvmVcpu;
use lodger::hv::{Activity, Direction, Exit, Vcpu};

use crate::support::{Bare, DATA, HANDLER, PORT, Plan, SECOND_CODE, machine_code, read_u64};

const VECTOR: u8 = 0x40;
/// RFLAGS.IF.
const INTERRUPTS_ON: u64 = 1 << 9;
const MOST_EXITS: usize = 10;

/// Enters the guest until it has written to the test's port.
fn until_it_writes(vcpu: &mut KvmVcpu) {
    for _ in 0..MOST_EXITS {
        match vcpu.run().expect("KVM runs the guest") {
            Exit::Pio(pio) if pio.port == PORT && pio.direction == Direction::Write => return,
            Exit::Interrupted => {}
            other => panic!("{other:?}"),
        }
    }
    panic!("it does not write");
}

/// Enters the processor, which comes back at once: what is exchanged at exits is current then.
fn without_progress(vcpu: &mut KvmVcpu) {
    let kick = vcpu.kick_handle().unwrap();
    kick.set(true);
    let interrupted = matches!(vcpu.run(), Ok(Exit::Interrupted));
    kick.set(false);
    assert!(interrupted);
}

#[test]
fn an_interrupt_that_was_accepted_before_an_exit_is_delivered_once() {
    let code = machine_code!(
        "cli",
        "mov edx, 0x540",
        "2: out dx, al",
        "jmp 2b",
        ".balign 256",
        "inc qword ptr [0x180000]",
        "iretq",
    );
    let mut bare = Plan::new(code).ring(0).handler(VECTOR, HANDLER).bare();
    let deliveries = |bare: &Bare| read_u64(&bare.memory, DATA);
    let vcpu = &mut bare.vcpus[0];
    let mut general = vcpu.registers().unwrap();
    general.rflags |= INTERRUPTS_ON;
    vcpu.set_registers(&general).unwrap();
    let mut special = vcpu.special_registers().unwrap();
    special.interrupt_bitmap[usize::from(VECTOR) / 64] = 1 << (VECTOR % 64);
    vcpu.set_special_registers(&special).unwrap();
    vcpu.exchange_registers(true);
    without_progress(vcpu);
    until_it_writes(vcpu);
    let special = vcpu.special_registers().unwrap();
    assert_eq!(deliveries(&bare), 1);
    assert_eq!(special.interrupt_bitmap, [0; 4]);
    // The guest has switched interrupts off, and changed registers change nothing about that.
    for _ in 0..3 {
        let vcpu = &mut bare.vcpus[0];
        let special = vcpu.special_registers().unwrap();
        vcpu.set_special_registers(&special).unwrap();
        until_it_writes(vcpu);
        assert_eq!(deliveries(&bare), 1);
    }
}

#[test]
fn registers_are_those_of_the_start_once_a_start_up_interrupt_has_taken_effect() {
    let first = machine_code!(
        "mov ebx, 0xfee00000",
        "mov dword ptr [rbx + 0x300], 0xc4500",
        "mov dword ptr [rbx + 0x300], 0xc4630",
        "mov edx, 0x540",
        "out dx, al",
    );
    let second = machine_code!(".code16", "mov dx, 0x540", "out dx, al");
    for change in [false, true] {
        let mut bare = Plan::new(first).ring(0).cpus(2, second).bare();
        let [first, second] = &mut bare.vcpus[..] else { unreachable!("there are two") };
        second.exchange_registers(true);
        without_progress(second);
        assert_eq!(second.registers().unwrap().rip, 0xfff0);
        until_it_writes(first);
        if change {
            // Registers that are not handed over any more.
            let (general, special) = (second.registers().unwrap(), second.special_registers().unwrap());
            second.set_registers(&general).unwrap();
            second.set_special_registers(&special).unwrap();
        }
        assert_eq!(second.activity().unwrap(), Activity::Running);
        let (general, special) = (second.registers().unwrap(), second.special_registers().unwrap());
        assert_eq!((general.rip, special.cs.selector, special.cs.base), (0, 0x3000, SECOND_CODE));
        // What was read is handed over once more, as whoever works on registers does.
        second.set_registers(&general).unwrap();
        second.set_special_registers(&special).unwrap();
        until_it_writes(second);
    }
}
