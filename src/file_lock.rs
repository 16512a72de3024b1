//! Locks on bytes of a file that belong to whoever has it open (`F_OFD_SETLK`): they hold between programs, and go with
//! the file's last descriptor, however its process ends.
//!
//! Relies on `kernel_files`; `storage` locks images with them, `console` files for output, `vm` the directories of running machines.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::{Duration, Instant};

use crate::kernel_files;

/// What QEMU and this program lock of an image that they use.
pub(crate) const IMAGE: Range<i64> = 100..300;
/// What this program locks of a file that it writes output to.
pub(crate) const OUTPUT: Range<i64> = 400..401;

/// For how long the lock of a process is waited for that is dying. Memory of 64 GiB takes it seconds.
const DYING: Duration = Duration::from_secs(10);
/// The same of one that is not there: one that was killed keeps its files open until the kernel has ended what it left to
/// io_uring.
const NOBODY: Duration = Duration::from_secs(1);

/// How many processes are looked at to find the holder of a lock.
const MOST_PROCESSES: usize = 100_000;
/// How long is waited before they are looked at again.
const STEP: Duration = Duration::from_millis(20);
/// For how long at most, whoever has it.
const MOST: Duration = Duration::from_secs(30);

/// What others may have besides a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Locks of this kind.
    Shared,
    /// None.
    Exclusive,
}

/// Locks a range, in place of what this descriptor has locked of it; `Ok(false)` if somebody else has what contradicts
/// it.
pub(crate) fn try_lock(file: &File, kind: Kind, range: Range<i64>) -> io::Result<bool> {
    match control(file, libc::F_OFD_SETLK, &mut request(kind.number(), range)) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        other => other.map(|()| true),
    }
}

/// What somebody else has locked, if that would contradict such a lock.
pub(crate) fn conflict(file: &File, kind: Kind, range: Range<i64>) -> io::Result<Option<Range<i64>>> {
    let mut request = request(kind.number(), range);
    control(file, libc::F_OFD_GETLK, &mut request)?;
    let found = i32::from(request.l_type) != libc::F_UNLCK;
    Ok(found.then(|| request.l_start..request.l_start.saturating_add(request.l_len)))
}

/// Gives up what is locked of a range.
pub(crate) fn unlock(file: &File, range: Range<i64>) -> io::Result<()> {
    control(file, libc::F_OFD_SETLK, &mut request(libc::F_UNLCK, range))
}

/// Whether a process is about to end, whatever happens: killed, or on its way out. Until the kernel has freed its memory,
/// which takes a while if that is large, it keeps what it has locked.
pub(crate) fn is_dying(id: u32) -> bool {
    let about = |file| kernel_files::read(&format!("/proc/{id}/{file}"));
    let (Some(stat), Some(status)) = (about("stat"), about("status")) else { return false };
    is_leaving(&stat).unwrap_or(false) || is_killed(&status)
}

/// Whether the kernel is taking a process apart, by its line in `stat` (proc_pid_stat(5)).
fn is_leaving(stat: &str) -> Option<bool> {
    /// The flag of one that has begun to end (`PF_EXITING`).
    const EXITING: u64 = 4;
    // What stands in brackets is its own to choose.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    // The flags are the ninth field of the line, six behind the state.
    let flags: u64 = fields.nth(5)?.parse().ok()?;
    Some(matches!(state, "Z" | "X") || flags & EXITING != 0)
}

/// Whether it was sent a SIGKILL, by its `status`. That stays pending until the end.
fn is_killed(status: &str) -> bool {
    let pending = |key| u64::from_str_radix(kernel_files::field(status, key)?, 16).ok();
    ["ShdPnd", "SigPnd"].into_iter().filter_map(pending).any(|set| set & 1 << (libc::SIGKILL - 1) != 0)
}

/// For how long the lock of this process is worth waiting for. That of a living one is not.
pub(crate) fn patience(id: u32) -> Duration {
    // In this order: it may be gone before the second look.
    match is_dying(id) {
        true => DYING,
        false if matches!(fs::exists(format!("/proc/{id}")), Ok(false)) => NOBODY,
        false => Duration::ZERO,
    }
}

/// Somebody who waits for a lock. How long that is worth depends on who has it, and begins anew when that is somebody of
/// another kind: one that was dying is gone at last, and what it had open stays so for another moment.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    begun: Option<Instant>,
    /// The last patience, and since when it is that.
    now: Option<(Duration, Instant)>,
}

impl Waiting {
    /// Whether it is worth going on, if it is worth so much with who has the lock now.
    pub fn is_worth(&mut self, patience: Duration) -> bool {
        self.is_worth_at(patience, Instant::now())
    }

    fn is_worth_at(&mut self, patience: Duration, now: Instant) -> bool {
        let since = self.now.filter(|(before, _)| *before == patience).map_or(now, |(_, since)| since);
        self.now = Some((patience, since));
        let begun = *self.begun.get_or_insert(now);
        now.duration_since(since) < patience && now.duration_since(begun) < MOST
    }

