//! The commands that ask something of a machine that another process runs: a file for each.

pub mod attach;
pub mod balloon;
pub mod events;
pub mod inspect;
pub mod logs;
pub mod pause;
pub mod ps;
pub mod resume;
pub mod stop;
pub mod wait;

use clap::Args;
use lodger::control::{Client, ClientError};
use lodger::vm::Name;
use serde_json::Value;

/// Which machine is meant.
#[derive(Args)]
pub struct Which {
    /// What the VM is called; `lodger ps` lists them
    name: Name,
}

impl Which {
    /// Connects to it.
    pub fn connect(&self) -> Result<Client, ClientError> {
        Client::connect(&self.name)
    }

    /// What it is called.
    pub fn name(&self) -> &Name {
        &self.name
    }
}

/// A field of an answer, as a text.
fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or("-")
}
