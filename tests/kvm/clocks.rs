//! Clocks and counters of guests that are paused, and that go on in other machines; and how these learn of it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lodger::boot::Flat;
use lodger::devices::Collected;
use lodger::hv::kvm::KvmVm;
use lodger::hv::{SavedClock, TIME_STAMP_COUNTER, Vcpu, Vm};
use lodger::vm::{Clock, Config, Kernel, Machine, MemorySpec};
use vm_memory::{Bytes, GuestAddress};

use crate::support::{
    DATA, HANDLER, Plan, Scratch, eventually, guests_have_deadline_timers, kvm, machine_code, put, read_u64,
    restore,
};

const SECOND: u64 = 1_000_000_000;

fn host_time() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos().try_into().unwrap()
}

fn machine(config: &Config) -> Machine<KvmVm> {
    Machine::new(&kvm(), config, Arc::new(Collected::default())).expect("the machine can be built")
}

fn config(code: &[u8]) -> Config {
    Config {
        kernel: Kernel::Bytes(code.to_vec()),
        flat: Some(Flat::default()),
        memory: MemorySpec::of_size(2 << 20),
        ..Config::default()
    }
}

/// The machine's successor, which has not been started.
fn successor(config: &Config, machine: Machine<KvmVm>) -> Machine<KvmVm> {
    let scratch = Scratch::new();
    let place = scratch.path("snapshot");
    machine.pause();
    machine.draft_snapshot(&kvm(), &place).unwrap().finish().unwrap();
    drop(machine);
    restore(config, &place, &Arc::new(Collected::default())).expect("it can be restored")
}

fn data(machine: &Machine<KvmVm>, offset: u64) -> u64 {
    read_u64(machine.memory(), DATA + offset)
}

#[test]
fn the_clock_goes_on_with_or_without_the_time_that_passed() {
    const THEN: u64 = 5_000 * SECOND;
    const DAYS: u64 = 3 * 86_400 * SECOND;
    let stored = |host| SavedClock { guest: THEN, host };
    let now = host_time();
    for (saved, counts, passed) in [
        (stored(now - DAYS), true, DAYS),
        (stored(now - DAYS), false, 0),
        (stored(now), true, 0),
        // By a host whose clock was wrong.
        (stored(now + DAYS), true, 0),
    ] {
        let board = Plan::new(&[0xf4]).build();
        board.vm.restore_clock(&saved, counts).unwrap();
        let clock = board.vm.save_clock().unwrap();
        let late = clock.guest.checked_sub(THEN + passed).expect("the clock never goes back");
        assert!(late < 10 * SECOND, "{saved:?} became {clock:?}");
        assert!(clock.host.abs_diff(host_time()) < 10 * SECOND, "{clock:?}");
    }
}

/// Both processors write down their time stamp counters; the first ends with status 1 if its own goes back.
fn counters() -> &'static [u8] {
    machine_code!(
        "mov ebx, 0xfee00000",
        "mov dword ptr [rbx + 0xf0], 0x1ff",
        "mov dword ptr [rbx + 0x310], 0x01000000",
        "mov dword ptr [rbx + 0x300], 0x4500",
        "mov dword ptr [rbx + 0x310], 0x01000000",
        "mov dword ptr [rbx + 0x300], 0x4630",
        "2: rdtsc",
        "shl rdx, 32",
        "or rax, rdx",
        "cmp rax, [0x180000]",
        "jb 3f",
        "mov [0x180000], rax",
        "inc qword ptr [0x180010]",
        "jmp 2b",
        "3: mov al, 1",
        "out 0xf4, al",
    )
}

/// The second one's, in real mode.
fn second_counter() -> &'static [u8] {
    machine_code!(
        ".code16",
        "mov ax, 0x4000",
        "mov ds, ax",
        "2: rdtsc",
        "mov [0], eax",
        "mov [4], edx",
        "inc dword ptr [8]",
        "jmp 2b",
    )
}

#[test]
fn the_counters_of_all_processors_agree_and_never_go_back() {
    const SECOND_CODE: u64 = 0x3_0000;
    const SECOND_DATA: u64 = 0x4_0000;
    let mut config = Config { cpus: 2.into(), ..config(counters()) };
    let mut machine = machine(&config);
    machine.memory().mapped().write_slice(second_counter(), GuestAddress(SECOND_CODE)).unwrap();
    let second = |machine: &Machine<KvmVm>, offset| read_u64(machine.memory(), SECOND_DATA + offset);
    let khz = machine.vcpus()[0].while_at_rest(Vcpu::tsc_khz).expect("KVM tells the frequency");
    let mut last = [0; 2];
    for clock in [Clock::Host, Clock::Stopped, Clock::Host, Clock::Host] {
        let counted = [data(&machine, 0x10), second(&machine, 8)];
        machine.resume();
        eventually("both processors count", || {
            data(&machine, 0x10) > counted[0] + 100 && second(&machine, 8) > counted[1] + 100
        });
        machine.pause();
        assert!(machine.outcome().is_none(), "{:?}", machine.outcome());
        let shown =
            machine.vcpus().iter().map(|vcpu| vcpu.while_at_rest(|vcpu| vcpu.msr(TIME_STAMP_COUNTER)));
        let shown: Vec<_> = shown.map(|value| value.unwrap().unwrap()).collect();
        assert!(shown[1] - shown[0] < u64::from(khz) * 100, "they were read at once: {shown:?}");
        let seen = [data(&machine, 0), second(&machine, 0)];
        for number in 0..2 {
            assert!(
                seen[number] >= last[number] && seen[number] <= shown[number],
                "{last:?} {seen:?} {shown:?}"
            );
        }
        last = seen;
        config.clock = clock;
        machine = successor(&config, machine);
    }
}

