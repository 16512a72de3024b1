//! bzImages from files.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;

use crate::support::{Running, Scratch, lodger, program};

#[path = "../images/bz_image.rs"]
mod bz_image;

use bz_image::{GUEST, PACKED, PAYLOAD_AT, bz_image, field};

/// mov al, 64; out 0xf4, al
const CODE: &[u8] = &[0xb0, 64, 0xe6, 0xf4];

fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut image = bz_image(CODE, CODE, GUEST);
    image[at..at + bytes.len()].copy_from_slice(bytes);
    image
}

#[test]
fn the_kernel_in_every_format_boots_in_two_mebibytes() {
    let scratch = Scratch::new();
    for (_, payload) in PACKED {
        let path = scratch.file("vmlinuz", &bz_image(CODE, CODE, payload));
        lodger([&path, "--memory", "2M", "--cmdline", "quiet"], "").with(42).silent();
    }
    let path = scratch.file("vmlinuz", &bz_image(CODE, CODE, GUEST));
    for (entry, status) in [("auto", 42), ("pvh", 42), ("linux64", 42), ("image", 64)] {
        lodger(["run", &path, "--entry", entry], "").with(status).silent();
    }
}

#[test]
fn what_is_wrong_is_said_in_one_line() {
    let scratch = Scratch::new();
    let refused = |image: &[u8], words: &[&str]| {
        let path = scratch.file("vmlinuz", image);
        lodger([path.as_str(), "--memory", "4M"], "").refused(&[words, &["vmlinuz"]].concat());
    };
    refused(&with(field::VERSION, &[3, 2]), &["version", "0x203", "2.06"]);
    refused(&with(field::SYSSIZE, &[0xff; 4]), &["syssize", "truncated"]);
    refused(&with(field::PAYLOAD_OFFSET, &[0xff; 4]), &["payload_offset", "0xffffffff"]);
    refused(&with(field::CMDLINE_SIZE, &[0xff; 4])[..0x240], &["setup header", "truncated"]);
    for (name, payload) in PACKED.iter().filter(|(name, _)| *name != "plain") {
        let mut image = bz_image(CODE, CODE, payload);
        // The size, which all of them end with.
        image[PAYLOAD_AT + payload.len() - 4] ^= 1;
        refused(&image, &[name, "payload", "damaged", "byte 0x"]);
        image[PAYLOAD_AT + payload.len() - 1] ^= 0x80;
        refused(&image, &[name, "payload", "4M", "--memory"]);
    }
}

#[test]
fn a_payload_that_unpacks_to_more_than_it_says_takes_no_more_memory() {
    const MIB: u64 = 1 << 20;
    // zstd: 4 GiB, in blocks that repeat one byte, with a window of 128 MiB.
    let mut bomb = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 17 << 3];
    bomb.extend((0..1 << 15).flat_map(|_| [0x02, 0x00, 0x10, 0x00]));
    bomb.extend((4 * MIB as u32).to_le_bytes());
    let scratch = Scratch::new();
    let path = scratch.file("bomb", &bz_image(CODE, CODE, &bomb));
    let mut command = program();
    command.args([&path, "--memory", "16M"]);
    let limit = || {
        let limit = libc::rlimit { rlim_cur: 64 * MIB, rlim_max: 64 * MIB };
        // SAFETY: reads the structure during the call.
        match unsafe { libc::setrlimit(libc::RLIMIT_DATA, &raw const limit) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure calls nothing but `setrlimit`, which may be called between fork and exec.
    unsafe { command.pre_exec(limit) };
    Running::start(&mut command).finish().refused(&["bomb", "zstd", "more than the 4194304 bytes"]);
}

#[test]
fn an_image_with_nothing_behind_its_header_for_a_tebibyte_is_refused() {
    let scratch = Scratch::new();
    let mut image = bz_image(CODE, CODE, &[0x1f, 0x8b, 8, 0]);
    image[field::SYSSIZE..][..4].copy_from_slice(&[0xff, 0xff, 0xff, 0x0f]);
    image[field::PAYLOAD_LENGTH..][..4].copy_from_slice(&[0, 0, 0, 0xff]);
    let path = scratch.file("sparse", &image);
    File::options().write(true).open(&path).unwrap().set_len(1 << 40).unwrap();
    lodger([path.as_str(), "--memory", "64M"], "").refused(&["sparse", "payload_length"]);
}
