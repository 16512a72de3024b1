//! The commands that ask something of a machine that another process runs: a file for each.

pub mod attach;
pub mod balloon;
pub mod events;
pub mod inspect;
mod left;
pub mod logs;
pub mod pause;
pub mod ps;
pub mod resume;
pub mod rm;
pub mod stop;
pub mod wait;

use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use lodger::control::{Client, ClientError};
use lodger::vm::{self, Name};
use serde_json::Value;

use crate::cli::AnyError;

/// How long a process may take to end whose machine has stopped.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a machine may have no socket.
const CHANGE: Duration = Duration::from_secs(5);
/// How long is waited before it is tried again.
const STEP: Duration = Duration::from_millis(2);

/// Which machine is meant.
#[derive(Args)]
pub struct Which {
    /// What the VM is called; `lodger ps` lists them
    name: Name,
}

impl Which {
    /// Connects to it. One that begins or ends just now takes no clients for a moment.
    pub fn connect(&self) -> Result<Client, ClientError> {
        let start = Instant::now();
        loop {
            match Client::connect(&self.name) {
                Err(ClientError::Connect { .. }) if start.elapsed() < CHANGE => thread::sleep(STEP),
                done => return done,
            }
        }
    }

    /// What it is called.
    pub fn name(&self) -> &Name {
        &self.name
    }
}

/// Waits until the process of a machine that has stopped is gone, and its name is free again.
pub fn until_gone(client: Client) -> Result<(), AnyError> {
    let found = client.found().clone();
    // It waits for its clients.
    drop(client);
    let start = Instant::now();
    while vm::find(&found.name)?.is_some_and(|now| now.alive && now.pid == found.pid) {
        if start.elapsed() > PATIENCE {
            return Err(format!("the VM {} has stopped, but its process does not end", found.name).into());
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// A field of an answer, as a text.
pub fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or("-")
}
