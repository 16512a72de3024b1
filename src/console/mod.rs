//! What moves the bytes of a guest's console and of its ports between their devices and the world.
//!
//! [`Console::open`] connects a console as its [`Spec`] says. The device pushes what the guest prints into the
//! [`Output`]; whoever runs the machine's event loop polls [`Console::input`] and hands what [`Console::read_input`]
//! returns to the device. A [`Line`] does both for a port by itself, and an [`Audience`] hears what is printed besides.
//! `vm/`, the control socket and the command line rely on this room; it knows neither devices nor machines.

mod audience;
mod file;
mod keys;
mod line;
mod log;
mod output;
mod pty;
mod sink;
mod socket;
mod spec;
mod terminal;
mod writer;

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use audience::{Audience, LISTENER_BOUND, Listener, Shown};
use keys::Keys;
pub use line::{GuestEnd, Line, LineError, Place};
pub use log::{LOG, LOG_BOUND, OLDER_LOG, Reader as LogReader, shorten as shorten_log};
use output::Timing;
pub use output::{Counters, HARD_BOUND, Output, SOFT_BOUND};
use pty::Pty;
use sink::{Handle, Sink};
pub(crate) use socket::Socket;
pub use spec::{Spec, SpecError};
use terminal::Terminal;
pub use terminal::{catch_fatal_signals, install_panic_hook, restore_terminal, terminal_is_raw};

/// Nobody may be attached to a pseudo-terminal, which is no reason to hold the guest up for long.
const PTY_PATIENCE: Duration = Duration::from_millis(100);

/// Why a console could not be opened, or not be used to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file for the output cannot be written.
    #[error("cannot write the console to {}: {}", path.display(), explain(path, source))]
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// There is no pseudo-terminal to be had.
    #[error(
        "cannot make a pseudo-terminal for the console: {source}; is /dev/pts mounted, and are some left?"
    )]
    Pty {
        /// What the operating system said.
        source: io::Error,
    },
    /// The terminal cannot be made raw.
    #[error(
        "cannot use the terminal on standard input as console: {source}; try --console none or file=PATH"
    )]
    Terminal {
        /// What the operating system said.
        source: io::Error,
    },
    /// Two consoles, one terminal.
    #[error("the terminal on standard input is already the console of another machine in this process")]
    TerminalInUse,
    /// The reader was stuck, and the guest was not to wait for it for ever.
    #[error("console output is incomplete, {dropped} bytes are lost: its reader took nothing for too long")]
    Unread {
        /// How much is missing.
        dropped: u64,
    },
    /// Output ended before its time.
    #[error("console output ended early, {dropped} bytes are lost: {source}")]
    Output {
        /// How much is missing.
        dropped: u64,
        /// What the operating system said.
        source: io::Error,
    },
}

fn explain(path: &Path, error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EISDIR) => "it is a directory, a file is needed".to_owned(),
        Some(libc::ENOENT) => match path.parent() {
            Some(parent) if parent != Path::new("") && !parent.exists() => {
                format!("the directory {} does not exist", parent.display())
            }
            _ => error.to_string(),
        },
        Some(libc::ENXIO) => "nobody reads this pipe or device; start the reader first".to_owned(),
        _ => error.to_string(),
    }
}

/// What [`Console::read_input`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// So many bytes for the guest, at the front of the buffer.
    Bytes(usize),
    /// The user wants to leave (Ctrl-A x).
    Leave,
    /// There will be no more input. The guest may run on.
    End,
    /// Nothing for the guest now.
    Nothing,
}

/// A connected console.
pub struct Console {
    output: Arc<Output>,
    source: Source,
}

enum Source {
    None,
    File {
        file: File,
        path: PathBuf,
    },
    /// Input comes by other ways, if at all.
    Elsewhere,
    Standard(Standard),
    Pty(Pty),
}

/// Standard input, or what takes its place in a test.
struct Standard {
    /// Before the handle, which has to be open when the terminal is restored.
    terminal: Option<Interactive>,
    handle: Handle,
    ended: bool,
}

/// What is different when a person types.
struct Interactive {
    terminal: Terminal,
    keys: Keys,
    /// In the background nothing is read.
    listening: bool,
    leaving: bool,
    help: &'static str,
}

impl Console {
    /// Connects a console and takes the terminal, if it is on one.
    pub fn open(spec: &Spec) -> Result<Self, Error> {
        let mut console = Self::connect(spec)?;
        console.empty_file()?;
        console.take_terminal()?;
        Ok(console)
    }