/// Uses the clock that KVM has for guests, and ends when that says that the guest was stopped.
fn listener() -> &'static [u8] {
    machine_code!(
        "mov ecx, 0x4b564d01",
        "mov eax, 0x181001",
        "xor edx, edx",
        "wrmsr",
        "mov qword ptr [0x180000], 1",
        "2: inc qword ptr [0x180008]",
        "test byte ptr [0x18101d], 2",
        "jz 2b",
        "mov al, 0",
        "out 0xf4, al",
    )
}

#[test]
fn a_guest_is_told_that_it_was_stopped() {
    for moves in [false, true] {
        let config = config(listener());
        let mut machine = machine(&config);
        machine.resume();
        eventually("the guest counts", || data(&machine, 8) > 1000);
        assert!(machine.outcome().is_none(), "{:?}", machine.outcome());
        machine.pause();
        if moves {
            machine = successor(&config, machine);
        }
        assert_eq!(machine.run().status(), 0);
    }
}

/// Waits for the interrupt of a new generation; leaves the id that it found before and the one afterwards.
fn descendant() -> &'static [u8] {
    machine_code!(
        // The last input of the IOAPIC at vector 0x40, which nobody accepts.
        "mov ecx, 0xfec00000",
        "mov dword ptr [rcx], 0x3f",
        "mov dword ptr [rcx + 0x10], 0",
        "mov dword ptr [rcx], 0x3e",
        "mov dword ptr [rcx + 0x10], 0x40",
        "mov ebx, 0xfee00000",
        "mov dword ptr [rbx + 0xf0], 0x1ff",
        "mov esi, 0xdf010",
        "mov rax, [rsi]",
        "mov [0x180000], rax",
        "mov rax, [rsi + 8]",
        "mov [0x180008], rax",
        "2: inc qword ptr [0x180020]",
        "test dword ptr [rbx + 0x220], 1",
        "jz 2b",
        "mov rax, [rsi]",
        "mov [0x180010], rax",
        "mov rax, [rsi + 8]",
        "mov [0x180018], rax",
        "mov al, 0",
        "out 0xf4, al",
    )
}

#[test]
fn a_guest_that_goes_on_finds_another_id_and_an_interrupt() {
    let config = config(descendant());
    let mut ids = Vec::new();
    for _ in 0..2 {
        let before = machine(&config);
        before.resume();
        eventually("the guest counts", || data(&before, 0x20) > 100);
        // Neither a start nor a pause is a new generation.
        before.pause();
        before.resume();
        let counted = data(&before, 0x20);
        eventually("the guest counts on", || data(&before, 0x20) > counted + 100);
        assert!(before.outcome().is_none(), "{:?}", before.outcome());
        let after = successor(&config, before);
        let counted = data(&after, 0x20);
        assert_eq!(after.run().status(), 0);
        assert!(data(&after, 0x20) <= counted + 2, "the interrupt was there from the first instruction on");
        ids.extend([0, 0x10].map(|at| [data(&after, at), data(&after, at + 8)]));
    }
    for (number, id) in ids.iter().enumerate() {
        assert!(*id != [0; 2] && !ids[..number].contains(id), "{ids:x?}");
    }
}

#[test]
fn a_timer_fires_also_where_the_counter_began_elsewhere() {
    const DEADLINE: u32 = 0x6e0;
    if !guests_have_deadline_timers() {
        println!("guests have no such timer here");
        return;
    }
    let code = machine_code!(
        "mov ebx, 0xfee00000",
        "mov dword ptr [rbx + 0xf0], 0x1ff",
        "mov dword ptr [rbx + 0x320], 0x40040",
        "rdtsc",
        "shl rdx, 32",
        "or rax, rdx",
        "mov rdx, 0x100000000",
        "add rax, rdx",
        "mov rdx, rax",
        "shr rdx, 32",
        "mov ecx, 0x6e0",
        "wrmsr",
        "mov qword ptr [0x180000], 1",
        "sti",
        "2: hlt",
        "jmp 2b",
        ".balign 256",
        "mov al, 0",
        "out 0xf4, al",
    );
    let plan = || Plan::new(code).ring(0).handler(0x40, HANDLER);
    let board = plan().build();
    board.resume();
    eventually("the timer is armed", || board.data(0) != 0);
    board.pause();
    let (mut vcpus, interrupts) = board.save();
    // As from a host that has run for longer by ten days or so.
    for msr in vcpus.iter_mut().flat_map(|vcpu| &mut vcpu.msrs) {
        if [TIME_STAMP_COUNTER, DEADLINE].contains(&msr.index) && msr.value != 0 {
            msr.value += 1 << 51;
        }
    }
    let other = plan().build();
    other.restore(&board.memory, &vcpus, &interrupts);
    put(&other.memory, DATA + 8, &1_u64.to_le_bytes());
    other.resume();
    std::thread::sleep(Duration::from_millis(5));
    other.finish();
}
