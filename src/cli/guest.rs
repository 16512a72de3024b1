//! A guest of this process, from the last word of its command line to its end, be it booted or restored.

use std::sync::Arc;
use std::time::SystemTime;

use clap::Args;
use lodger::boot::Symbols;
use lodger::console::{self, Audience, Console, Output, Shown, Spec};
use lodger::control::{Served, Server};
use lodger::hv::Vm;
use lodger::hv::kvm::{Kvm, KvmVm};
use lodger::vm::description::Description;
use lodger::vm::driver::{Driver, DriverThread, Handle, Origin, Request};
use lodger::vm::inspect::RestoredFrom;
use lodger::vm::{Config, Ended, Machine, Outcome, Timeline};

use super::AnyError;
use super::attend::{attend, tell_size, wait_for_reader};
use super::detach::{Detaching, Side, detach};
use super::keyboard::Keyboard;
use super::profile::{Names, ProfileArgs, Profiled, Profiling};
use super::say::say;
use super::signals::Signals;
use super::stats;

/// The exit status when lodger could not do what was asked.
const FAILED: u8 = 1;

/// What is shown of a guest besides its console.
#[derive(Args)]
pub struct ShownArgs {
    /// Print how long each phase of the start took, to standard error
    #[arg(long, conflicts_with = "detach")]
    timing: bool,

    /// Print what the guest did (exits by kind, what was completed, accesses nobody answered), to standard error
    #[arg(long, conflicts_with = "detach")]
    stats: bool,

    #[command(flatten)]
    profile: ProfileArgs,
}

/// A guest that somebody wants.
pub struct Guest<'a> {
    /// What it is.
    pub description: Description,
    /// The snapshot with which it begins, if it does.
    pub restored_from: Option<RestoredFrom>,
    /// Whether it is left without a terminal.
    pub detach: bool,
    /// Whether it stands still until somebody resumes it.
    pub paused: bool,
    /// What is shown of it.
    pub shown: &'a ShownArgs,
}

/// Where its console is.
struct Stage {
    console: Console,
    output: Arc<Output>,
    audience: Arc<Audience>,
    has_log: bool,
}

impl Stage {
    fn set(guest: &Guest<'_>, is_detached: bool) -> Result<Self, AnyError> {
        let Description { config, console: place } = &guest.description;
        let file = match place {
            Spec::File(path) => Some(path.as_path()),
            _ => None,
        };
        config.check_outputs(file)?;
        let has_log = is_detached && *place == Spec::Stdio;
        let console = if has_log { Console::log()? } else { Console::connect(place)? };
        let output = console.output();
        Ok(Self { console, output, audience: Arc::default(), has_log })
    }

    fn shown(&self) -> Arc<Shown> {
        let (output, audience) = (Arc::clone(&self.output), Arc::clone(&self.audience));
        Arc::new(Shown { output, audience })
    }

    /// Says where what is new is to be found.
    fn tell_places<V: Vm>(&self, machine: &Machine<V>) {
        if let Some(path) = self.console.pty_path() {
            say!("lodger: the console is on {}", path.display());
        }
        for (line, path) in machine.lines().iter().filter_map(|line| Some((line, line.pty_path()?))) {
            say!("lodger: the port {} is on {}", line.name(), path.display());
        }
    }

    /// To be called when the guest is about to run. Until then the terminal is the user's.
    fn take<V: Vm>(&mut self, machine: &Machine<V>) -> Result<(), AnyError> {
        self.console.take_terminal()?;
        if self.has_log {
            self.console.begin_log(machine.make_directory()?)?;
        }
        Ok(())
    }
}

/// Builds the guest's machine with `build` and attends it to its end; returns the process's exit status.
pub fn host(
    guest: &Guest<'_>,
    mut timeline: Timeline,
    build: impl FnOnce(&Kvm, &Config, Arc<Shown>, &mut Timeline) -> Result<Machine<KvmVm>, AnyError>,
) -> Result<u8, AnyError> {
    let detaching = match guest.detach.then(detach).transpose()? {
        Some(Side::Typed(status)) => return Ok(status),
        Some(Side::Guest(detaching)) => Some(detaching),
        None => None,
    };
    timeline.mark("command line read");
    console::install_panic_hook();
    console::catch_fatal_signals();
    let kvm = Arc::new(Kvm::open()?);
    timeline.mark("KVM opened and probed");
    let mut stage = Stage::set(guest, detaching.is_some())?;
    let config = &guest.description.config;
    let names = Names::new(&guest.shown.profile, config)?;
    let machine = build(&kvm, config, stage.shown(), &mut timeline)?;
    stage.console.empty_file()?;
    let mut driver = Driver::new(machine)?;
    let handle = driver.handle();
    let machine = handle.machine();
    stage.tell_places(machine);
    tell_size(machine, &stage.console);
    let profiling = Profiling::start(&guest.shown.profile, machine)?;
    // Building may take long (memory to be filled in). Until here signals end the process as they end any other.
    let signals = Signals::block()?;
    stage.take(machine)?;
    if guest.paused {
        driver.hold()?
    } else {
        driver.start()?
    };
    stage.output.start();
    let driver = driver.spawn()?;
    let is_detached = detaching.is_some();
    let server = serve(guest, &handle, &kvm, &stage, detaching)?;
    let running = Running { shown: guest.shown, handle: handle.clone(), stage, server, profiling, names };
    let status = running.attend(driver, &signals, timeline);
    if is_detached { Ok(leave_record(&handle, status)) } else { status }
}

/// A guest that runs, and what belongs to it.
struct Running<'a> {
    shown: &'a ShownArgs,
    handle: Handle<KvmVm>,
    stage: Stage,
    server: Server,
    profiling: Option<Profiling>,
    names: Names,
}

