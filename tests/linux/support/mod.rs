//! What the tests share: the kernels, a first process of their own, booting both, and reading what was printed.
//!
//! There are two ways to a guest:
//! - [`Linux`] starts `lodger run` and boots: for tests of what happens during a boot, of the program's options and of how
//!   its process ends. That costs a second or several, by how much is booted and how the host runs guest kernels.
//! - [`Fixture`] is a guest that is at its shell already, in a machine of the library's in this process: for tests of
//!   anything else. Each kind was booted and saved by the first test that wanted it, and each test restores the snapshot
//!   into a machine of its own, in milliseconds, so that no test sees what another did. What a fixture's guest has is fixed:
//!   `bare` is nothing but a shell, `equipped` has one of each device. Another kind costs a boot for each build, which
//!   pays when several tests use it. The snapshots are kept (`cache.rs`) for the next run of the same executable.
//!   Where a process is needed, `Fixture::command` is `lodger restore` from the same snapshot.

mod attached;
mod cache;
pub mod e2fs;
mod files;
mod first;
mod fixture;
#[allow(dead_code, reason = "shared with the tests of the command, which need more of it")]
#[path = "../../cli/support/process.rs"]
mod process;
#[allow(dead_code, reason = "shared with the tests of the command, which need more of it")]
#[path = "../../cli/support/pty.rs"]
mod pty;
#[path = "../../cli/support/rounds.rs"]
mod rounds;
#[allow(dead_code, reason = "shared with the tests of the command, which need more of it")]
#[path = "../../cli/support/scratch.rs"]
mod scratch;
#[allow(dead_code, reason = "shared with the tests of the command, which need more of it")]
#[path = "../../cli/support/session.rs"]
mod session;
mod shell;

use std::env;
use std::ffi::OsString;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

pub use attached::Attached;
pub use files::{Files, smp, tiny};
pub use first::first_process;
pub use fixture::{DISK_SIZE, Fixture};
pub use process::{Finished, Running, lodger, program};
pub use pty::Screen;
pub use rounds::rounds;
pub use scratch::Scratch;
pub use session::Session;
pub use shell::{Answer, Shell, complaints};

/// After so long something that should have happened never will. A boot takes a second or two, but not where a test has
/// KVM interpret the kernel on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(400);

/// With this variable set, tests run that take more than some ten seconds on hosts without VT-x or AMD-V.
pub const SLOW_TESTS: &str = "LODGER_SLOW_TESTS";

/// What the tests' own first process prints first.
pub const USER_SPACE: &str = "tests: user space reached";

/// Waits until `condition` holds; `what` names it in the panic if it never does.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LIMIT, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// A system call's result, or a panic with its error.
#[track_caller]
pub fn check(result: i32) -> i32 {
    assert!(result >= 0, "{}", std::io::Error::last_os_error());
    result
}

/// Whether slow tests are wanted; otherwise says that `what` is left out.
pub fn slow_tests_wanted(what: &str) -> bool {
    let wanted = env::var_os(SLOW_TESTS).is_some_and(|value| !value.is_empty() && value != "0");
    if !wanted {
        println!("skipped: {what} takes long where kernels run in software; {SLOW_TESTS}=1 runs it");
    }
    wanted
}

/// A Linux guest that is about to be booted, by default a vmlinux with the tests' first process and 64 MiB.
pub struct Linux {
    files: &'static Files,
    kernel: String,
    memory: String,
    initrds: Vec<String>,
    parameters: String,
    options: Vec<String>,
    change: Option<fn(&mut Command)>,
}

impl Linux {
    pub fn new(files: &'static Files) -> Self {
        Self {
            files,
            kernel: files.path("vmlinux").to_owned(),
            memory: "64M".to_owned(),
            initrds: vec![first_process().to_owned()],
            parameters: String::new(),
            options: Vec::new(),
            change: None,
        }
    }

    /// Another image than the vmlinux.
    pub fn kernel(mut self, path: &str) -> Self {
        path.clone_into(&mut self.kernel);
        self
    }

    pub fn memory(mut self, size: &str) -> Self {
        size.clone_into(&mut self.memory);
        self
    }

    /// The programs of the test guest, in front of the tests' own.
    pub fn with_programs(mut self) -> Self {
        self.initrds.insert(0, self.files.path("initramfs").to_owned());
        self
    }

    /// More on the kernel's command line.
    pub fn parameters(mut self, parameters: &str) -> Self {
        self.parameters += parameters;
        self
    }

