//! `lodger rm`: nothing is left of a machine.

use clap::Args;
use lodger::vm::{self, Name};

use crate::cli::AnyError;
use crate::cli::say::say;

/// Clear away what VMs have left that have ended or were killed
///
/// What a VM without a terminal has left is how it ended, and the last of what it printed and said; what a killed one has
/// left is all that was in its directory, overlays that nobody wanted to keep included. VMs that run are refused.
#[derive(Args)]
pub struct RmArgs {
    /// What the VMs were called; `lodger ps --all` lists them
    #[arg(required_unless_present = "all")]
    name: Vec<Name>,
    /// All that have ended or were killed
    #[arg(long, short, conflicts_with = "name")]
    all: bool,
}

pub fn rm(arguments: &RmArgs) -> Result<u8, AnyError> {
    let names = if arguments.all {
        let gone = vm::list()?.into_iter().filter(|found| !found.alive);
        gone.map(|found| found.name).collect()
    } else {
        arguments.name.clone()
    };
    let mut status = 0;
    for name in &names {
        let error = match vm::clear(name) {
            Ok(true) => continue,
            // Somebody else was faster.
            Ok(false) if arguments.all => continue,
            Ok(false) => format!("there is no VM called {name}; `lodger ps --all` lists what there is"),
            Err(error) => error.to_string(),
        };
        say!("lodger: {error}");
        status = 1;
    }
    Ok(status)
}
