//! Several processors: the first starts the others, each is told who it is, and all are paused and stopped
//! together.

use std::fs;

use lodger::hv::Vcpu;
use lodger::vm::Outcome;
use lodger::x86::topology::{Topology, apic_ids};

use crate::support::{
    Board, DATA, Plan, Random, SECOND_CODE, eventually, kvm, machine_code, machine_with, put, read_u64,
};

/// Where the other processors count.
const SLOTS: u64 = 0x4_0000;

/// Starts all other processors at 0x30000 by INIT and SIPI, then counts.
fn starter() -> &'static [u8] {
    machine_code!(
        "mov ebx, 0xfee00000",
        "mov dword ptr [rbx + 0x300], 0xc4500",
        "mov dword ptr [rbx + 0x300], 0xc4630",
        "2: inc qword ptr [0x180000]",
        "jmp 2b",
    )
}

/// In real mode: takes a slot of its own and counts there.
fn real_mode_counter() -> &'static [u8] {
    machine_code!(
        ".code16",
        "mov ax, 0x4000",
        "mov ds, ax",
        "mov si, 8",
        "lock xadd word ptr [0x100], si",
        "2: inc dword ptr [si]",
        "jmp 2b",
    )
}

fn board(cpus: u32) -> Board {
    Plan::new(starter()).ring(0).cpus(cpus, real_mode_counter()).build()
}

fn counters(board: &Board) -> Vec<u64> {
    let slots = (0..board.vcpus.len() as u64 - 1).map(|slot| read_u64(&board.memory, SLOTS + slot * 8));
    std::iter::once(board.data(0)).chain(slots).collect()
}

fn all_count(board: &Board) {
    let before = counters(board);
    eventually("all processors count", || {
        counters(board).iter().zip(&before).all(|(now, before)| now > before)
    });
}

#[test]
fn the_first_processor_starts_the_others_and_all_are_paused_and_stopped_together() {
    for cpus in [2, 4] {
        let board = board(cpus);
        board.resume();
        all_count(&board);
        let mut random = Random::new(5);
        for _ in 0..100 {
            board.pause();
            let paused = counters(&board);
            random.dawdle(50);
            assert_eq!(counters(&board), paused, "a processor counts while it is paused");
            board.resume();
            random.dawdle(50);
        }
        all_count(&board);
        board.vcpus.iter().for_each(lodger::vcpu::VcpuThread::request_stop);
        board.vcpus.iter().for_each(lodger::vcpu::VcpuThread::wait_at_rest);
        (0..cpus).for_each(|_| drop(board.ending()));
    }
}

#[test]
fn processors_that_were_never_started_wait_and_can_be_paused() {
    let board = Plan::new(machine_code!("2: inc qword ptr [0x180000]", "jmp 2b")).cpus(3, &[]).build();
    for _ in 0..20 {
        board.resume();
        let before = board.data(0);
        eventually("the first processor counts", || board.data(0) > before);
        board.pause();
    }
    assert!(board.is_alive());
}

#[test]
fn each_processor_has_a_thread_of_its_own_name() {
    // No other test has so many processors.
    let names = || -> Vec<String> {
        let tasks = fs::read_dir("/proc/self/task").expect("this process has threads");
        // A thread may end while the list is read.
        let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
        names.map(|name| name.trim_end().to_owned()).collect()
    };
    let board = board(7);
    board.resume();
    for id in 0..7 {
        let name = format!("vcpu{id}");
        eventually(&format!("there is a thread {name}"), || names().contains(&name));
    }
    drop(board);
    let left = names();
    assert!(!left.contains(&"vcpu6".to_owned()), "{left:?}");
}

