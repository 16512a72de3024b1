//! `lodger restore`: a guest goes on from its snapshot, in this process.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use lodger::console::Spec;
use lodger::hv::Hypervisor;
use lodger::snapshot::Snapshot;
use lodger::vm::description::Description;
use lodger::vm::inspect::RestoredFrom;
use lodger::vm::{
    Clock, Config, Error, Kernel, Machine, Name, PortSpec, Reopening, SavedDescription, SavedDisks, Timeline,
    disk_name, stored_for,
};

use super::AnyError;
use super::guest::{self, Guest, ShownArgs};
use super::say::say;
use super::snapshot::BaseArgs;

/// What is said behind the list of options.
pub const HELP: &str = "\
The guest has the processors, memory and devices that it had; what was said of them is in the snapshot, with the names of disks,
sockets and files. Its memory is mapped and not read, so that this takes milliseconds, and a page that it changes is a copy: the
snapshot stays as it is, and may be restored any number of times, also at once, under different names. While a guest that was
restored runs, the snapshot has to stay where it is; a newer one may replace it.

Kernel and initial file systems are not needed. Disks are what they were, and what the guest changes on them is forgotten with the
VM, unless --overlay or --write-disks says otherwise. What cannot be had here is said before anything runs.

Statuses are those of `lodger run`.

Examples:
  lodger restore before-update
  lodger restore before-update --name web2 --detach
  lodger restore /backup/web --console pty --port agent,socket=/tmp/agent2.sock --overlay vda=changes.qcow2";

/// From which snapshot, and what is otherwise.
#[derive(Args)]
pub struct RestoreArgs {
    /// The snapshot
    directory: PathBuf,

    #[command(flatten)]
    bases: BaseArgs,

    /// What the VM is called while it runs [default: what it was called before]
    #[arg(long, value_name = "NAME")]
    name: Option<Name>,

    /// Return when the guest runs, and leave it without a terminal; prints the VM's name
    ///
    /// As with `lodger run --detach`: what a console on stdio would print is kept in the VM's directory.
    #[arg(long, short)]
    detach: bool,

    /// Leave the guest where it is until `lodger resume`
    #[arg(long)]
    paused: bool,

    /// Where the guest's console is: stdio, pty, file=PATH or none [default: where it was]
    ///
    /// It is the one that it was, the serial port or the virtio console.
    #[arg(long, value_name = "WHERE")]
    console: Option<Spec>,

    /// Where one of the guest's ports leads: its name, and after a comma socket=PATH, pty or file=PATH; may be given several times
    ///
    /// The others lead where they led. A file is emptied at the start.
    #[arg(long, value_name = "NAME,WHERE")]
    port: Vec<PortSpec>,

    /// Where the image of one of the guest's disks is by now: what Linux calls the disk, and the file; may be given several times
    ///
    /// It has to hold what it held when the snapshot was taken.
    #[arg(long, value_name = "vdX=FILE")]
    disk: Vec<DiskAt>,

    /// Keep what the guest changes on one of its disks in FILE, which is made; may be given several times
    ///
    /// Without this, changes go to an overlay that goes away with the VM. A FILE that a VM has written to already is refused:
    /// the guest would find its disk changed behind its back.
    #[arg(long, value_name = "vdX=FILE")]
    overlay: Vec<DiskAt>,

    /// Have the guest write to the images that the snapshot names, which uses it up
    ///
    /// For those who have ended a VM with its snapshot to go on once, and no more than once. Only disks that were kept by reference
    /// can be written to; what the guest changes on others is kept with --overlay.
    #[arg(long)]
    write_disks: bool,

    /// What the guest's clocks show: host if they have gone on meanwhile, stopped if no time has passed for the guest [default:
    /// host, unless the VM was described otherwise]
    ///
    /// Clocks that have gone on are right at once. But a kernel with periodic ticks, without high-resolution timers, makes up for
    /// every tick of that time before it does anything else. Where KVM works without VT-x and AMD-V this takes some ten seconds for
    /// a quarter of an hour, which a line on standard error warns of; with stopped it takes no time, and the guest's wall clock is
    /// late.
    #[arg(long, value_name = "WHICH")]
    clock: Option<Clock>,

    /// Compare all of the snapshot with its checksums first, memory and copies of disks too
    ///
    /// Images that are not in the snapshot have none. With or without this, one that is missing, has another length or was written
    /// to since is refused.
    #[arg(long)]
    check: bool,

    #[command(flatten)]
    shown: ShownArgs,
}

/// A file for one of the disks.
#[derive(Debug, Clone, PartialEq, Eq)]
struct DiskAt {
    /// Counted from zero.
    number: usize,
    path: PathBuf,
}

#[derive(Debug, thiserror::Error)]
#[error(
    "{0:?} does not begin with a disk of the guest: write vda=FILE for the first, vdb=FILE for the second"
)]
struct DiskAtError(String);

