//! The tests' own first process, in an initramfs: `guest.c`, compiled once for each run of the tests.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::{env, fs, process};

/// The path of an initramfs with nothing in it but `/tests`.
pub fn first_process() -> &'static str {
    static ARCHIVE: OnceLock<String> = OnceLock::new();
    ARCHIVE.get_or_init(|| {
        let program = compile();
        let archive = program.with_file_name("linux-tests.cpio");
        // Written over the program and renamed, so that another run of the tests finds it whole.
        let contents = cpio(&[("tests", 0o100_755, &fs::read(&program).unwrap())]);
        fs::write(&program, contents).unwrap();
        fs::rename(&program, &archive).unwrap();
        archive.into_os_string().into_string().expect("a path that is text")
    })
}

/// Free-standing, as the programs of `guests/linux` are.
fn compile() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("linux-tests-{}", process::id()));
    let flags = "-std=gnu11 -O2 -Wall -Wextra -Werror -ffreestanding -fno-stack-protector \
                 -fno-asynchronous-unwind-tables -fno-pic -fcf-protection=none -mno-red-zone \
                 -mgeneral-regs-only -static -nostdlib -no-pie -s -Wl,--build-id=none -Wl,-z,noseparate-code";
    let mut command = Command::new("cc");
    command.args(flags.split_whitespace()).arg("-I").arg(root.join("guests/linux"));
    command.args(["guest.c", "load.c", "watch.c"].map(|name| root.join("tests/linux").join(name)));
    command.arg("-o").arg(&program);
    let status = command.status().expect("there is a C compiler");
    assert!(status.success(), "{command:?}: {status}");
    program
}

/// A cpio archive of the kind that Linux unpacks ("newc"), of files given as name, mode and contents.
pub fn cpio(files: &[(&str, u32, &[u8])]) -> Vec<u8> {
    let mut archive = Vec::new();
    let end = [("TRAILER!!!", 0, &[][..])];
    for (number, (name, mode, contents)) in (1..).zip(files.iter().chain(&end)) {
        // Number, mode, owner, group, links, time, size, two devices of two numbers, length of the name with its
        // zero, no sum.
        let fields = [number, *mode, 0, 0, 1, 0, contents.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
        archive.extend_from_slice(b"070701");
        archive.extend(fields.iter().flat_map(|field: &u32| format!("{field:08x}").into_bytes()));
        archive.extend_from_slice(name.as_bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend_from_slice(contents);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    archive
}
