//! Each kind of exit, from the guest's instruction to the device and back.

use std::sync::Arc;

use lodger::bus::UnownedAccesses;
use lodger::hv::ExitKind;

use crate::support::{Access, Board, DATA, Plan, Recorder, machine_code};

const RINGS: [u8; 2] = [0, 3];

/// Runs `plan` in each ring, and hands the board and what its device saw to `check`.
fn in_each_ring(plan: impl Fn() -> Plan<'static>, check: impl Fn(&Board, Vec<Access>)) {
    for ring in RINGS {
        let device = Arc::new(Recorder::default());
        let board = plan().ring(ring).device(&device).build();
        board.run();
        check(&board, device.take());
    }
}

/// What was counted, without interruptions, whose number is nobody's business.
fn counts(board: &Board) -> Vec<(ExitKind, u64)> {
    board.vcpu().counters().iter().filter(|(kind, _)| *kind != ExitKind::Interrupted).collect()
}

fn write(offset: u64, width: u8, value: u64) -> Access {
    Access::Write { offset, width, value }
}

fn read(offset: u64, width: u8) -> Access {
    Access::Read { offset, width }
}

#[test]
fn ports_are_written_in_every_width() {
    let code = machine_code!(
        "mov eax, 0xa1b2c3d4",
        "mov dx, 0x540",
        "out dx, al",
        "out dx, ax",
        "out dx, eax",
        "mov dx, 0x543",
        "out dx, al",
        "mov al, 0",
        "out 0xf4, al",
    );
    in_each_ring(
        || Plan::new(code),
        |board, seen| {
            let expected =
                [write(0, 1, 0xd4), write(0, 2, 0xc3d4), write(0, 4, 0xa1b2_c3d4), write(3, 1, 0xd4)];
            assert_eq!(seen, expected);
            assert_eq!(counts(board), [(ExitKind::PioWrite, 5)]);
        },
    );
}

#[test]
fn ports_are_read_in_every_width_and_leave_the_rest_of_the_register_alone() {
    let code = machine_code!(
        "mov ebx, 0x180000",
        "mov dx, 0x540",
        "mov rax, -1",
        "in al, dx",
        "mov [rbx], rax",
        "mov rax, -1",
        "in ax, dx",
        "mov [rbx + 8], rax",
        "mov rax, -1",
        "in eax, dx",
        "mov [rbx + 16], rax",
        "mov al, 0",
        "out 0xf4, al",
    );
    in_each_ring(
        || Plan::new(code),
        |board, seen| {
            assert_eq!(seen, [read(0, 1), read(0, 2), read(0, 4)]);
            let expected = [0xffff_ffff_ffff_ff11, 0xffff_ffff_ffff_2211, 0x4433_2211];
            assert_eq!([0, 8, 16].map(|offset| board.data(offset)), expected);
            assert_eq!(counts(board), [(ExitKind::PioRead, 3), (ExitKind::PioWrite, 1)]);
        },
    );
}

#[test]
fn memory_without_memory_is_written_in_every_width() {
    let code = machine_code!(
        "mov ebx, 0xd0000000",
        "mov rax, 0x0123456789abcdef",
        "mov [rbx], al",
        "mov [rbx + 2], ax",
        "mov [rbx + 4], eax",
        "mov [rbx + 8], rax",
        "mov dword ptr [rbx + 0xffc], 5",
        "mov al, 0",
        "out 0xf4, al",
    );
    in_each_ring(
        || Plan::new(code),
        |board, seen| {
            let expected = [
                write(0x1000, 1, 0xef),
                write(0x1002, 2, 0xcdef),
                write(0x1004, 4, 0x89ab_cdef),
                write(0x1008, 8, 0x0123_4567_89ab_cdef),
                write(0x1ffc, 4, 5),
            ];
            assert_eq!(seen, expected);
            assert_eq!(counts(board), [(ExitKind::PioWrite, 1), (ExitKind::MmioWrite, 5)]);
        },
    );
}

#[test]
fn memory_without_memory_is_read_in_every_width() {
    let code = machine_code!(
        "mov ebx, 0xd0000000",
        "mov edi, 0x180000",
        "mov rax, -1",
        "mov al, [rbx]",
        "mov [rdi], rax",
        "movzx eax, word ptr [rbx + 2]",
        "mov [rdi + 8], rax",
        "movsxd rax, dword ptr [rbx + 4]",
        "mov [rdi + 16], rax",
        "mov rax, [rbx + 8]",
        "mov [rdi + 24], rax",
        "mov al, 0",
        "out 0xf4, al",
    );
    in_each_ring(
        || Plan::new(code),
        |board, seen| {
            assert_eq!(seen, [read(0x1000, 1), read(0x1002, 2), read(0x1004, 4), read(0x1008, 8)]);
            let expected = [0xffff_ffff_ffff_ff11, 0x2211, 0x4433_2211, Recorder::ANSWER];
            assert_eq!([0, 8, 16, 24].map(|offset| board.data(offset)), expected);
            assert_eq!(counts(board), [(ExitKind::PioWrite, 1), (ExitKind::MmioRead, 4)]);
        },
    );
}

