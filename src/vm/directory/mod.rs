//! The directory of a running machine: what belongs to it as long as it runs, under its name.
//!
//! It is `$XDG_RUNTIME_DIR/lodger/NAME`, or `/tmp/lodger-UID/NAME` where there is no such variable. There is no daemon
//! that knows which machines run: these directories do. Each has a file `pid`, and the process whose machine it is
//! holds a lock on that, which ends with the process, however that ends. So a directory without such a lock is a dead
//! machine's; the next one that is made clears it away, unless it was never a machine's, or [tells](Ended) how its machine
//! ended. A machine that keeps nothing in files and was given no name may have one later than all others, when its guest
//! runs already: it costs 50 µs in memory, and milliseconds on some disks.
//!
//! Nobody waits for the lock of a living one, and no order of starts, ends and deaths leaves two owners or takes a file
//! from a living one:
//! - whoever has locked `pid` looks whether that is still the file of this name; if not, it begins anew;
//! - `pid` is the last file to be removed, and a directory is removed only if it is empty;
//! - who makes or removes one has locked a byte more than who owns one, so that others can tell and try again.

mod ended;
mod list;
mod name;
mod root;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;
use std::{process, thread};

use crate::file_lock::{self, Kind, Waiting};
pub use ended::Ended;
pub use list::{Found, find, list};
pub use name::{Name, NameError};
use root::Root;
pub(super) use root::{ROOM, named_room};

/// The file that tells who owns a directory.
const PID: &str = "pid";
/// What the process of a machine says that has no terminal. It stays when the machine has ended.
pub const MESSAGES: &str = "messages";
/// What an owner locks of it.
const OWNED: Range<i64> = 0..1;
/// What somebody locks who makes or removes it.
const CHANGED: Range<i64> = 0..2;
/// How long somebody else may take to remove or to make a directory of the same name.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long is waited before it is tried again.
const STEP: Duration = Duration::from_millis(1);
/// How many names are tried for a machine that was given none.
const MOST_NAMES: u32 = 100;

/// Why a machine cannot have a directory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DirectoryError {
    /// Another one has it.
    #[error("there is a VM called {name} already, run by {holder}; choose another name with --name")]
    Taken {
        /// What both are called.
        name: Name,
        /// Who runs the other one.
        holder: String,
    },
    /// It is not to be cleared away.
    #[error("the VM {name} is run by {holder}; `lodger stop {name}` or `lodger kill {name}` ends it")]
    Lives {
        /// What it is called.
        name: Name,
        /// Who runs it.
        holder: String,
    },
    /// Something else has that name.
    #[error(
        "{} was no VM's, as it holds files but no {PID}, and stays as it is; choose another name with --name", path.display()
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
    },
    /// It would not be ours alone.
    #[error("{} is no place for the files of a VM: {what}; {advice}", path.display())]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// Why not.
        what: String,
        /// What to do about it.
        advice: &'static str,
    },
    /// The operating system refuses.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as in "make".
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

use DirectoryError as Error;

impl Error {
    fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }

    /// Whether something was not there.
    fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// What a machine keeps in files: made when the first of them is wanted, gone with this value.
#[derive(Debug)]
pub(super) struct Files {
    directory: OnceLock<Directory>,
    /// Where there is room for large ones, if that is elsewhere.
    on_disk: OnceLock<Directory>,
}

impl Files {
    /// None as yet, but the name is taken if there is one.
    pub fn new(name: Option<&Name>) -> Result<Self, Error> {
        let directory = OnceLock::new();
        if let Some(name) = name {
            let taken = Directory::take(&Root::of_machines()?, name)?;
            directory.get_or_init(|| taken);
        }
        Ok(Self { directory, on_disk: OnceLock::new() })
    }

    /// Where they are.
    pub fn path(&self) -> Option<&Path> {
        self.directory.get().map(Directory::path)
    }

    /// What the machine is called, if it has a directory.
    pub fn name(&self) -> Option<&Name> {
        self.directory.get().map(|directory| &directory.name)
    }

    /// Where they are; the directory is made if it is not there yet.
    pub fn make(&self) -> Result<&Path, Error> {
        self.directory().map(Directory::path)
    }

