//! `lodger run --detach`: a guest in a process of its own, without a terminal.
//!
//! The process is divided before it has done anything. The new one builds the guest, and tells the one that was typed when
//! it runs, which ends then. Whatever goes wrong before that is said by the new one, where it was typed, and its status is
//! that of the command.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use lodger::vm::MESSAGES;

use super::AnyError;

/// How large the file with what a detached process says grows before it begins anew: a guest can cause some of it.
const MESSAGES_BOUND: i64 = 64 << 10;

/// Set when standard error is that file.
static DETACHED: AtomicBool = AtomicBool::new(false);

/// Which of the two processes this is.
pub enum Side {
    /// The one that was typed, with the status that it ends with.
    Typed(u8),
    /// The one with the guest.
    Guest(Detaching),
}

/// What tells the process that was typed.
pub struct Detaching(File);

/// Divides the process. No other thread may run yet.
pub fn detach() -> Result<Side, AnyError> {
    let mut ends = [0; 2];
    // SAFETY: the kernel fills in both descriptors.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })?;
    // SAFETY: both are fresh and nobody else's.
    let [reader, writer] = ends.map(|fd| File::from(unsafe { OwnedFd::from_raw_fd(fd) }));
    // SAFETY: there is one thread, so that the new process is as good as this one.
    let child = check(unsafe { libc::fork() })?;
    if child > 0 {
        drop(writer);
        return typed(reader, child).map(Side::Typed);
    }
    // SAFETY: leaves the terminal's session, so that neither its keys nor its end reach the guest.
    unsafe { libc::setsid() };
    Ok(Side::Guest(Detaching(writer)))
}

/// Waits until the guest runs, and tells its name, or until its process has ended.
fn typed(mut reader: File, child: libc::pid_t) -> Result<u8, AnyError> {
    let mut name = String::new();
    reader.read_to_string(&mut name)?;
    if !name.is_empty() {
        let mut output = io::stdout();
        // The guest runs, whether somebody reads its name or not.
        let _: io::Result<()> = output.write_all(name.as_bytes()).and_then(|()| output.flush());
        return Ok(0);
    }
    let mut status = 0;
    // SAFETY: our own child; the kernel fills in its status.
    while unsafe { libc::waitpid(child, &raw mut status, 0) } < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error.into());
        }
    }
    let ended =
        if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) };
    // A guest that ended well before its name was told is none that runs.
    Ok(u8::try_from(ended).unwrap_or(u8::MAX))
}

impl Detaching {
    /// The guest runs: lets the process that was typed end, and has nothing more to do with what that was started on.
    pub fn finish(mut self, name: &str, directory: &Path) -> Result<(), AnyError> {
        let nothing = OpenOptions::new().read(true).write(true).open("/dev/null")?;
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let messages = options.open(directory.join(MESSAGES))?;
        // If nobody waits any longer, who typed it has given up.
        self.0.write_all(format!("{name}\n").as_bytes()).map_err(|_| "nobody waits for the guest to run")?;
        let places = [
            (&nothing, libc::STDIN_FILENO),
            (&nothing, libc::STDOUT_FILENO),
            (&messages, libc::STDERR_FILENO),
        ];
        for (file, place) in places {
            // SAFETY: both are open descriptors; nobody holds standard ones as anything else.
            check(unsafe { libc::dup2(file.as_raw_fd(), place) })?;
        }
        DETACHED.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// To be called before something is written to standard error: keeps the file short that it may be.
pub fn keep_messages_short() {
    if !DETACHED.load(Ordering::Relaxed) {
        return;
    }
    // SAFETY: asks for and changes the size of our own file, which is written to at its end.
    unsafe {
        let end = libc::lseek(libc::STDERR_FILENO, 0, libc::SEEK_END);
        if end > MESSAGES_BOUND {
            libc::ftruncate(libc::STDERR_FILENO, 0);
        }
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
