//! Machines without a terminal, and the directory in which they are found.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::process::guest;
use super::{Finished, Running, Scratch, program, wait_until};

/// Whether a process has ended. Until somebody asks for its status there is something left of it.
pub fn is_gone(process: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
}

/// Somebody's session, in which machines run without a terminal. They end with it.
pub struct Session {
    scratch: Scratch,
}

impl Session {
    pub fn new() -> Self {
        let scratch = Scratch::new();
        fs::set_permissions(scratch.path(), PermissionsExt::from_mode(0o700)).unwrap();
        Self { scratch }
    }

    /// Where its files are.
    pub fn path(&self) -> &Path {
        self.scratch.path()
    }

    /// The path of a file in it.
    pub fn at(&self, name: &str) -> String {
        self.scratch.at(name)
    }

    /// Ends a machine's process as a crash of the host does.
    #[track_caller]
    pub fn kill_process(&self, name: &str) {
        let process = self.pid(name);
        // SAFETY: a process of this session.
        assert_eq!(unsafe { libc::kill(process, libc::SIGKILL) }, 0);
        wait_until("it is dead", || {
            self.states().iter().all(|(other, state)| other != name || state == "dead")
        });
        // Until then it holds its directory, and others that start do not clear that away.
        wait_until("it is gone", || is_gone(process));
    }

    pub fn command(&self, line: &[&str]) -> Command {
        let mut command = program();
        command.args(line).env("XDG_RUNTIME_DIR", self.scratch.path()).env_remove("TMPDIR");
        command
    }

    #[track_caller]
    pub fn run(&self, line: &[&str]) -> Finished {
        Running::start(&mut self.command(line)).finish()
    }

    /// Starts a guest that carries out `commands` and then waits for more.
    #[track_caller]
    pub fn detach(&self, name: &str, commands: &str) {
        let mut command = self.command(&["run", "--detach", "--memory=64M", "--name", name]);
        let finished = Running::start(command.args(guest(commands))).finish().with(0).silent();
        assert_eq!(finished.stdout, format!("{name}\n"));
    }

    #[track_caller]
    pub fn json(&self, line: &[&str]) -> Value {
        let finished = self.run(&[line, &["--json"]].concat()).with(0).silent();
        serde_json::from_str(&finished.stdout).unwrap()
    }

    /// Each machine's name and state.
    #[track_caller]
    pub fn states(&self) -> Vec<(String, String)> {
        let rows = self.json(&["ps"]);
        let text = |row: &Value, field: &str| row[field].as_str().unwrap().to_owned();
        rows.as_array().unwrap().iter().map(|row| (text(row, "name"), text(row, "state"))).collect()
    }

    #[track_caller]
    pub fn state(&self, name: &str) -> String {
        let states = self.states();
        states.into_iter().find(|(other, _)| other == name).unwrap_or_else(|| panic!("there is no {name}")).1
    }

    pub fn pid(&self, name: &str) -> i32 {
        fs::read_to_string(self.directory(name).join("pid")).unwrap().trim().parse().unwrap()
    }

    pub fn directory(&self, name: &str) -> PathBuf {
        self.scratch.path().join("lodger").join(name)
    }

    pub fn socket(&self, name: &str) -> UnixStream {
        UnixStream::connect(self.directory(name).join("control.sock")).unwrap()
    }

    #[track_caller]
    pub fn wait_for_log(&self, name: &str, text: &str) {
        wait_until(text, || self.run(&["logs", name]).stdout.contains(text));
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let Ok(entries) = fs::read_dir(self.scratch.path().join("lodger")) else { return };
        for pid in entries.flatten().filter_map(|entry| fs::read_to_string(entry.path().join("pid")).ok()) {
            if let Ok(pid) = pid.trim().parse::<i32>() {
                // SAFETY: a process of this session. At worst it has ended a moment ago.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
        }
    }
}