    /// Waits for a moment if that is worth it with who has a lock on the file; else the error says who that is.
    pub fn wait_for_holder(&mut self, file: &File) -> Result<(), String> {
        let (holder, patience) = match holder(file) {
            Some(id) if id == std::process::id() => {
                ("this process, which has it open already".to_owned(), Duration::ZERO)
            }
            Some(id) => (process(id), patience(id)),
            None => ("another process".to_owned(), NOBODY),
        };
        if !self.is_worth(patience) {
            return Err(holder);
        }
        // To find the holder all processes are looked at, which is more than may be done all the time.
        thread::sleep(STEP);
        Ok(())
    }
}

/// Who has a lock on the file, the living before the dying, and others before ourselves. The kernel does not tell it of
/// locks of open files, but lists a process's locks with its descriptors, for those processes that we may look at.
fn holder(file: &File) -> Option<u32> {
    let wanted = file.metadata().ok()?;
    let processes = fs::read_dir("/proc").ok()?.flatten().take(MOST_PROCESSES);
    let numbers = processes.filter_map(|process| process.file_name().to_str()?.parse::<u32>().ok());
    let holders = numbers.filter(|&pid| has_lock(pid, &wanted, file));
    holders.min_by_key(|&pid| (is_dying(pid), pid == std::process::id()))
}

fn has_lock(pid: u32, wanted: &fs::Metadata, ours: &File) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    descriptors.flatten().any(|descriptor| {
        let number = descriptor.file_name();
        let number = number.to_string_lossy();
        if pid == std::process::id() && number == ours.as_raw_fd().to_string() {
            return false;
        }
        let same = fs::metadata(descriptor.path())
            .is_ok_and(|found| found.dev() == wanted.dev() && found.ino() == wanted.ino());
        same && fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}"))
            .is_ok_and(|text| text.lines().any(|line| line.starts_with("lock:")))
    })
}

/// What a holder is called in messages.
pub(crate) fn process(id: u32) -> String {
    let command = fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
    let dying = if is_dying(id) { ", which is ending" } else { "" };
    match command.trim_end() {
        "" => format!("process {id}{dying}"),
        command => format!("process {id} ({command}{dying})"),
    }
}

impl Kind {
    fn number(self) -> libc::c_int {
        match self {
            Self::Shared => libc::F_RDLCK,
            Self::Exclusive => libc::F_WRLCK,
        }
    }
}

fn request(kind: libc::c_int, range: Range<i64>) -> libc::flock {
    libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: range.start,
        l_len: range.end - range.start,
        // Has to be zero for locks of open files.
        l_pid: 0,
    }
}

fn control(file: &File, command: libc::c_int, request: &mut libc::flock) -> io::Result<()> {
    loop {
        // SAFETY: the descriptor is open, and the kernel reads and writes the structure that we own.
        if unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut *request) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_living_the_dying_and_the_gone_are_told_apart() {
        assert!(!is_dying(std::process::id()));
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        assert!(!is_dying(child.id()));
        child.kill().unwrap();
        // From the signal on, and until somebody asks for its status.
        assert!(is_dying(child.id()));
        let mut child_is_dead = || child.try_wait().unwrap().is_some();
        let start = Instant::now();
        while !child_is_dead() {
            assert!(start.elapsed() < Duration::from_secs(20));
            thread::sleep(Duration::from_millis(1));
        }
        assert!(!is_dying(child.id()));
        assert_eq!((patience(std::process::id()), patience(child.id())), (Duration::ZERO, NOBODY));
    }

    #[test]
    fn who_waits_for_the_dying_waits_for_what_the_gone_have_left_as_well() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut waiting = Waiting::default();
        assert!(waiting.is_worth_at(DYING, start) && waiting.is_worth_at(DYING, at(9999)));
        assert!(waiting.is_worth_at(NOBODY, at(9999)) && waiting.is_worth_at(NOBODY, at(10_998)));
        assert!(!waiting.is_worth_at(NOBODY, at(10_999)));
        assert!(!waiting.is_worth_at(Duration::ZERO, at(10_999)), "a living one is not waited for");
        // However often it changes, it comes to an end.
        let changing = |number: u64| [DYING, NOBODY][number as usize % 2];
        assert!((11..30).all(|number| waiting.is_worth_at(changing(number), at(number * 1000))));
        assert!(!waiting.is_worth_at(DYING, at(30_000)));
    }

    #[test]
    fn what_a_process_is_called_misleads_nobody() {
        let stat =
            |name: &str, state: &str, flags: u32| format!("7 ({name}) {state} 1 7 7 0 -1 {flags} 5 0\n");
        assert_eq!(is_leaving(&stat("lodger", "S", 0x40_0040)), Some(false));
        assert_eq!(is_leaving(&stat("a) Z 1 (b", "R", 0)), Some(false));
        assert_eq!(is_leaving(&stat("lodger", "R", 0x40_0044)), Some(true));
        assert_eq!(is_leaving(&stat("lodger", "Z", 0)), Some(true));
        for odd in ["", "7 (x", "7 (x) ", "7 (x) S 1 2 3 4 5 six"] {
            assert_eq!(is_leaving(odd), None, "{odd:?}");
        }
        assert!(is_killed("ShdPnd:\t0000000000000100\n"));
        assert!(!is_killed("ShdPnd:\t0000000000004000\nSigPnd:\tnonsense\n"));
    }
}