    /// Has them tell how the machine ended when they go; without a directory there is nobody to tell.
    pub fn leave(&self, ended: Ended) {
        if let Some(directory) = self.directory.get() {
            directory.ended.get_or_init(|| ended);
        }
    }

    fn directory(&self) -> Result<&Directory, Error> {
        if let Some(directory) = self.directory.get() {
            return Ok(directory);
        }
        let directory = Directory::take_any(&Root::of_machines()?)?;
        // Of two that come at once, one is the machine's; the other's goes away again.
        Ok(self.directory.get_or_init(|| directory))
    }

    /// Where a file of this name can be made that may grow as large as a disk.
    ///
    /// The directory is in memory as a rule, and so small that one guest could fill it for all programs of its user.
    /// Then it only has a link, to a directory of the same kind that is on a disk.
    pub fn large(&self, file: &str) -> Result<PathBuf, Error> {
        let directory = self.directory()?;
        let here = directory.path().join(file);
        if self.on_disk.get().is_none()
            && is_in_memory(directory.path()).map_err(Error::io("look at", &here))?
            && let Some(root) = Root::on_disk()?
        {
            let taken = Directory::take(&root, &directory.name)?;
            // Disks are opened, and exchanged, by one thread at a time.
            self.on_disk.get_or_init(|| taken);
        }
        let Some(on_disk) = self.on_disk.get() else { return Ok(here) };
        let there = on_disk.path().join(file);
        match std::os::unix::fs::symlink(&there, &here) {
            // An earlier attempt to make the file failed.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            linked => linked.map_err(Error::io("make", &here))?,
        }
        Ok(there)
    }
}

/// A directory that is a running machine's. It goes away with the value.
#[derive(Debug)]
struct Directory {
    name: Name,
    path: PathBuf,
    pid: File,
    /// How the machine has ended, if that is to stay.
    ended: OnceLock<Ended>,
    /// A lock on the directory itself, without which systemd-tmpfiles would remove what is some days old in `/tmp`.
    _kept: Option<File>,
}

/// Who has locked a directory that somebody else wants.
enum Holder {
    /// This process owns it, as far as can be known.
    Owner(u32),
    /// Somebody is making or removing it just now.
    Changing,
}

impl Holder {
    fn of(pid: &File) -> io::Result<Self> {
        let holds = file_lock::conflict(pid, Kind::Exclusive, CHANGED)?;
        Ok(match (holds, owner(pid)) {
            (Some(range), Some(owner)) if range == OWNED => Self::Owner(owner),
            // It is being made or removed, or was just now.
            _ => Self::Changing,
        })
    }

    /// How long it is worth trying again.
    fn patience(&self) -> Duration {
        match self {
            Self::Owner(pid) => file_lock::patience(*pid),
            Self::Changing => PATIENCE,
        }
    }

    fn in_words(&self) -> String {
        match self {
            Self::Owner(pid) => file_lock::process(*pid),
            Self::Changing => "a process that is only making or removing it".to_owned(),
        }
    }
}

impl Directory {
    /// Makes the directory of this name, and clears away those of the dead.
    pub fn take(root: &Root, name: &Name) -> Result<Self, Error> {
        let path = root.path().join(name.as_str());
        let mut waiting = Waiting::default();
        let pid = loop {
            match attempt(&path)? {
                Ok(pid) => break pid,
                Err(holder) if waiting.is_worth(holder.patience()) => thread::sleep(STEP),
                Err(holder) => {
                    return Err(Error::Taken { name: name.clone(), holder: holder.in_words() });
                }
            }
        };
        let kept = File::open(&path).ok().filter(|directory| directory.try_lock_shared().is_ok());
        // What fails from now on removes it again.
        let taken = Self { name: name.clone(), path, pid, ended: OnceLock::new(), _kept: kept };
        taken.begin()?;
        sweep(root, name);
        Ok(taken)
    }

