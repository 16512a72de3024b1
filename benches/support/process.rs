//! Whole processes: lodger itself, a bare loop in a process of its own, and whatever peers are named.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, mem};

/// Tells this program, started once more, to be the bare loop around the guest in the file it names.
pub const BARE: &str = "LODGER_BENCH_BARE";
/// Further commands to compare with, separated by `;`. Each has to boot something that prints at once.
const PEERS: &str = "LODGER_BENCH_PEERS";

/// Has `lodger` do something before anything is measured.
pub fn lodger(arguments: &[&str]) {
    let status = Command::new(env!("CARGO_BIN_EXE_lodger")).args(arguments).stdout(Stdio::null()).status();
    assert!(status.is_ok_and(|status| status.success()), "lodger {}", arguments.join(" "));
}

/// Who is measured.
#[derive(Debug, Clone)]
pub struct Contender {
    /// What the table calls it.
    pub name: String,
    line: Vec<String>,
    bare: Option<String>,
}

impl Contender {
    /// `lodger` with these arguments.
    pub fn lodger(name: &str, arguments: &[&str]) -> Self {
        let line = [env!("CARGO_BIN_EXE_lodger")].iter().chain(arguments).map(|&word| word.to_owned());
        Self { name: name.to_owned(), line: line.collect(), bare: None }
    }

    /// The bare loop with the guest in this file.
    pub fn bare(name: &str, guest: &str) -> Self {
        let this = env::current_exe().expect("this program has a path");
        let line = vec![this.to_string_lossy().into_owned()];
        Self { name: name.to_owned(), line, bare: Some(guest.to_owned()) }
    }

    /// Those named in the environment.
    pub fn peers() -> Vec<Self> {
        let lines = env::var(PEERS).unwrap_or_default();
        let lines = lines.split(';').map(str::trim).filter(|line| !line.is_empty());
        lines
            .map(|line| {
                let line: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
                let name = line[0].rsplit('/').next().unwrap_or_default().to_owned();
                Self { name, line, bare: None }
            })
            .collect()
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.line[0]);
        command.args(&self.line[1..]).stdin(Stdio::null()).stderr(Stdio::null());
        if let Some(guest) = &self.bare {
            command.env(BARE, guest);
        }
        command
    }

    /// From before the process is started to its first byte of output. Some peers insist on a terminal, so all
    /// get one.
    pub fn time_to_first_byte(&self) -> (Duration, u64) {
        let (mut ours, theirs) = pseudo_terminal();
        let mut command = self.command();
        command.stdin(theirs.try_clone().unwrap()).stdout(theirs);
        let start = Instant::now();
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {}: {error}", self.name));
        // The command holds our copies of the terminal's other end; without them the end of the child is seen.
        drop(command);
        let mut byte = [0];
        ours.read_exact(&mut byte).unwrap_or_else(|error| panic!("{} printed nothing: {error}", self.name));
        let duration = start.elapsed();
        let peak = status_kib(&child, "VmHWM:");
        end(&mut child);
        (duration, peak)
    }

    /// Processor time of a whole run whose output goes to `output`, and how many bytes came if that is a pipe.
    pub fn processor_time(&self, output: &str) -> (Duration, usize) {
        let mut command = self.command();
        match output {
            "pipe" => command.stdout(Stdio::piped()),
            path => command.stdout(fs::File::create(path).unwrap()),
        };
        let mut child = command.spawn().unwrap();
        let mut bytes = Vec::new();
        if let Some(mut pipe) = child.stdout.take() {
            pipe.read_to_end(&mut bytes).unwrap();
        }
        (wait_with_usage(child), bytes.len())
    }
}

fn pseudo_terminal() -> (fs::File, fs::File) {
    use std::os::fd::FromRawFd;
    let (mut ours, mut theirs) = (0, 0);
    // SAFETY: the descriptors are fresh and owned by nobody else; the other arguments may be null.
    unsafe {
        let null = std::ptr::null_mut();
        assert_eq!(libc::openpty(&raw mut ours, &raw mut theirs, null, null.cast(), null.cast()), 0);
        let mut raw: libc::termios = mem::zeroed();
        libc::tcgetattr(theirs, &raw mut raw);
        libc::cfmakeraw(&raw mut raw);
        libc::tcsetattr(theirs, libc::TCSANOW, &raw const raw);
        for fd in [ours, theirs] {
            libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
        }
        (fs::File::from_raw_fd(ours), fs::File::from_raw_fd(theirs))
    }
}

fn end(child: &mut Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

/// A figure from the process's status, in KiB.
pub fn status_kib(child: &Child, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok()).unwrap_or(0)
}

fn wait_with_usage(child: Child) -> Duration {
    // SAFETY: the child has not been waited for; the kernel fills in what it is given.
    let usage = unsafe {
        let mut usage: libc::rusage = mem::zeroed();
        let mut status = 0;
        assert_eq!(libc::wait4(child.id() as i32, &raw mut status, 0, &raw mut usage), child.id() as i32);
        usage
    };
    let time = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000);
    time(usage.ru_utime) + time(usage.ru_stime)
}

/// Resident memory of a `lodger run` that waits at the embedded guest's prompt, in KiB: all of it, and what is
/// not the guest's.
pub fn resident_memory(guest_mib: u64) -> (u64, u64) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_lodger"))
        .args(["run", "--memory", &format!("{guest_mib}M")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = child.stdout.take().unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"lodger> ") {
        let mut byte = [0];
        output.read_exact(&mut byte).unwrap();
        seen.push(byte[0]);
    }
    let maps = fs::read_to_string(format!("/proc/{}/smaps", child.id())).unwrap();
    end(&mut child);
    let mut is_guest = false;
    let (mut all, mut ours) = (0, 0);
    for line in maps.lines() {
        let number = |line: &str| line.trim().trim_end_matches(" kB").parse::<u64>().unwrap();
        if let Some(size) = line.strip_prefix("Size:") {
            is_guest = number(size) >= guest_mib << 10;
        } else if let Some(resident) = line.strip_prefix("Rss:") {
            all += number(resident);
            ours += if is_guest { 0 } else { number(resident) };
        }
    }
    (all, ours)
}