#[test]
fn an_instruction_that_reads_and_writes_a_device_does_both_once() {
    let code = machine_code!(
        "mov ebx, 0xd0000000",
        "add dword ptr [rbx], 3",
        "mov eax, 7",
        "xchg eax, [rbx + 8]",
        "mov [0x180000], rax",
        "mov al, 0",
        "out 0xf4, al",
    );
    in_each_ring(
        || Plan::new(code),
        |board, seen| {
            let expected =
                [read(0x1000, 4), write(0x1000, 4, 0x4433_2214), read(0x1008, 4), write(0x1008, 4, 7)];
            assert_eq!(seen, expected);
            assert_eq!(board.data(0), 0x4433_2211);
        },
    );
}

#[test]
fn string_output_arrives_element_by_element_in_order() {
    let code = machine_code!(
        "cld",
        "mov dx, 0x540",
        "mov esi, 0x180000",
        "mov ecx, 5",
        "rep outsb",
        "mov ecx, 2",
        "rep outsw",
        "mov ecx, 3",
        "rep outsd",
        "mov [0x180100], rsi",
        "mov [0x180108], rcx",
        "mov al, 0",
        "out 0xf4, al",
    );
    let data: Vec<u8> = (1..=21).collect();
    let data: &'static [u8] = data.leak();
    in_each_ring(
        || Plan::new(code).data(data),
        |board, seen| {
            let bytes = (1..=5).map(|byte| write(0, 1, byte));
            let words = [0x0706, 0x0908].map(|word| write(0, 2, word));
            let longs = [0x0d0c_0b0a, 0x1110_0f0e, 0x1514_1312].map(|long| write(0, 4, long));
            assert_eq!(seen, bytes.chain(words).chain(longs).collect::<Vec<_>>());
            assert_eq!((board.data(0x100), board.data(0x108)), (DATA + 21, 0));
        },
    );
}

#[test]
fn string_input_takes_every_element_from_the_device() {
    let code = machine_code!(
        "cld",
        "mov dx, 0x540",
        "mov edi, 0x180000",
        "mov ecx, 8",
        "rep insb",
        "mov ecx, 4",
        "rep insw",
        "mov ecx, 2",
        "rep insd",
        "mov [0x180100], rdi",
        "mov [0x180108], rcx",
        "mov al, 0",
        "out 0xf4, al",
    );
    in_each_ring(
        || Plan::new(code),
        |board, seen| {
            let expected = [vec![read(0, 1); 8], vec![read(0, 2); 4], vec![read(0, 4); 2]].concat();
            assert_eq!(seen, expected);
            let stored = [0x1111_1111_1111_1111, 0x2211_2211_2211_2211, 0x4433_2211_4433_2211];
            assert_eq!([0, 8, 16].map(|offset| board.data(offset)), stored);
            assert_eq!((board.data(0x100), board.data(0x108)), (DATA + 24, 0));
        },
    );
}

#[test]
fn long_string_accesses_lose_and_repeat_nothing() {
    // More than the kernel gathers at once, across a page boundary, and downwards as well.
    let code = machine_code!(
        "mov dx, 0x540",
        "cld",
        "mov esi, 0x180000",
        "mov ecx, 5000",
        "rep outsb",
        "mov edi, 0x182000",
        "mov ecx, 5000",
        "rep insb",
        "std",
        "mov esi, 0x181387",
        "mov ecx, 5000",
        "rep outsb",
        "mov al, 0",
        "out 0xf4, al",
    );
    let data: Vec<u8> = (0..5000_u32).map(|index| (index % 251) as u8).collect();
    let data: &'static [u8] = data.leak();
    let upwards = || data.iter().map(|&byte| write(0, 1, byte.into()));
    let expected: Vec<_> =
        upwards().chain(std::iter::repeat_n(read(0, 1), 5000)).chain(upwards().rev()).collect();
    in_each_ring(
        || Plan::new(code).data(data),
        |board, seen| {
            assert!(seen == expected, "{} accesses", seen.len());
            assert_eq!([board.data(0x2000), board.data(0x2000 + 4992)], [0x1111_1111_1111_1111; 2]);
            assert_eq!(board.data(0x2000 + 5000), 0);
        },
    );
}

