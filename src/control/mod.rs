//! The control socket of a running machine, and its clients.
//!
//! `control.sock` in the machine's directory is its owner's alone. A client writes requests, one JSON object in a line,
//! and reads answers the same way; `docs/control-protocol.md` describes them all. A thread accepts clients, and each
//! has one of its own: whatever a client does or does not, neither the guest nor other clients wait for it. Lines have
//! a bounded length, clients a bounded number, and who does not read is left after a while.
//!
//! `cli/` serves and speaks it; this room relies on `vm/` and on `console/` for what is attached to.

mod client;
mod line;
mod protocol;
mod server;
mod session;

pub use client::{Client, ClientError};
pub use protocol::{PROTOCOL, Status};
pub use server::{MOST_CLIENTS, MOST_STAYING, Servable, Served, Server, ServerError};

/// The socket's name in a machine's directory.
pub const SOCKET: &str = "control.sock";

#[cfg(test)]
#[path = "control_test.rs"]
mod tests;