impl FromStr for DiskAt {
    type Err = DiskAtError;

    fn from_str(text: &str) -> Result<Self, DiskAtError> {
        let (name, path) = text.split_once('=').unwrap_or((text, ""));
        match name.strip_prefix("vd").map(str::as_bytes) {
            Some(&[letter @ b'a'..=b'z']) if !path.is_empty() => {
                Ok(Self { number: usize::from(letter - b'a'), path: path.into() })
            }
            _ => Err(DiskAtError(text.to_owned())),
        }
    }
}

/// Runs the guest to its end; returns the process's exit status.
pub fn restore(arguments: &RestoreArgs, mut timeline: Timeline) -> Result<u8, AnyError> {
    let snapshot = arguments.bases.open(&arguments.directory)?;
    let disks = SavedDisks::of(&snapshot)?;
    if arguments.check {
        snapshot.check()?;
    }
    let mut description = arguments.change(described(&snapshot)?)?;
    if let Some(disks) = disks {
        let described = &description.config.disks;
        description.config.disks = disks.specs(snapshot.directory(), described, &arguments.reopening())?;
    }
    timeline.mark("snapshot opened");
    let guest = Guest {
        description,
        restored_from: Some(RestoredFrom::from(&snapshot)),
        detach: arguments.detach,
        paused: arguments.paused,
        shown: &arguments.shown,
    };
    guest::host(&guest, timeline, |kvm, config, console, timeline| {
        let machine = Machine::restore(kvm, config, &snapshot, console, timeline).map_err(with_port)?;
        // The embedded guest has no ticks.
        if config.clock == Clock::Host && !kvm.is_in_hardware() && config.kernel != Kernel::Embedded {
            let warning = of_ticks(stored_for(&snapshot)?);
            warning.iter().for_each(|warning| say!("lodger: {warning}"));
        }
        Ok(machine)
    })
}

/// What may come of clocks that are put forward where kernels run slowly: the handler of each tick that is made up for
/// takes some 115 microseconds there, and nothing else runs before the last.
fn of_ticks(stored: Duration) -> Option<String> {
    const SHORT: Duration = Duration::from_secs(30);
    (stored > SHORT).then(|| {
        format!(
            "the guest's clocks are put forward by {}; a kernel with periodic ticks makes up for each of them before it \
             answers, which may take long on this host; --clock stopped avoids it",
            time(stored)
        )
    })
}

/// A time for people.
fn time(time: Duration) -> String {
    let seconds = time.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {minutes} min"),
        (1, _, _) => format!("a day and {hours} h"),
        _ => format!("{days} days and {hours} h"),
    }
}

/// What the snapshot says of its machine.
fn described(snapshot: &Snapshot) -> Result<Description, AnyError> {
    let place = snapshot.directory().display();
    let Some(SavedDescription { text }) = SavedDescription::of(snapshot)? else {
        return Err(format!(
            "{place} does not say how its machine was described: it was taken by another program, which can restore it \
             with `Machine::restore` of the library"
        )
        .into());
    };
    Description::from_toml(&text)
        .map_err(|error| format!("the description of the machine in {place} cannot be used: {error}").into())
}

impl RestoreArgs {
    /// The same with what is said to be otherwise.
    fn change(&self, mut description: Description) -> Result<Description, AnyError> {
        let Description { config, console } = &mut description;
        if let Some(name) = &self.name {
            config.name = Some(name.clone());
        }
        if let Some(place) = &self.console {
            console.clone_from(place);
        }
        if let Some(clock) = self.clock {
            config.clock = clock;
        }
        for PortSpec { name, place } in &self.port {
            let port = config.ports.iter_mut().find(|port| port.name == *name);
            match port {
                Some(port) => port.place.clone_from(place),
                None => return Err(no_port(name, config).into()),
            }
        }
        let disks = |option, disks: &[DiskAt]| once(option, disks.iter().map(|at| disk_name(at.number)));
        disks("--disk", &self.disk)?;
        disks("--overlay", &self.overlay)?;
        once("--port", self.port.iter().map(|port| port.name.clone()))?;
        for DiskAt { number, .. } in self.disk.iter().chain(&self.overlay) {
            if *number >= config.disks.len() {
                return Err(no_disk(*number, config).into());
            }
        }
        Ok(description)
    }

    /// Where the disks are.
    fn reopening(&self) -> Reopening {
        let places = |disks: &[DiskAt]| disks.iter().map(|at| (at.number, at.path.clone())).collect();
        Reopening {
            replaced: places(&self.disk),
            overlays: places(&self.overlay),
            write_references: self.write_disks,
            compare: self.check,
        }
    }
}

/// Fails if an option says two things of one name.
fn once(option: &str, names: impl Iterator<Item = String>) -> Result<(), String> {
    let mut seen = Vec::new();
    for name in names {
        if seen.contains(&name) {
            return Err(format!("{option} says two things of {name}: leave one of them out"));
        }
        seen.push(name);
    }
    Ok(())
}

