//! Files that output goes to: created, or emptied, unless somebody uses them as an image or for output, too.
//!
//! They are not emptied by being opened, so that it can be looked before what would be lost.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::file_lock::{self, Kind, Waiting};

/// Opens a file that may be there already, and leaves what is in it.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o644);
    // A named pipe without a reader is an error then, and not a wait without a word.
    options.custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK).open(path)
}

/// Makes it empty, if it is such a file that can be, and nobody's image.
pub(super) fn empty(file: &File) -> io::Result<()> {
    let found = file.metadata()?;
    // Where there are no locks, nobody has one.
    if let Ok(Some(_)) = file_lock::conflict(file, Kind::Exclusive, file_lock::IMAGE) {
        return Err(io::Error::other(
            "it is an image that a VM or another program uses; choose another file",
        ));
    }
    if !found.is_file() {
        return Ok(());
    }
    claim(file)?;
    file.set_len(0)
}

/// Has nobody else empty it and write to it as long as it is open, as a machine that goes on twice would.
fn claim(file: &File) -> io::Result<()> {
    let mut waiting = Waiting::default();
    // Where there are no locks, nobody has one.
    while let Ok(false) = file_lock::try_lock(file, Kind::Exclusive, file_lock::OUTPUT) {
        waiting.wait_for_holder(file).map_err(|holder| {
            io::Error::other(format!("what {holder} prints goes there; choose another file"))
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::storage::testing::TempDir;

    #[test]
    fn a_file_that_somebody_writes_output_to_is_not_emptied() {
        let dir = TempDir::new();
        let path = dir.path().join("log");
        let first = open(&path).unwrap();
        empty(&first).unwrap();
        fs::write(&path, "words").unwrap();
        let error = empty(&open(&path).unwrap()).unwrap_err().to_string();
        assert!(error.contains("this process") && error.contains("choose another file"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"words");
        drop(first);
        empty(&open(&path).unwrap()).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
    }
}