    /// Connects a console, and leaves the terminal as it is until [`take_terminal`](Self::take_terminal), and a file
    /// until [`empty_file`](Self::empty_file).
    pub fn connect(spec: &Spec) -> Result<Self, Error> {
        match spec {
            Spec::None => Ok(Self { output: Arc::new(Output::discard()), source: Source::None }),
            Spec::File(path) => Self::open_file(path),
            Spec::Pty => Self::open_pty(Timing { patience: PTY_PATIENCE, ..Timing::default() }),
            Spec::Stdio => {
                // SAFETY: both are open for the life of the process: Rust's runtime opens them if the parent
                // did not, and nothing closes them.
                let (input, output) = unsafe {
                    (BorrowedFd::borrow_raw(libc::STDIN_FILENO), BorrowedFd::borrow_raw(libc::STDOUT_FILENO))
                };
                Ok(Self::on(Handle::Inherited(input), Handle::Inherited(output)))
            }
        }
    }

    /// This process's standard input and output, for a guest that another process runs: leaving does not end it.
    pub fn attached() -> Result<Self, Error> {
        let mut console = Self::connect(&Spec::Stdio)?;
        if let Source::Standard(Standard { terminal: Some(interactive), .. }) = &mut console.source {
            interactive.help = keys::HELP_ATTACHED;
        }
        console.take_terminal()?;
        Ok(console)
    }

    /// A console whose output goes to a log, in the directory that [`begin_log`](Self::begin_log) names before there is
    /// any. Input comes from those who attach themselves.
    pub fn log() -> Result<Self, Error> {
        let nowhere = OpenOptions::new().write(true).open("/dev/null");
        let nowhere = nowhere.map_err(|source| Error::File { path: "/dev/null".into(), source })?;
        let sink = Sink::new(Handle::Owned(nowhere.into()));
        Ok(Self { output: Arc::new(Output::new(sink, Timing::default())), source: Source::Elsewhere })
    }

    /// Begins the log in `directory`.
    pub fn begin_log(&self, directory: &Path) -> Result<(), Error> {
        let begun = self.output.begin_log(directory);
        begun.map_err(|source| Error::File { path: directory.join(LOG), source })
    }

    fn open_file(path: &Path) -> Result<Self, Error> {
        let open = || {
            let file = file::open(path)?;
            let sink = Sink::new(Handle::Owned(file.try_clone()?.into()));
            Ok((file, sink))
        };
        let (file, sink) = open().map_err(|source| Error::File { path: path.to_owned(), source })?;
        let source = Source::File { file, path: path.to_owned() };
        Ok(Self { output: Arc::new(Output::new(sink, Timing::default())), source })
    }

    /// Empties the file that the console goes to, unless it is an image that somebody uses: to be called when the
    /// machine has its disks, and before it runs.
    pub fn empty_file(&self) -> Result<(), Error> {
        let Source::File { file, path } = &self.source else { return Ok(()) };
        file::empty(file).map_err(|source| Error::File { path: path.clone(), source })
    }

    fn open_pty(timing: Timing) -> Result<Self, Error> {
        let open = || {
            let pty = Pty::open()?;
            let sink = Sink::new(Handle::Owned(pty.master.try_clone()?));
            Ok((pty, sink))
        };
        let (pty, sink) = open().map_err(|source| Error::Pty { source })?;
        Ok(Self { output: Arc::new(Output::new(sink, timing)), source: Source::Pty(pty) })
    }

    fn on(input: Handle, output: Handle) -> Self {
        let terminal = Terminal::behind(input.as_fd().as_raw_fd()).map(|terminal| Interactive {
            terminal,
            keys: Keys::default(),
            listening: false,
            leaving: false,
            help: keys::HELP,
        });
        let output = Arc::new(Output::new(Sink::new(output), Timing::default()));
        let source = Source::Standard(Standard { terminal, handle: input, ended: false });
        Self { output, source }
    }

