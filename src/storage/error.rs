//! Why something cannot be done with an image.

use std::io;
use std::path::{Path, PathBuf};

/// Why something cannot be done with an image. What went wrong, with which file, and what helps.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refuses.
    #[error("cannot {action} {}: {source}{}", path.display(), advice(.action, .source))]
    Io {
        /// What was tried, as in "open".
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Somebody else has the image.
    #[error("{} is in use by {holder}: {}", path.display(), if *.only_read {
        "an image can be written by one at a time, and by nobody while others read it; make an overlay of it \
         (`lodger disk create NEW --backing IT`), or wait"
    } else {
        "it is being written; wait, or use a copy"
    })]
    InUse {
        /// The image.
        path: PathBuf,
        /// Who, as far as can be known.
        holder: String,
        /// Whether it was to be written, while whoever has it only reads it.
        only_read: bool,
    },
    /// What the file says of itself cannot be.
    #[error("{} is damaged: {what}; `lodger disk check` tells more, and what can be done", path.display())]
    Damaged {
        /// The image.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// It could be done, but not so.
    #[error("{}: {what}; {advice}", path.display())]
    Refused {
        /// The image.
        path: PathBuf,
        /// Why not.
        what: String,
        /// What to do instead.
        advice: String,
    },
}

impl Error {
    /// Says which file an operating system's error is about, and in what it happened.
    pub(crate) fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }

    pub(super) fn damaged(path: &Path, what: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), what: what.into() }
    }

    pub(super) fn refused(path: &Path, what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::Refused { path: path.to_owned(), what: what.into(), advice: advice.into() }
    }
}

/// Disks without names are made so.
pub(super) const EPHEMERAL: &str = "make an ephemeral disk in";

fn advice(action: &str, error: &io::Error) -> &'static str {
    match error.kind() {
        _ if action == EPHEMERAL => "; set TMPDIR to a directory where there can be one",
        io::ErrorKind::NotFound if action == "open" => "; `lodger disk create` makes an image",
        io::ErrorKind::NotFound if ["create", "find"].contains(&action) => "; make the directory first",
        io::ErrorKind::FileTooLarge => {
            "; choose a smaller size, another file system, or a higher limit (ulimit -f)"
        }
        // What is wrong with the content of an image.
        io::ErrorKind::InvalidData | io::ErrorKind::Other | io::ErrorKind::Unsupported
            if error.raw_os_error().is_none() && ["open", "read", "write", "resize"].contains(&action) =>
        {
            "; if it is a qcow2 image, `lodger disk check` tells whether it is damaged"
        }
        io::ErrorKind::PermissionDenied => "; change the file's permissions, or open it read-only",
        io::ErrorKind::AlreadyExists => "; choose another name, or say --force to replace it",
        io::ErrorKind::StorageFull => "; free some space there",
        _ => "",
    }
}
