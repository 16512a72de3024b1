//! A console's output in files of bounded size: the newest in one, what was before it in another, and nothing older.
//!
//! A writer exchanges them under its descriptor, so that whatever writes there need not know; a [`Reader`] follows.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// The file with the newest output.
pub const LOG: &str = "console.log";
/// The one with what was before that.
pub const OLDER_LOG: &str = "console.log.1";
/// How large each grows.
pub const LOG_BOUND: u64 = 256 << 10;

/// What a sink knows that writes to a log.
#[derive(Debug)]
pub(super) struct Rotation {
    directory: PathBuf,
    written: AtomicU64,
}

impl Rotation {
    /// Begins a log in `directory`, and has `fd` write to it from now on.
    pub fn begin(fd: BorrowedFd<'_>, directory: &Path) -> io::Result<Self> {
        let rotation = Self { directory: directory.to_owned(), written: AtomicU64::new(0) };
        rotation.take_new_file(fd)?;
        Ok(rotation)
    }

    /// To be called when `count` bytes were written to `fd`.
    pub fn count(&self, fd: BorrowedFd<'_>, count: usize) {
        let written = self.written.fetch_add(count as u64, Ordering::Relaxed) + count as u64;
        if written < LOG_BOUND {
            return;
        }
        self.written.store(0, Ordering::Relaxed);
        let (log, older) = (self.directory.join(LOG), self.directory.join(OLDER_LOG));
        if let Err(error) = fs::rename(log, older).and_then(|()| self.take_new_file(fd)) {
            log::debug!("the console's log begins anew in the same file: {error}");
            // SAFETY: changes the size of our own file.
            unsafe { libc::ftruncate(fd.as_raw_fd(), 0) };
        }
    }

    fn take_new_file(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let file = options.open(self.directory.join(LOG))?;
        // SAFETY: both are open descriptors; what `fd` was before is closed in the same step.
        match unsafe { libc::dup3(file.as_raw_fd(), fd.as_raw_fd(), libc::O_CLOEXEC) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}

/// Reads a log from its beginning, and goes on to the next file where one has been taken for another.
#[derive(Debug)]
pub struct Reader {
    directory: PathBuf,
    /// What is read before the newest.
    older: Option<File>,
    newest: Option<File>,
}

impl Reader {
    /// The log in a machine's directory. Without one it is not found.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let newest = File::open(directory.join(LOG))?;
        let older = File::open(directory.join(OLDER_LOG)).ok();
        // It may have become the older one between the two.
        let is_other = |older: &File| number(older) != number(&newest);
        Ok(Self { directory: directory.to_owned(), older: older.filter(is_other), newest: Some(newest) })
    }

    /// Reads on. Zero: there is no more at this moment.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(older) = &mut self.older {
            match older.read(buffer)? {
                0 => self.older = None,
                count => return Ok(count),
            }
        }
        let Some(file) = &mut self.newest else { return Ok(0) };
        match file.read(buffer)? {
            0 => {}
            count => return Ok(count),
        }
        let Ok(next) = File::open(self.directory.join(LOG)) else { return Ok(0) };
        if number(&next) == number(file) {
            return Ok(0);
        }
        // What was written to it until it was exchanged.
        self.older = self.newest.replace(next);
        self.read(buffer)
    }
}

