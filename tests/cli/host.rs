//! Hosts on which `/dev/kvm` is not what it should be.

use std::ffi::CStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;

use crate::support::{Finished, Running, program};

/// Runs the program in a mount namespace of its own, which `change` has changed. Nothing if this host does not
/// let the tests have one.
fn on_host(change: fn() -> io::Result<()>) -> Option<Finished> {
    let mut command: Command = program();
    // SAFETY: asks for a number; what runs between fork and exec makes system calls only.
    unsafe {
        let namespaces = match libc::geteuid() {
            0 => libc::CLONE_NEWNS,
            _ => libc::CLONE_NEWNS | libc::CLONE_NEWUSER,
        };
        command.pre_exec(move || {
            done(libc::unshare(namespaces))?;
            mount(c"none", c"/", c"", libc::MS_REC | libc::MS_PRIVATE)?;
            change()
        });
    }
    match command.spawn() {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            eprintln!("skipped: no mount namespace to be had here");
            None
        }
        Err(error) => panic!("{error}"),
        Ok(child) => Some(Running::from(child).finish()),
    }
}

fn mount(source: &CStr, target: &CStr, kind: &CStr, flags: libc::c_ulong) -> io::Result<()> {
    // SAFETY: three texts that end with a zero; there is no data.
    done(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, ptr::null()) })
}

fn done(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[test]
fn a_host_without_kvm_is_told_what_to_do() {
    if let Some(finished) = on_host(|| mount(c"none", c"/dev", c"tmpfs", 0)) {
        finished.refused(&["cannot open /dev/kvm", "No such file", "kvm_intel or kvm_amd"]);
    }
}

#[test]
fn another_device_in_its_place_is_no_kvm() {
    if let Some(finished) = on_host(|| mount(c"/dev/null", c"/dev/kvm", c"", libc::MS_BIND)) {
        finished.refused(&["/dev/kvm"]);
    }
}

#[test]
fn a_file_in_its_place_is_no_kvm() {
    if let Some(finished) = on_host(|| mount(c"/proc/version", c"/dev/kvm", c"", libc::MS_BIND)) {
        finished.refused(&["cannot open /dev/kvm"]);
    }
}

#[test]
fn a_user_who_may_not_use_kvm_is_told_what_to_do() {
    let finished = on_host(|| {
        mount(c"none", c"/dev", c"tmpfs", 0)?;
        // SAFETY: texts that end with a zero, and numbers.
        unsafe {
            // A node whose mode lets nobody in, and nobody who may overlook that.
            let file = libc::open(c"/dev/kvm".as_ptr(), libc::O_CREAT | libc::O_CLOEXEC, 0);
            done(file)?;
            done(libc::close(file))?;
            done(libc::chmod(c"/dev/kvm".as_ptr(), 0))?;
            let capabilities = [1, 2]; // CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            capabilities
                .into_iter()
                .try_for_each(|number| done(libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0)))
        }
    });
    if let Some(finished) = finished {
        finished.refused(&["cannot open /dev/kvm", "ermission denied", "group kvm"]);
    }
}
