//! The command line: one file per subcommand, and what is printed. Knows nothing of KVM.

mod attend;
mod completions;
mod describe;
mod detach;
mod disk;
mod doctor;
mod flags;
mod guest;
mod keyboard;
mod profile;
mod restore;
mod run;
mod say;
mod signals;
mod snapshot;
mod stats;
mod vms;

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use lodger::console;
use lodger::vm::Timeline;
use say::say;

/// What went wrong, with everything behind it; printed as one line.
type AnyError = Box<dyn Error>;

const STATUSES: &str = "\
Exit status of `run`:
  0    the guest ended well (it switched itself off, reset the machine, halted for good, or wrote 0 to the
       debug-exit port), or you left with Ctrl-A x
  1    lodger could not do what was asked
  2    the command line was not understood
  101  the guest had a triple fault
  102  KVM gave up, for example at an instruction that neither it nor lodger can run
  103  the processor refused the guest's state
  104  KVM came back for a reason that lodger does not know
  105  the guest's kernel panicked and said so (Linux with CONFIG_PVPANIC does; others reset)
  N    the guest wrote N to the debug-exit port 0xf4 (choose other numbers than the above)
  137  it was killed by `lodger kill`, or by `lodger stop` when its time was over
  128+N  lodger was ended by signal N";

const EXAMPLES: &str = "\
`lodger run -h` lists the options of run, `lodger --help` has all.

Examples:
  lodger                                      boot the embedded guest and talk to it
  lodger run vmlinux --initrd root.cpio       boot Linux
  printf 'exits\\nhalt\\n' | lodger run         let the embedded guest measure what a trap costs
  lodger run --cpus 4,threads=2 --cpu baseline  a guest that can move to other servers
  lodger disk create vm.qcow2 --backing base.qcow2  a copy-on-write disk; `lodger disk --help` has more
  lodger run --name web --detach vmlinux …    Linux without a terminal; then lodger ps, attach web, stop web
  lodger doctor                               what this host can do, and what to do about what it cannot

RUST_LOG=debug tells more about what happens, on standard error.";

/// A hosted hypervisor on Linux KVM: one guest, one ordinary process.
#[derive(Parser)]
#[command(name = "lodger", version, after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,

    /// What `run` takes: without a subcommand, `lodger` runs.
    #[command(flatten)]
    run: run::RunArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Boot a guest in this process [default]
    #[command(after_help = STATUSES)]
    Run(Box<run::RunArgs>),
    /// Go on with a guest from its snapshot, in this process
    #[command(after_help = restore::HELP)]
    Restore(Box<restore::RestoreArgs>),
    Ps(vms::ps::PsArgs),
    Inspect(vms::inspect::InspectArgs),
    Logs(vms::logs::LogsArgs),
    Attach(vms::attach::AttachArgs),
    Pause(vms::pause::PauseArgs),
    Resume(vms::resume::ResumeArgs),
    Stop(vms::stop::StopArgs),
    Kill(vms::stop::KillArgs),
    Wait(vms::wait::WaitArgs),
    Rm(vms::rm::RmArgs),
    Events(vms::events::EventsArgs),
    Balloon(vms::balloon::BalloonArgs),
    /// Make, examine and change disk images
    Disk(disk::DiskArgs),
    /// Take a snapshot of a VM, or look at one
    Snapshot(snapshot::SnapshotArgs),
    /// Say what this host can do, and what to do about what it cannot
    Doctor(doctor::DoctorArgs),
    /// Print completions for a shell
    Completions(completions::CompletionsArgs),
}

