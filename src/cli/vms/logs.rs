//! `lodger logs`: what a machine's console has printed.

use std::io::{self, Read, Write};

use clap::Args;
use lodger::console::LogReader;
use lodger::control::ClientError;
use lodger::vm;
use serde_json::json;

use super::Which;
use crate::cli::AnyError;

/// Print what the console of a VM that was started with --detach has printed
///
/// The newest quarter MiB is kept at least, in the VM's directory, and goes away with it.
#[derive(Args)]
pub struct LogsArgs {
    #[command(flatten)]
    which: Which,
    /// Go on until the VM has ended
    #[arg(long, short)]
    follow: bool,
}

pub fn logs(arguments: &LogsArgs) -> Result<u8, AnyError> {
    let mut output = io::stdout().lock();
    let copied = match arguments.which.connect() {
        Ok(mut client) => {
            client.call("logs", json!({ "follow": arguments.follow }))?;
            client.be_patient()?;
            let (mut stream, come) = client.into_stream();
            output.write_all(&come).and_then(|()| copy(&mut output, |buffer| stream.read(buffer)))
        }
        // What it has left is there until the next start.
        Err(error @ ClientError::Dead(_)) => {
            let found = vm::find(arguments.which.name())?;
            let Some(mut reader) = found.and_then(|found| LogReader::open(&found.path).ok()) else {
                return Err(error.into());
            };
            copy(&mut output, |buffer| reader.read(buffer))
        }
        Err(error) => return Err(error.into()),
    };
    match copied {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(format!("cannot print the log: {error}").into())
        }
        _ => Ok(0),
    }
}

fn copy(output: &mut impl Write, mut read: impl FnMut(&mut [u8]) -> io::Result<usize>) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        match read(&mut buffer)? {
            0 => return Ok(()),
            count => output.write_all(&buffer[..count]).and_then(|()| output.flush())?,
        }
    }
}
