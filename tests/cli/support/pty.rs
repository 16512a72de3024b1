//! A terminal with the program on it, and somebody who looks at its screen and types.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{mem, thread};

use super::{LIMIT, check, wait_until};

/// A terminal: the end of the one who looks and types, and what was shown so far.
pub struct Screen {
    master: File,
    /// Kept open, so that the modes outlive the program.
    slave: File,
    shown: String,
}

/// A terminal's modes, comparable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Modes([u32; 4], [u8; libc::NCCS]);

impl Modes {
    /// Whether typed characters arrive one by one and unchanged.
    pub fn are_raw(self) -> bool {
        self.0[3] & (libc::ICANON | libc::ECHO | libc::ISIG) == 0
    }
}

impl Screen {
    /// A new terminal in its ordinary modes.
    pub fn new() -> Self {
        // SAFETY: makes a descriptor, touches no memory.
        let fd = check(unsafe {
            libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC | libc::O_NONBLOCK)
        });
        // SAFETY: the descriptor is fresh and nobody else's.
        let master = unsafe { File::from_raw_fd(fd) };
        let mut name = [0_u8; 64];
        // SAFETY: pointer and length describe one array; the others only change the terminal.
        unsafe {
            check(libc::grantpt(fd));
            check(libc::unlockpt(fd));
            assert_eq!(libc::ptsname_r(fd, name.as_mut_ptr().cast(), name.len()), 0);
        }
        let length = name.iter().position(|&byte| byte == 0).unwrap();
        let path = String::from_utf8(name[..length].to_vec()).unwrap();
        let slave = Self::attach(&path);
        Self { master, slave, shown: String::new() }
    }

    /// Opens a terminal without making it one's own.
    pub fn attach(path: &str) -> File {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NOCTTY);
        options.open(path).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// Another descriptor of the program's end, for its input or output.
    pub fn end(&self) -> Stdio {
        self.slave.try_clone().unwrap().into()
    }

    /// Makes this terminal the one that `command` and its session are controlled by, on standard input and
    /// wherever `command` does not have a pipe.
    pub fn control<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.stdin(self.end());
        // SAFETY: between fork and exec only system calls are made.
        unsafe {
            command.pre_exec(|| {
                let made = libc::setsid() >= 0 && libc::ioctl(libc::STDIN_FILENO, libc::TIOCSCTTY, 0) >= 0;
                if made { Ok(()) } else { Err(io::Error::last_os_error()) }
            })
        }
    }

    /// The same, with both outputs there too.
    pub fn show<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        self.control(command).stdout(self.end()).stderr(self.end())
    }

    pub fn modes(&self) -> Modes {
        let raw = termios(&self.slave);
        Modes([raw.c_iflag, raw.c_oflag, raw.c_cflag, raw.c_lflag], raw.c_cc)
    }

    /// Gives it another size; who is in its foreground gets SIGWINCH.
    #[allow(dead_code, reason = "only the tests with Linux have a guest that asks")]
    pub fn resize(&self, columns: u16, rows: u16) {
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: reads the structure during the call.
        check(unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) });
    }

    /// Switches the echo on or off, as a shell does when it gets the terminal back.
    pub fn set_cooked(&self, cooked: bool) {
        let mut modes = termios(&self.slave);
        let flags = libc::ICANON | libc::ECHO | libc::ISIG;
        modes.c_lflag = if cooked { modes.c_lflag | flags } else { modes.c_lflag & !flags };
        // SAFETY: reads the structure during the call.
        check(unsafe { libc::tcsetattr(self.slave.as_raw_fd(), libc::TCSANOW, &raw const modes) });
    }

    /// Waits until the program has made the terminal raw.
    #[track_caller]
    pub fn wait_until_raw(&self) {
        wait_until("the terminal is raw", || self.modes().are_raw());
    }

    pub fn type_in(&mut self, keys: &str) {
        // The queue of a terminal is short; these texts are shorter.
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until `text` has been shown; returns everything up to there and forgets it.
    #[track_caller]
    pub fn expect(&mut self, text: &str) -> String {
        let start = Instant::now();
        loop {
            if let Some(at) = self.shown.find(text) {
                let rest = self.shown.split_off(at + text.len());
                return mem::replace(&mut self.shown, rest);
            }
            assert!(start.elapsed() < LIMIT, "{text:?} is not in {:?}", self.shown);
            if !self.look() {
                thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// Everything that was shown and not yet expected.
    pub fn rest(&mut self) -> String {
        while self.look() {}
        mem::take(&mut self.shown)
    }

    fn look(&mut self) -> bool {
        let mut buffer = [0; 4096];
        // Nothing there, or nobody at the other end.
        let count = self.master.read(&mut buffer).unwrap_or(0);
        self.shown.push_str(&String::from_utf8_lossy(&buffer[..count]));
        count > 0
    }
}

fn termios(terminal: &File) -> libc::termios {
    // SAFETY: a structure of integers, for which all zeroes are a value; the kernel fills it in.
    unsafe {
        let mut modes = mem::zeroed();
        check(libc::tcgetattr(terminal.as_raw_fd(), &raw mut modes));
        modes
    }
}