#[test]
fn any_processor_can_end_the_machine_for_all() {
    let second = machine_code!(
        ".code16",
        "mov dx, 0x3f8",
        "mov al, 0x41",
        "out dx, al",
        "mov al, 7",
        "out 0xf4, al",
        "2: jmp 2b",
    );
    for _ in 0..20 {
        let (machine, output) = machine_with(starter(), |config| config.cpus = 2.into());
        put(machine.memory(), SECOND_CODE, second);
        let outcome = machine.run();
        assert!(matches!(outcome, Outcome::Exited(7)), "{outcome}");
        assert_eq!(output.text(), "A");
    }
}

/// Starts the processors whose numbers lie behind their count at 0x180000, one after the other: each by an INIT
/// and a SIPI for its own number. Ends when the last has written its record.
fn starter_by_number() -> &'static [u8] {
    machine_code!(
        "mov ebx, 0xfee00000",
        "mov esi, 0x180008",
        "mov ecx, [0x180000]",
        "xor edi, edi",
        "2: mov eax, [rsi]",
        "shl eax, 24",
        "mov [rbx + 0x310], eax",
        "mov dword ptr [rbx + 0x300], 0x4500",
        "mov [rbx + 0x310], eax",
        "mov dword ptr [rbx + 0x300], 0x4630",
        "inc edi",
        "3: cmp [0x40000], edi",
        "jb 3b",
        "add rsi, 4",
        "dec ecx",
        "jnz 2b",
        "xor eax, eax",
        "out 0xf4, al",
    )
}

/// In real mode: writes a [`Record`] behind the last one, from 0x40020 on, and counts it at 0x40000.
fn recorder() -> &'static [u8] {
    machine_code!(
        ".code16",
        "mov ax, 0x4000",
        "mov ds, ax",
        "mov si, [0]",
        "inc si",
        "shl si, 5",
        "mov eax, 1",
        "cpuid",
        "mov [si], ebx",
        "mov eax, 0xb",
        "xor ecx, ecx",
        "cpuid",
        "mov [si + 4], eax",
        "mov [si + 8], edx",
        "mov eax, 0xb",
        "mov ecx, 1",
        "cpuid",
        "mov [si + 12], eax",
        "mov eax, 0x8000001e",
        "cpuid",
        "mov [si + 16], eax",
        "mov [si + 20], ebx",
        "mov [si + 24], ecx",
        "mov ecx, 0x2ff",
        "rdmsr",
        "mov [si + 28], eax",
        "inc dword ptr [0]",
        "2: cli",
        "hlt",
        "jmp 2b",
    )
}

/// What a started processor found out about itself.
#[derive(Debug)]
struct Record {
    initial_id: u32,
    thread_shift: u32,
    extended_id: u32,
    socket_shift: u32,
    amd: [u32; 3],
    memory_types: u32,
}

fn record(memory: &lodger::memory::GuestMemory, slot: u64) -> Record {
    let word =
        |at: u64| read_u64(memory, SLOTS + 0x20 * (slot + 1) + (at & !7)) >> (8 * (at & 4)) & 0xffff_ffff;
    let [ebx, thread_shift, extended_id, socket_shift, a, b, c, memory_types] =
        [0, 4, 8, 12, 16, 20, 24, 28].map(|at| word(at) as u32);
    Record { initial_id: ebx >> 24, thread_shift, extended_id, socket_shift, amd: [a, b, c], memory_types }
}

