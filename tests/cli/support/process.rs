//! Starting the program and waiting for its end.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{fmt, fs};

use super::LIMIT;

/// The program, without arguments, with nothing inherited that would change what it does.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lodger"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).env_remove("RUST_LOG");
    // A shell without job control starts what is put in the background, perhaps these tests, with these two
    // ignored, and so does `nohup` with the third; the program respects that.
    let attend = || {
        for signal in [libc::SIGINT, libc::SIGQUIT, libc::SIGHUP] {
            // SAFETY: sets the default action.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        Ok(())
    };
    // SAFETY: the closure calls nothing but `signal`, which may be called between fork and exec.
    unsafe { command.pre_exec(attend) };
    command
}

/// Runs the program to its end, with everything of `input` on its standard input.
#[track_caller]
pub fn lodger(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>, input: &str) -> Finished {
    let mut running = Running::start(program().args(arguments).stdin(Stdio::piped()));
    let mut stdin = running.stdin();
    let input = input.to_owned();
    let feeder = thread::spawn(move || {
        // A program that has ended does not want the rest.
        let _ = stdin.write_all(input.as_bytes());
    });
    let finished = running.finish();
    feeder.join().unwrap();
    finished
}

/// The arguments that make the embedded guest carry out `commands` without telling about its machine first.
pub fn guest(commands: &str) -> [String; 2] {
    ["--cmdline".to_owned(), format!("quiet run={commands}")]
}

/// A started program, which does not outlive this value.
pub struct Running {
    child: Child,
    stdout: Option<JoinHandle<String>>,
    stderr: Option<JoinHandle<String>>,
}

impl From<Child> for Running {
    fn from(child: Child) -> Self {
        Self { child, stdout: None, stderr: None }
    }
}

impl Running {
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")).into()
    }

    pub fn id(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn stdin(&mut self) -> ChildStdin {
        self.child.stdin.take().expect("a pipe")
    }

    pub fn stdout(&mut self) -> ChildStdout {
        self.child.stdout.take().expect("a pipe")
    }

    pub fn stderr(&mut self) -> ChildStderr {
        self.child.stderr.take().expect("a pipe")
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: the child was not waited for, so its id is still its own.
        super::check(unsafe { libc::kill(self.id(), signal) });
    }

    /// Waits until it attends to signals itself; before that they end it by the kernel's hand.
    #[track_caller]
    pub fn wait_until_attentive(&self) {
        let path = format!("/proc/{}/status", self.id());
        super::wait_until("signals are attended to", || {
            let status = fs::read_to_string(&path).unwrap();
            let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap();
            let blocked = u64::from_str_radix(blocked.trim(), 16).unwrap();
            let has = |signal: i32| blocked & (1 << (signal - 1)) != 0;
            // All are blocked for a moment while threads are started.
            has(libc::SIGTERM) && !has(libc::SIGURG)
        });
    }

    /// How it ended, if it has.
    pub fn poll(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for its end; past the limit it is killed and the test fails.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        self.wait_within_limit().expect("the process should have ended")
    }

    /// Waits for its end, reading whatever of its output is a pipe and was not taken.
    #[track_caller]
    pub fn finish(mut self) -> Finished {
        self.stdout = self.child.stdout.take().map(collect);
        self.stderr = self.child.stderr.take().map(collect);
        let in_time = self.wait_within_limit();
        let status = in_time.unwrap_or_else(|| {
            self.signal(libc::SIGKILL);
            self.child.wait().unwrap()
        });
        let text =
            |reader: Option<JoinHandle<String>>| reader.map_or_else(String::new, |r| r.join().unwrap());
        let finished =
            Finished { status, stdout: text(self.stdout.take()), stderr: text(self.stderr.take()) };
        assert!(in_time.is_some(), "the process hangs, so it was killed: {finished:?}");
        finished
    }

    fn wait_within_limit(&mut self) -> Option<ExitStatus> {
        let start = Instant::now();
        while start.elapsed() < LIMIT {
            if let Some(status) = self.poll() {
                return Some(status);
            }
            thread::sleep(Duration::from_millis(1));
        }
        None
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both do nothing if it has been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn collect(mut pipe: impl Read + Send + 'static) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).unwrap();
        String::from_utf8(bytes).unwrap()
    })
}

/// What is left of the program after its end.
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl fmt::Debug for Finished {
    /// Line by line, because a guest may have printed many.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.status)?;
        for (name, text) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            text.lines().try_for_each(|line| writeln!(f, "  {name}: {}", line.escape_debug()))?;
        }
        Ok(())
    }
}

impl Finished {
    /// Checks the exit status.
    #[track_caller]
    pub fn with(self, status: i32) -> Self {
        assert_eq!(self.status.code(), Some(status), "{self:#?}");
        self
    }

    /// Checks that nothing was said beside the guest's output.
    #[track_caller]
    pub fn silent(self) -> Self {
        assert_eq!(self.stderr, "");
        self
    }

    /// Checks that it failed with one line that holds all of `words`, before any guest ran.
    #[track_caller]
    pub fn refused(self, words: &[&str]) {
        let this = self.with(1);
        assert_eq!(this.stdout, "");
        assert!(this.stderr.starts_with("lodger: ") && this.stderr.ends_with('\n'), "{this:#?}");
        assert_eq!(this.stderr.lines().count(), 1, "{this:#?}");
        for word in words {
            assert!(this.stderr.contains(word), "{word:?} is not in {this:#?}");
        }
    }

    /// The lines of the guest's output.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.stdout.split("\r\n")
    }
}

/// An exit status as a shell shows it.
pub fn ended(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap())
}
