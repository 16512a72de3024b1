//! `--profile` and `--symbols`: sampling the guest from its first to its last moment, and names for what is found.

use std::fmt::Display;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use lodger::boot::{Source, Symbols};
use lodger::hv::Vm;
use lodger::snapshot;
use lodger::vcpu::{Interval, Profile, Profiler};
use lodger::vm::{Config, Machine};

use super::AnyError;
use super::say::say;

/// What the user wants to know of the guest's code.
#[derive(Args)]
pub struct ProfileArgs {
    /// Sample where the guest's processors are; at the end FILE has a table by function and every sample
    ///
    /// The guest notices nothing; a sample costs it an exit. FILE is text that explains itself.
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,

    /// How often each processor is sampled: from 50us to 60s
    #[arg(long, value_name = "TIME", default_value_t, requires = "profile")]
    profile_interval: Interval,

    /// The vmlinux or System.map with the names of the kernel's functions, for profiles and fatal reports
    ///
    /// Without this they are taken from KERNEL, if it is an ELF file that has them.
    #[arg(long, value_name = "FILE")]
    symbols: Option<PathBuf>,
}

/// The names of the guest's functions: read at once if the user named a file, so that a wrong one is told in
/// time, else when they are needed.
pub struct Names {
    named: Option<Symbols>,
    config: Config,
}

impl Names {
    pub fn new(arguments: &ProfileArgs, config: &Config) -> Result<Self, AnyError> {
        let named = arguments.symbols.as_deref().map(|path| Symbols::read(Source::File(path))).transpose()?;
        Ok(Self { named, config: config.clone() })
    }

    /// Gets them.
    pub fn look_up(self) -> Option<Symbols> {
        self.named.or_else(|| self.config.symbols())
    }
}

/// A profile that is being made.
pub struct Profiling {
    path: PathBuf,
    file: File,
    profiler: Profiler,
}

impl Profiling {
    /// Begins if the user wants it. The file is made now: a path that is none shall not cost a whole run.
    pub fn start<V: Vm>(arguments: &ProfileArgs, machine: &Machine<V>) -> Result<Option<Self>, AnyError> {
        let Some(path) = &arguments.profile else { return Ok(None) };
        if let Some(snapshot) = snapshot::around(path) {
            return Err(cannot_write(path, &format!("it is in the snapshot {}", snapshot.display())).into());
        }
        let file = File::create(path).map_err(|error| cannot_write(path, &error))?;
        let profiler = machine.profile(arguments.profile_interval)?;
        Ok(Some(Self { path: path.clone(), file, profiler }))
    }

    /// Takes no more samples.
    pub fn finish(self) -> Profiled {
        let Self { path, file, profiler } = self;
        Profiled { path, file, profile: profiler.finish() }
    }
}

/// A profile that has been made.
pub struct Profiled {
    path: PathBuf,
    file: File,
    profile: Profile,
}

impl Profiled {
    /// Writes it, and tells in a line what it says.
    pub fn write(self, symbols: Option<&Symbols>) -> Result<(), AnyError> {
        let Self { path, file, profile } = self;
        let mut out = BufWriter::new(file);
        let written = profile.write(symbols, &mut out).and_then(|()| out.flush());
        written.map_err(|error| cannot_write(&path, &error))?;
        say!("lodger: profile: {}; written to {}", profile.summary(symbols), path.display());
        Ok(())
    }
}

fn cannot_write(path: &Path, error: &impl Display) -> String {
    format!("cannot write the profile to {}: {error}", path.display())
}