/// Has only the newest of a log stay, so many bytes at most, from the beginning of a line. Nobody writes to it any more.
pub fn shorten(directory: &Path, bound: u64) -> io::Result<()> {
    let (log, older) = (directory.join(LOG), directory.join(OLDER_LOG));
    let size = |path| fs::symlink_metadata(path).map_or(0, |status| status.len());
    if size(&log) + size(&older) <= bound {
        return Ok(());
    }
    let mut newest = Vec::new();
    for path in [&older, &log] {
        match File::open(path) {
            // A little more than either may have.
            Ok(file) => file.take(2 * LOG_BOUND).read_to_end(&mut newest).map(drop)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    let begin = newest.len().saturating_sub(bound as usize);
    let line = newest[begin..].iter().position(|&byte| byte == b'\n').map_or(0, |end| end + 1);
    fs::write(&log, &newest[begin + line..])?;
    match fs::remove_file(older) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn number(file: &File) -> Option<u64> {
    file.metadata().ok().map(|status| status.ino())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;

    use super::*;
    use crate::storage::testing::TempDir;

    /// A writer as a sink is one.
    struct Writer {
        file: File,
        rotation: Rotation,
    }

    impl Writer {
        fn new(directory: &Path) -> Self {
            let file = OpenOptions::new().write(true).open("/dev/null").unwrap();
            let rotation = Rotation::begin(file.as_fd(), directory).unwrap();
            Self { file, rotation }
        }

        fn write(&mut self, bytes: &[u8]) {
            self.file.write_all(bytes).unwrap();
            self.rotation.count(self.file.as_fd(), bytes.len());
        }
    }

    fn rest(reader: &mut Reader) -> Vec<u8> {
        let mut all = Vec::new();
        let mut buffer = [0; 1000];
        loop {
            match reader.read(&mut buffer).unwrap() {
                0 => return all,
                count => all.extend_from_slice(&buffer[..count]),
            }
        }
    }

    #[test]
    fn a_reader_follows_from_file_to_file_and_misses_nothing_if_it_keeps_up() {
        let scratch = TempDir::new();
        let directory = scratch.at("");
        assert!(Reader::open(&directory).is_err());
        let mut writer = Writer::new(&directory);
        let mut reader = Reader::open(&directory).unwrap();
        let (mut written, mut read) = (Vec::new(), Vec::new());
        for number in 0..4 * LOG_BOUND / 10_000 {
            let bytes = vec![number as u8; 10_000];
            writer.write(&bytes);
            written.extend(bytes);
            read.extend(rest(&mut reader));
        }
        assert!(read == written);
    }

    #[test]
    fn the_newest_is_kept_and_no_more_than_two_files_full() {
        let scratch = TempDir::new();
        let directory = scratch.at("");
        let mut writer = Writer::new(&directory);
        for number in 0..5 * LOG_BOUND / 1000 {
            writer.write(&[number as u8; 1000]);
            let size = |name| fs::metadata(directory.join(name)).map_or(0, |status| status.len());
            assert!(size(LOG) < LOG_BOUND && size(OLDER_LOG) < LOG_BOUND + 1000);
        }
        let kept = rest(&mut Reader::open(&directory).unwrap());
        assert!(kept.len() as u64 >= LOG_BOUND);
        assert_eq!(kept.last(), Some(&((5 * LOG_BOUND / 1000 - 1) as u8)));
    }

    #[test]
    fn what_stays_of_a_log_is_the_newest_from_the_beginning_of_a_line() {
        let scratch = TempDir::new();
        let directory = scratch.at("");
        shorten(&directory, 100).unwrap();
        let mut writer = Writer::new(&directory);
        writer.write(b"all of it\n");
        shorten(&directory, 100).unwrap();
        assert_eq!(rest(&mut Reader::open(&directory).unwrap()), b"all of it\n");
        for number in 0..LOG_BOUND / 10 {
            writer.write(format!("{number:9}\n").as_bytes());
        }
        writer.write(b"the end");
        assert!(directory.join(OLDER_LOG).exists());
        shorten(&directory, 40).unwrap();
        let last = LOG_BOUND / 10;
        let expected = format!("{:9}\n{:9}\n{:9}\nthe end", last - 3, last - 2, last - 1);
        assert_eq!(String::from_utf8(rest(&mut Reader::open(&directory).unwrap())).unwrap(), expected);
        assert!(!directory.join(OLDER_LOG).exists());
        // A line that is longer than all that stays.
        fs::write(directory.join(LOG), [b'x'; 100]).unwrap();
        shorten(&directory, 40).unwrap();
        assert_eq!(fs::read(directory.join(LOG)).unwrap(), [b'x'; 40]);
    }

    #[test]
    fn without_a_place_for_another_file_the_log_begins_anew() {
        let scratch = TempDir::new();
        let directory = scratch.at("");
        let mut writer = Writer::new(&directory);
        fs::create_dir(directory.join(OLDER_LOG)).unwrap();
        writer.write(&vec![b'x'; LOG_BOUND as usize]);
        writer.write(b"new");
        assert_eq!(fs::read(directory.join(LOG)).unwrap(), b"new");
    }
}