    /// The same under a name that tells the process.
    fn take_any(root: &Root) -> Result<Self, Error> {
        let own = process::id();
        let mut number = 1;
        loop {
            let text = if number == 1 { format!("vm-{own}") } else { format!("vm-{own}-{number}") };
            let name = text
                .parse()
                .map_err(|_| Error::io("name", root.path())(io::ErrorKind::InvalidInput.into()))?;
            match Self::take(root, &name) {
                // Another machine in this process, or a process of the same number in another container.
                Err(Error::Taken { .. } | Error::Foreign { .. }) if number < MOST_NAMES => number += 1,
                other => return other,
            }
        }
    }

    /// Empties it of what a dead one left, and tells whose it is now.
    fn begin(&self) -> Result<(), Error> {
        empty(&self.path, &[PID]).map_err(Error::io("clear", &self.path))?;
        let text = format!("{}\n", process::id());
        let told =
            self.pid.write_all_at(text.as_bytes(), 0).and_then(|()| self.pid.set_len(text.len() as u64));
        told.and_then(|()| file_lock::unlock(&self.pid, OWNED.end..CHANGED.end))
            .map_err(Error::io("write", &self.path.join(PID)))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let done = match self.ended.take() {
            Some(ended) => ended::leave(&self.path, &self.pid, ended),
            None => remove(&self.path, &self.pid),
        };
        match done {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                log::warn!("{} stays behind, for the next start to remove: {error}", self.path.display());
            }
            _ => {}
        }
    }
}

/// Clears away what a machine has left that was killed or has ended; false if there is nothing of this name. What it has on
/// a disk goes with it.
pub fn clear(name: &Name) -> Result<bool, Error> {
    clear_in(&Root::of_machines()?, name).inspect(|_| {
        if let Ok(Some(root)) = Root::found_on_disk() {
            clear_dead(&root.path().join(name.as_str()), |_| true);
        }
    })
}

fn clear_in(root: &Root, name: &Name) -> Result<bool, Error> {
    let path = root.path().join(name.as_str());
    let mut waiting = Waiting::default();
    loop {
        let failed = |action| Error::io(action, &path);
        let pid = match open_pid(&path, false) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            opened => opened.map_err(failed("open"))?,
        };
        if file_lock::try_lock(&pid, Kind::Exclusive, CHANGED).map_err(failed("lock"))? {
            match remove(&path, &pid) {
                // Somebody else was faster.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                removed => return removed.map(|()| true).map_err(failed("remove")),
            }
        }
        let holder = Holder::of(&pid).map_err(failed("lock"))?;
        if !waiting.is_worth(holder.patience()) {
            return Err(Error::Lives { name: name.clone(), holder: holder.in_words() });
        }
        thread::sleep(STEP);
    }
}

/// Tries to become the owner of the directory at `path`, by its locked `pid`; else says who holds it.
fn attempt(path: &Path) -> Result<Result<File, Holder>, Error> {
    let pid = match root::make(path)
        .and_then(|()| refuse_foreign(path))
        .and_then(|()| open_pid(path, true).map_err(Error::io("open", &path.join(PID))))
    {
        Ok(pid) => pid,
        // Somebody else has removed it meanwhile.
        Err(error) if error.is_not_found() => return Ok(Err(Holder::Changing)),
        Err(error) => return Err(error),
    };
    let failed = |error| Error::io("lock", &path.join(PID))(error);
    if file_lock::try_lock(&pid, Kind::Exclusive, CHANGED).map_err(failed)? {
        return Ok(if is_at(&pid, path) { Ok(pid) } else { Err(Holder::Changing) });
    }
    Ok(Err(Holder::of(&pid).map_err(failed)?))
}

fn refuse_foreign(path: &Path) -> Result<(), Error> {
    match is_foreign(path).map_err(Error::io("look into", path))? {
        true => Err(Error::Foreign { path: path.to_owned() }),
        false => Ok(()),
    }
}

/// Whether there is something in the directory that no machine has left: as long as one has files, it has `pid`. Others
/// may come and go meanwhile.
fn is_foreign(path: &Path) -> io::Result<bool> {
    let has_pid = || fs::symlink_metadata(path.join(PID)).is_ok();
    if has_pid() {
        return Ok(false);
    }
    let Some(entry) = fs::read_dir(path)?.next().transpose()? else { return Ok(false) };
    Ok(!has_pid() && fs::symlink_metadata(entry.path()).is_ok() && entry.file_name() != PID)
}

