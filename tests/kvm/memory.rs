//! Guest memory of unusual sizes, as the guest sees it.

use lodger::boot::{Flat, Mode};
use lodger::vm::MemorySpec;

use crate::support::{Board, Plan, machine_code, machine_with, read_u64};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const ONES: u64 = u64::MAX;

/// Writes to each address in the list its own complement, then reads all of them back.
fn touch() -> &'static [u8] {
    machine_code!(
        "mov esi, 0x180000",
        "2: mov rbx, [rsi]",
        "test rbx, rbx",
        "jz 3f",
        "mov rax, rbx",
        "not rax",
        "mov [rbx], rax",
        "add rsi, 8",
        "jmp 2b",
        "3: mov esi, 0x180000",
        "4: mov rbx, [rsi]",
        "test rbx, rbx",
        "jz 5f",
        "mov rax, [rbx]",
        "mov [rsi + 0x1000], rax",
        "add rsi, 8",
        "jmp 4b",
        "5: mov al, 0",
        "out 0xf4, al",
    )
}

/// A machine of `size` whose guest touched `addresses`, and what it read from each.
fn touched(size: u64, addresses: &[u64]) -> (Board, Vec<u64>) {
    let list: Vec<u8> = addresses.iter().flat_map(|address| address.to_le_bytes()).collect();
    let board = Plan::new(touch()).memory(size).data(&list).build();
    board.run();
    let read = (0..addresses.len() as u64).map(|index| board.data(0x1000 + index * 8)).collect();
    (board, read)
}

/// Checks which of the addresses are memory and which are nothing.
fn assert_memory(size: u64, memory: &[u64], nothing: &[u64]) {
    let (board, read) = touched(size, &[memory, nothing].concat());
    let (from_memory, from_nothing) = read.split_at(memory.len());
    assert_eq!(from_memory, memory.iter().map(|address| !address).collect::<Vec<_>>(), "{size:#x}");
    assert_eq!(from_nothing, vec![ONES; nothing.len()], "{size:#x}");
    for &address in memory {
        assert_eq!(read_u64(&board.memory, address), !address, "the host sees the same memory");
    }
    let unowned = board.bus.unowned().memory;
    let expected = nothing.len() as u64;
    assert_eq!((unowned.reads, unowned.writes, unowned.last), (expected, expected, nothing.last().copied()));
}

#[test]
fn memory_ends_where_it_ends() {
    assert_memory(2 * MIB, &[2 * MIB - 8], &[2 * MIB, 4 * GIB]);
    assert_memory(2 * MIB + 4096, &[2 * MIB, 2 * MIB + 4088], &[2 * MIB + 4096]);
    assert_memory(GIB, &[GIB - 8], &[GIB]);
}

#[test]
fn memory_that_does_not_fit_below_the_hole_goes_on_at_four_gib() {
    let hole = [3 * GIB, 0xe000_0000, 0xfebf_fff8];
    assert_memory(3 * GIB, &[3 * GIB - 8], &[&hole[..], &[4 * GIB]].concat());
    let high = 4 * GIB + GIB / 2;
    assert_memory(3 * GIB + GIB / 2, &[3 * GIB - 8, 4 * GIB, high - 8], &[&hole[..], &[high]].concat());
    assert_memory(5 * GIB, &[3 * GIB - 8, 4 * GIB, 5 * GIB, 6 * GIB - 8], &[&hole[..], &[6 * GIB]].concat());
}

#[test]
fn an_access_half_in_memory_and_half_in_the_hole_is_half_answered() {
    let (board, read) = touched(3 * GIB, &[3 * GIB - 8, 3 * GIB - 4]);
    let (first, second) = (!(3 * GIB - 8), !(3 * GIB - 4));
    assert_eq!(read, [first & 0xffff_ffff | second << 32, second & 0xffff_ffff | 0xffff_ffff << 32]);
    assert_eq!(board.bus.unowned().memory.last, Some(3 * GIB));
}

#[test]
fn a_machine_with_one_mib_runs_in_it() {
    let code = machine_code!(
        "mov rax, 0x1122334455667788",
        "mov [0xffff8], rax",
        "mov rbx, [0xffff8]",
        "cmp rax, rbx",
        "jne 2f",
        "mov ebx, 0x100000",
        "mov rax, [rbx]",
        "inc rax",
        "jnz 2f",
        "mov al, 17",
        "out 0xf4, al",
        "2: mov al, 1",
        "out 0xf4, al",
    );
    let (machine, _) = machine_with(code, |config| {
        config.memory = MemorySpec::of_size(MIB);
        config.flat = Some(Flat { address: 0x5_0000, mode: Mode::Long });
    });
    assert_eq!(machine.run().status(), 17);
    assert_eq!(machine.bus().unowned().memory.reads, 1);
}

#[test]
fn a_guest_can_be_loaded_and_run_above_four_gib() {
    let code = machine_code!("lea rax, [rip]", "shr rax, 32", "add al, 20", "out 0xf4, al");
    let (machine, _) = machine_with(code, |config| {
        config.memory = MemorySpec::of_size(5 * GIB);
        config.flat = Some(Flat { address: 5 * GIB, mode: Mode::Long });
    });
    assert_eq!(machine.run().status(), 21);
}
