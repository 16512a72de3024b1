//! Several processors: the first starts the others, and all are paused and stopped together.

use std::fs;

use lodger::vm::Outcome;

use crate::support::{
    Board, Plan, Random, SECOND_CODE, eventually, machine_code, machine_with, put, read_u64,
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
        let (machine, output) = machine_with(starter(), |config| config.cpus = 2);
        put(machine.memory(), SECOND_CODE, second);
        let outcome = machine.run();
        assert!(matches!(outcome, Outcome::Exited(7)), "{outcome}");
        assert_eq!(output.text(), "A");
    }
}
