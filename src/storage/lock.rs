//! Who may use an image: locks that hold between programs, and are those of QEMU.
//!
//! QEMU says with shared locks on single bytes of the file what it does to an image (100 + n) and what it does
//! not stand others doing (200 + n), and then looks whether anybody has said what contradicts it. Speaking the
//! same language keeps a VM here and one in QEMU, or `qemu-img`, from writing one image together, and lets them
//! read it together.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use super::Error;
use crate::file_lock::{self, Kind, Waiting};

/// Things one can do to an image, by the numbers that QEMU gives them.
const READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

const DOES: i64 = file_lock::IMAGE.start;
const FORBIDS: i64 = 200;

/// How many processes are looked at to find the holder of a lock.
const MOST_PROCESSES: usize = 100_000;
/// How long is waited before it is tried again.
const STEP: Duration = Duration::from_millis(20);

/// Locks the image for as long as the file is open; others who read it are compatible with those who read it, and
/// nobody with one who writes it.
pub(super) fn lock(file: &File, path: &Path, for_writing: bool) -> Result<(), Error> {
    let mut waiting = Waiting::default();
    while !try_once(file, path, for_writing)? {
        let (holder, patience) = match find_holder(file) {
            Some(pid) if pid == std::process::id() => {
                ("this process, which has it open already".to_owned(), Duration::ZERO)
            }
            Some(pid) => (file_lock::process(pid), file_lock::patience(pid)),
            None => ("another process".to_owned(), file_lock::NOBODY),
        };
        if !waiting.is_worth(patience) {
            // Of what is being written, there can be no overlay either.
            let only_read = for_writing && !is_written(file);
            return Err(Error::InUse { path: path.to_owned(), holder, only_read });
        }
        // To find the holder all processes are looked at, which is more than may be done all the time.
        thread::sleep(STEP);
    }
    Ok(())
}

/// Gives up what was locked for writing, and keeps what is locked for reading: others may read it from now on.
pub(super) fn only_read(file: &File, path: &Path) {
    for what in [WRITE, RESIZE] {
        let byte = DOES + what;
        if let Err(error) = file_lock::unlock(file, byte..byte + 1) {
            log::warn!("{} stays locked as if it were written to: {error}", path.display());
        }
    }
}

fn try_once(file: &File, path: &Path, for_writing: bool) -> Result<bool, Error> {
    match try_lock(file, for_writing) {
        Ok(locked) => Ok(locked),
        Err(error) if is_unsupported(&error) => {
            log::warn!("{} cannot be locked ({error}): see to it that nobody else uses it", path.display());
            Ok(true)
        }
        Err(error) => Err(Error::io("lock", path)(error)),
    }
}

fn try_lock(file: &File, for_writing: bool) -> io::Result<bool> {
    let does: &[i64] = if for_writing { &[READ, WRITE, RESIZE] } else { &[READ] };
    let forbids = [WRITE, RESIZE];
    // Say first and look then: of two who come at once, at least one sees the other.
    for byte in does.iter().map(|what| DOES + what).chain(forbids.map(|what| FORBIDS + what)) {
        if !file_lock::try_lock(file, Kind::Shared, byte..byte + 1)? {
            return Ok(false);
        }
    }
    for byte in does.iter().map(|what| FORBIDS + what).chain(forbids.map(|what| DOES + what)) {
        if file_lock::conflict(file, Kind::Exclusive, byte..byte + 1)?.is_some() {
            file_lock::unlock(file, file_lock::IMAGE)?;
            return Ok(false);
        }
    }
    Ok(true)
}

fn is_written(file: &File) -> bool {
    let byte = DOES + WRITE;
    file_lock::conflict(file, Kind::Exclusive, byte..byte + 1).is_ok_and(|holds| holds.is_some())
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOLCK | libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS))
}

/// Who has a lock on the file, the living before the dying, and others before ourselves. The kernel does not tell it of
/// locks of open files, but lists a process's locks with its descriptors, for those processes that we may look at.
fn find_holder(file: &File) -> Option<u32> {
    let wanted = file.metadata().ok()?;
    let processes = fs::read_dir("/proc").ok()?.flatten().take(MOST_PROCESSES);
    let numbers = processes.filter_map(|process| process.file_name().to_str()?.parse::<u32>().ok());
    let holders = numbers.filter(|&pid| has_lock(pid, &wanted, file));
    holders.min_by_key(|&pid| (file_lock::is_dying(pid), pid == std::process::id()))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::testing::TempDir;

    fn open(path: &Path) -> File {
        File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap()
    }

    #[test]
    fn many_may_read_and_one_may_write() {
        let dir = TempDir::new();
        let path = dir.path().join("disk");
        let (one, two, three) = (open(&path), open(&path), open(&path));
        lock(&one, &path, false).unwrap();
        lock(&two, &path, false).unwrap();
        assert!(lock(&three, &path, true).unwrap_err().to_string().contains("make an overlay"));
        drop(one);
        // The refused one has left nothing behind.
        lock(&open(&path), &path, false).unwrap();
        drop(two);
        lock(&three, &path, true).unwrap();
        assert!(lock(&open(&path), &path, false).is_err());
        assert!(lock(&open(&path), &path, true).is_err());
        drop(three);
        lock(&open(&path), &path, true).unwrap();
    }

    #[test]
    fn who_wrote_and_only_reads_from_now_on_lets_others_read() {
        let dir = TempDir::new();
        let path = dir.path().join("disk");
        let (one, two) = (open(&path), open(&path));
        lock(&one, &path, true).unwrap();
        assert!(lock(&two, &path, false).is_err());
        only_read(&one, &path);
        lock(&two, &path, false).unwrap();
        assert!(lock(&open(&path), &path, true).is_err());
        drop(two);
        assert!(lock(&open(&path), &path, true).is_err());
        drop(one);
        lock(&open(&path), &path, true).unwrap();
    }

    #[test]
    fn the_error_names_the_holder() {
        let dir = TempDir::new();
        let path = dir.path().join("disk");
        let one = open(&path);
        lock(&one, &path, true).unwrap();
        let text = lock(&open(&path), &path, true).unwrap_err().to_string();
        assert!(text.contains("this process"), "{text}");
        assert!(!text.contains("overlay"), "{text}");
        assert!(text.contains(path.to_str().unwrap()), "{text}");
    }
}
