//! Kernels that are none.

use std::fs::File;
use std::os::unix::net::UnixListener;

use lodger::boot::embedded::EMBEDDED_GUEST;

use crate::support::{Scratch, lodger};

const MACHINE: usize = 18;
const PROGRAM_HEADERS: usize = 64;
const HEADER_SIZE: usize = 56;
const ADDRESS: usize = 24;
const MEMORY_SIZE: usize = 40;

/// The embedded guest with some bytes replaced.
fn patched(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut elf = EMBEDDED_GUEST.to_vec();
    elf[at..at + bytes.len()].copy_from_slice(bytes);
    elf
}

#[track_caller]
fn refused(contents: &[u8], words: &[&str]) {
    let scratch = Scratch::new();
    let path = scratch.file("kernel", contents);
    lodger([&path], "").refused(&[words, &[path.as_str()]].concat());
}

#[test]
fn the_embedded_guest_boots_from_a_file_too() {
    let scratch = Scratch::new();
    let path = scratch.file("a kernel", EMBEDDED_GUEST);
    for entry in ["auto", "pvh", "linux64"] {
        lodger(["run", &path, "--entry", entry, "--cmdline", "quiet run=exit 8"], "").with(8).silent();
    }
}

#[test]
fn what_cannot_be_opened_is_named() {
    let scratch = Scratch::new();
    lodger(["run", &scratch.at("none")], "").refused(&["none", "No such file"]);
    lodger(["run", "/tmp"], "").refused(&["/tmp", "directory"]);
    lodger(["run", "/dev/zero"], "").refused(&["/dev/zero", "device"]);
    let socket = scratch.at("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    lodger(["run", &socket], "").refused(&[&socket]);
    lodger(["run", "/etc/passwd/x"], "").refused(&["/etc/passwd/x", "Not a directory"]);
}

#[test]
fn an_empty_file_is_no_kernel() {
    refused(b"", &["empty"]);
}

#[test]
fn a_truncated_elf_is_refused_wherever_it_is_cut() {
    let scratch = Scratch::new();
    let lengths = [4, 5, 16, 32, 63, 64, 65, 100, 176, 500, 4095, 4096, 5000, 20_000, 60_000];
    for length in lengths {
        let path = scratch.file("cut", &EMBEDDED_GUEST[..length]);
        lodger([&path], "").refused(&["cut", "file"]);
    }
}

#[test]
fn kernels_of_other_machines_are_told_by_name() {
    refused(&patched(MACHINE, &183_u16.to_le_bytes()), &["AArch64"]);
    refused(&patched(MACHINE, &243_u16.to_le_bytes()), &["RISC-V"]);
    refused(&patched(MACHINE, &4711_u16.to_le_bytes()), &["4711"]);
    refused(&patched(4, &[1]), &["32-bit"]);
    refused(&patched(5, &[2]), &["big"]);
}

#[test]
fn segments_outside_memory_are_refused() {
    refused(&patched(PROGRAM_HEADERS + ADDRESS, &(1_u64 << 40).to_le_bytes()), &["segment 0", "outside"]);
    refused(&patched(PROGRAM_HEADERS + ADDRESS, &u64::MAX.to_le_bytes()), &["segment 0"]);
    refused(&patched(PROGRAM_HEADERS + MEMORY_SIZE, &u64::MAX.to_le_bytes()), &["segment 0"]);
    refused(&patched(PROGRAM_HEADERS + ADDRESS, &0x1000_u64.to_le_bytes()), &["segment 0", "overlaps"]);
}

#[test]
fn overlapping_segments_are_refused() {
    let second = PROGRAM_HEADERS + HEADER_SIZE + ADDRESS;
    let first_address = &EMBEDDED_GUEST[PROGRAM_HEADERS + ADDRESS..][..8];
    refused(&patched(second, first_address), &["segment 0", "segment 1", "overlap in memory"]);
}

#[test]
fn an_object_file_and_a_program_are_told_apart_from_kernels() {
    refused(&patched(16, &1_u16.to_le_bytes()), &["object file or kernel module"]);
    refused(&patched(16, &4_u16.to_le_bytes()), &["core dump"]);
    let shell = std::fs::canonicalize("/bin/sh").unwrap();
    lodger(["run", shell.to_str().unwrap()], "").refused(&["cannot load kernel"]);
}

#[test]
fn a_file_larger_than_memory_is_refused_without_being_read() {
    let scratch = Scratch::new();
    let path = scratch.at("huge");
    File::create(&path).unwrap().set_len(1 << 42).unwrap();
    lodger([&path, "--memory", "64M"], "").refused(&["huge", "64M"]);
}

#[test]
fn a_flat_image_runs_where_it_was_told_to() {
    let scratch = Scratch::new();
    // mov al, 77; out 0xf4, al
    let path = scratch.file("flat", &[0xb0, 77, 0xe6, 0xf4]);
    for place in ["0x9000", "0x9000,real", "0x200000", "0x200000,long", "2097152"] {
        lodger([&path, "--flat", place], "").with(77).silent();
    }
    lodger([&path], "").with(77).silent();
    lodger([&path, "--flat", "0x1000"], "").refused(&["flat", "overlaps", "0x9000"]);
    lodger([&path, "--flat", "0x200000,real"], "").refused(&["flat", "real mode"]);
    lodger([&path, "--flat", "0xffffffffffffffff"], "").refused(&["flat", "outside"]);
    lodger([&path, "--flat", "0x9000,real", "--cmdline", "x"], "").refused(&["flat", "real mode"]);
    lodger([&path, "--flat", "0x9000", "--entry", "pvh"], "").refused(&["flat", "PVH"]);
}