impl Running<'_> {
    /// Attends it to its end; returns the process's exit status.
    fn attend(
        self,
        mut driver: DriverThread<KvmVm>,
        signals: &Signals,
        mut timeline: Timeline,
    ) -> Result<u8, AnyError> {
        let Self { shown, handle, mut stage, mut server, profiling, names } = self;
        let machine = handle.machine();
        let attended = attend(&handle, Keyboard::of(machine), &mut stage.console, signals);
        // If it could not be attended, it has not stopped yet.
        handle.post(Request::Kill, Origin::Owner);
        driver.join();
        let end = attended.map(|()| handle.ended_by());
        let profiled = profiling.map(Profiling::finish);
        if matches!(end, Ok(Some(Origin::Guest))) && stage.console.pty_path().is_none() {
            wait_for_reader(&stage.output, signals)?;
        }
        let on_terminal = stage.console.is_interactive();
        let complete = stage.console.close();
        // Not before all of the output is in the log.
        server.close();
        if let Some(moment) = stage.output.first_byte_at() {
            timeline.mark_at("first byte of output", moment);
        }
        show(shown, &timeline, machine);
        if on_terminal && matches!(end, Ok(Some(Origin::Terminal))) {
            // The shell's prompt shall not follow on the guest's line.
            say!("");
        }
        let is_fatal = matches!(machine.outcome(), Some(Outcome::Fatal(_)));
        let symbols = (profiled.is_some() || is_fatal).then(|| names.look_up()).flatten();
        let status =
            end.map_err(AnyError::from).and_then(|end| conclude(&handle, end, complete, symbols.as_ref()));
        with_profile(status, profiled, symbols.as_ref())
    }
}

/// Says in the machine's directory how it ended, for those who were not there; returns the exit status. What went wrong
/// besides is said here, as long as the file with the messages is there.
fn leave_record(handle: &Handle<KvmVm>, status: Result<u8, AnyError>) -> u8 {
    let machine = handle.machine();
    let reason = handle.ending().map_or_else(String::new, |ending| ending.reason);
    let (status, reason) = match status {
        Ok(status) => (status, reason),
        Err(error) => {
            say!("lodger: {error}");
            (FAILED, error.to_string())
        }
    };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    machine.leave_record(Ended {
        unix_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
        status,
        reason,
        uptime: handle.age().map(|age| age.as_secs_f64()),
        cpus: machine.vcpus().len(),
        memory: machine.memory().layout().size(),
    });
    status
}

/// Has others reach the guest. Who typed a command that detaches waits for that.
fn serve(
    guest: &Guest<'_>,
    handle: &Handle<KvmVm>,
    kvm: &Arc<Kvm>,
    stage: &Stage,
    detaching: Option<Detaching>,
) -> Result<Server, AnyError> {
    let mut description = guest.description.clone();
    description.make_absolute()?;
    let served = Served {
        handle: handle.clone(),
        hypervisor: Arc::clone(kvm),
        audience: Arc::clone(&stage.audience),
        description,
        restored_from: guest.restored_from.clone(),
        has_log: stage.has_log,
    };
    let Some(detaching) = detaching else { return Ok(Server::start_later(served)?) };
    let server = Server::start(served)?;
    let machine = handle.machine();
    let name = machine.name().map(ToString::to_string).unwrap_or_default();
    detaching.finish(&name, machine.make_directory()?)?;
    Ok(server)
}

fn show<V: Vm>(shown: &ShownArgs, timeline: &Timeline, machine: &Machine<V>) {
    if shown.timing {
        stats::print_timing(timeline);
    }
    if shown.stats {
        stats::print_stats(machine);
    }
}

/// Writes the profile, if there is one. The guest's own failure is the more important one.
fn with_profile(
    status: Result<u8, AnyError>,
    profiled: Option<Profiled>,
    symbols: Option<&Symbols>,
) -> Result<u8, AnyError> {
    match (status, profiled.map(|profiled| profiled.write(symbols))) {
        (Ok(0), Some(Err(error))) => Err(error),
        (status, Some(Err(error))) => {
            say!("lodger: {error}");
            status
        }
        (status, _) => status,
    }
}

/// Says what is worth saying about the end, and finds the exit status.
fn conclude<V: Vm>(
    handle: &Handle<V>,
    end: Option<Origin>,
    complete: Result<(), console::Error>,
    symbols: Option<&Symbols>,
) -> Result<u8, AnyError> {
    let machine = handle.machine();
    let by_itself = end == Some(Origin::Guest);
    let ending =
        handle.ending().ok_or("the thread that drives the guest is gone; this is a bug of lodger")?;
    match end {
        Some(Origin::Reader) => {
            return Err("console output has no reader any longer, so the guest was ended".into());
        }
        Some(Origin::Control | Origin::Timeout | Origin::Snapshot) => say!("lodger: {}", ending.reason),
        Some(Origin::Guest) => match machine.wait() {
            Outcome::Fatal(report) => {
                say!("lodger: {}", report.with_symbols(symbols).to_string().trim_end());
                if let Some(code) = machine.last_post_code() {
                    say!("  last POST code: {code:#04x}");
                }
            }
            outcome @ (Outcome::Failed(_) | Outcome::Panicked | Outcome::GuestPanicked | Outcome::Halted) => {
                say!("lodger: {outcome}");
            }
            _ => {}
        },
        _ => {}
    }
    let status = ending.status;
    match complete {
        Err(error) if by_itself && status == 0 => return Err(error.into()),
        // Whoever ends a guest in the middle of its output does not expect all of it.
        Err(console::Error::Unread { .. }) if !by_itself => {}
        // The guest's own failure is the more important one.
        Err(error) => say!("lodger: {error}"),
        Ok(()) => {}
    }
    Ok(status)
}