    /// Makes the terminal raw, if input comes from one and this process is in its foreground.
    pub fn take_terminal(&mut self) -> Result<(), Error> {
        self.resume_terminal().map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => Error::TerminalInUse,
            _ => Error::Terminal { source },
        })
    }

    /// Where the guest's output goes.
    pub fn output(&self) -> Arc<Output> {
        Arc::clone(&self.output)
    }

    /// What to attach a terminal program to, if the console is a pseudo-terminal.
    pub fn pty_path(&self) -> Option<&Path> {
        match &self.source {
            Source::Pty(pty) => Some(&pty.path),
            _ => None,
        }
    }

    /// Whether a person types at the other end: input then is to be read on even if the guest does not take
    /// it, or nobody could leave a guest that hangs.
    pub fn is_interactive(&self) -> bool {
        matches!(&self.source, Source::Standard(Standard { terminal: Some(_), .. }))
    }

    /// How many columns and rows the terminal has, if input comes from one.
    pub fn terminal_size(&self) -> Option<(u16, u16)> {
        match &self.source {
            Source::Standard(Standard { terminal: Some(interactive), .. }) => interactive.terminal.size(),
            _ => None,
        }
    }

    /// What to `poll` for input (not with `epoll`, which refuses files and `/dev/null`); ask again after each
    /// [`read_input`](Self::read_input) and [`resume_terminal`](Self::resume_terminal). Nothing if there is no
    /// input, none any more, or none while this process is in the background.
    pub fn input(&self) -> Option<BorrowedFd<'_>> {
        match &self.source {
            Source::Pty(pty) => Some(pty.master.as_fd()),
            Source::Standard(standard) if standard.is_open() => Some(standard.handle.as_fd()),
            _ => None,
        }
    }

    /// Reads what has come, without waiting. Call it until it returns something else than bytes: on a terminal
    /// what follows them may be [`Input::Leave`].
    ///
    /// On a terminal Ctrl-A is for this program: `x` leaves, `h` shows help, Ctrl-A sends one Ctrl-A; any other
    /// key is swallowed and answered with a hint. Pipes, files and pseudo-terminals are passed as they are.
    pub fn read_input(&mut self, buffer: &mut [u8]) -> io::Result<Input> {
        match &mut self.source {
            Source::None | Source::File { .. } => Ok(Input::End),
            Source::Elsewhere => Ok(Input::Nothing),
            // Our own slave keeps the terminal open, so its end is never seen.
            Source::Pty(pty) => read_ready(pty.master.as_fd(), buffer),
            Source::Standard(standard) => standard.read(buffer, &self.output),
        }
    }

    /// To be called after `SIGCONT`: makes the terminal raw again if this process is in the foreground now,
    /// and stops listening to it if not.
    pub fn resume_terminal(&mut self) -> io::Result<()> {
        match &mut self.source {
            Source::Standard(Standard { terminal: Some(terminal), ended: false, .. }) => {
                terminal.take_if_ours()
            }
            _ => Ok(()),
        }
    }

    /// Writes what is left of the output, gives the terminal back and says whether output was complete.
    pub fn close(self) -> Result<(), Error> {
        let output = self.output();
        // What nobody was attached to see is nobody's loss.
        let may_drop = matches!(self.source, Source::Pty(_));
        drop(self);
        let dropped = output.counters().bytes_dropped;
        match output.failure() {
            Some(source) => Err(Error::Output { dropped, source }),
            None if dropped > 0 && !may_drop => Err(Error::Unread { dropped }),
            None => Ok(()),
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.output.finish();
    }
}

impl Interactive {
    fn take_if_ours(&mut self) -> io::Result<()> {
        self.listening = self.terminal.is_ours();
        if self.listening { self.terminal.make_raw() } else { Ok(()) }
    }
}

impl Standard {
    fn is_open(&self) -> bool {
        !self.ended && self.terminal.as_ref().is_none_or(|terminal| terminal.listening)
    }

    fn read(&mut self, buffer: &mut [u8], output: &Output) -> io::Result<Input> {
        if self.ended {
            return Ok(Input::End);
        }
        let Some(terminal) = &mut self.terminal else {
            let result = read_ready(self.handle.as_fd(), buffer);
            self.ended = matches!(result, Ok(Input::End) | Err(_));
            return result;
        };
        if terminal.leaving {
            return Ok(Input::Leave);
        }
        terminal.listening &= terminal.terminal.is_ours();
        if !terminal.listening {
            return Ok(Input::Nothing);
        }
        let count = match read_ready(self.handle.as_fd(), buffer) {
            Ok(Input::Bytes(count)) => count,
            other => {
                self.ended = matches!(other, Ok(Input::End) | Err(_));
                return other;
            }
        };
        let found = terminal.keys.sift(&mut buffer[..count]);
        if found.help {
            tell(output, terminal.help);
        } else if found.unknown {
            tell(output, keys::HINT);
        }
        terminal.leaving = found.leave;
        Ok(match (found.kept, found.leave) {
            (0, true) => Input::Leave,
            (0, false) => Input::Nothing,
            (kept, _) => Input::Bytes(kept),
        })
    }
}

/// Shows the user something: within the output if that is on a terminal, else on standard error.
fn tell(output: &Output, text: &str) {
    if output.is_terminal() {
        output.notify(text);
    } else {
        // Who has closed standard error does not want to know.
        let _ = io::stderr().write_all(text.as_bytes());
    }
}

/// Reads from a descriptor of any kind and mode if there is something to read.
fn read_ready(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Input> {
    if buffer.is_empty() {
        return Ok(Input::Nothing);
    }
    let ready = sink::poll(&mut [sink::poll_entry(&fd, libc::POLLIN)], 0);
    match ready.and_then(|ready| if ready == 0 { Ok(None) } else { sink::read(fd, buffer).map(Some) }) {
        Ok(None) => Ok(Input::Nothing),
        Ok(Some(0)) => Ok(Input::End),
        Ok(Some(count)) => Ok(Input::Bytes(count)),
        Err(error) => match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EINTR) => Ok(Input::Nothing),
            // The terminal has hung up.
            Some(libc::EIO) => Ok(Input::End),
            _ => Err(error),
        },
    }
}

#[cfg(test)]
#[path = "console_test.rs"]
mod tests;
