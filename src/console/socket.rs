//! A Unix socket that peers connect to, one after another.
//!
//! Its file is readable for its owner alone from the first moment on, goes away with it, and takes the place of one
//! that a process which died has left behind.

use std::fs::{self, File, TryLockError};
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::line::LineError;

/// How many peers may wait for their turn.
const BACKLOG: libc::c_int = 8;
/// How long another process may take to replace what a dead one has left.
const PATIENCE: Duration = Duration::from_millis(200);

/// A socket that listens.
#[derive(Debug)]
pub(crate) struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and number of its file, by which it is told from one that has taken its place.
    file: (u64, u64),
}

impl Socket {
    pub fn listen(path: &Path) -> Result<Self, LineError> {
        let failed = |source| LineError::Socket { path: path.to_owned(), source };
        let address = address(path).ok_or_else(|| LineError::PathTooLong { path: path.to_owned() })?;
        // Who replaces a socket has locked its directory meanwhile, and others leave it to him. Such a lock may also be
        // anybody's who keeps it for ever, so it is asked for once, and waited for only if that matters, and not for
        // long.
        let directory = path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
        let lock = File::open(directory).ok();
        let mut has_turn = lock.as_ref().is_none_or(may_go_on);
        if is_left_behind(path)? {
            let start = Instant::now();
            while !has_turn && start.elapsed() < PATIENCE {
                thread::sleep(Duration::from_millis(1));
                has_turn = lock.as_ref().is_none_or(may_go_on);
            }
            make_way(path)?;
        }
        let listener = bind(&address).map_err(failed)?;
        let file = fs::symlink_metadata(path).map_err(failed)?;
        Ok(Self { listener, path: path.to_owned(), file: (file.dev(), file.ino()) })
    }

    /// The next peer, if one is waiting.
    pub fn accept(&self) -> Option<OwnedFd> {
        // Whatever goes wrong is the peer's affair, and another one may come.
        let (stream, _) = self.listener.accept().ok()?;
        stream.set_nonblocking(true).ok()?;
        Some(stream.into())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let is_ours =
            fs::symlink_metadata(&self.path).is_ok_and(|file| (file.dev(), file.ino()) == self.file);
        if is_ours {
            // If it stays, the next one who wants the path finds nobody there and takes it.
            let _: io::Result<()> = fs::remove_file(&self.path);
        }
    }
}

/// Whether there is nobody to wait for: a lock that cannot be had at all is done without.
fn may_go_on(directory: &File) -> bool {
    !matches!(directory.try_lock(), Err(TryLockError::WouldBlock))
}

/// Removes a socket that nobody listens at.
fn make_way(path: &Path) -> Result<(), LineError> {
    // Somebody else may have replaced it while we waited.
    if !is_left_behind(path)? {
        return Ok(());
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(|source| LineError::Socket { path: path.to_owned(), source }),
    }
}

/// Whether there is a socket that nobody listens at. Whatever else is there is an error.
fn is_left_behind(path: &Path) -> Result<bool, LineError> {
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(false) };
    let path = path.to_owned();
    if !found.file_type().is_socket() {
        return Err(LineError::NoSocket { path });
    }
    match is_deserted(&path) {
        Ok(true) => Ok(true),
        Ok(false) => Err(LineError::InUse { path }),
        Err(source) => Err(LineError::Socket { path, source }),
    }
}

/// Whether nobody listens at a socket. To ask with another kind of socket is no visit: whoever listens does not notice.
fn is_deserted(path: &Path) -> io::Result<bool> {
    match UnixDatagram::unbound()?.connect(path) {
        Ok(()) => Ok(false),
        Err(error) => match error.raw_os_error() {
            // Somebody listens, with the other kind.
            Some(libc::EPROTOTYPE) => Ok(false),
            // It may also be gone by now.
            Some(libc::ECONNREFUSED | libc::ENOENT) => Ok(true),
            _ => Err(error),
        },
    }
}

fn address(path: &Path) -> Option<libc::sockaddr_un> {
    // SAFETY: a structure of integers, for which all zeroes are a value.
    let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = path.as_os_str().as_bytes();
    // A zero ends it.
    if bytes.is_empty() || bytes.len() >= address.sun_path.len() || bytes.contains(&0) {
        return None;
    }
    for (place, &byte) in address.sun_path.iter_mut().zip(bytes) {
        *place = byte as libc::c_char;
    }
    Some(address)
}

