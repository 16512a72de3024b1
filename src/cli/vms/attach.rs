//! `lodger attach`: the console of a machine that another process runs.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use clap::Args;
use lodger::console::{self, Console, Input};
use serde_json::json;

use super::Which;
use crate::cli::AnyError;
use crate::cli::attend::wait;
use crate::cli::say::say;
use crate::cli::signals::{Signal, Signals};

/// What is typed and not taken is forgotten beyond this.
const MOST_HELD: usize = 4096;

const HELP: &str = "\
Ctrl-A x leaves, and the guest goes on; Ctrl-A h helps. Several may be attached at once: all see what is printed from then on,
and what they type goes to the guest as it comes. `lodger logs` shows what was printed before.";

/// Use the console of a VM, besides whoever else does
#[derive(Args)]
#[command(after_help = HELP)]
pub struct AttachArgs {
    #[command(flatten)]
    which: Which,
}

/// Why it is over.
enum End {
    Left,
    Machine,
    Signal(libc::c_int),
}

pub fn attach(arguments: &AttachArgs) -> Result<u8, AnyError> {
    let mut client = arguments.which.connect()?;
    client.call("attach", json!({}))?;
    let (stream, come) = client.into_stream();
    stream.set_nonblocking(true)?;
    console::install_panic_hook();
    console::catch_fatal_signals();
    let signals = Signals::block()?;
    let mut console = Console::attached()?;
    console.output().push(&come);
    let end = carry(stream, &mut console, &signals);
    let on_terminal = console.is_interactive();
    let complete = console.close();
    match end? {
        End::Signal(number) => return Ok(u8::try_from(128 + number).unwrap_or(u8::MAX)),
        // The shell's prompt shall not follow on the guest's line.
        End::Left if on_terminal => say!(""),
        End::Left => {}
        End::Machine => say!("lodger: the VM {} has ended", arguments.which.name()),
    }
    complete?;
    Ok(0)
}

/// Carries bytes both ways.
fn carry(mut stream: UnixStream, console: &mut Console, signals: &Signals) -> io::Result<End> {
    let output = console.output();
    let mut held: Vec<u8> = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let input = if console.is_interactive() || held.is_empty() { console.input() } else { None };
        let limit = if held.is_empty() { -1 } else { 10 };
        let ready = wait([Some(stream.as_fd()), Some(signals.as_fd()), input, output.pipe()], limit)?;
        match signals.next() {
            Some(Signal::End(number)) => return Ok(End::Signal(number)),
            Some(Signal::Continue) => console.resume_terminal()?,
            _ => {}
        }
        if ready[3] {
            return Ok(End::Left);
        }
        if ready[0] {
            match stream.read(&mut buffer) {
                Ok(0) => return Ok(End::Machine),
                Ok(count) => output.push(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // It was killed.
                Err(_) => return Ok(End::Machine),
            }
        }
        if ready[2] && listen(console, &mut held)? {
            return Ok(End::Left);
        }
        match stream.write(&held) {
            Ok(count) => drop(held.drain(..count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // Reading tells.
            Err(_) => held.clear(),
        }
    }
}

/// Reads what was typed; whether the user wants to leave.
fn listen(console: &mut Console, held: &mut Vec<u8>) -> io::Result<bool> {
    let mut buffer = [0; 4096];
    loop {
        match console.read_input(&mut buffer)? {
            Input::Bytes(count) if held.len() < MOST_HELD => held.extend_from_slice(&buffer[..count]),
            Input::Bytes(_) => {}
            Input::Leave => return Ok(true),
            // A pipe that has ended: what the guest answers is still shown.
            Input::End | Input::Nothing => return Ok(false),
        }
        if !console.is_interactive() {
            return Ok(false);
        }
    }
}
