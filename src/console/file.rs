//! Files that output goes to: created, or emptied, unless somebody uses them as an image.
//!
//! They are not emptied by being opened, so that it can be looked before what would be lost.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::file_lock::{self, Kind};

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
    if found.is_file() { file.set_len(0) } else { Ok(()) }
}
