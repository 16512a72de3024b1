//! Who may use an image: locks that hold between programs, and are those of QEMU.
//!
//! QEMU says with shared locks on single bytes of the file what it does to an image (100 + n) and what it does
//! not stand others doing (200 + n), and then looks whether anybody has said what contradicts it. Speaking the
//! same language keeps a VM here and one in QEMU, or `qemu-img`, from writing one image together, and lets them
//! read it together.

use std::fs::File;
use std::io;
use std::path::Path;

use super::Error;
use crate::file_lock::{self, Kind, Waiting};

/// Things one can do to an image, by the numbers that QEMU gives them.
const READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

const DOES: i64 = file_lock::IMAGE.start;
const FORBIDS: i64 = 200;

/// Locks the image for as long as the file is open; others who read it are compatible with those who read it, and
/// nobody with one who writes it.
pub(super) fn lock(file: &File, path: &Path, for_writing: bool) -> Result<(), Error> {
    let mut waiting = Waiting::default();
    while !try_once(file, path, for_writing)? {
        if let Err(holder) = waiting.wait_for_holder(file) {
            // Of what is being written, there can be no overlay either.
            let only_read = for_writing && !is_written(file);
            return Err(Error::InUse { path: path.to_owned(), holder, only_read });
        }
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
