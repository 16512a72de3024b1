//! Disks whose host has no more room, or fails: the guest is told, and goes on.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::{io, thread};

use crate::small_file_system::small_file_system;
use crate::support::{DISK_SIZE, Fixture, Linux, Scratch, has_line, lodger, tiny, wait_until};

const MIB: u64 = 1 << 20;

/// Writes until that fails, asks for room by a mark, and writes the rest when it is told so by another.
const WRITE_ALL: &str = "dd if=/dev/zero of=/dev/vda bs=64k count=64 conv=fsync || echo full; \
     head -c 512 /dev/vda >/dev/null && echo readable; \
     echo FULL | dd of=/dev/vda bs=512 seek=8 count=1 conv=fsync; \
     until dd if=/dev/vda bs=512 skip=16 count=1 iflag=direct | grep -q ROOM; do sleep 0.1; done; \
     dd if=/dev/zero of=/dev/vda bs=64k seek=1 count=63 conv=fsync && echo written";

#[test]
fn a_disk_on_a_full_file_system_gives_its_guest_errors_until_there_is_room() {
    let scratch = Scratch::new();
    let (path, filler) = (scratch.at("disk"), scratch.at("filler"));
    let dir = std::path::Path::new(&path).parent().unwrap();
    small_file_system(dir, 4 * MIB, || {
        let disk = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        disk.set_len(DISK_SIZE).unwrap();
        // Where the marks are.
        disk.write_all_at(&[1; 65536], 0).unwrap();
        fs::write(&filler, vec![1; 3 * MIB as usize]).unwrap();
        let making_room = thread::spawn(move || {
            wait_until("the disk is full", || {
                let mut mark = [0; 4];
                disk.read_exact_at(&mut mark, 8 * 512).is_ok() && &mark == b"FULL"
            });
            File::options().write(true).open(filler).unwrap().set_len(0).unwrap();
            disk.write_all_at(b"ROOM", 16 * 512).unwrap();
        });
        let answer = Fixture::equipped(tiny()).disk(&path).shell().run(WRITE_ALL).ok();
        making_room.join().unwrap();
        for line in ["full", "readable", "written"] {
            has_line(&answer, line);
        }
    });
}

#[test]
fn a_file_that_may_not_grow_ends_neither_the_guest_nor_its_image() {
    let scratch = Scratch::new();
    let (template, overlay) = (scratch.at("template"), scratch.at("overlay.qcow2"));
    File::create(&template).unwrap().set_len(4 * MIB).unwrap();
    let disk = format!("{template},overlay={overlay}");
    let limited = |command: &mut Command| {
        let limit = || {
            let limit = libc::rlimit { rlim_cur: 2 * MIB, rlim_max: 2 * MIB };
            // SAFETY: only reads the structure.
            match unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &limit) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        };
        // SAFETY: the closure calls nothing but `setrlimit`, which may be called between fork and exec.
        unsafe { command.pre_exec(limit) };
    };
    let script = "dd if=/dev/zero of=/dev/vda bs=64k count=64 conv=fsync || echo refused; \
                  dd if=/dev/vda of=/dev/null bs=64k && echo readable";
    let linux = Linux::new(tiny()).options(&["--disk", &disk]);
    let finished = linux.changed(limited).run_script(script).with(0);
    has_line(&finished, "refused");
    has_line(&finished, "readable");
    let checked = lodger(["disk", "check", &overlay], "").with(0).stdout;
    assert!(checked.contains("is sound\n"), "{checked}");
}

/// A block device over a file, which goes away when nobody has it open.
fn loop_device(path: &str) -> Option<String> {
    let output = Command::new("losetup").args(["--find", "--show", path]).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

struct Detached(String);

impl Drop for Detached {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn a_device_that_fails_gives_its_guest_errors() {
    let scratch = Scratch::new();
    let path = scratch.at("behind");
    File::create(&path).unwrap().set_len(DISK_SIZE).unwrap();
    let Some(device) = loop_device(&path).map(Detached) else {
        eprintln!("skipped: a loop device needs root and losetup");
        return;
    };
    // The kernel answers EIO where there is nothing behind the device any more.
    File::options().write(true).open(&path).unwrap().set_len(MIB).unwrap();
    let mut sector = [0; 512];
    let error = File::open(&device.0).unwrap().read_exact_at(&mut sector, 2 * MIB).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    let script = "dd if=/dev/vdb of=/dev/null bs=512 skip=6000 count=1 iflag=direct || echo lost; \
                  dd if=/dev/vdb of=/dev/null bs=512 skip=1000 count=1 iflag=direct && echo kept";
    let answer = Fixture::equipped(tiny()).read_only_disk(&device.0).shell().run(script).ok();
    has_line(&answer, "lost");
    has_line(&answer, "kept");
}