/// Runs what the command line says; returns the process's exit status.
pub fn main() -> ExitCode {
    let timeline = Timeline::start();
    share_one_heap();
    signals::outlive_file_limits();
    // RUST_LOG chooses what is logged; by default warnings are, to standard error. A guest may cause any number of those of
    // virtio_queue, and what they are about is told by ours as well.
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn,virtio_queue=off"))
        .format(|out, record| {
            detach::keep_messages_short();
            // A raw terminal does not return to the left by itself.
            let end = if console::terminal_is_raw() { "\r\n" } else { "\n" };
            write!(out, "lodger: {}: {}{end}", record.level().as_str().to_lowercase(), record.args())
        })
        .init();
    let matches = command().get_matches();
    let arguments = Arguments::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let result = match arguments.command {
        None => run::run(&arguments.run, timeline),
        Some(Command::Run(run)) => run::run(&run, timeline),
        Some(Command::Restore(arguments)) => restore::restore(&arguments, timeline),
        Some(Command::Ps(arguments)) => vms::ps::ps(&arguments),
        Some(Command::Inspect(arguments)) => vms::inspect::inspect(&arguments),
        Some(Command::Logs(arguments)) => vms::logs::logs(&arguments),
        Some(Command::Attach(arguments)) => vms::attach::attach(&arguments),
        Some(Command::Pause(arguments)) => vms::pause::pause(&arguments),
        Some(Command::Resume(arguments)) => vms::resume::resume(&arguments),
        Some(Command::Stop(arguments)) => vms::stop::stop(&arguments),
        Some(Command::Kill(arguments)) => vms::stop::kill(&arguments),
        Some(Command::Wait(arguments)) => vms::wait::wait(&arguments),
        Some(Command::Rm(arguments)) => vms::rm::rm(&arguments),
        Some(Command::Events(arguments)) => vms::events::events(&arguments),
        Some(Command::Balloon(arguments)) => vms::balloon::balloon(&arguments),
        Some(Command::Disk(arguments)) => disk::disk(&arguments),
        Some(Command::Snapshot(arguments)) => snapshot::snapshot(&arguments),
        Some(Command::Doctor(doctor)) => return doctor::doctor(&doctor),
        Some(Command::Completions(completions)) => completions::print(&completions).map(|()| 0),
    };
    match result {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            say!("lodger: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The command line. What `run` takes would push the list of commands off the screen; `lodger run -h` lists it.
fn command() -> clap::Command {
    Arguments::command().mut_args(|argument| argument.hide_short_help(true))
}

/// Lets all threads allocate from the one heap that is there already. A heap for each would cost every thread
/// seven system calls and some memory at its start; what threads do while a guest runs allocates nothing.
fn share_one_heap() {
    // SAFETY: sets a number of the allocator; nothing else runs yet.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

#[cfg(test)]
mod tests {
    use lodger::vm::ConsoleSpec;
    use lodger::vm::description::Description;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn without_a_subcommand_lodger_runs() {
        assert!(Arguments::try_parse_from(["lodger"]).unwrap().command.is_none());
        let arguments = Arguments::try_parse_from(["lodger", "--memory", "64M"]).unwrap();
        assert!(arguments.command.is_none());
        assert_eq!(arguments.run.memory.unwrap().size, 64 << 20);
    }

    #[test]
    fn the_defaults_are_those_that_the_help_tells() {
        let Description { config, console } = Description::default();
        let console = ConsoleSpec { virtio: config.virtio_console, place: console };
        let defaults = [
            ("memory", config.memory.to_string()),
            ("cpus", config.cpus.to_string()),
            ("cpu", config.cpu.to_string()),
            ("entry", config.entry.to_string()),
            ("console", console.to_string()),
            ("completion", config.completion.to_string()),
            ("clock", config.clock.to_string()),
        ];
        let command = command();
        let run = command.find_subcommand("run").unwrap();
        for (name, default) in defaults {
            let option = run.get_arguments().find(|option| option.get_long() == Some(name)).unwrap();
            let help = option.get_help().unwrap().to_string();
            assert!(help.ends_with(&format!(" [default: {default}]")), "{help}");
        }
    }

    #[test]
    fn what_means_nothing_is_refused_as_usage() {
        for line in [
            &["lodger", "run", "--memory", "much"][..],
            &["lodger", "run", "--cpus", "two"],
            &["lodger", "run", "--console", "teapot"],
            &["lodger", "run", "--nonsense"],
            &["lodger", "run", "one", "two"],
        ] {
            let error = Arguments::try_parse_from(line).err().expect("nonsense");
            assert_eq!(error.exit_code(), 2, "{line:?}");
        }
    }
}