#[test]
fn each_started_processor_is_told_who_it_is() {
    use lodger::hv::Hypervisor;
    let supported = kvm().supported_cpuid().unwrap();
    let has = |function: u32| supported.iter().any(|entry| entry.function == function);
    let amd = supported.iter().any(|entry| entry.function == 0 && entry.ebx == 0x6874_7541);
    for (sockets, cores, threads) in [(1, 2, 1), (2, 3, 1), (1, 2, 2), (3, 1, 3)] {
        let topology = Topology::new(sockets, cores, threads).unwrap();
        let spec = format!("sockets={sockets},cores={cores},threads={threads}");
        let (machine, _) = machine_with(starter_by_number(), |config| config.cpus = spec.parse().unwrap());
        let others = &apic_ids(&topology)[1..];
        put(machine.memory(), SECOND_CODE, recorder());
        put(machine.memory(), DATA, &(others.len() as u64).to_le_bytes());
        let numbers: Vec<u8> = others.iter().flat_map(|id| id.to_le_bytes()).collect();
        put(machine.memory(), DATA + 8, &numbers);
        let outcome = machine.run();
        assert!(matches!(outcome, Outcome::Exited(0)), "{outcome}");
        for (slot, &id) in (0..).zip(others) {
            let record = record(machine.memory(), slot);
            assert_eq!(record.initial_id, id, "{record:?}");
            if has(0xb) {
                assert_eq!(record.extended_id, id, "{record:?}");
                assert_eq!(record.thread_shift, topology.thread_bits(), "{record:?}");
                assert_eq!(record.socket_shift, topology.socket_shift(), "{record:?}");
            }
            if amd && has(0x8000_001e) {
                let core = topology.core_of(id) | (threads - 1) << 8;
                assert_eq!(record.amd, [id, core, topology.socket_of(id)], "{record:?}");
            }
            // Write-back, and the fixed ranges count; INIT leaves it alone.
            assert_eq!(record.memory_types, 0xc06, "{record:?}");
        }
    }
}

#[test]
fn firmwares_registers_and_pins_are_the_same_on_all_processors() {
    const TYPES: [u32; 15] = [
        0x200, 0x201, 0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f, 0x277,
        0x2ff,
    ];
    let (machine, _) = machine_with(starter(), |config| config.cpus = 3.into());
    let all: Vec<_> = machine
        .vcpus()
        .iter()
        .map(|thread| {
            thread.while_at_rest(|vcpu| {
                let types = TYPES.map(|index| vcpu.msr(index).unwrap());
                let apic = vcpu.local_apic().unwrap();
                let pin = |at: usize| u32::from_le_bytes(apic[at..at + 4].try_into().unwrap());
                (types, pin(0x350), pin(0x360))
            })
        })
        .collect();
    assert_eq!(all[0].0[0], Some(0xc000_0000));
    assert_eq!((all[0].0[13], all[0].0[14]), (Some(0x0007_0406_0007_0406), Some(0xc06)));
    assert_eq!((all[0].1, all[0].2), (0x700, 0x400));
    for other in &all[1..] {
        assert_eq!(other.0, all[0].0);
        assert_eq!((other.1, other.2), (0x1_0000, 0x400));
    }
}

/// What a guest is told of without a hypercall really works.
#[test]
fn the_clock_and_the_stolen_time_that_are_announced_are_kept() {
    const CLOCKSOURCE2: u32 = 1 << 3;
    let code = machine_code!(
        "mov eax, 0x40000001",
        "cpuid",
        "mov [0x180100], eax",
        "mov ecx, 0x4b564d01",
        "mov eax, 0x180001",
        "xor edx, edx",
        "wrmsr",
        "mov ecx, 0x4b564d03",
        "mov eax, 0x180041",
        "wrmsr",
        "2: cmp dword ptr [0x180000], 0",
        "je 2b",
        "bt dword ptr [0x180100], 5",
        "jnc 4f",
        "3: cmp dword ptr [0x180048], 0",
        "je 3b",
        "4: mov al, 0",
        "out 0xf4, al",
    );
    let (machine, _) = machine_with(code, |_| {});
    let outcome = machine.run();
    assert!(matches!(outcome, Outcome::Exited(0)), "{outcome}");
    let read = |at: u64| read_u64(machine.memory(), DATA + at);
    let features = read(0x100) as u32;
    assert_ne!(features & CLOCKSOURCE2, 0, "{features:#x}");
    // struct pvclock_vcpu_time_info: version, then at 16 the time, at 24 the factor.
    let (version, time, factor) = (read(0) as u32, read(16), read(24) as u32);
    assert!(
        version != 0 && version.is_multiple_of(2) && time != 0 && factor != 0,
        "{version} {time} {factor}"
    );
}
