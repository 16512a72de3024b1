//! A file system that is soon full.

use std::ffi::CString;
use std::path::Path;
use std::{io, panic, ptr, thread};

/// Runs `test` in a thread for which a file system of `size` bytes is at `path`; nobody else sees it, and it goes
/// away with the thread. Where that is not permitted, the test is skipped.
pub fn small_file_system(path: &Path, size: u64, test: impl FnOnce() + Send) {
    let place = CString::new(path.to_str().unwrap()).unwrap();
    let options = CString::new(format!("size={size}")).unwrap();
    let run = || {
        // SAFETY: gives this thread a list of mounts of its own, and changes nothing else; all strings end with a zero.
        let mounted = unsafe {
            libc::unshare(libc::CLONE_NEWNS) == 0
                && libc::mount(
                    ptr::null(),
                    c"/".as_ptr(),
                    ptr::null(),
                    libc::MS_REC | libc::MS_PRIVATE,
                    ptr::null(),
                ) == 0
                && libc::mount(
                    c"tmpfs".as_ptr(),
                    place.as_ptr(),
                    c"tmpfs".as_ptr(),
                    0,
                    options.as_ptr().cast(),
                ) == 0
        };
        if mounted {
            test();
        } else {
            eprintln!("skipped: mounting needs root: {}", io::Error::last_os_error());
        }
    };
    thread::scope(|scope| scope.spawn(run).join()).unwrap_or_else(|panic| panic::resume_unwind(panic));
}
