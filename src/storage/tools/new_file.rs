//! A file that has a name only when it is complete.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::storage::{Error, disk, lock};

/// A file that will be at `path`. Without a name until then, it is gone if the process dies, however that happens;
/// on file systems that know no such files it has a name of its own, and is removed with the value.
#[derive(Debug)]
pub(super) struct NewFile {
    file: File,
    path: PathBuf,
    /// Its name meanwhile, if it has to have one.
    name: Option<PathBuf>,
    /// What it replaces, locked.
    replaced: Option<File>,
}

impl NewFile {
    /// Begins a file. With `replace` there may be one of that name already, unless somebody uses it.
    pub fn create(path: &Path, replace: bool) -> Result<Self, Error> {
        let replaced = match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(Error::io("create", path)(error)),
            Ok(_) if !replace => {
                return Err(Error::io("create", path)(io::ErrorKind::AlreadyExists.into()));
            }
            Ok(_) => {
                let old = disk::open_file(path, false)?;
                if !old.metadata().is_ok_and(|metadata| metadata.is_file()) {
                    return Err(Error::refused(
                        path,
                        "it is a device",
                        "write to it with `lodger disk sync`",
                    ));
                }
                lock::lock(&old, path, true)?;
                Some(old)
            }
        };
        let mode = replaced.as_ref().and_then(|old| old.metadata().ok()).map(|old| old.mode() & 0o777);
        let new = Self::begin(path, replaced)?;
        if let Some(mode) = mode {
            let permissions = fs::Permissions::from_mode(mode);
            new.file.set_permissions(permissions).map_err(Error::io("create", path))?;
        }
        Ok(new)
    }

    /// Begins a file in the place of one that the caller has locked.
    pub fn replacing(path: &Path) -> Result<Self, Error> {
        Self::begin(path, None)
    }

    fn begin(path: &Path, replaced: Option<File>) -> Result<Self, Error> {
        let dir = match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        let nameless =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_TMPFILE).mode(0o666).open(dir);
        let (file, name) = match nameless {
            Ok(file) => (file, None),
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR | libc::EINVAL)) =>
            {
                let name = meanwhile(path);
                let file = OpenOptions::new().read(true).write(true).create_new(true).open(&name);
                (file.map_err(Error::io("create", &name))?, Some(name))
            }
            Err(error) => return Err(Error::io("create", path)(error)),
        };
        Ok(Self { file, path: path.to_owned(), name, replaced })
    }

    /// One more descriptor of it.
    pub fn file(&self) -> Result<File, Error> {
        self.file.try_clone().map_err(Error::io("create", &self.path))
    }

    /// Gives the file its name. With `durably` it and its name survive the host's loss of power then.
    pub fn finish(mut self, replace: bool, durably: bool) -> Result<(), Error> {
        let path = self.path.clone();
        let failed = Error::io("create", &path);
        self.name_it(replace, durably).map_err(failed)
    }

    fn name_it(&mut self, replace: bool, durably: bool) -> io::Result<()> {
        if durably {
            self.file.sync_all()?;
        }
        match (&self.name, replace) {
            (None, false) => link(&self.file, &self.path)?,
            (None, true) => {
                let name = meanwhile(&self.path);
                link(&self.file, &name)?;
                self.name = Some(name.clone());
                fs::rename(&name, &self.path)?;
                self.name = None;
            }
            (Some(name), false) => fs::hard_link(name, &self.path)?,
            (Some(name), true) => fs::rename(name, &self.path)?,
        }
        if durably && let Some(dir) = self.path.parent() {
            let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
            File::open(dir)?.sync_all()?;
        }
        // Who waits for the old file finds the new one.
        self.replaced = None;
        Ok(())
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            let _: io::Result<()> = fs::remove_file(name);
        }
    }
}

/// A name beside `path`.
fn meanwhile(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}.new", std::process::id()))
}

/// Gives a file a name.
pub(super) fn link(file: &File, path: &Path) -> io::Result<()> {
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;
    let from = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let to = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: both are strings that live during the call.
    let result = unsafe {
        libc::linkat(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), libc::AT_SYMLINK_FOLLOW)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