fn bind(address: &libc::sockaddr_un) -> io::Result<UnixListener> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: makes a descriptor, touches no memory.
    let socket = check(unsafe { libc::socket(libc::AF_UNIX, kind, 0) })?;
    // SAFETY: the descriptor was made a moment ago and is nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // The file gets the socket's mode, less what the process's umask takes away.
    // SAFETY: changes the mode of a descriptor.
    check(unsafe { libc::fchmod(socket.as_raw_fd(), 0o600) })?;
    let length = size_of_val(address) as libc::socklen_t;
    // SAFETY: pointer and length describe one structure.
    check(unsafe { libc::bind(socket.as_raw_fd(), std::ptr::from_ref(address).cast(), length) })?;
    // SAFETY: changes only the state of the descriptor.
    check(unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) })?;
    Ok(socket.into())
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;

    use super::*;
    use crate::storage::testing::TempDir;

    #[test]
    fn a_socket_is_its_owners_and_goes_away_with_it() {
        let scratch = TempDir::new();
        let path = scratch.at("socket");
        let socket = Socket::listen(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(socket.accept().is_none());
        let _peer = UnixStream::connect(&path).unwrap();
        assert!(socket.accept().is_some());
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn what_a_dead_process_left_is_replaced() {
        let scratch = TempDir::new();
        let path = scratch.at("socket");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let socket = Socket::listen(&path).unwrap();
        let _peer = UnixStream::connect(&path).unwrap();
        assert!(socket.accept().is_some());
    }

    /// `systemd-tmpfiles` is told by a lock on a directory that it is in use; a machine's own has one as well.
    #[test]
    fn a_lock_on_its_directory_holds_no_socket_up() {
        for exclusive in [false, true] {
            let scratch = TempDir::new();
            let (fresh, stale) = (scratch.at("fresh"), scratch.at("stale"));
            drop(UnixListener::bind(&stale).unwrap());
            let directory = File::open(scratch.at("")).unwrap();
            if exclusive { directory.lock() } else { directory.lock_shared() }.unwrap();
            let (sender, receiver) = mpsc::channel();
            thread::spawn(move || {
                for path in [fresh, stale] {
                    sender.send(Socket::listen(&path)).unwrap();
                }
            });
            for _ in 0..2 {
                let listens = receiver.recv_timeout(Duration::from_secs(20)).expect("it waits for the lock");
                listens.unwrap();
            }
        }
    }

    #[test]
    fn of_many_that_replace_a_socket_at_once_one_has_it() {
        let scratch = TempDir::new();
        let path = scratch.at("socket");
        for _ in 0..20 {
            drop(UnixListener::bind(&path).unwrap());
            let sockets: Vec<_> = thread::scope(|scope| {
                let threads: Vec<_> = (0..6).map(|_| scope.spawn(|| Socket::listen(&path))).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            assert_eq!(sockets.iter().filter(|socket| socket.is_ok()).count(), 1, "{sockets:?}");
            assert!(path.exists());
            drop(sockets);
            assert!(!path.exists());
        }
    }

    #[test]
    fn a_socket_in_use_is_refused_and_does_not_notice() {
        let scratch = TempDir::new();
        let path = scratch.at("socket");
        let first = Socket::listen(&path).unwrap();
        let said = Socket::listen(&path).unwrap_err().to_string();
        assert!(said.contains("another process listens at") && said.contains("choose another"), "{said}");
        assert!(first.accept().is_none());
        // Nor is one of a younger socket removed.
        fs::rename(&path, scratch.at("other")).unwrap();
        let second = Socket::listen(&path).unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());
    }

    /// Root may ask anybody's, so a thread becomes somebody else.
    #[test]
    fn a_socket_that_may_not_be_asked_is_not_said_to_be_in_use() {
        const NOBODY: libc::c_long = 65534;
        let scratch = TempDir::new();
        let path = scratch.at("socket");
        drop(UnixListener::bind(&path).unwrap());
        fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        let said = thread::scope(|scope| {
            let other = scope.spawn(|| {
                // SAFETY: only numbers; the bare call changes this thread alone, which ends soon.
                let changed = unsafe { libc::syscall(libc::SYS_setresuid, -1_i64, NOBODY, -1_i64) };
                (changed == 0).then(|| Socket::listen(&path).unwrap_err().to_string())
            });
            other.join().unwrap()
        });
        let Some(said) = said else {
            eprintln!("skipped: only root can become somebody else");
            return;
        };
        assert!(said.contains("cannot listen at") && said.contains("Permission denied"), "{said}");
        assert!(path.exists());
    }

    #[test]
    fn what_is_no_place_for_a_socket_is_refused_with_the_reason() {
        let scratch = TempDir::new();
        let file = scratch.at("file");
        fs::write(&file, "precious").unwrap();
        let refused = |path: &Path| Socket::listen(path).unwrap_err().to_string();
        assert!(refused(&file).contains("is no socket: remove it"), "{}", refused(&file));
        assert_eq!(fs::read(&file).unwrap(), b"precious");
        assert!(refused(&scratch.at(&"x".repeat(108))).contains("too long"));
        assert!(refused(Path::new("")).contains("too long") || refused(Path::new("")).contains("empty"));
        let nowhere = scratch.at("none/socket");
        assert!(refused(&nowhere).contains("none does not exist"), "{}", refused(&nowhere));
    }
}