#[test]
fn strings_move_between_memory_and_a_device() {
    let code = machine_code!(
        "cld",
        "mov esi, 0x180000",
        "mov edi, 0xd0000000",
        "mov ecx, 3",
        "rep movsd",
        "mov esi, 0xd0000010",
        "mov edi, 0x180100",
        "mov ecx, 2",
        "rep movsq",
        "mov edi, 0xd0000040",
        "mov eax, 9",
        "mov ecx, 2",
        "rep stosb",
        "mov al, 0",
        "out 0xf4, al",
    );
    in_each_ring(
        || Plan::new(code).data(&[1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0]),
        |board, seen| {
            let expected = [
                write(0x1000, 4, 1),
                write(0x1004, 4, 2),
                write(0x1008, 4, 3),
                read(0x1010, 8),
                read(0x1018, 8),
                write(0x1040, 1, 9),
                write(0x1041, 1, 9),
            ];
            assert_eq!(seen, expected);
            assert_eq!([board.data(0x100), board.data(0x108)], [Recorder::ANSWER; 2]);
        },
    );
}

#[test]
fn what_nobody_owns_reads_as_all_ones_and_every_access_is_counted() {
    let code = machine_code!(
        "cld",
        "mov ebx, 0xd8000000",
        "mov edi, 0x180000",
        "mov dx, 0x700",
        "xor eax, eax",
        "in al, dx",
        "stosq",
        "xor eax, eax",
        "in ax, dx",
        "stosq",
        "xor eax, eax",
        "in eax, dx",
        "stosq",
        "movzx eax, byte ptr [rbx]",
        "stosq",
        "movzx eax, word ptr [rbx]",
        "stosq",
        "mov eax, [rbx]",
        "stosq",
        "mov rax, [rbx + 8]",
        "stosq",
        "mov ecx, 8",
        "rep insb",
        "mov ecx, 4",
        "rep insw",
        "mov ecx, 2",
        "rep insd",
        "out dx, eax",
        "mov esi, 0x180000",
        "mov ecx, 6",
        "rep outsb",
        "mov dx, 0x7ff",
        "out dx, al",
        "mov [rbx], rax",
        "mov [rbx + 0x123], al",
        "mov al, 0",
        "out 0xf4, al",
    );
    in_each_ring(
        || Plan::new(code),
        |board, seen| {
            assert_eq!(seen, []);
            let ones = u64::MAX;
            let expected = [0xff, 0xffff, 0xffff_ffff, 0xff, 0xffff, 0xffff_ffff, ones, ones, ones, ones, 0];
            let found: Vec<_> = (0..11).map(|index| board.data(index * 8)).collect();
            assert_eq!(found, expected);
            let unowned = board.bus.unowned();
            let ports = UnownedAccesses { reads: 3 + 8 + 4 + 2, writes: 1 + 6 + 1, last: Some(0x7ff) };
            assert_eq!(unowned.ports, ports);
            assert_eq!(unowned.memory, UnownedAccesses { reads: 4, writes: 2, last: Some(0xd800_0123) });
        },
    );
}

#[test]
fn an_access_across_the_end_of_a_device_is_split_between_it_and_nobody() {
    let code = machine_code!(
        "mov dx, 0x546",
        "xor eax, eax",
        "in eax, dx",
        "mov [0x180000], rax",
        "mov eax, 0x04030201",
        "out dx, eax",
        "mov ebx, 0xd0000ffe",
        "mov eax, [rbx]",
        "mov [0x180008], rax",
        "mov al, 0",
        "out 0xf4, al",
    );
    in_each_ring(
        || Plan::new(code),
        |board, seen| {
            let ports = [read(6, 1), read(7, 1), write(6, 1, 1), write(7, 1, 2)];
            assert_eq!(seen[..4], ports);
            assert_eq!(board.data(0), 0xffff_1111);
            // KVM splits at the page by itself: a read of two bytes here, one of two bytes there.
            assert_eq!(seen[4..], [read(0x1ffe, 2)]);
            assert_eq!(board.data(8), 0xffff_2211);
        },
    );
}

#[test]
fn many_exits_are_counted_exactly() {
    let code = machine_code!(
        "mov dx, 0x540",
        "mov ebx, 0xd0000000",
        "mov ecx, 1000",
        "2: out dx, al",
        "in al, dx",
        "in al, dx",
        "mov [rbx], ecx",
        "mov [rbx], ecx",
        "mov [rbx], ecx",
        "mov eax, [rbx]",
        "dec ecx",
        "jnz 2b",
        "mov al, 0",
        "out 0xf4, al",
    );
    in_each_ring(
        || Plan::new(code),
        |board, seen| {
            assert_eq!(seen.len(), 7000);
            let expected = [
                (ExitKind::PioRead, 2000),
                (ExitKind::PioWrite, 1001),
                (ExitKind::MmioRead, 1000),
                (ExitKind::MmioWrite, 3000),
            ];
            assert_eq!(counts(board), expected);
        },
    );
}