/// Removes the directories whose machines are dead, but for the one of our own name and for those that tell how it was.
fn sweep(root: &Root, own: &Name) {
    let Ok(entries) = fs::read_dir(root.path()) else { return };
    let others = entries.flatten().filter(|entry| entry.file_name() != own.as_str());
    for path in others.map(|entry| entry.path()).filter(|path| !ended::is_left(path)) {
        // It may end, and leave something, between the first look and the lock.
        clear_dead(&path, |path| !ended::is_left(path));
    }
    ended::forget_the_oldest(root.path());
}

/// Removes a directory, unless a machine lives there or it is none that is `meant`.
fn clear_dead(path: &Path, meant: impl Fn(&Path) -> bool) {
    match sweep_one(path, meant) {
        Ok(true) => log::info!("{} is cleared away: its VM is no more", path.display()),
        Ok(false) => {}
        Err(error) => log::debug!("{} is left alone: {error}", path.display()),
    }
}

fn sweep_one(path: &Path, meant: impl Fn(&Path) -> bool) -> io::Result<bool> {
    match open_pid(path, false) {
        Ok(pid) if file_lock::try_lock(&pid, Kind::Exclusive, CHANGED)? && meant(path) => {
            remove(path, &pid).map(|()| true)
        }
        Ok(_) => Ok(false),
        // Who makes one makes the file next, or begins anew. It is removed if it is empty.
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::remove_dir(path).map(|()| true),
        Err(error) => Err(error),
    }
}

/// Removes a directory whose `pid` is locked, unless it is another's by now.
fn remove(path: &Path, pid: &File) -> io::Result<()> {
    begin_removal(path, pid)?;
    empty(path, &[PID])?;
    fs::remove_file(path.join(PID))?;
    match fs::remove_dir(path) {
        // Its next owner is there already.
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        other => other,
    }
}

/// To be called before anything is removed, by whoever has locked `pid`.
fn begin_removal(path: &Path, pid: &File) -> io::Result<()> {
    // For somebody who finds the lock.
    file_lock::try_lock(pid, Kind::Exclusive, CHANGED)?;
    if is_at(pid, path) { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
}

/// Removes all but what is to stay.
fn empty(path: &Path, staying: &[&str]) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if staying.iter().any(|name| entry.file_name() == *name) {
            continue;
        }
        match entry.file_type()?.is_dir() {
            true => fs::remove_dir_all(entry.path())?,
            false => fs::remove_file(entry.path())?,
        }
    }
    Ok(())
}

/// Reads a small file of a directory, no more than `most` of it; one that leads elsewhere, or makes who opens it wait, is
/// not read.
fn read_small(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut options = OpenOptions::new();
    let file = options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn open_pid(path: &Path, create: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .create(create)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    options.open(path.join(PID))
}

/// Whether `pid` is the file of that name in the directory.
fn is_at(pid: &File, path: &Path) -> bool {
    match (pid.metadata(), fs::symlink_metadata(path.join(PID))) {
        (Ok(ours), Ok(found)) => (ours.dev(), ours.ino()) == (found.dev(), found.ino()),
        _ => false,
    }
}

/// Whom the file names.
fn owner(pid: &File) -> Option<u32> {
    let mut text = [0; 16];
    let count = pid.read_at(&mut text, 0).ok()?;
    std::str::from_utf8(&text[..count]).ok()?.strip_suffix('\n')?.parse().ok()
}

/// Whose the directories are.
fn user() -> u32 {
    // SAFETY: only asks for a number.
    unsafe { libc::geteuid() }
}

/// Whether what is in a directory takes memory instead of a disk's space.
fn is_in_memory(path: &Path) -> io::Result<bool> {
    const RAMFS: i64 = 0x8584_58f6;
    let directory = File::open(path)?;
    // SAFETY: all zeroes is a valid value of this structure of numbers.
    let mut status: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: asks about our descriptor; the kernel fills in the structure that we own.
    if unsafe { libc::fstatfs(std::os::fd::AsRawFd::as_raw_fd(&directory), &mut status) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok([libc::TMPFS_MAGIC, RAMFS].contains(&status.f_type))
}

#[cfg(test)]
#[path = "directory_test.rs"]
mod tests;
