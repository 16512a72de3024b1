//! `lodger completions`: scripts that teach a shell lodger's command line.

use std::io::{self, Write};

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::AnyError;
use super::say::shown;

/// Print completions for a shell.
#[derive(Args)]
pub struct CompletionsArgs {
    /// The shell they are for, as in `lodger completions bash > ~/.local/share/bash-completion/completions/lodger`
    shell: Shell,
}

/// Prints the script to standard output.
pub fn print(arguments: &CompletionsArgs) -> Result<(), AnyError> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut super::Arguments::command(), "lodger", &mut script);
    let mut output = io::stdout();
    shown("the completions", output.write_all(&script).and_then(|()| output.flush())).map(drop)
}
