//! `lodger logs`: what a machine's console has printed.

use std::io::{self, Read, Write};

use clap::Args;
use lodger::console::LogReader;
use serde_json::json;

use super::{Which, left};
use crate::cli::AnyError;
use crate::cli::disk::output;
use crate::cli::say::{shown, to_standard_error};

/// Print what the console of a VM that was started with --detach has printed
///
/// The newest quarter MiB is kept at least. When the VM has ended, the last 64 KiB stay until `lodger rm` or the next start of
/// the same name; then what lodger itself said of the VM, as a fatal report, is printed as well, to standard error.
#[derive(Args)]
pub struct LogsArgs {
    #[command(flatten)]
    which: Which,
    /// Go on until the VM has ended
    #[arg(long, short)]
    follow: bool,
    /// Print it as JSON: {"text": what the console printed, "messages": what lodger said of a VM that has ended}
    #[arg(long, conflicts_with = "follow")]
    json: bool,
}

pub fn logs(arguments: &LogsArgs) -> Result<u8, AnyError> {
    if arguments.json {
        let mut text = Vec::new();
        let messages = write(arguments, &mut text)?.1;
        let text = String::from_utf8_lossy(&text);
        output::print(true, &json!({ "text": text, "messages": messages }), |_| String::new())?;
        return Ok(0);
    }
    let (copied, messages) = write(arguments, &mut io::stdout().lock())?;
    to_standard_error(format_args!("{messages}"));
    shown("the log", copied).map(|_| 0)
}

/// Writes the log to `output`, and says whether that went well and what lodger said of a machine that has ended.
fn write(arguments: &LogsArgs, output: &mut impl Write) -> Result<(io::Result<()>, String), AnyError> {
    match arguments.which.connect() {
        Ok(mut client) => {
            client.call("logs", json!({ "follow": arguments.follow }))?;
            client.be_patient()?;
            let (mut stream, come) = client.into_stream();
            let copied = output.write_all(&come).and_then(|()| copy(output, |buffer| stream.read(buffer)));
            Ok((copied, String::new()))
        }
        Err(error) => {
            let said = error.to_string();
            let found = left::instead(error, arguments.which.name())?;
            let (log, messages) = (LogReader::open(&found.path), found.messages());
            if log.is_err() && messages.is_empty() {
                return Err(format!("{said}; it kept no log of its console").into());
            }
            let copied = log.map_or(Ok(()), |mut log| copy(output, |buffer| log.read(buffer)));
            Ok((copied, messages))
        }
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