    /// More of lodger's options.
    pub fn options(mut self, options: &[&str]) -> Self {
        self.options.extend(options.iter().map(|&option| option.to_owned()));
        self
    }

    /// Has `change` do something to the command before it is started.
    pub fn changed(mut self, change: fn(&mut Command)) -> Self {
        self.change = Some(change);
        self
    }

    /// Boots it; its first process carries out `words`, which `guest.c` lists.
    #[track_caller]
    pub fn run(self, words: &str) -> Finished {
        self.start(words).finish()
    }

    /// The same, and does not wait for its end.
    #[track_caller]
    pub fn start(self, words: &str) -> Running {
        let line = format!("{} {} rdinit=/tests -- {words}", self.files.get("cmdline"), self.parameters);
        self.start_line(&line, Stdio::null())
    }

    /// Boots it into the test guest's own first process, which runs `script`. If that succeeds, the guest resets
    /// itself: without ACPI a guest that powers off only halts, and then another second goes by before anybody knows.
    #[track_caller]
    pub fn run_script(self, script: &str) -> Finished {
        // Until the first process has heard of the wish the script has to last.
        self.start_script(&format!("{{ {script}; }} && reboot && sleep 1000")).finish()
    }

    /// The same, and what happens when the script has ended is left to the first process.
    #[track_caller]
    pub fn run_only_script(self, script: &str) -> Finished {
        self.start_script(script).finish()
    }

    /// The same, and does not wait for its end.
    #[track_caller]
    pub fn start_script(mut self, script: &str) -> Running {
        self.initrds = vec![self.files.path("initramfs").to_owned()];
        self.start_with_script(script)
    }

    /// The same, with the first process and all else from the disk that the parameters name as root.
    #[track_caller]
    pub fn run_script_from_disk(mut self, script: &str) -> Finished {
        self.initrds.clear();
        self.start_with_script(script).finish()
    }

    #[track_caller]
    fn start_with_script(&self, script: &str) -> Running {
        let line = format!("{} {} lodger.run=\"{script}\"", self.files.get("cmdline"), self.parameters);
        self.start_line(&line, Stdio::null())
    }

    /// Boots it into a shell that is given `input` by a pipe.
    #[track_caller]
    pub fn run_shell(mut self, input: &str) -> Finished {
        self.initrds = vec![self.files.path("initramfs").to_owned()];
        let line = format!("{} {}", self.files.get("cmdline"), self.parameters);
        lodger(self.arguments(&line), input)
    }

    #[track_caller]
    fn start_line(&self, command_line: &str, stdin: Stdio) -> Running {
        let mut command = program();
        command.args(self.arguments(command_line)).stdin(stdin);
        if let Some(change) = self.change {
            change(&mut command);
        }
        Running::start(&mut command)
    }

    fn arguments(&self, command_line: &str) -> Vec<OsString> {
        let mut arguments = vec!["run", &self.kernel, "--memory", &self.memory, "--cmdline", command_line];
        arguments.extend(self.initrds.iter().flat_map(|path| ["--initrd", path]));
        arguments.extend(self.options.iter().map(String::as_str));
        arguments.into_iter().map(OsString::from).collect()
    }
}

/// What the first process printed as `name`: a file, or the kernel's log.
#[track_caller]
pub fn section<'a>(finished: &'a Finished, name: &str) -> &'a str {
    let start = format!("<{name}\r\n");
    let text = finished.stdout.split_once(&start).and_then(|(_, rest)| rest.split_once("\r\n>\r\n"));
    text.unwrap_or_else(|| panic!("there is no {name} in {finished:?}")).0
}

/// What a guest printed.
pub trait Output: std::fmt::Debug {
    fn output(&self) -> &str;
}

impl Output for Finished {
    fn output(&self) -> &str {
        &self.stdout
    }
}

/// Checks that `line` is one of the lines that the guest printed.
#[track_caller]
pub fn has_line(printed: &impl Output, line: &str) {
    let mut lines = printed.output().lines();
    assert!(lines.any(|other| other.trim_end() == line), "{line:?} is not in {printed:?}");
}

/// The instructions that this host's KVM cannot run, by doctor's names for them.
pub fn gaps() -> Vec<String> {
    let finished = lodger(["doctor", "--json"], "");
    let report: Value = serde_json::from_str(&finished.stdout).expect("doctor writes JSON");
    let rows = report["rows"].as_array().expect("doctor reports rows");
    let covered = rows.iter().filter(|row| row["verdict"] == "covered");
    covered.filter_map(|row| row["name"].as_str()).map(str::to_owned).collect()
}