fn no_port(name: &str, config: &Config) -> String {
    let names: Vec<_> = config.ports.iter().map(|port| port.name.as_str()).collect();
    match names.as_slice() {
        [] => format!("the guest has no port {name}: it has none at all"),
        names => format!("the guest has no port {name}: it has {}", names.join(", ")),
    }
}

fn no_disk(number: usize, config: &Config) -> String {
    match config.disks.len() {
        0 => format!("the guest has no disk {}: it has none at all", disk_name(number)),
        count => format!("the guest has no disk {}: the last is {}", disk_name(number), disk_name(count - 1)),
    }
}

/// An error with what the user can do about it here.
fn with_port(error: Error) -> AnyError {
    match &error {
        Error::Port { name, .. } => format!("{error}; --port {name},WHERE has it lead somewhere else").into(),
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(arguments: &[&str], config: Config) -> Result<Description, String> {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            restore: RestoreArgs,
        }
        let line = ["restore", "somewhere"].iter().chain(arguments);
        let Line { restore } = clap::Parser::try_parse_from(line).map_err(|error| error.to_string())?;
        let description = Description { config, console: Spec::Pty };
        restore.change(description).map_err(|error| error.to_string())
    }

    fn config() -> Config {
        Config {
            name: Some("web".parse().unwrap()),
            disks: vec!["root.img,queues=2,serial=ROOT".parse().unwrap(), "data.img,ro".parse().unwrap()],
            ports: vec!["agent,socket=/run/agent".parse().unwrap(), "log,file=log".parse().unwrap()],
            ..Config::default()
        }
    }

    #[test]
    fn what_is_said_is_otherwise_and_all_else_as_it_was() {
        let same = with(&[], config()).unwrap();
        assert_eq!(same, Description { config: config(), console: Spec::Pty });
        let Description { config: changed, console } = with(
            &[
                "--name=web2",
                "--console=none",
                "--port=agent,pty",
                "--disk=vdb=new.img",
                "--overlay=vda=/a=b",
                "--write-disks",
                "--clock=stopped",
            ],
            config(),
        )
        .unwrap();
        assert_eq!((changed.name, console), (Some("web2".parse().unwrap()), Spec::None));
        let ports: Vec<_> = changed.ports.iter().map(ToString::to_string).collect();
        assert_eq!(ports, ["agent,pty", "log,file=log"]);
        assert_eq!((changed.disks, changed.clock), (config().disks, Clock::Stopped));
    }

    #[test]
    fn of_a_disk_or_port_one_thing_can_be_said() {
        for (option, first, second, name) in [
            ("--disk", "vda=a", "vda=b", "vda"),
            ("--overlay", "vdb=a", "vdb=a", "vdb"),
            ("--port", "log,file=a", "log,pty", "log"),
        ] {
            let error = with(&[option, first, option, second], config()).unwrap_err();
            assert_eq!(error, format!("{option} says two things of {name}: leave one of them out"));
        }
        with(&["--disk", "vda=a", "--overlay", "vda=b", "--disk", "vdb=c"], config()).unwrap();
    }

    #[test]
    fn clocks_that_are_put_forward_far_are_told_of() {
        let said = |seconds| of_ticks(Duration::from_secs(seconds));
        assert_eq!((said(0), said(30)), (None, None));
        for (seconds, time) in [
            (31, "31 s"),
            (843, "14 min 3 s"),
            (3600, "1 h 0 min"),
            (90_061, "a day and 1 h"),
            (u64::MAX, "213503982334601 days and 7 h"),
        ] {
            let said = said(seconds).unwrap();
            let forward = format!("put forward by {time}; ");
            assert!(said.contains(&forward) && said.contains("--clock stopped"), "{said}");
        }
    }

    #[test]
    fn what_the_guest_does_not_have_or_would_notice_is_refused_with_the_reason() {
        for (argument, said) in [
            ("--port=agnet,pty", "no port agnet: it has agent, log"),
            ("--disk=vdc=x", "no disk vdc: the last is vdb"),
            ("--disk=sda=x", "write vda=FILE"),
            ("--disk=vda", "write vda=FILE"),
            ("--disk=vdaa=x", "write vda=FILE"),
            ("--disk=vda=", "write vda=FILE"),
            ("--overlay=vdz=x", "no disk vdz"),
            ("--console=virtio", "is not a console"),
            ("--clock=utc", "host or stopped"),
            ("--memory=1G", "--memory"),
        ] {
            let error = with(&[argument], config()).unwrap_err();
            assert!(error.contains(said), "{argument}: {error}");
        }
        let none = with(&["--port=a,pty"], Config::default()).unwrap_err();
        assert!(none.contains("none at all"), "{none}");
    }
}
